"""What a low-bit client's update says: its move, and how well its grid resolves it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from bhfl.comm import float_tensors
from bhfl.engine.types import Client, Params, Tensors
from bhfl.quant import BitSpec, QuantizedTensor, quantize
from bhfl.quant.rounding import per_slice

Origin = Literal["broadcast", "dequant_start", "sent"]
"""Where moves are measured from: the broadcast weights, the client's rounding of them, or they were
sent as such.
"""


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

    def counts(self, coarse: float) -> dict[str, float]:
        """What each quantised tensor counts, see :func:`count`."""
        return {name: count(square, coarse) for name, square in self.squares.items()}


def count(square: float, coarse: float) -> float:
    """What a move of mean square m counts, ``m / (m + coarse)``, in 1024ths: sums of these are
    exact.

    The square of a move in steps of a grid that is all zero, whose scale is the smallest, may be
    infinite.
    """
    return 1.0 if square == math.inf else round(1024 * square / (square + coarse)) / 1024


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

    def __init__(
        self,
        start: Params,
        low_start: Params,
        two_models: bool,
        origin: Origin,
        raised: Callable[[Tensors], Params],
    ) -> None:
        self.start = start
        self.low_start = low_start
        self.two_models = two_models
        self.origin, self.raised = origin, raised
        self.origins: dict[str, tuple[dict[str, QuantizedTensor], Params]] = {}

    def read(self, update: Tensors, client: Client) -> LowMove:
        """The client's move; what is not quantised moves from the weights that the client was
        sent.
        """
        grids = {
            name: value for name, value in update.items() if isinstance(value, QuantizedTensor)
        }
        if self.origin == "sent":
            weights = float_tensors(update)
            moves = {name: -weights[name] for name in grids}  # differences w_t - w_i, as in FedPAQ
            squares = {name: _mean_square(grid, None) for name, grid in grids.items()}
        else:
            weights = self.raised(update)
            codes, origins = self._origins(grids, client)
            moves = {name: weights[name] - origins[name] for name in grids}
            squares = {name: _mean_square(grid, codes[name]) for name, grid in grids.items()}
        if self.origin == "broadcast":
            return LowMove(client, weights, weights, squares, sent=False)
        if self.two_models:
            moves |= {
                name: value - self.low_start[name]
                for name, value in weights.items()
                if name not in grids
            }
        masked, plain = (_added(start, moves, weights) for start in (self.start, self.low_start))
        return LowMove(client, masked, plain, squares, sent=self.origin == "sent")

    def _origins(
        self, grids: dict[str, QuantizedTensor], client: Client
    ) -> tuple[dict[str, QuantizedTensor], Params]:
        """What the client makes of the weights that it was sent, and where its moves begin; once a
        bit group.
        """
        if client.group not in self.origins:
            codes = _as_client(self.low_start, grids, client.spec)
            raised = self.raised(dict(codes)) if self.origin == "dequant_start" else self.low_start
            self.origins[client.group] = codes, raised
        return self.origins[client.group]


def _as_client(
    params: Params, grids: dict[str, QuantizedTensor], spec: BitSpec
) -> dict[str, QuantizedTensor]:
    """The tensors of `grids`, as a client of `spec` quantises them in `params`."""
    return {
        name: quantize(
            params[name], spec.weights, range_rule=spec.range_rule, granularity=spec.granularity
        )
        for name in grids
    }


def _mean_square(end: QuantizedTensor, start: QuantizedTensor | None) -> float:
    """Of the move from `start`, or of a move that is `end` itself, in steps of `end`."""
    move = end.dequantize() if start is None else end.dequantize() - start.dequantize()
    return (
        float((move / per_slice(end.scale, move.dim())).double().square().mean())
        if move.numel()
        else 0.0
    )


def _added(start: Params, moves: Params, weights: Params) -> Params:
    """``start + move`` where there is a move, else the weights as they are."""
    return {
        name: start[name] + moves[name] if name in moves else value
        for name, value in weights.items()
    }
