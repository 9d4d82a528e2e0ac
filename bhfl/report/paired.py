"""Methods two by two: differences on the seeds that both have, and ranks over settings."""

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from bhfl.checks import suggestion
from bhfl.report.metric import AVERAGE
from bhfl.report.published import tau_b
from bhfl.report.ranking import margins, ranking
from bhfl.report.reading import read_table
from bhfl.report.rows import Row, Section
from bhfl.report.tables import Cell, Table, without_idle

_LEAST = 3
"""The seeds that an interval is told from."""
_CONFIDENCE = 0.95


# ---- differences ---------------------------------------------------------------------------------


def differences(section: Section) -> Table | None:
    """The table of what others differ by from the best row of a section, seed by seed; None where
    no two rows share a seed.

    Student's interval ``m ± t s / sqrt(n)`` for the mean of paired differences takes them for draws
    of one normal distribution.
    """
    base = _base(section)
    if base is None:
        return None
    group = _group(section)
    rows = []
    for row in section.finished:
        found = margins(row.by_seed(group), base.by_seed(group))
        if row is not base and found:
            rows.append([Cell(row.name), *_told(row, found)])
    if not rows:
        return None
    metric = section.metric
    whose = "on average over clients" if group == AVERAGE else f"of {group} clients"
    head, rows, alike = without_idle(["method", "difference", "95 % interval", "seeds"], rows, 2)
    return Table(
        title=f"Differences from {base.label}",
        head=head,
        rows=rows,
        notes=[
            *alike,
            f"{metric.words}{' in points' * metric.is_share} {whose} less that of {base.label}, "
            "seed by seed on the seeds that both have; Student's t interval from "
            f"{_LEAST} seeds on, not corrected for the number of comparisons",
        ],
    )


def _base(section: Section) -> Row | None:
    """The best row, or the first where none is."""
    if not section.comparable or not section.finished:
        return None
    marks = ranking(section, _group(section)).marks
    best = [row for row, mark in zip(section.rows, marks, strict=True) if mark == "best"]
    return (best or section.finished)[0]


def _group(section: Section) -> str:
    return next(reversed(section.groups), AVERAGE)


def _told(row: Row, found: Sequence[float]) -> list[Cell]:
    """The mean of differences, its interval, and how many there are."""
    metric = row.metric
    mean = statistics.fmean(found)
    low, high = interval(found)
    between = "-"
    if math.isfinite(low):
        between = f"{metric.text(low, 2)} to {metric.text(high, 2)}"
    return [Cell(metric.text(mean, 2)), Cell(between), Cell(str(len(found)))]


def interval(values: Sequence[float]) -> tuple[float, float]:
    """The interval of 95 % for the mean of some values; NaN for fewer than three.

    >>> low, high = interval([1.0, 2.0, 3.0])
    >>> round(low, 3), round(high, 3)
    (-0.484, 4.484)
    """
    if len(values) < _LEAST:
        return math.nan, math.nan
    # SciPy takes a second to load
    from scipy.stats import t

    half = t.ppf(0.5 + _CONFIDENCE / 2, len(values) - 1)
    half *= statistics.stdev(values) / math.sqrt(len(values))
    mean = statistics.fmean(values)
    return float(mean - half), float(mean + half)


# ---- ranks ---------------------------------------------------------------------------------------


def ranks(sections: Sequence[Section], order: Sequence[str] | None) -> Table | None:
    """The table of methods by their mean rank over settings; None for a single one without an
    order.

    Equal methods share the mean of their places. A method counts where it has a value for every
    seed.

    Args:
        sections: The settings.
        order: Labels of methods, the best first, which the ranks are compared with.

    Raises:
        ValueError: The order names a method that is not there, or fewer than two.
    """
    places: dict[str, list[float]] = {}
    used = 0
    for section in sections:
        found = _places(section)
        used += len(found) > 1
        for label, place in found.items() if len(found) > 1 else ():
            places.setdefault(label, []).append(place)
    if order is not None:
        _check_order(order, places)
    if not places or (used < 2 and order is None):
        return None
    means = {label: statistics.fmean(found) for label, found in places.items()}
    rows = [
        [Cell(label), Cell(f"{means[label]:.2f}"), Cell(f"{len(places[label])}")]
        for label in sorted(means, key=means.__getitem__)
    ]
    by = dict.fromkeys(section.metric.words for section in sections)
    head, rows, alike = without_idle(["method", "mean rank", "settings"], rows, 2)
    notes = [f"places by {' or '.join(by)}, 1 is the best", *alike]
    if order is not None:
        notes.append(
            f"Kendall's tau to the order given, of {len(order)} methods: "
            f"{float(tau_b(range(len(order)), [means[label] for label in order])):.3f}"
        )
    return Table(title="Mean ranks", head=head, rows=rows, notes=notes)


def _places(section: Section) -> dict[str, float]:
    """The place of each finished row of a section that has a value for every seed."""
    values = {}
    for row in section.finished if section.comparable else ():
        found = row.by_seed(_group(section))
        if len(found) == len(row.runs):
            values[row.label] = row.metric.sign * statistics.fmean(found.values())
    places = {}
    for label, value in values.items():
        ahead = sum(other > value for other in values.values())
        equal = sum(other == value for other in values.values())
        places[label] = ahead + (1 + equal) / 2
    return places


def read_order(path: str | Path) -> list[str]:
    """The methods of a CSV with a column ``method``, the best first.

    Raises:
        ValueError: It has no such column, or names a method twice.
        OSError: It cannot be read.
    """
    rule = "--order must be a CSV with a column method"
    rows = read_table(path, rule)
    found = [str(row["method"]).strip() for row in rows if row.get("method")]
    if not found:
        raise ValueError(f"{rule}, got {path}")
    if twice := next((label for label in found if found.count(label) > 1), None):
        raise ValueError(f"--order must name each method once, got {twice!r} again in {path}")
    return found


def _check_order(order: Sequence[str], known: Mapping[str, object]) -> None:
    for label in order:
        if label not in known:
            raise ValueError(
                f"--order must name methods that are compared, got {label!r}"
                f"{suggestion(label, known)}"
            )
    if len(order) < 2:
        raise ValueError(f"--order must name two methods or more, got {len(order)}")
