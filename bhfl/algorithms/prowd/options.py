"""The options of ProWD that belong together: those of its mask, and those of its dequantizer."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, get_args

from bhfl.algorithms.prowd.blocks import Arch, Bound
from bhfl.algorithms.prowd.selection import share_or_count
from bhfl.checks import (
    are_all,
    bits_or,
    check_options,
    choice,
    count,
    not_negative,
    or_none,
    positive,
    within,
)

Fill = Literal["renorm", "delta", "high", "literal"]
Per = Literal["client", "group"]
Scope = Literal["layer", "model"]
Loss = Literal["mean_norm", "sum"]

CHECKS = {
    "arch": choice(*get_args(Arch)),
    "bound": choice(*get_args(Bound)),
    "lr": positive,
    "loss": choice(*get_args(Loss)),
    "teacher_forcing": within("[0, 1]"),
    "distill_weight": not_negative,
}
"""What the options of a dequantizer must be."""


def ladder_problem(bits: Sequence[int]) -> str:
    """What is wrong with the widths of a ladder."""
    known = are_all(bits, lambda width: not bits_or()(width))
    if known and len(bits) > 1 and all(low < high for low, high in pairwise(bits)):
        return ""
    return f"must be at least two ascending widths of 2..16 or 32, got {bits!r}"


_MASK = {
    "coarse": or_none(positive),
    "tau": share_or_count,
    "scope": choice(*get_args(Scope)),
    "per": choice(*get_args(Per)),
    "fill": choice(*get_args(Fill)),
    "high_max_age": count(0),
}
_SIZES = ("warmup_rounds", "period", "first_steps", "steps", "buffer_size", "pool_size")
_DEQUANTIZER = {
    "ladder": or_none(ladder_problem),
    **dict.fromkeys(_SIZES, count(1)),
    **{key: CHECKS[key] for key in ("distill_weight", "lr", "arch", "bound")},
}


@dataclass(frozen=True)
class Mask:
    """How entries of low-bit clients are chosen for the average, and what they count in it.

    Args:
        coarse: Mean square of a tensor's move, in steps of the low-bit client's grid, below which
            the move is coarse: only coarse moves are masked, and one of mean square m counts as m /
            (m + coarse) of a high-bit client's. With ``payload: delta`` they count wholly in the
            low-bit model, which takes no high-bit move of a tensor that is coarse on average over
            its clients: it was made for another model. Null masks all and counts all wholly, as the
            paper.
        tau: Largest share of entries (a float in (0, 1]) or number of them (an int) that a mask
            keeps.
        scope: One mask a weight tensor (``layer``) or one for all of them (``model``).
        per: One mask a ``client``, or one a bit ``group`` from the group's mean.
        fill: What stands for dropped entries: nothing, the rest is ``renorm``-alised; no change
            (``delta``); the ``high`` group's mean; or zero, as the paper's formula reads
            (``literal``).
        high_max_age: Rounds for which the last high-bit move serves when a round has no high-bit
            client.

    Raises:
        ValueError: An option is out of its range.
    """

    coarse: float | None = 0.1
    tau: int | float = 0.05
    scope: Scope = "layer"
    per: Per = "client"
    fill: Fill = "renorm"
    high_max_age: int = 5

    def __post_init__(self) -> None:
        """Check the options."""
        check_options("ProWD.mask", self, _MASK)


@dataclass(frozen=True)
class Dequantizer:
    """When the dequantizer is trained, on what, and what it is made of.

    Args:
        ladder: Widths that it climbs; by default the fleet's, with doublings in between.
        warmup_rounds: The round in which it is trained first.
        period: Rounds between its fine-tunings.
        first_steps: Its optimiser steps the first time.
        steps: Its optimiser steps each time after.
        distill_weight: Weight (lambda) of distillation beside reconstruction; 0 needs no buffer.
        buffer_size: Samples of the server's buffer, out of `data.holdout`.
        pool_size: High-bit models that it learns from.
        lr: Its learning rate.
        arch: Architecture of its blocks, see `bhfl.algorithms.prowd.blocks.Block`.
        bound: How far its blocks may move a weight, see there.

    Raises:
        ValueError: An option is out of its range.
    """

    ladder: tuple[int, ...] | None = None
    warmup_rounds: int = 5
    period: int = 5
    first_steps: int = 100
    steps: int = 30
    distill_weight: float = 1.0
    buffer_size: int = 128
    pool_size: int = 4
    lr: float = 1e-3
    arch: Arch = "conv1d"
    bound: Bound = "auto"

    def __post_init__(self) -> None:
        """Check the options."""
        check_options("ProWD.dequantizer", self, _DEQUANTIZER)
