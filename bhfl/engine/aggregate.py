"""Streaming means whose result does not depend on the order of the clients nor on the number of
processes.

Float sums depend on their order. `ExactSum` therefore splits every float64 term into three parts,
each a multiple of its own power of two and small enough that all sums of such parts are exact in
float64 (the idea of reproducible summation, Demmel and Nguyen 2013). Exact sums commute, so 1, 2 or
4 processes give the same bits by construction.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from bhfl.engine.handed import ReturnError
from bhfl.engine.types import Client, Params

if TYPE_CHECKING:
    from lightning.fabric import Fabric

# Each unit is 2^34 of the next: what rounding to one leaves is at most half of it, 2^33 of the
# next, and 2^20 such terms just fill the 53 bits of a float64. Of the first unit, 2^36 is 2^52.
_UNITS = (2.0**-16, 2.0**-50, 2.0**-84)
"""The parts are multiples of these; |sum| < 2^36 and at most 2^20 terms keep every partial sum
exact.
"""
MAX_TERM = 2.0**35
"""Bound on one |weight * value|: a larger update is refused before it is added."""
MAX_TOTAL = 2.0**36
_CHUNK = 1 << 16


class ExactSum:
    """A sum of float vectors of `numel` entries, exact to 2^-85, independent of order; 24 bytes an
    entry.
    """

    def __init__(self, numel: int) -> None:
        self.parts = torch.zeros(3, numel, dtype=torch.float64)

    def add(self, values: Tensor, weight: float | Tensor = 1.0) -> None:
        """Add ``weight * values``; `values` float [numel] on the CPU, `weight` a number or a float
        [numel].
        """
        for start in range(0, values.numel(), _CHUNK):
            stop = start + _CHUNK
            factor = weight[start:stop] if isinstance(weight, Tensor) else weight
            rest = values[start:stop].to(torch.float64) * factor
            for part, unit in zip(self.parts[:, start:stop], _UNITS, strict=True):
                # Adding it rounds to multiples of `unit`, subtracting keeps them. Within 2^51 units
                # of 1.5 * 2^52 units, where MAX_TERM keeps every term, a float64's last bit is one
                # unit for terms of either sign; below 2^52 units it would be half of one.
                magic = 1.5 * 2.0**52 * unit
                rounded = (rest + magic).sub_(magic)
                part.add_(rounded)
                rest.sub_(rounded)

    def reduce(self, fabric: Fabric) -> None:
        """Sum over the processes; every one of them holds the total afterwards."""
        self.parts = all_reduce_sum(fabric, self.parts)

    def value(self) -> Tensor:
        """The sum, float64 [numel]."""
        high, middle, low = self.parts
        total: Tensor = high + (middle + low)
        return total


def check_terms(values: Tensor, weight: float) -> None:
    """ValueError unless every ``weight * value`` is finite and small enough for exact sums; one
    pass.
    """
    if values.numel():
        low, high = (float(bound) for bound in torch.aminmax(values))
        # `not <` refuses NaN too, which aminmax passes on
        if not weight * max(high, -low) < MAX_TERM:
            raise ValueError("it has a value that is not finite or too large to average")


def all_reduce_sum(fabric: Fabric, tensor: Tensor) -> Tensor:
    """Sum of a CPU tensor over all processes, back on the CPU."""
    # all processes hold the same shape: either none of them leaves the collective out, or all do
    if fabric.world_size == 1 or not tensor.numel():
        return tensor
    # NCCL reduces tensors on GPUs alone
    total: Tensor = fabric.all_reduce(tensor.to(fabric.device), reduce_op="sum")  # type: ignore[assignment]
    return total.cpu()


class Flattener:
    """Params to one flat float32 vector and back, in the order of `like`."""

    def __init__(self, like: Params) -> None:
        self.shapes = {name: tensor.shape for name, tensor in like.items()}
        self.sizes = [tensor.numel() for tensor in like.values()]
        self.numel = sum(self.sizes)

    def flatten(self, params: Params) -> Tensor:
        """Float [numel].

        Raises:
            ReturnError: `params` lacks a tensor of `like`, or has one of another shape.
        """
        if not isinstance(params, Mapping):
            raise ReturnError(f"must be a dict of tensors by name, got {type(params).__name__}")
        for name, shape in self.shapes.items():
            value = params.get(name)
            if not isinstance(value, Tensor):
                got = "is missing" if value is None else f"got {value!r}"
                raise ReturnError(f"{name!r} must be a tensor, {got}")
            if value.shape != shape:
                raise ReturnError(
                    f"{name!r} must have shape {tuple(shape)}, got {tuple(value.shape)}"
                )
        if not self.shapes:
            return torch.zeros(0)
        return torch.cat([params[name].reshape(-1) for name in self.shapes])

    def unflatten(self, flat: Tensor) -> Params:
        """The inverse: float32 tensors, none of which shares its memory with another, because to
        pickle one would pickle all that share it.
        """
        params = {}
        pieces = torch.split(flat, self.sizes)
        for (name, shape), piece in zip(self.shapes.items(), pieces, strict=True):
            params[name] = piece.to(torch.float32, copy=True).view(shape)
        return params


class Aggregator(Protocol):
    """What an algorithm folds a round's updates into: `add` streams on this process, `reduce` ends
    the round.
    """

    def add(self, update: Any, client: Client) -> None:
        """Take one client's reconstructed update."""

    def reduce(self, fabric: Fabric) -> Any:
        """Combine over processes, as by `bhfl.engine.processes.gather`; the same value on each of
        them.
        """


class WeightedMean:
    """``sum_i weight_i * params_i / sum_i weight_i``: one model in memory, whatever the cohort."""

    def __init__(self, like: Params) -> None:
        self.flattener = Flattener(like)
        self.sum = ExactSum(self.flattener.numel)
        # weights are whole numbers, of samples or 1, whose sums are exact in float64 up to 2^53
        self.weight = torch.zeros((), dtype=torch.float64)

    def add(self, update: Params, client: Client) -> None:
        """Fold `update` in with the client's weight.

        Raises:
            ValueError: It has a value that is not finite, or too large for the sum to be exact;
                nothing was added.
        """
        flat = self.flattener.flatten(update)
        # before anything is added: half of an update could not be taken out of the sum again
        check_terms(flat, client.weight)
        self.sum.add(flat, client.weight)
        self.weight += client.weight

    def reduce(self, fabric: Fabric) -> Params | None:
        """The mean over all processes' clients, float32; None where there was no client."""
        self.sum.reduce(fabric)
        self.weight = all_reduce_sum(fabric, self.weight)
        if not self.weight > 0:
            return None
        return self.flattener.unflatten(self.sum.value() / self.weight)


class GroupedMean:
    """One `WeightedMean` per bit group; groups are fixed up front, so that all processes reduce the
    same shapes.
    """

    def __init__(self, like: Params, groups: list[str]) -> None:
        self.means = {group: WeightedMean(like) for group in groups}

    def add(self, update: Params, client: Client) -> None:
        """Fold `update` into the mean of the clients of the same bits."""
        self.means[client.bits].add(update, client)

    def reduce(self, fabric: Fabric) -> dict[str, Params]:
        """The means of the groups that had a client."""
        reduced = {group: mean.reduce(fabric) for group, mean in self.means.items()}
        return {group: params for group, params in reduced.items() if params is not None}
