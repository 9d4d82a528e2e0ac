"""Exact sums of models by entry, for means in which every entry has weights of its own."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bhfl.algorithms.prowd.moves import LowMove
from bhfl.algorithms.prowd.options import Fill
from bhfl.engine.aggregate import Flattener, WeightedMean
from bhfl.engine.sums import ExactSum, Grid, all_reduce_sum
from bhfl.engine.types import Params

# A small device trains with torch alone, so Lightning is imported for type checks only.
if TYPE_CHECKING:
    from lightning.fabric import Fabric

_ALL = torch.ones(())


class EntrySum:
    """``sum n c w`` and ``sum n c`` by entry, exact; c is what an entry counts, 0 where it is
    masked.
    """

    def __init__(self, numel: int, grid: Grid) -> None:
        self.values = ExactSum(numel, grid)
        self.weights = torch.zeros(numel, dtype=torch.float64)

    def add(self, flat: Tensor, factors: Tensor) -> None:
        """Add one model [numel], its entries weighted by float64 factors [numel]."""
        self.values.add(flat, factors)
        self.weights += factors

    def merge(self, values: ExactSum, weights: Tensor, kept: Tensor = _ALL) -> None:
        """Add an exact sum and its weights where `kept` is 1 and not 0."""
        self.values.merge(values, kept)
        self.weights += weights * kept

    def reduce(self, fabric: "Fabric") -> None:
        """Sum over the processes."""
        self.values.reduce(fabric)
        self.weights = all_reduce_sum(fabric, self.weights)


class SelectiveSum:
    """The sums of a round: through the masks, and without them where asked for.

    Args:
        start: The weights that high-bit clients were sent.
        keep_plain: Also sum without masks.
        grid: What the sum of high-bit clients has.
    """

    def __init__(self, start: Params, keep_plain: bool, grid: Grid) -> None:
        self.flattener = Flattener(start)
        self.start = self.flattener.flatten(start).double()
        self.masked = EntrySum(self.flattener.numel, grid)
        self.plain = EntrySum(self.flattener.numel, grid) if keep_plain else None
        self.total = torch.zeros((), dtype=torch.float64)

    def add(self, low: LowMove, masks: Params, counts: dict[str, float]) -> None:
        """Add one low-bit client, in the first sum through its masks, in both by its counts."""
        weight = low.client.weight
        self.total += weight
        flat = self.flattener.flatten(low.params)
        self.masked.add(flat, self.factors(masks, counts).mul_(weight))
        if self.plain is not None:
            flat = self.flattener.flatten(low.plain)
            self.plain.add(flat, self.factors({}, {} if low.sent else counts).mul_(weight))

    def merge(self, other: "SelectiveSum", masks: Params) -> None:
        """Add another's sums, the first through masks."""
        masked = other.masked
        self.masked.merge(masked.values, masked.weights, self.factors(masks, {}))
        self.total += other.total
        if self.plain is not None and other.plain is not None:
            self.plain.merge(other.plain.values, other.plain.weights)

    def merge_high(self, high: WeightedMean, joined: Tensor) -> None:
        """Add the sum of the high-bit clients, which needs no mask.

        Args:
            high: Their sum.
            joined: 1 for each entry of the unmasked sum that takes it, else 0.
        """
        self.masked.merge(high.sum, high.weight)
        self.total += high.weight
        if self.plain is not None:
            self.plain.merge(high.sum, high.weight, joined)

    def factors(self, masks: Params, counts: dict[str, float]) -> Tensor:
        """Masks times counts by entry, 1 where there is neither: float64 [numel]."""
        factors = torch.ones(self.flattener.numel, dtype=torch.float64)
        pieces = torch.split(factors, self.flattener.sizes)
        for name, piece in zip(self.flattener.shapes, pieces, strict=True):
            if name in masks:
                piece.copy_(masks[name].reshape(-1))
            piece.mul_(counts.get(name, 1.0))
        return factors

    def reduce(self, fabric: "Fabric") -> None:
        """Sum over the processes."""
        self.masked.reduce(fabric)
        self.total = all_reduce_sum(fabric, self.total)
        if self.plain is not None:
            self.plain.reduce(fabric)

    def filled(self, fill: Fill, high: Params | None = None) -> Params:
        """The masked mean, entries that no or not every client voted for filled as `fill` says."""
        values = self.masked.values.value()
        weights = self.masked.weights
        if fill == "renorm":
            # the division is NaN where no client kept the entry, which then stays as it was sent
            mean = torch.where(weights > 0, values / weights, self.start)
        elif fill == "literal":
            mean = values / self.total
        elif fill == "delta":
            mean = self.start + (values - weights * self.start) / self.total
        else:
            other = self.start if high is None else self.flattener.flatten(high).double()
            mean = (values + (self.total - weights) * other) / self.total
        return self.flattener.unflatten(mean)

    def plain_mean(self, low_start: Params | None, high_weights: Tensor) -> Params | None:
        """The mean without masks, where asked for.

        Args:
            low_start: The model that low-bit clients were sent, where it is another one: high-bit
                clients then count by their moves, as if they too had begun there.
            high_weights: What high-bit clients count, [numel].
        """
        if self.plain is None:
            return None
        start = self.start
        weights = self.plain.weights
        mean = self.plain.values.value() / weights
        if low_start is not None:
            start = self.flattener.flatten(low_start).double()
            mean += high_weights / weights * (start - self.start)
        return self.flattener.unflatten(torch.where(weights > 0, mean, start))
