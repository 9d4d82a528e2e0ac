"""Which rows are best in a column: two rows are compared on the seeds that both have, seed by seed.

Means over other seeds say nothing here: a seed decides the initial weights and the partition, and
one may be easier.
"""

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
    """Which rows of a section are best in a column.

    Args:
        marks: The mark of each of the section's rows.
        counts: The numbers of seeds that the best row shares with each of the others.
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
    """Rank the rows of a section by their metric of a bit group.

    The best rows are those that no row leads, each compared with all others. There is none where
    rows share too few seeds to tell, or lead each other in a circle. A row is level with the best
    where the mean of their differences is at most its standard error.

    Args:
        section: The rows, which are ranked where it is known that they may be compared.
        group: A bit group, or the average over clients.
    """
    whole = {}
    unmeasured = []
    for i, row in enumerate(section.rows):
        found = row.by_seed(group) if row.finished and section.comparable else {}
        # without the seed that diverged, a row would look better than it is
        if len(found) == len(row.runs):
            whole[i] = {seed: row.metric.sign * value for seed, value in found.items()}
        elif found:
            unmeasured.append(row)
    compared = {i: own for i, own in whole.items() if _shares_a_seed(i, whole)}
    alone = [section.rows[i] for i in whole if i not in compared and len(whole) > 1]
    # there may be several, which are equal on the seeds that they share
    best = [i for i, own in compared.items() if _leads_all(own, compared)]
    marks: list[Mark] = ["" for _ in section.rows]
    if not best:
        return Ranking(marks, (), unmeasured, alone)
    first = compared.pop(best[0])
    for i, own in compared.items():
        marks[i] = "level" if _level(first, own) else ""
    for i in best:
        marks[i] = "best"
    counts = [len(first.keys() & own.keys()) for own in compared.values()]
    return Ranking(marks, counts, unmeasured, alone)


def _shares_a_seed(i: int, rows: Mapping[int, BySeed]) -> bool:
    """Whether another row has one of the seeds of row `i`."""
    return any(rows[i].keys() & other.keys() for j, other in rows.items() if j != i)


def _leads_all(own: BySeed, rows: Mapping[int, BySeed]) -> bool:
    """Whether `own` is at least as good as each row on the seeds that both have; False where there
    are none.
    """
    for other in rows.values():
        found = margins(own, other)
        if not found or statistics.fmean(found) < 0:
            return False
    return True


def margins(own: BySeed, other: BySeed) -> list[float]:
    """What one row has more than another, on the seeds that both have."""
    return [own[seed] - other[seed] for seed in own if seed in other]


def _level(best: BySeed, other: BySeed) -> bool:
    """Whether the mean of the differences is at most its standard error, ``s / sqrt(n)``."""
    found = margins(best, other)
    # the difference of a single seed has no standard error
    if len(found) < 2:
        return found == [0]
    return statistics.fmean(found) <= statistics.stdev(found) / math.sqrt(len(found))
