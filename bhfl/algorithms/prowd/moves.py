"""What a low-bit client's update says: its move, and how well its grid resolves it."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from bhfl.comm import float_tensors
from bhfl.engine.downlink import as_received
from bhfl.engine.types import Client, Params, Tensors, Update
from bhfl.quant import QuantizedTensor
from bhfl.quant.rounding import per_slice
from bhfl.quant.sending import quantize_as_sent

Origin = Literal["broadcast", "dequant_start", "sent"]
"""Where moves are measured from: the broadcast weights, the client's rounding of them, or they were
sent as such.
"""
Grids = dict[str, QuantizedTensor]
"""The tensors that a client sent as codes, by name."""


@dataclass(frozen=True)
class LowMove:
    """One low-bit client's update, reconstructed.

    Attributes:
        client: Whose it is.
        params: The weights that the masked average takes for it.
        plain: The weights that the unmasked average takes for it.
        squares: The mean square of the move of each quantised tensor, in steps of the client's
            grid.
        sent: The move itself was sent, and not weights.
    """

    client: Client
    params: Params
    plain: Params
    squares: dict[str, float]
    sent: bool


def grids_of(update: Tensors) -> Grids:
    """Those tensors of an update that came as codes."""
    return {name: value for name, value in update.items() if isinstance(value, QuantizedTensor)}


def count(square: float, coarse: float) -> float:
    """What a move of mean square m counts, ``m / (m + coarse)``, in 1024ths: sums of these are
    exact.
    """
    if square == math.inf:  # in steps of a grid that is all zero, whose scale is the smallest
        return 1.0
    return round(1024 * square / (square + coarse)) / 1024


@dataclass
class MoveReader:
    """Makes moves of updates.

    Args:
        start: The weights that high-bit clients were sent.
        low_start: The weights that low-bit clients were sent.
        two_models: Whether these are two models; of one, what is not quantised is averaged as it
            is.
        origin: See `Origin`.
        raised: Raises an update of weights to float32.
    """

    start: Params
    low_start: Params
    two_models: bool
    origin: Origin
    raised: Callable[[Tensors], Params]
    _starts: dict[str, tuple[Grids, Params]] = field(default_factory=dict)

    @property
    def other_start(self) -> Params | None:
        """The weights that low-bit clients were sent, where moves count from them and they are a
        model of their own.
        """
        if self.origin == "broadcast" or self.low_start is self.start:
            return None
        return self.low_start

    def begins(self, update: Update, client: Client) -> Grids:
        """What a client that is sent differences makes of the weights that it has then; nothing
        where moves do not count from these, or the weights are those of its group.
        """
        if self.origin == "sent":
            return {}
        spec_of = client.devices.spec_of
        names = grids_of(update).keys() & update.received.keys()
        return {name: quantize_as_sent(update.received[name], spec_of(name)) for name in names}

    def read(self, update: Tensors, client: Client, begun: Grids | None = None) -> LowMove:
        """The client's move; what is not quantised moves from the weights that the client was
        sent.

        Args:
            update: What it sent.
            client: Who sent it.
            begun: What `begins` gave, where it gave anything.
        """
        grids = grids_of(update)
        if self.origin == "sent":
            weights = float_tensors(update)
            # clients send w_t - w_i, as in FedPAQ, and a move is w_i - w_t
            moves = {name: -weights[name] for name in grids}
            squares = {name: _mean_square(grid) for name, grid in grids.items()}
        else:
            weights = self.raised(update)
            codes, starts = self._starts_of(grids, client, begun or {})
            moves = {name: weights[name] - starts[name] for name in grids}
            squares = {name: _mean_square(grid, codes[name]) for name, grid in grids.items()}
        if self.origin == "broadcast":
            return LowMove(client, weights, weights, squares, sent=False)
        if self.two_models:
            for name in weights.keys() - grids.keys():
                moves[name] = weights[name] - self.low_start[name]
        return LowMove(
            client,
            params=_added(self.start, moves, weights),
            plain=_added(self.low_start, moves, weights),
            squares=squares,
            sent=self.origin == "sent",
        )

    def _starts_of(self, grids: Grids, client: Client, begun: Grids) -> tuple[Grids, Params]:
        """What the client makes of the weights that it was sent, and where its moves begin; each
        tensor once a bit group, if all of it are sent the same.
        """
        codes: Grids
        starts: Params
        codes, starts = ({}, {}) if begun else self._starts.setdefault(client.bits, ({}, {}))
        fresh: Grids = {}
        for name in grids.keys() - codes.keys():
            # as the client has rounded it
            fresh[name] = begun.get(name) or self._made(name, client)
            codes[name] = fresh[name]
        if fresh:
            starts |= self.raised(fresh) if self.origin == "dequant_start" else self.low_start
        return codes, starts

    def _made(self, name: str, client: Client) -> QuantizedTensor:
        """What the clients of a group make of a weight that all of them are sent alike."""
        received = as_received(name, self.low_start[name], client.devices)
        return quantize_as_sent(received, client.devices.spec_of(name))


def _mean_square(end: QuantizedTensor, start: QuantizedTensor | None = None) -> float:
    """The mean square of the move from `start` to `end`, or of a move that is `end` itself, in
    steps of `end`.
    """
    move = end.dequantize()
    if start is not None:
        move = move - start.dequantize()
    if not move.numel():
        return 0.0
    return float((move / per_slice(end.scale, move.dim())).double().square().mean())


def _added(start: Params, moves: Params, weights: Params) -> Params:
    """``start + move`` where there is a move, else the weights as they are."""
    return {
        name: start[name] + moves[name] if name in moves else value
        for name, value in weights.items()
    }
