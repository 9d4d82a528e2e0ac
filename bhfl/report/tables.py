"""What stands in the report's tables; `bhfl.report.forms` writes them."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from bhfl.report.goals import AXES, SIMULATED, Goal
from bhfl.report.ranking import Mark, Ranking, ranking
from bhfl.report.rows import AVERAGE, Row, Section, Spread
from bhfl.tags import LOST

_LEVEL = (
    "within the spread of the best: the mean of the differences, seed by seed, is at most its "
    "standard error, s/√n (s: their standard deviation, n: their number); one seed has no spread"
)


class Cell(NamedTuple):
    """What stands in a table, and whether it is the best of its column or level with it."""

    text: str
    mark: Mark = ""


@dataclass(frozen=True)
class Table:
    """A title, a head, rows of cells, the notes below, and when a figure is level with the best of
    its column.
    """

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    notes: Sequence[str] = ()
    level: str = ""


# ---- contents ------------------------------------------------------------------------------------


def results(section: Section) -> Table:
    """Accuracy by bit group, what was sent, and who was lost."""
    columns = {**_COLUMNS, **_optional(section)}
    rankings = {group: ranking(section, group) for group in section.groups}
    rows = []
    for place, row in enumerate(section.rows):
        cells = [Cell(row.name), Cell(_seeds(row)), Cell(_rounds(row))]
        for group, found in rankings.items():
            cells.append(_accuracy(row, group, found.marks[place]))
        cells += [Cell(text(row)) for text in columns.values()]
        rows.append(cells)
    return Table(
        title=section.title,
        head=["method", "seeds", "rounds", *map(_column, rankings), *columns],
        rows=rows,
        notes=[*_legend(section), *_compared(section, rankings), *section.notes],
        level=_LEVEL if any(found.marked for found in rankings.values()) else "",
    )


def _compared(section: Section, rankings: Mapping[str, Ranking]) -> list[str]:
    """How many seeds rows were compared on, and which were not."""
    counts: set[int] = set()
    alone: dict[str, None] = {}
    unmeasured = []
    unclear = []
    for group, found in rankings.items():
        column = _column(group)
        counts.update(found.counts)
        alone |= dict.fromkeys(row.label for row in found.alone)
        for row in found.unmeasured:
            unmeasured.append(f"{row.label} is not compared in {column}: a seed has no value")
        if not found.marked:
            unclear.append(column)
    notes = []
    if counts:
        said = _from_to(sorted(counts))
        notes.append(f"rows are compared seed by seed on the seeds that both have: {said}")
    for label in alone:
        notes.append(f"{label} is not compared: no other row has one of its seeds")
    notes += unmeasured
    if section.comparable and unclear and len(section.finished) > 1:
        notes.append(
            f"no best is marked in {', '.join(unclear)}: no row can be compared with all others "
            "and is not behind"
        )
    return notes


def _from_to(counts: Sequence[int]) -> str:
    low, high = min(counts), max(counts)
    return str(low) if low == high else f"{low} to {high}"


def _column(group: str) -> str:
    return "average" if group == AVERAGE else group


def _legend(section: Section) -> list[str]:
    """How to read the table, as far as it needs it."""
    notes = [
        "test accuracy in per cent after the last round, mean ± standard deviation over seeds; "
        "MB = 10^6 bytes"
    ]
    if any(not math.isnan(row.uplink_bits) for row in section.rows):
        notes.append(
            "bits up: 32 x MB up / MB down, all included: bits of a weight that came down as "
            "float32"
        )
    if len(section.finished) < len(section.rows):
        notes.append(
            "(in parentheses): last validation of a run that is not finished; it is not compared"
        )
    return notes


_COLUMNS: dict[str, Callable[[Row], str]] = {
    "up MB": lambda row: _amount(row.mean("comm/uplink_MB")),
    "down MB": lambda row: _amount(row.mean("comm/downlink_MB")),
    "bits up": lambda row: _fixed(row.uplink_bits, 1),
}
"""The columns behind the accuracies, and what they say of a row."""


def _optional(section: Section) -> dict[str, Callable[[Row], str]]:
    """The columns that only some sections need."""
    found: dict[str, Callable[[Row], str]] = {}
    if any(not math.isnan(row.mean(SIMULATED)) for row in section.rows):
        found["simulated s"] = lambda row: _amount(row.mean(SIMULATED))
    for status in LOST:
        if any(row.total(f"clients/{status}") for row in section.rows):
            found[status] = lambda row, tag=f"clients/{status}": _fixed(row.total(tag), 0)  # type: ignore[misc]
    return found


def until(section: Section, goal: Goal) -> Table | None:
    """What it took to reach a goal; None where no run is finished."""
    if not section.finished:
        return None
    tags = []
    for tag in AXES:
        reached = [goal.reached(run, tag) for run in section.runs if run.finished]
        if not all(map(math.isnan, reached)):
            tags.append(tag)
    timed = "s" in tags
    name = f"{100 * goal.target:g} %"
    base = goal.base(section)
    rows = []
    for row in section.finished:
        cells = [row.name]
        if timed:
            cells.append(_fixed(row.mean(SIMULATED) / row.mean("round"), 1))
        for tag in tags:
            digits = int("MB" in tag or (tag == "rounds" and len(row.runs) > 1))
            cells.append(_reached([goal.reached(run, tag) for run in row.runs], digits))
        axis = "s" if timed else "rounds"
        sooner = goal.times_sooner(row, base, axis) if base else None
        cells.append(_over_seeds(sooner, 2, row) if sooner else "-")
        cells.append(_over_seeds(_percent(row.accuracy(AVERAGE)), 1, row))
        rows.append([Cell(text) for text in cells])
    a_round = ["s a round"] if timed else []
    to_goal = [f"{tag} to {name}" for tag in tags]
    return Table(
        title=f"Until {name}",
        head=["method", *a_round, *to_goal, "times sooner", "test acc"],
        rows=rows,
        notes=_goal_notes(section, goal, base, timed),
    )


def _goal_notes(section: Section, goal: Goal, base: Row | None, timed: bool) -> list[str]:
    """How the goal is meant, and whom "times sooner" is measured against."""
    median = "a validation"
    if goal.window > 1:
        median = f"the median of {goal.window} successive validations"
    sooner = "runs of unknown settings are not compared"
    if base:
        sooner = f"than {base.label}, in {'seconds' if timed else 'rounds'}, seed by seed"
    elif section.comparable:
        sooner = f"there is no {goal.baseline} here"
    return [
        f"until {median} of all clients reached {100 * goal.target:g} %; "
        "seeds that never did are counted, not averaged",
        f"times sooner: {sooner}",
    ]


# ---- cells ---------------------------------------------------------------------------------------


def _percent(spread: Spread) -> Spread:
    return Spread(100 * spread.mean, 100 * spread.deviation, spread.count)


def _accuracy(row: Row, group: str, mark: Mark) -> Cell:
    text = _over_seeds(_percent(row.accuracy(group)), 1, row)
    return Cell(text, mark) if row.finished or text == "-" else Cell(f"({text})")


def _over_seeds(spread: Spread, digits: int, row: Row) -> str:
    """``44.7 ± 1.1``, and of how many seeds where some of the row's have no value."""
    some = 0 < spread.count < len(row.runs)
    return _spread(spread, digits) + (f" ({spread.count} of {len(row.runs)} seeds)" if some else "")


