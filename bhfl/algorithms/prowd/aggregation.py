"""Selective weight aggregation: high-bit clients whole, low-bit clients through their masks."""

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from bhfl.algorithms.prowd.moves import LowMove, MoveReader, count, grids_of
from bhfl.algorithms.prowd.options import Mask
from bhfl.algorithms.prowd.selection import certified_select
from bhfl.algorithms.prowd.sums import SelectiveSum
from bhfl.comm import decode, encode, float_tensors
from bhfl.engine.aggregate import Flattener, WeightedMean
from bhfl.engine.processes import gather
from bhfl.engine.sums import all_reduce_sum
from bhfl.engine.types import Client, Params

# A small device trains with torch alone, so Lightning is imported for type checks only.
if TYPE_CHECKING:
    from lightning.fabric import Fabric

_MEMORY = 1 << 26
"""Bytes of waiting payloads that stay in memory; more go to a temporary file."""
Numbers = dict[str, float]
"""Numbers by name: of tensors, or of tags to log."""
Squares = list[tuple[str, int, Numbers]]
"""A client's group and id, and `LowMove.squares`, of each low-bit client."""


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
    beside: Params = field(default_factory=dict)
    """The means of all that clients sent, where asked for."""
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass
class SelectiveMean:
    """Holds high-bit updates as sums and low-bit ones as the payloads they were, until the high-bit
    mean is known.

    Args:
        reader: Makes moves of low-bit updates, from the weights that clients were sent.
        top: The highest group.
        mask: How entries are chosen; None takes them all, wholly.
        past_move: The high-bit move of an earlier round, for a round without a high-bit client; or
            None.
        pool_size: High-bit clients whose weights are handed back.
        beside: Takes all that clients send, in float32; None where weights are all.
    """

    reader: MoveReader
    top: str
    mask: Mask | None
    past_move: Params | None
    pool_size: int
    beside: Any = None

    def __post_init__(self) -> None:
        self.coarse = self.mask.coarse if self.mask else None
        self.high = WeightedMean(self.reader.start)
        self.num_high = 0
        self.waiting: list[tuple[Client, int, int]] = []
        """Each with the bytes of its payload, and of what it began with where that is its own."""
        self.file = tempfile.SpooledTemporaryFile(max_size=_MEMORY)  # noqa: SIM115  # closed with the aggregator
        self.pool: dict[int, Params] = {}

    def expect(self, cohort: Sequence[Client]) -> None:
        """One grid for the sums of high-bit and of low-bit clients, which are merged."""
        self.high.expect(cohort)
        if self.beside:
            self.beside.expect(cohort)

    def add(self, update: Any, client: Client) -> None:
        """A high-bit client's weights, or a low-bit client's update, whose payload is kept."""
        if self.beside:
            self.beside.add(float_tensors(update), client)
        if client.bits != self.top:
            # as it came, an update waits at the client's bits and not at 32
            begins = self.reader.begins(update, client)
            begun = encode(begins) if begins else b""
            self.file.write(update.payload + begun)
            self.waiting.append((client, len(update.payload), len(begun)))
            return
        self.num_high += 1
        self.high.add(update, client)
        self.pool[client.id] = update
        # the lowest ids stay, in whatever order the clients are trained
        for id in sorted(self.pool)[self.pool_size :]:
            del self.pool[id]

    def reduce(self, fabric: "Fabric") -> Selected:
        """Two collectives of model size: the high-bit mean, then the sums of what passed the
        masks.
        """
        start = self.reader.start
        beside = self.beside.reduce(fabric) if self.beside else None
        high = self.high.reduce(fabric)
        own_move = None if high is None else {name: high[name] - start[name] for name in high}
        move = self.past_move if own_move is None else own_move
        sums = self._new_sum()
        found, squares = self._fold(fabric, sums, move)
        self.file.close()
        joined = sums.factors({}, dict.fromkeys(self._apart(squares), 0.0))
        if fabric.is_global_zero:  # the high-bit sum is already that of all processes
            sums.merge_high(self.high, joined)
        sums.reduce(fabric)
        num_clients = sum(gather(fabric, [self.num_high + len(self.waiting)]))
        return Selected(
            params=sums.filled(self.mask.fill if self.mask else "renorm", high),
            plain=sums.plain_mean(self.reader.other_start, joined * self.high.weight),
            move=own_move,
            pool=self._pooled(fabric),
            num_clients=num_clients,
            beside=beside or {},
            metrics=dict(sorted(means(tags for _, tags in _sorted(fabric, found, 1)).items())),
        )

    def _new_sum(self) -> SelectiveSum:
        return SelectiveSum(self.reader.start, self.reader.two_models, self.high.sum.grid)

    def _pooled(self, fabric: "Fabric") -> list[Params]:
        """The weights of the first high-bit clients of all processes, in the order of their ids."""
        flattener = self.high.flattener
        models = []
        for client in sorted(gather(fabric, list(self.pool)))[: self.pool_size]:
            bits = torch.zeros(flattener.numel, dtype=torch.int32)
            if client in self.pool:
                bits = flattener.flatten(self.pool[client]).view(torch.int32)
            # summed as integers, because -0.0 + 0.0 is another number than -0.0
            models.append(flattener.unflatten(all_reduce_sum(fabric, bits).view(torch.float32)))
        return models

    def _low(self) -> Iterator[LowMove]:
        """The move of each waiting client."""
        self.file.seek(0)
        for client, size, begun in self.waiting:
            update = decode(self.file.read(size))
            weights = {name: update[name] for name in update if name in self.reader.start}
            start = decode(self.file.read(begun)) if begun else {}
            yield self.reader.read(weights, client, grids_of(start))

    # ---- masks -----------------------------------------------------------------------------------

    def _fold(
        self, fabric: "Fabric", sums: SelectiveSum, move: Params | None
    ) -> tuple[list[tuple[int, Numbers]], Squares]:
        """Add the waiting clients, each through a mask of its own or of its bit group.

        Returns:
            What was found on this process, by a client's id, and the squares of all clients.
        """
        by_group = move is not None and self.mask is not None and self.mask.per == "group"
        groups: dict[str, SelectiveSum] = {}
        squares = []
        found = []
        for low in self._low():
            client = low.client
            counts = self._counts(low.squares)
            tags = {"prowd/count": sum(counts.values()) / len(counts)} if counts else {}
            if by_group:
                groups.setdefault(client.bits, self._new_sum()).add(low, {}, counts)
            else:
                sums.add(low, self._choose(low.params, move, low.squares, tags), counts)
            squares.append((client.bits, client.id, low.squares))
            found.append((client.id, tags))
        everyone = _sorted(fabric, squares, 2)
        if not by_group:
            return found, everyone
        # each reduction is a collective, so all processes go through the groups in one order
        for group in dict.fromkeys(group for group, _, _ in everyone):
            members = [entry for entry in everyone if entry[0] == group]
            # a process without a client of the group takes part in its collective all the same
            own = groups.get(group) or self._new_sum()
            own.reduce(fabric)
            tags = {}
            mean = means(squares for _, _, squares in members)
            masks = self._choose(own.filled("renorm"), move, mean, tags)
            if fabric.is_global_zero:  # the group's sum is already that of all processes
                sums.merge(own, masks)
                found.append((members[0][1], tags))
        return found, everyone

    def _counts(self, squares: Numbers) -> Numbers:
        """What each tensor counts where it does not count wholly."""
        if self.coarse is None:
            return {}
        return {name: count(square, self.coarse) for name, square in squares.items()}

    def _apart(self, everyone: Squares) -> list[str]:
        """Tensors of which the low-bit model takes no high-bit moves: coarse ones, where
        differences are sent.
        """
        if self.reader.origin != "sent":
            return []
        counts = means(self._counts(squares) for _, _, squares in everyone)
        # m / (m + coarse) is below a half where m is below coarse
        return [name for name, mean in counts.items() if mean < 0.5]

    def _choose(
        self, params: Params, move: Params | None, squares: Numbers, tags: Numbers
    ) -> Params:
        """Masks by name of weight tensors; none for what is kept whole: moves that are not coarse.

        Args:
            params: The low-bit weights.
            move: The high-bit move; None chooses nothing.
            squares: The mean squares of the low-bit moves.
            tags: Gets what the masks are like.
        """
        if self.mask is None or move is None:
            return {}
        weights = [name for name, tensor in params.items() if tensor.ndim >= 2]
        low = {
            name: params[name] - self.reader.start[name]
            for name in weights
            if self.coarse is None or squares.get(name, self.coarse) < self.coarse
        }
        masks = {}
        if low:
            choose = _a_tensor if self.mask.scope == "layer" else _of_all
            masks = choose(low, move, self.mask.tau, tags)
        total = 0
        kept = 0
        for name in weights:
            total += params[name].numel()
            kept += int(masks[name].sum()) if name in masks else params[name].numel()
        if total:
            tags["prowd/mask_keep"] = kept / total
        return masks


