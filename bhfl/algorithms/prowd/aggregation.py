"""Selective weight aggregation: high-bit clients whole, low-bit clients through their masks."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from lightning.fabric import Fabric
from torch import Tensor

from bhfl.algorithms.prowd.moves import LowMove, MoveReader, Origin, count
from bhfl.algorithms.prowd.selection import Selection, certified_select
from bhfl.comm import decode, encode
from bhfl.engine.aggregate import ExactSum, Flattener, WeightedMean, all_reduce_sum
from bhfl.engine.processes import gather
from bhfl.engine.types import Client, Params, Tensors

Fill = Literal["renorm", "delta", "high", "literal"]
Scope = Literal["layer", "model"]
_MEMORY = 1 << 26
"""Bytes of waiting payloads that stay in memory; more go to a temporary file."""
Squares = tuple[str, int, dict[str, float]]
"""A client's group and id, and a number for each tensor that it sent as codes: `LowMove.squares`.
"""
Found = tuple[int, str, float]
"""A client's id, and a tag and value to log."""


@dataclass(frozen=True)
class MaskOptions:
    """How entries of low-bit clients are chosen; `enabled` False keeps them all, wholly."""

    enabled: bool = True
    coarse: float | None = None
    tau: float | int = 0.5
    scope: Scope = "layer"
    per: Literal["client", "group"] = "client"
    fill: Fill = "renorm"


@dataclass
class Selected:
    """What a round's updates came to."""

    params: Params
    """The masked aggregate."""
    plain: Params | None
    """The unmasked mean of all reconstructed updates, where asked for."""
    move: Params | None
    """The mean move of the highest group; None without such a client in the round."""
    pool: list[Params]
    """Weights of a few clients of the highest group, in the order of their ids."""
    num_clients: int
    """Clients whose updates came in, over all processes."""
    metrics: dict[str, float] = field(default_factory=dict)


