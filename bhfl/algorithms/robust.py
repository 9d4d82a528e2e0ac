"""Rules that a few wild clients cannot move: median, trimmed mean, Krum, geometric median.

They need all updates of a round at once, and each process keeps them as they were sent, packed at
their bits; when the round ends they are decoded, codes at one or two bytes each, and read in chunks
of rows. A client counts as one, whatever its number of samples, for a wild one could
claim any. Running statistics of BatchNorm go by the same rule, within those that share them.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from bhfl.algorithms.rules import Rule
from bhfl.checks import checked, count, within
from bhfl.comm import decode, encode, float_tensors
from bhfl.engine.aggregate import Aggregator
from bhfl.engine.algorithm import Algorithm, Context
from bhfl.engine.processes import gather
from bhfl.engine.types import Client, Params, ServerState, Tensors, Update
from bhfl.quant import QuantizedTensor

if TYPE_CHECKING:
    from lightning.fabric import Fabric

_CHUNK = 1 << 13
"""Entries of each update that are looked at together, about."""


class Updates:
    """The updates of a round, side by side.

    Args:
        tensors: What each client sent, by name.
        like: The model, whose tensors are wanted.
    """

    def __init__(self, tensors: Sequence[Tensors], like: Params) -> None:
        self.tensors = tensors
        self.like = like

    def __len__(self) -> int:
        return len(self.tensors)

    def chunks(self) -> Iterator[tuple[str, slice, np.ndarray]]:
        """Some rows of a tensor in all updates: its name, which rows, and float32 [updates,
        entries].
        """
        for name, value in self.like.items():
            rows = value.shape[0] if value.ndim else 1
            step = max(1, _CHUNK * rows // max(1, value.numel()))
            for start in range(0, rows, step):
                where = slice(start, start + step)
                found = [_rows(update[name], where) for update in self.tensors]
                yield name, where, torch.stack(found).numpy()

    def products(self) -> np.ndarray:
        """The scalar products of all pairs of updates, float64 [updates, updates]."""
        total = np.zeros((len(self), len(self)))
        for _, _, chunk in self.chunks():
            wide = chunk.astype(np.float64)
            total += wide @ wide.T
        return total

    def mean(self, shares: np.ndarray) -> Params:
        """The mean by shares, float64 [updates], which sum to 1."""
        # Krum leaves most of them out
        chosen = np.flatnonzero(shares)
        return self.by_entry(lambda chunk: shares[chosen] @ chunk[chosen].astype(np.float64))

    def by_entry(self, rule: Any) -> Params:
        """A model each of whose entries a rule makes of that entry in all updates.

        Args:
            rule: It makes [entries] of float32 [updates, entries].
        """
        model = {name: torch.empty_like(value) for name, value in self.like.items()}
        for name, where, chunk in self.chunks():
            rows = model[name].view(model[name].shape or (1,))[where]
            rows.copy_(torch.from_numpy(rule(chunk)).view_as(rows))
        return model


def _rows(value: Tensor | QuantizedTensor, where: slice) -> Tensor:
    """Some rows as one row of float32."""
    if isinstance(value, QuantizedTensor):
        scale = value.scale[where] if value.scale.ndim else value.scale
        return replace(value, codes=value.codes[where], scale=scale).dequantize().reshape(-1)
    return value.reshape(value.shape or (1,))[where].float().reshape(-1)


class _Kept:
    """Keeps payloads until the round ends, of running statistics alone those of what is sent."""

    def __init__(self, rule: "Robust", like: Params, means: Any = None) -> None:
        self.rule = rule
        self.like = like
        self.means = means
        self.payloads: list[tuple[int, bytes]] = []

    def expect(self, cohort: Sequence[Client]) -> None:
        if self.means:
            self.means.expect(cohort)

    def add(self, update: Update | Params, client: Client) -> None:
        if self.means:
            self.means.add(float_tensors(update), client)
        payload = update.payload if isinstance(update, Update) else encode(update)
        self.payloads.append((client.id, payload))

    def reduce(self, fabric: "Fabric") -> Params | None:
        beside = self.means.reduce(fabric) if self.means else {}
        # by id: who trained whom changes nothing
        payloads = sorted(gather(fabric, self.payloads), reverse=True)
        self.payloads = []
        tensors = []
        while payloads:
            # each is given up as it is decoded, so that both are never there for all of them
            tensors.append(decode(payloads.pop()[1]))
        if not tensors:
            return None
        return {**beside, **self.rule.combine(Updates(tensors, self.like))}


class Robust(Rule, ABC):
    """Another rule in the place of the mean: a subclass defines `combine`. It is taken of all that
    clients send, with SCAFFOLD of the moves of control variates too; and by itself of the running
    statistics of each group, or of all clients where all share them.
    """

    withstands = True

    @abstractmethod
    def combine(self, updates: Updates) -> Params:
        """The model that the updates of a round come to, the same in every process.

        Args:
            updates: Those of all processes, by id of the client.
        """

    def reconstruct(self, update: Tensors, client: Client, server: ServerState) -> Tensors:
        """The update as it came."""
        return update

    def aggregator(self, server: ServerState, clients: Sequence[Client]) -> Aggregator:
        """All updates of the round, and what else the server of `client` makes of them."""
        means = self.client.aggregator(server, clients) if self._adds else None
        return _Kept(self, dict(self.expected(server)), means)

    def statistics_aggregator(self, like: Params) -> Aggregator:
        """All statistics of the round."""
        return _Kept(self, like)


class Median(Robust):
    """The median of each entry (Yin et al., ICML 2018, https://arxiv.org/abs/1803.01498); of an
    even number of clients the mean of the middle two.

    Args:
        client: See `Rule`.
    """

    def combine(self, updates: Updates) -> Params:
        """The median of each entry."""
        return updates.by_entry(lambda chunk: _middle(chunk, (len(updates) - 1) // 2))


class TrimmedMean(Robust):
    """The mean of each entry without its largest and smallest values (Yin et al., ICML 2018,
    https://arxiv.org/abs/1803.01498).

    Args:
        trim: The share of the clients left out at each end, in [0, 0.5); rounded down.
        client: See `Rule`.

    Raises:
        ValueError: `trim` is out of its range.
    """

    def __init__(self, trim: float = 0.1, client: Algorithm | None = None) -> None:
        super().__init__(client)
        self.trim = checked("TrimmedMean.trim", trim, within("[0, 0.5)"))

    def combine(self, updates: Updates) -> Params:
        """The mean of what is left of each entry."""
        # 0.29 of 100 comes out below 29 in floats
        left_out = int(round(self.trim * len(updates), 9))
        return updates.by_entry(lambda chunk: _middle(chunk, left_out))


class Krum(Robust):
    """The updates that are nearest to most others (Blanchard et al., NeurIPS 2017,
    https://arxiv.org/abs/1703.02757): the score of one is the sum of its squared distances to its
    ``n - wild - 2`` nearest, or to the nearest one where running statistics come of fewer clients.

    Args:
        wild: The number of wild clients in a round that are to be withstood; it takes
            ``2 * wild + 3`` clients.
        chosen: The updates of the best scores, whose mean is taken: 1 is Krum, more multi-Krum.
        client: See `Rule`.

    Raises:
        ValueError: An argument is out of its range; in `setup`, ``trainer.min_clients`` lets a
            round through that has too few clients.
    """

    def __init__(self, wild: int = 1, chosen: int = 1, client: Algorithm | None = None) -> None:
        super().__init__(client)
        self.wild = checked("Krum.wild", wild, count(1))
        self.chosen = checked("Krum.chosen", chosen, count(1))

    def setup(self, context: Context) -> None:
        """There are enough clients in a round."""
        super().setup(context)
        least = max(2 * self.wild + 3, self.chosen)
        given = context.settings.cohort.min_clients
        if given < least:
            raise ValueError(
                f"Krum with wild: {self.wild} and chosen: {self.chosen} needs {least} updates in a "
                f"round: trainer.min_clients must be at least that, got {given}"
            )

    def combine(self, updates: Updates) -> Params:
        """The mean of the updates of the best scores; of equal ones the lower id counts."""
        products = updates.products()
        squares = np.diag(products)
        distances = squares[:, None] + squares - 2 * products
        np.fill_diagonal(distances, np.inf)
        nearest = np.sort(distances)[:, : max(1, len(updates) - self.wild - 2)]
        best = np.argsort(nearest.sum(1), kind="stable")[: self.chosen]
        shares = np.zeros(len(updates))
        shares[best] = 1 / len(best)
        return updates.mean(shares)


class GeometricMedian(Robust):
    """The point whose distances to all updates sum to the least, by smoothed Weiszfeld steps
    (Pillutla et al., IEEE TSP 2022, https://arxiv.org/abs/1912.13445).

    Args:
        steps: How many.
        smoothing: The least distance that is divided by, as a share of the median distance.
        client: See `Rule`.

    Raises:
        ValueError: An argument is out of its range.
    """

    def __init__(
        self, steps: int = 8, smoothing: float = 1e-6, client: Algorithm | None = None
    ) -> None:
        super().__init__(client)
        self.steps = checked("GeometricMedian.steps", steps, count(1))
        self.smoothing = checked("GeometricMedian.smoothing", smoothing, within("(0, 1e6]"))

    def combine(self, updates: Updates) -> Params:
        """The mean by shares that fall with the distance from it."""
        products = updates.products()
        shares = np.full(len(updates), 1 / len(updates))
        for _ in range(self.steps):
            # |x_i - m|^2 with m = sum_j a_j x_j, of which only products are needed
            inner = products @ shares
            squares = np.diag(products) - 2 * inner + shares @ inner
            distances = np.sqrt(np.maximum(squares, 0))
            floor = self.smoothing * np.median(distances)
            if not floor:
                break
            inverse = 1 / np.maximum(distances, floor)
            shares = inverse / inverse.sum()
        return updates.mean(shares)


def _middle(chunk: np.ndarray, left_out: int) -> np.ndarray:
    """The mean of each column without so many of its largest and smallest values."""
    # rows that are sorted lie together in memory, which is thirty times as fast
    ordered = chunk.T.copy()
    ordered.sort()
    kept = ordered[:, left_out : len(chunk) - left_out]
    mean: np.ndarray = kept.mean(1, dtype=np.float64)
    return mean
