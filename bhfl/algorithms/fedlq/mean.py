"""The mean of models of which every tensor came either as a value or as a quantised difference."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bhfl.algorithms.fedlq.sensitivity import HARM
from bhfl.comm import Tensors, float_tensors
from bhfl.engine.aggregate import Flattener
from bhfl.engine.processes import gather
from bhfl.engine.sums import ExactSum, Grid, all_reduce_sum
from bhfl.engine.types import Client, Params
from bhfl.quant import QuantizedTensor

# A small device trains with torch alone, so Lightning is imported for type checks only.
if TYPE_CHECKING:
    from lightning.fabric import Fabric


class MixedMean:
    """``mean_i w_i``, where a tensor of client i is ``w_i`` itself or, quantised, ``Q(w_t - w_i)``.

    A tensor of which all clients sent values is their mean as `WeightedMean` computes it, one of
    which all sent differences is ``w_t`` minus their mean as FedPAQ does: at 32 bits FedAvg, at one
    width FedPAQ, both to the bit.

    Args:
        start: ``w_t``.
    """

    def __init__(self, start: Params) -> None:
        self.start = start
        self.flattener = Flattener(start)
        numel = self.flattener.numel
        self.sums = [ExactSum(numel), ExactSum(numel)]
        """The sums of the values, and of the differences."""
        self.weights = torch.zeros(2, len(start), dtype=torch.float64)
        """The weights of the values, and of the differences, of each tensor."""

    def expect(self, cohort: Sequence[Client]) -> None:
        """The same grid for values and differences."""
        grid = Grid.of(self.start, cohort)
        self.sums = [ExactSum(self.flattener.numel, grid) for _ in self.sums]

    def add(self, update: Tensors, client: Client) -> None:
        """Fold in a decoded update."""
        floats = float_tensors(update)
        differ = [isinstance(update[name], QuantizedTensor) for name in self.start]
        for kind, total in enumerate(self.sums):
            came = [one == bool(kind) for one in differ]
            if not any(came):
                continue
            # a tensor of the other kind adds nothing here, and its weight is not counted below
            kept = {
                name: floats[name] if here else torch.zeros_like(like)
                for (name, like), here in zip(self.start.items(), came, strict=True)
            }
            total.add(self.flattener.flatten(kept), client.weight)
            self.weights[kind] += client.weight * torch.tensor(came)

    def reduce(self, fabric: "Fabric") -> Params | None:
        """The mean over all processes' clients, float32; None where there was no client."""
        for total in self.sums:
            total.reduce(fabric)
        weights = all_reduce_sum(fabric, self.weights)
        if not weights.sum() > 0:
            return None
        sizes = torch.tensor(self.flattener.sizes)
        by_value, by_difference = weights.repeat_interleave(sizes, dim=1)
        of_values, of_differences = self.sums
        start = self.flattener.flatten(self.start)
        # 0 / 0 is NaN where no client sent this kind: the choices at the end pass over it
        values = (of_values.value() / by_value).float()
        stepped = start - (of_differences.value() / by_difference).float()
        mixed = by_value * values.double() + by_difference * stepped.double()
        mean = (mixed / (by_value + by_difference)).float()
        # a mixture of one kind would round again, and both kinds alone are promised to the bit
        mean = torch.where(by_value == 0, stepped, mean)
        return self.flattener.unflatten(torch.where(by_difference == 0, values, mean))


class ProbedMean(MixedMean):
    """The mean of the models, and beside it what the clients measured."""

    def __init__(self, start: Params) -> None:
        super().__init__(start)
        self.harms: list[tuple[int, float, Tensor]] = []

    def add(self, update: Tensors, client: Client) -> None:
        """Fold in a decoded update, and keep its harm: the client's id, its weight, [L, P]."""
        super().add(update, client)
        if HARM in update:
            harm = float_tensors({HARM: update[HARM]})[HARM]
            self.harms.append((client.id, client.weight, harm))

    def reduce(self, fabric: "Fabric") -> Any:
        """The mean, and what all clients measured, by their ids."""
        return super().reduce(fabric), sorted(gather(fabric, self.harms), key=lambda harm: harm[0])
