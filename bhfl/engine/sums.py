"""Sums whose result does not depend on the order of their terms nor on the number of processes.

Sums of floats depend on their order; those of integers do not. `ExactSum` therefore takes terms as
multiples of one unit, in int64: a `Grid`, which follows from the model and the cohort of a round,
says of how large a one. A term that is too large for it is split into three float64 parts, each a
multiple of its own power of two and small enough that all sums of such parts are exact in float64
(the idea of reproducible summation, Demmel and Nguyen 2013). Either way a sum is exact once its
terms are cut, so 1, 2 or 4 processes give the same bits by construction.
"""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bhfl.engine.types import Client

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

_SLACK = 2
"""How many times as large as the model's largest value a client's may be."""
_HEAVY = 16
"""How many times as heavy as the mean of its cohort a client of such values may be."""
_CHUNK = 1 << 15
"""Entries that are added at a time, few enough to stay in a cache between two passes."""


class Grid(NamedTuple):
    """The terms that one int64 an entry can sum, and the multiples that they are cut to.

    As long as each client of a cohort of K is added once, no sum of terms within `bound` leaves
    int64, in any order, and the mean of the cohort is off by at most ``K * unit`` over the sum of
    the weights. That is ``K * 2**-61`` of the model's largest value where clients weigh the same
    (4.5e-13 for a million of them), and at most 16 times that where they do not.
    """

    unit: float
    """A power of two."""
    bound: float
    """The largest |weight * value|."""

    @classmethod
    def of(cls, like: Mapping[str, Tensor], cohort: Sequence[Client]) -> "Grid":
        """The grid of a round; `NO_GRID` where it has none, as with a model of zeros.

        Args:
            like: The model that the round began with.
            cohort: The clients of the round, on all processes.
        """
        if not cohort:
            return NO_GRID
        weights = [client.weight for client in cohort]
        # few clients can be heavier than that, and all others would have a coarser unit for them
        heavy = min(max(weights), _HEAVY * sum(weights) / len(weights))
        bound = _SLACK * max(map(largest, like.values()), default=0.0) * heavy
        if not 0 < bound < math.inf:
            return NO_GRID
        # one term more than there will be, for what rounding adds to the quotients
        _, exponent = math.frexp(bound * (len(cohort) + 1))
        return cls(math.ldexp(1.0, exponent - 63), bound)

    def takes(self, values: Tensor, weights: Tensor) -> bool:
        """Whether terms are within the bound, as they themselves tell; NaN is not."""
        return largest(values) * largest(weights) <= self.bound


NO_GRID = Grid(1.0, -1.0)
"""It takes no term."""