def _spread(spread: Spread, digits: int) -> str:
    """``44.7 ± 1.1``, or ``44.7`` of one seed."""
    deviation = "" if math.isnan(spread.deviation) else f" ± {spread.deviation:.{digits}f}"
    return _fixed(spread.mean, digits) + deviation


def _reached(values: Sequence[float], digits: int) -> str:
    if all(map(math.isnan, values)):
        return "-"
    finite = [value for value in values if math.isfinite(value)]
    if len(finite) < len(values):
        return f"reached in {len(finite)} of {len(values)}"
    return _spread(Spread.of(finite), digits)


def _fixed(value: float, digits: int) -> str:
    if math.isnan(value):
        return "-"
    return f"{value:,.{digits}f}" if abs(value) < 1e12 else f"{value:.3g}"


def _amount(value: float) -> str:
    """Three figures or so, whatever its size."""
    return _fixed(value, (value < 10) + (value < 100))


def _seeds(row: Row) -> str:
    seeds = [run.seed for run in row.runs]
    if None in seeds:
        return "-"
    return str(len(seeds)) if row.finished else f"seed {seeds[0]}"


def _rounds(row: Row) -> str:
    """How many rounds whole runs have; how far one that is not finished has come."""
    if not row.finished:
        run = row.runs[0]
        return f"{run.num_rounds} of {run.max_rounds or '?'}"
    return _from_to([run.num_rounds for run in row.runs])