def _a_tensor(low: Params, move: Params, tau: float, tags: Numbers) -> Params:
    """A mask for each tensor."""
    masks = {}
    cosine = 0.0
    for name, own in low.items():
        selection = certified_select(own, move[name], cap=tau)
        masks[name] = selection.mask
        kept = float(selection.mask.float().mean()) if own.numel() else 0.0
        tags[f"prowd/mask_keep_{name}"] = kept
        tags[f"prowd/cosine_{name}"] = selection.cosine
        cosine += selection.cosine
    tags["prowd/cosine"] = cosine / len(low)
    return masks


def _of_all(low: Params, move: Params, tau: float, tags: Numbers) -> Params:
    """One mask for all tensors."""
    flattener = Flattener(low)
    joint = certified_select(flattener.flatten(low), flattener.flatten(move), cap=tau)
    tags["prowd/cosine"] = joint.cosine
    return {name: mask.bool() for name, mask in flattener.unflatten(joint.mask).items()}


def _sorted(fabric: "Fabric", entries: list[Any], length: int) -> list[Any]:
    """The entries of all processes, in the order of their first `length` parts."""
    return sorted(gather(fabric, entries), key=lambda entry: entry[:length])


def means(rows: Iterable[Numbers]) -> Numbers:
    """The mean of the numbers of each name, over the rows that have it."""
    values: dict[str, list[float]] = {}
    for row in rows:
        for name, number in row.items():
            values.setdefault(name, []).append(number)
    return {name: sum(numbers) / len(numbers) for name, numbers in values.items()}
