"""How soon the runs of a row reached an accuracy: in seconds on simulated links, in rounds and in
megabytes.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from bhfl.report.reading import Run
from bhfl.report.rows import AVERAGE, Row, Section, Spread

SIMULATED = "time/simulated_s"
AXES = {"s": SIMULATED, "rounds": "round", "MB up": "comm/uplink_MB", "MB down": "comm/downlink_MB"}
"""What it may take to reach a goal, and the tag that counts it from the first round on."""


@dataclass(frozen=True)
class Goal:
    """An accuracy to reach.

    Args:
        target: The accuracy of all clients on the validation split, in (0, 1).
        window: The number of successive validations whose median has to reach it.
        baseline: The label of the row that others are measured against; the first row of a section
            by default.

    Raises:
        ValueError: `target` or `window` is out of range.
    """

    target: float
    window: int = 1
    baseline: str | None = None

    def __post_init__(self) -> None:
        if not 0 < self.target < 1:
            raise ValueError(f"--target must be an accuracy in (0, 1), got {self.target:g}")
        if self.window < 1:
            raise ValueError(f"--window must be at least 1, got {self.window}")

    def reached(self, run: Run, axis: str) -> float:
        """How much a run needed to get there.

        Args:
            run: The run.
            axis: What is counted, a key of `AXES`.

        Returns:
            Seconds, rounds or megabytes; infinite if it never got there, nan if its rows do not
            count them.
        """
        # not every round is validated, and not every run is timed
        accuracies = run.series(f"val/{run.metric}_{AVERAGE}")
        counted = run.series(AXES[axis])
        if not accuracies.keys() <= counted.keys():
            return math.nan
        times = [counted[round] for round in accuracies]
        return time_to_accuracy(times, list(accuracies.values()), self.target, self.window)

    def base(self, section: Section) -> Row | None:
        """The row that the others of a section are measured against; None where it has none."""
        for row in section.finished if section.comparable else []:
            if self.baseline in (None, row.label):
                return row
        return None

    def check_baseline(self, sections: Sequence[Section]) -> None:
        """Check that some section has the baseline.

        Raises:
            ValueError: None has it; the message lists the labels that there are.
        """
        if self.baseline is None or any(map(self.base, sections)):
            return
        known: dict[str, None] = {}
        for section in sections:
            if section.comparable:
                known |= dict.fromkeys(row.label for row in section.finished)
        raise ValueError(
            f"--baseline must be the label of a finished row, got {self.baseline!r}; there are "
            f"{', '.join(known)}"
        )

    def times_sooner(self, row: Row, base: Row, axis: str) -> Spread | None:
        """How many times sooner than `base` a row got there, over the seeds that both have; None if
        one of their runs never got there.
        """
        # seed by seed: a seed decides the initial weights and the partition, and one may be easier
        own = {run.seed: self.reached(run, axis) for run in row.runs}
        other = {run.seed: self.reached(run, axis) for run in base.runs}
        ratios = []
        for seed in own.keys() & other.keys():
            if not (0 < own[seed] < math.inf and 0 < other[seed] < math.inf):
                return None
            ratios.append(other[seed] / own[seed])
        return Spread.of(ratios) if ratios else None


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
        ValueError: `times` fall.

    >>> time_to_accuracy([10, 20, 30, 40], [0.5, 0.7, 0.6, 0.8], target=0.65)
    20.0
    >>> time_to_accuracy([10, 20, 30, 40], [0.5, 0.7, 0.6, 0.8], target=0.65, window=3)
    40.0
    """
    if any(later < earlier for earlier, later in pairwise(times)):
        raise ValueError("times must be cumulative: they must not fall")
    # a median of several forgives one lucky validation
    for end in range(window, len(times) + 1):
        recent = accuracies[end - window : end]
        if not any(math.isnan(value) for value in recent) and statistics.median(recent) >= target:
            return float(times[end - 1])
    return math.inf
