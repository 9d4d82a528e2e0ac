"""How long, or how many bytes, it takes until a model is good enough."""

import math
import statistics
from collections.abc import Sequence
from itertools import pairwise


def time_to_accuracy(
    times: Sequence[float], accuracies: Sequence[float], target: float, window: int = 1
) -> float:
    """The first of `times` at which the median of the last `window` accuracies is at least
    `target`.

    Args:
        times: Cumulative seconds at each evaluation, or bytes, or whatever never falls.
        accuracies: The accuracy at each evaluation, or any metric that grows; NaN where there is
            none, which no median counts.
        target: The accuracy to reach.
        window: The number of evaluations in the median; 1 takes the accuracy itself. The target is
            not reached before there are that many.

    Returns:
        The time, or infinity if the target is never reached: then no speed-up can be told.

    Raises:
        ValueError: The lengths differ, `times` fall, or `window` is below 1.

    >>> time_to_accuracy([10, 20, 30, 40], [0.5, 0.7, 0.6, 0.8], target=0.65)
    20.0
    >>> time_to_accuracy([10, 20, 30, 40], [0.5, 0.7, 0.6, 0.8], target=0.65, window=3)
    40.0
    """
    _check(times, accuracies, window)
    # a median of several forgives one lucky validation
    for end in range(window, len(times) + 1):
        recent = accuracies[end - window : end]
        if not any(math.isnan(value) for value in recent) and statistics.median(recent) >= target:
            return float(times[end - 1])
    return math.inf


def _check(times: Sequence[float], accuracies: Sequence[float], window: int) -> None:
    if len(times) != len(accuracies):
        raise ValueError(
            f"times and accuracies must have the same length, got {len(times)} and "
            f"{len(accuracies)}"
        )
    if any(later < earlier for earlier, later in pairwise(times)):
        raise ValueError("times must be cumulative: they must not fall")
    if window < 1:
        raise ValueError(f"window must be >= 1, got {window}")