class SelectiveMean:
    """Holds high-bit updates as sums and low-bit ones as the payloads they were, until the high-bit
    mean is known.

    Args:
        start: The weights that were broadcast, ``w_t``.
        is_high: Whether a client is of the highest group.
        raised: Raises a low-bit update of weights to float32.
        past_move: The high-bit move of an earlier round, for a round without a high-bit client; or
            None.
        mask: See `MaskOptions`.
        pool_size: High-bit clients whose weights are handed back.
        keep_plain: Also average without masks.
        low_start: The weights that low-bit clients were sent; `start`, but for dual global models.
        origin: Where low-bit moves are measured from. With dual models every client's move counts
            from the model that it was sent.
    """

    def __init__(
        self,
        start: Params,
        is_high: Callable[[Client], bool],
        raised: Callable[[Tensors], Params],
        past_move: Params | None,
        mask: MaskOptions,
        pool_size: int,
        keep_plain: bool,
        low_start: Params,
        origin: Origin,
    ) -> None:
        self.start = start
        self.is_high = is_high
        self.raised = raised
        self.past_move = past_move
        self.mask = mask
        self.pool_size = pool_size
        self.keep_plain = keep_plain
        self.low_start, self.origin = low_start, origin
        self.high, self.num_high = WeightedMean(start), 0
        self.waiting: list[tuple[Client, int]] = []
        self.file = tempfile.SpooledTemporaryFile(max_size=_MEMORY)  # noqa: SIM115  # closed with the aggregator
        self.pool: list[tuple[int, Params]] = []

    def add(self, update: Any, client: Client) -> None:
        """A high-bit client's weights, or a low-bit client's tensors as decoded."""
        if not self.is_high(client):
            payload = encode(update)
            self.file.write(payload)
            self.waiting.append((client, len(payload)))
            return
        self.num_high += 1
        self.high.add(update, client)
        self.pool = sorted([*self.pool, (client.id, update)], key=lambda entry: entry[0])[
            : self.pool_size
        ]

    def reduce(self, fabric: Fabric) -> Selected:
        """Two collectives of model size: the high-bit mean, then the sums of what passed the
        masks.
        """
        sums = _Sums(self.start, self.keep_plain)
        sums.add_high(self.high)
        high = self.high.reduce(fabric)
        own_move = None if high is None else {n: high[n] - self.start[n] for n in high}
        move = self.past_move if own_move is None else own_move
        reader = MoveReader(self.start, self.low_start, self.keep_plain, self.origin, self.raised)
        if self.mask.enabled and move is not None and self.mask.per == "group":
            found, squares = self._by_group(fabric, reader, sums, move)
        else:
            found, squares = self._by_client(fabric, reader, sums, move)
        self.file.close()
        sums.reduce(fabric)
        sums.join_high(self.high, self._apart(squares))
        plain = sums.plain_mean(self.start if self.origin == "broadcast" else self.low_start)
        params = sums.filled(self.mask.fill, high)
        num_clients = sum(gather(fabric, [self.num_high + len(self.waiting)]))
        return Selected(
            params=params,
            plain=plain,
            move=own_move,
            pool=self._pooled(fabric),
            num_clients=num_clients,
            metrics=_mean_by_tag(sorted(gather(fabric, found))),
        )

    def _pooled(self, fabric: Fabric) -> list[Params]:
        """The weights of the first high-bit clients of all processes, in the order of their ids."""
        mine = dict(self.pool)
        flattener = self.high.flattener
        models = []
        for client in sorted(gather(fabric, list(mine)))[: self.pool_size]:
            bits = torch.zeros(flattener.numel, dtype=torch.int32)
            if client in mine:
                bits = flattener.flatten(mine[client]).view(torch.int32)
            # summed as integers, because -0.0 + 0.0 is another number than -0.0
            models.append(flattener.unflatten(all_reduce_sum(fabric, bits).view(torch.float32)))
        return models

    def _low(self, reader: MoveReader) -> Iterator[LowMove]:
        """The move of each waiting client."""
        self.file.seek(0)
        for client, size in self.waiting:
            yield reader.read(decode(self.file.read(size)), client)

    def _apart(self, squares: list[Squares]) -> set[str]:
        """Tensors of which the low-bit model takes no high-bit moves: coarse ones, where
        differences are sent.
        """
        coarse = self.mask.coarse
        if self.origin != "sent" or not self.mask.enabled or coarse is None:
            return set()
        counts = [
            (group, id, {name: count(m, coarse) for name, m in of.items()})
            for group, id, of in squares
        ]
        return {name for name, mean in _means(counts).items() if mean < 0.5}

    def _counts(self, low: LowMove) -> dict[str, float]:
        """What each tensor counts where it does not count wholly."""
        return (
            low.counts(self.mask.coarse)
            if self.mask.enabled and self.mask.coarse is not None
            else {}
        )

    def _whole(self, squares: dict[str, float]) -> Callable[[str], bool]:
        """Whether a tensor needs no mask: its move is not coarse."""
        coarse = self.mask.coarse
        return lambda name: coarse is not None and squares.get(name, coarse) >= coarse

    def _choose(
        self, params: Params, move: Params | None, whole: Callable[[str], bool]
    ) -> tuple[dict[str, Tensor], list[tuple[str, float]]]:
        """Masks by name of weight tensors, and what they were like; no mask for what is kept
        whole.
        """
        if not self.mask.enabled or move is None:
            return {}, []
        weights = [name for name, tensor in params.items() if tensor.ndim >= 2]
        names = [name for name in weights if not whole(name)]
        low = {name: params[name] - self.start[name] for name in names}
        masks: dict[str, Tensor] = {}
        statistics: list[tuple[str, float]] = []
        if names and self.mask.scope == "layer":
            chosen = {
                name: certified_select(low[name], move[name], cap=self.mask.tau) for name in names
            }
            masks = {name: selection.mask for name, selection in chosen.items()}
            statistics = [row for name in names for row in _tags(name, chosen[name])]
            statistics.append(
                (
                    "prowd/cosine",
                    sum(selection.cosine for selection in chosen.values()) / len(names),
                )
            )
        elif names:
            flattener = Flattener({name: low[name] for name in names})
            joint = certified_select(
                flattener.flatten(low), flattener.flatten(move), cap=self.mask.tau
            )
            masks = {name: mask.bool() for name, mask in flattener.unflatten(joint.mask).items()}
            statistics.append(("prowd/cosine", joint.cosine))
        if total := sum(params[name].numel() for name in weights):
            kept = sum(
                int(masks[name].sum()) if name in masks else params[name].numel()
                for name in weights
            )
            statistics.append(("prowd/mask_keep", kept / total))
        return masks, statistics

    def _by_client(
        self, fabric: Fabric, reader: MoveReader, sums: _Sums, move: Params | None
    ) -> tuple[list[Found], list[Squares]]:
        """One mask a client; what was found on this process, and the squares of all clients."""
        squares: list[Squares] = []
        found: list[Found] = []
        for low in self._low(reader):
            counts = self._counts(low)
            masks, statistics = self._choose(low.params, move, self._whole(low.squares))
            sums.add(low, masks, counts)
            squares.append((low.client.group, low.client.id, low.squares))
            found += [(low.client.id, *row) for row in (*statistics, *_mean_count(counts))]
        return found, sorted(gather(fabric, squares), key=lambda entry: entry[:2])

    def _by_group(
        self, fabric: Fabric, reader: MoveReader, sums: _Sums, move: Params
    ) -> tuple[list[Found], list[Squares]]:
        """One mask a bit group, from the mean of its moves as they count; the same on every
        process.
        """
        groups: dict[str, _Sums] = {}
        squares: list[Squares] = []
        found: list[Found] = []
        for low in self._low(reader):
            counts = self._counts(low)
            groups.setdefault(low.client.group, _Sums(self.start, self.keep_plain)).add(
                low, {}, counts
            )
            squares.append((low.client.group, low.client.id, low.squares))
            found += [(low.client.id, *row) for row in _mean_count(counts)]
        squares = sorted(gather(fabric, squares), key=lambda entry: entry[:2])
        for label in dict.fromkeys(label for label, _, _ in squares):
            clients = [entry for entry in squares if entry[0] == label]
            own = groups.get(label) or _Sums(self.start, self.keep_plain)
            own.reduce(fabric)
            masks, statistics = self._choose(
                own.filled("renorm", None), move, self._whole(_means(clients))
            )
            if fabric.is_global_zero:  # the group's sum is already that of all processes
                sums.merge(own, masks)
                found += [(clients[0][1], *row) for row in statistics]
        return found, squares


