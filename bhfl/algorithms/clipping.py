"""Moves of bounded length, and a bound that follows them."""

import math

from bhfl.checks import within
from bhfl.engine.types import Params

RATE = within("(0, 10]")
"""The check of how fast a bound follows. At 10 a round may change it 22,000 times over."""


def clipped(weights: Params, origin: Params, bound: float) -> tuple[Params, bool]:
    """The weights where a client's move ends if it may be no longer than `bound`, over all tensors,
    and whether it was within that.

    Args:
        weights: Where the client came to; at least the tensors of `origin`. In float64 the length
            of the move is exact to 16 digits, otherwise to those of float32.
        origin: Where it started from.
        bound: The largest length.

    Returns:
        The very `weights` if they are within the bound, else tensors of their dtype.
    """
    moves = {name: weights[name] - value for name, value in origin.items()}
    length = math.sqrt(sum(float(move.double().square().sum()) for move in moves.values()))
    if length <= bound:
        return weights, True
    share = bound / length
    return {name: origin[name] + share * move for name, move in moves.items()}, False


def following_bound(bound: float, inside: float, quantile: float | None, rate: float) -> float:
    """The bound of the next round (Andrew et al., NeurIPS 2021, https://arxiv.org/abs/1905.03871,
    algorithm 1): ``bound * exp(-rate * (inside - quantile))``.

    Args:
        bound: That of this round.
        inside: The share of moves that were within it.
        quantile: The share that is to be; None for a fixed bound.
        rate: How fast it follows.
    """
    if quantile is None:
        return bound
    # noise may carry the share anywhere, and a float has no larger power
    return bound * math.exp(min(-rate * (inside - quantile), 700.0))
