"""What a section of a report comes to, in a sentence or two: who is first, by how much, and on how
many seeds.
"""

import statistics

from bhfl.report.ranking import margins, ranking
from bhfl.report.rows import AVERAGE, Row, Section


def summary(section: Section) -> str:
    """The outcome of a comparison in words.

    Args:
        section: The rows that are compared.
    """
    group = AVERAGE if AVERAGE in section.groups else next(iter(section.groups), AVERAGE)
    whose = "on average over clients" if group == AVERAGE else f"of {group} clients"
    if not section.finished:
        return "No run is finished yet."
    if len(section.finished) == 1:
        (row,) = section.finished
        return f"{row.label} has {_value(row, group)} {whose}, on {_seeds(len(row.runs))}."
    found = ranking(section, group)
    best = [row for row, mark in zip(section.rows, found.marks, strict=True) if mark == "best"]
    if not best:
        return (
            f"No method is first {whose}: none can be compared with all others on seeds that both "
            "have, and is ahead of them."
        )
    first = best[0]
    if len(best) > 1:
        names = " and ".join(row.label for row in best)
        return f"{names} are equal, with {_value(first, group)} {whose}."
    others = [row for row in section.finished if row is not first and _shared(first, row, group)]
    second = min(others, key=lambda row: _lead(first, row, group))
    shared = len(_shared(first, second, group))
    text = (
        f"{first.label} is first, with {_value(first, group)} {whose}: "
        f"{first.metric.text(_lead(first, second, group), 2)}"
        f"{' points' * first.metric.is_share} ahead of {second.label}, on "
        f"{_seeds(shared)} that both have."
    )
    if found.marks[section.rows.index(second)] == "level":
        return f"{text} That is within the spread over seeds: the two are level."
    return f"{text} One seed tells little." if shared == 1 else text


def _value(row: Row, group: str) -> str:
    metric = row.metric
    text = metric.text(row.value(group).mean, 2)
    return f"{text} % {metric.words}" if metric.is_share else f"a {metric.words} of {text}"


def _seeds(number: int) -> str:
    return f"{number} seed{'s' * (number != 1)}"


def _shared(first: Row, other: Row, group: str) -> list[float]:
    """The differences on the seeds that both have."""
    found = margins(first.by_seed(group), other.by_seed(group))
    return [first.metric.sign * margin for margin in found]


def _lead(first: Row, other: Row, group: str) -> float:
    return statistics.fmean(_shared(first, other, group))