class _Sums:
    """``sum n c w`` and ``sum n c`` by entry, exact, and ``sum n``; c is what an entry counts, 0
    where it is masked.
    """

    def __init__(self, start: Params, keep_plain: bool) -> None:
        self.start, self.flattener = start, Flattener(start)
        self.values, self.weights = ExactSum(self.flattener.numel), self._zeros()
        self.plain = (ExactSum(self.flattener.numel), self._zeros()) if keep_plain else None
        self.total = torch.zeros((), dtype=torch.float64)
        self.high_total = torch.zeros((), dtype=torch.float64)
        self.high_weights = self._zeros()

    def add_high(self, mean: WeightedMean) -> None:
        """Take over the unreduced sums of the high-bit clients, for the first average."""
        self.values.parts += mean.sum.parts
        self.weights += mean.weight
        self.total += mean.weight
        self.high_total += mean.weight

    def join_high(self, mean: WeightedMean, apart: set[str]) -> None:
        """Take over their sums for the unmasked average, but for some tensors; after both were
        reduced.
        """
        if self.plain is not None:
            joined = self._factors({}, dict.fromkeys(apart, 0.0))
            self.high_weights = joined * self.high_total
            self.plain[0].parts.add_(mean.sum.parts * joined)
            self.plain[1].add_(self.high_weights)

    def add(self, low: LowMove, masks: dict[str, Tensor], counts: dict[str, float]) -> None:
        """One client's weights, in the first average through its masks, in both by its counts."""
        weight = low.client.weight
        factors = self._factors(masks, counts).mul_(weight)
        self.values.add(self.flattener.flatten(low.params), factors)
        self.weights += factors
        self.total += weight
        if self.plain is not None:
            factors = self._factors({}, {} if low.sent else counts).mul_(weight)
            self.plain[0].add(self.flattener.flatten(low.plain), factors)
            self.plain[1].add_(factors)

    def merge(self, other: _Sums, masks: dict[str, Tensor]) -> None:
        """Add another's sums through masks, which keeps them exact."""
        factors = self._factors(masks, {})
        self.values.parts += other.values.parts * factors
        self.weights += other.weights * factors
        self.total += other.total
        if self.plain is not None and other.plain is not None:
            self.plain[0].parts += other.plain[0].parts
            self.plain[1].add_(other.plain[1])

    def _factors(self, masks: dict[str, Tensor], counts: dict[str, float]) -> Tensor:
        """Masks times counts by entry, 1 where there is neither: float64 [numel]."""
        factors = torch.ones(self.flattener.numel, dtype=torch.float64)
        pieces = torch.split(factors, self.flattener.sizes)
        for name, piece in zip(self.flattener.shapes, pieces, strict=True):
            if name in masks:
                piece.copy_(masks[name].reshape(-1))
            piece.mul_(counts.get(name, 1.0))
        return factors

    def _zeros(self) -> Tensor:
        return torch.zeros(self.flattener.numel, dtype=torch.float64)

    def reduce(self, fabric: Fabric) -> None:
        self.values.reduce(fabric)
        self.weights, self.total = (
            all_reduce_sum(fabric, self.weights),
            all_reduce_sum(fabric, self.total),
        )
        self.high_total = all_reduce_sum(fabric, self.high_total)
        if self.plain is not None:
            self.plain[0].reduce(fabric)
            self.plain = self.plain[0], all_reduce_sum(fabric, self.plain[1])

    def filled(self, fill: Fill, high: Params | None) -> Params:
        """The aggregate, entries that no or not every client voted for filled as `fill` says."""
        values, start = self.values.value(), self._start()
        if fill == "renorm":
            mean = torch.where(self.weights > 0, values / self.weights, start)
        elif fill == "literal":
            mean = values / self.total
        elif fill == "delta":
            mean = start + (values - self.weights * start) / self.total
        else:
            other = start if high is None else self.flattener.flatten(high).double()
            mean = (values + (self.total - self.weights) * other) / self.total
        return self.flattener.unflatten(mean)

    def plain_mean(self, start: Params) -> Params | None:
        """The mean without masks; high-bit clients count by their moves, as if they too had begun
        at `start`.
        """
        if self.plain is None:
            return None
        values, weights = self.plain[0].value(), self.plain[1]
        mean = values / weights
        if start is not self.start:  # two models
            mean += (
                self.high_weights
                / weights
                * (self.flattener.flatten(start).double() - self._start())
            )
        return self.flattener.unflatten(
            torch.where(weights > 0, mean, self.flattener.flatten(start).double())
        )

    def _start(self) -> Tensor:
        return self.flattener.flatten(self.start).double()


def _tags(name: str, selection: Selection) -> list[tuple[str, float]]:
    kept = float(selection.mask.float().mean()) if selection.mask.numel() else 0.0
    return [(f"prowd/mask_keep_{name}", kept), (f"prowd/cosine_{name}", selection.cosine)]


def _means(of_clients: list[Squares]) -> dict[str, float]:
    """By tensor, over the clients that sent it as codes."""
    found: dict[str, list[float]] = {}
    for _, _, numbers in of_clients:
        for name, number in numbers.items():
            found.setdefault(name, []).append(number)
    return {name: sum(values) / len(values) for name, values in found.items()}


def _mean_count(counts: dict[str, float]) -> list[tuple[str, float]]:
    return [("prowd/count", sum(counts.values()) / len(counts))] if counts else []


def _mean_by_tag(rows: list[tuple[int, str, float]]) -> dict[str, float]:
    values: dict[str, list[float]] = {}
    for _, tag, value in rows:
        values.setdefault(tag, []).append(value)
    return {tag: sum(found) / len(found) for tag, found in values.items()}
