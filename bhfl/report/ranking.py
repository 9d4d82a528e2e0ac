"""Which rows are best in a column: two rows are compared on the seeds that both have, seed by seed.

Means over other seeds say nothing here: a seed decides the initial weights and the partition, and
one may be easier.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from bhfl.report.rows import Row, Section

Mark = Literal["", "best", "level"]
BySeed = Mapping[int | None, float]


@dataclass(frozen=True)
class Ranking:
    """The outcome of a column.

    Args:
        marks: Of the section's rows, in their order.
        counts: Of seeds that the best row and each of the others share.
        unmeasured: Rows that are not compared because some of their seeds have no value.
        alone: Rows that are not compared because they share no seed with another.
    """

    marks: Sequence[Mark]
    counts: Sequence[int] = ()
    unmeasured: Sequence[Row] = ()
    alone: Sequence[Row] = ()

    @property
    def marked(self) -> bool:
        """Whether there is a best row."""
        return "best" in self.marks


def ranking(section: Section, group: str) -> Ranking:
    """Rank the rows of a section by their test accuracy of a bit group.

    The best rows are those that no row leads, each compared with all others; where rows share too
    few seeds to tell, or lead each other in a circle, there is none. A row is level with the best
    where the mean of their differences is at most its standard error.
    """
    rows, marks = section.rows, ["" for _ in section.rows]
    values = {
        i: row.by_seed(group) for i, row in enumerate(rows) if row.finished and section.comparable
    }
    whole = {i: found for i, found in values.items() if len(found) == len(rows[i].runs)}
    unmeasured = [rows[i] for i, found in values.items() if found and i not in whole]
    compared = {
        i: a
        for i, a in whole.items()
        if any(a.keys() & b.keys() for j, b in whole.items() if j != i)
    }
    alone = [rows[i] for i in whole if i not in compared and len(whole) > 1]
    best = [
        i for i, own in compared.items() if all(_leads(own, other) for other in compared.values())
    ]
    others = {i: found for i, found in compared.items() if i not in best} if best else {}
    for i in best:
        marks[i] = "best"
    for i, found in others.items():
        marks[i] = "level" if _level(compared[best[0]], found) else ""
    counts = [
        len(compared[best[0]].keys() & found.keys())
        for i, found in compared.items()
        if best and i != best[0]
    ]
    return Ranking(marks, counts, unmeasured, alone)  # type: ignore[arg-type]  # they are Marks


def _differences(own: BySeed, other: BySeed) -> list[float]:
    return [own[seed] - other[seed] for seed in own if seed in other]


def _leads(own: BySeed, other: BySeed) -> bool:
    """Whether `own` is at least as good on the seeds that both have; False where there are none."""
    found = _differences(own, other)
    return bool(found) and statistics.fmean(found) >= 0


def _level(best: BySeed, other: BySeed) -> bool:
    """Whether the mean of the differences is at most its standard error, ``s / sqrt(n)``; one seed
    has none.
    """
    found = _differences(best, other)
    if len(found) < 2:
        return found == [0]
    return statistics.fmean(found) <= statistics.stdev(found) / math.sqrt(len(found))