class ExactSum:
    """A sum of float vectors of `numel` entries, independent of order.

    It takes 8 bytes an entry, and 24 more from the first term on that the grid does not take, of
    which 2^-85 is cut off.

    Args:
        numel: The number of entries.
        grid: What the terms are like.
    """

    def __init__(self, numel: int, grid: Grid = NO_GRID) -> None:
        self.grid = grid
        self.lane = torch.zeros(numel, dtype=torch.int64)
        """The terms that the grid takes, in its units."""
        self.parts: Tensor | None = None
        """All others, as the sums of their parts."""
        self._terms = np.empty(min(numel, _CHUNK), np.int64)

    def add(self, values: Tensor, weight: float | Tensor = 1.0) -> None:
        """Add ``weight * values``.

        Args:
            values: Float [numel] on the CPU.
            weight: A number, or a float [numel].
        """
        values = values.detach()
        weights = torch.as_tensor(weight, dtype=torch.float64)
        # one look at all of them, which mostly spares one at each chunk
        fits = self.grid.takes(values, weights)
        # exact, since the unit is a power of two
        scale = np.broadcast_to(weights.numpy() / self.grid.unit, len(values))
        weights = weights.expand(len(values))
        exact = _exact(values)
        for start in range(0, len(values), _CHUNK):
            where = slice(start, start + _CHUNK)
            # by the chunk alone: what depended on other terms would depend on their order
            if fits or self.grid.takes(values[where], weights[where]):
                self._count(where, exact[where], scale[where])
            else:
                self._split(where, values[where].double() * weights[where])

    def add_pieces(self, pieces: list[Tensor], weight: float, most: float) -> None:
        """Add ``weight * torch.cat(pieces)``, mostly without that copy.

        Args:
            pieces: Float vectors of `numel` entries in all, on the CPU.
            weight: A number.
            most: The largest ``|weight * value|``.
        """
        if pieces and not most <= self.grid.bound:
            # chunks go their ways one by one, and so must be cut as they always are
            self.add(torch.cat(pieces), weight)
            return
        end = 0
        for piece in pieces:
            for values in torch.split(piece.detach(), _CHUNK):
                start, end = end, end + len(values)
                self._count(slice(start, end), _exact(values), weight / self.grid.unit)

    def _count(self, where: slice, values: NDArray[Any], scale: Any) -> None:
        """Add terms that the grid takes to some entries of the lane, ``scale * values``."""
        terms = self._terms[: len(values)]
        # in half of torch's time: it casts as it multiplies, which cuts off what is below 1
        np.multiply(values, scale, out=terms, dtype=np.float64, casting="unsafe")
        self.lane.numpy()[where] += terms

    def _split(self, where: slice, rest: Tensor) -> None:
        """Add terms to some entries of the parts."""
        for part, unit in zip(self._parts()[:, where], _UNITS, strict=True):
            # Adding it rounds to multiples of `unit`, subtracting keeps them. Within 2^51 units
            # of 1.5 * 2^52 units, where MAX_TERM keeps every term, a float64's last bit is one
            # unit for terms of either sign; below 2^52 units it would be half of one.
            magic = 1.5 * 2.0**52 * unit
            rounded = (rest + magic).sub_(magic)
            part.add_(rounded)
            rest.sub_(rounded)

    def _parts(self) -> Tensor:
        if self.parts is None:
            self.parts = torch.zeros(3, len(self.lane), dtype=torch.float64)
        return self.parts

    def merge(self, other: "ExactSum", kept: Tensor) -> None:
        """Add another sum of the same grid where `kept` is 1 and not 0, as it keeps sums exact;
        [numel] or one for all.
        """
        assert other.grid == self.grid
        self.lane += other.lane * kept.to(torch.int64)
        if other.parts is not None:
            self._parts().add_(other.parts * kept)

    def reduce(self, fabric: "Fabric") -> None:
        """Sum over the processes; every one of them holds the total afterwards."""
        # to reduce is a collective: all processes have parts if one has
        if all_reduce_sum(fabric, torch.tensor(int(self.parts is not None))):
            self.parts = all_reduce_sum(fabric, self._parts())
        self.lane = all_reduce_sum(fabric, self.lane)

    def value(self) -> Tensor:
        """The sum, float64 [numel]."""
        total = self.lane.to(torch.float64) * self.grid.unit
        if self.parts is not None:
            high, middle, low = self.parts
            total += high + (middle + low)
        return total


def _exact(values: Tensor) -> NDArray[Any]:
    """The same numbers for numpy, which knows no bfloat16."""
    array: NDArray[Any] = (values if values.dtype == torch.float32 else values.double()).numpy()
    return array


def largest(values: Tensor) -> float:
    """The largest magnitude, 0 of no values; one pass, and NaN where a value is."""
    if not values.numel():
        return 0.0
    low, high = (float(bound) for bound in torch.aminmax(values))
    return max(high, -low)


def all_reduce_sum(fabric: "Fabric", tensor: Tensor) -> Tensor:
    """Sum of a CPU tensor over all processes, back on the CPU."""
    # all processes hold the same shape: either none of them leaves the collective out, or all do
    if fabric.world_size == 1 or not tensor.numel():
        return tensor
    # NCCL reduces tensors on GPUs alone
    total: Tensor = fabric.all_reduce(tensor.to(fabric.device), reduce_op="sum")  # type: ignore[assignment]
    return total.cpu()
