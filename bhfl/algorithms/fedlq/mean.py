"""The mean of models of which every tensor came either as a value or as a quantised difference."""

import torch
from lightning.fabric import Fabric
from torch import Tensor

from bhfl.comm import Tensors
from bhfl.engine.aggregate import ExactSum, Flattener, all_reduce_sum
from bhfl.engine.types import Client, Params
from bhfl.quant import QuantizedTensor


class MixedMean:
    """``mean_i w_i``, where a tensor of client i is ``w_i`` itself or, quantised, ``Q(w_t - w_i)``.

    A tensor of which all clients sent values is their mean as `WeightedMean` computes it, one of
    which all sent differences is ``w_t`` minus their mean as FedPAQ does: at 32 bits FedAvg, at one
    width FedPAQ, both to the bit.

    Args:
        start: ``w_t``.
    """

    def __init__(self, start: Params) -> None:
        self.start, self.flattener = start, Flattener(start)
        self.values, self.differences = (
            ExactSum(self.flattener.numel),
            ExactSum(self.flattener.numel),
        )
        self.weights = torch.zeros(2, len(start), dtype=torch.float64)
        """Of the values and of the differences of each tensor."""

    def add(self, update: Tensors, client: Client) -> None:
        """Fold in a decoded update."""
        for kind, total in enumerate((self.values, self.differences)):
            came = [isinstance(update[name], QuantizedTensor) == bool(kind) for name in self.start]
            if any(came):
                parts = zip(self.start.items(), came, strict=True)
                flat = {
                    n: _float(update[n]) if here else torch.zeros_like(like)
                    for (n, like), here in parts
                }
                total.add(self.flattener.flatten(flat), client.weight)
                self.weights[kind] += client.weight * torch.tensor(came)

    def reduce(self, fabric: Fabric) -> Params | None:
        """The mean over all processes' clients, float32; None where there was no client."""
        self.values.reduce(fabric)
        self.differences.reduce(fabric)
        weights = all_reduce_sum(fabric, self.weights)
        if not weights.sum() > 0:
            return None
        sizes = torch.tensor(self.flattener.sizes)
        by_value, by_difference = (weights[kind].repeat_interleave(sizes) for kind in (0, 1))
        start = self.flattener.flatten(self.start)
        values = (self.values.value() / by_value).float()
        stepped = start - (self.differences.value() / by_difference).float()
        mixed = (by_value * values.double() + by_difference * stepped.double()) / (
            by_value + by_difference
        )
        mean = torch.where(
            by_difference == 0, values, torch.where(by_value == 0, stepped, mixed.float())
        )
        return self.flattener.unflatten(mean)


def _float(value: Tensor | QuantizedTensor) -> Tensor:
    return value.dequantize() if isinstance(value, QuantizedTensor) else value
