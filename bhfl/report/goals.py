"""How soon the runs of a row reached an accuracy: seconds on simulated links, rounds and
megabytes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from bhfl.report.curves import time_to_accuracy
from bhfl.report.reading import Run
from bhfl.report.rows import AVERAGE, Row, Section, Spread

SIMULATED = "time/simulated_s"
AXES = {"s": SIMULATED, "rounds": "round", "MB up": "comm/uplink_MB", "MB down": "comm/downlink_MB"}
"""What it takes, and the tag that has it, cumulative."""


@dataclass(frozen=True)
class Goal:
    """An accuracy to reach.

    Args:
        target: Accuracy of all clients on the validation split, in (0, 1).
        window: Successive validations whose median has to reach it.
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
        """How much of `axis` `run` needed; infinite where it never got there, nan where it has no
        such tag.
        """
        accuracies = run.series(f"val/{run.metric}_{AVERAGE}")
        passed = run.series(AXES[axis])
        if not accuracies.keys() <= passed.keys():
            return math.nan
        return time_to_accuracy(
            [passed[r] for r in accuracies], list(accuracies.values()), self.target, self.window
        )

    def base(self, section: Section) -> Row | None:
        """The row that the others of a section are measured against; None where it has none."""
        rows = section.finished if section.comparable else []
        chosen = [row for row in rows if row.label == self.baseline] if self.baseline else rows
        return chosen[0] if chosen else None

    def check_baseline(self, sections: Sequence[Section]) -> None:
        """Raise ValueError where no section has the baseline; the error lists the labels that there
        are.
        """
        known: dict[str, None] = {}
        for section in sections:
            if section.comparable:
                known |= dict.fromkeys(row.label for row in section.finished)
        if self.baseline is not None and self.baseline not in known:
            raise ValueError(
                f"--baseline must be the label of a finished row, got {self.baseline!r}; there are "
                f"{', '.join(known)}"
            )

    def times_sooner(self, row: Row, base: Row, axis: str) -> Spread | None:
        """How many times sooner than `base`, over the seeds that both have; None where one of them
        never got there.
        """
        own = {run.seed: self.reached(run, axis) for run in row.runs}
        other = {run.seed: self.reached(run, axis) for run in base.runs}
        ratios = []
        for seed in own.keys() & other.keys():
            if not (0 < own[seed] < math.inf and 0 < other[seed] < math.inf):
                return None
            ratios.append(other[seed] / own[seed])
        return Spread.of(ratios) if ratios else None
