"""What stands in the report's tables; `bhfl.report.forms` writes them."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from bhfl.report.goals import AXES, SIMULATED, Goal
from bhfl.report.metric import Metric
from bhfl.report.ranking import Mark, Ranking, ranking
from bhfl.report.rows import AVERAGE, Row, Section, Spread

_LEVEL = (
    "within the spread of the best: the mean of the differences, seed by seed, is at most its "
    "standard error, s/√n (s: their standard deviation, n: their number); one seed has no spread"
)


class Cell(NamedTuple):
    """One cell of a table: its text, and whether it is the best of its column or level with it."""

    text: str
    mark: Mark = ""


@dataclass(frozen=True)
class Table:
    """A table, in whatever form it is written.

    Args:
        title: What stands above it.
        head: The names of its columns.
        rows: Its cells.
        notes: Lines that stand below it.
        level: When a figure is level with the best of its column; empty where none is marked.
    """

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    notes: Sequence[str] = ()
    level: str = ""


# ---- contents ------------------------------------------------------------------------------------


def results(section: Section) -> Table:
    """The table of a section: its metric by bit group, what was sent, and how many updates did not
    count. Columns that are empty, or the same in all rows, are left out.
    """
    rankings = {group: ranking(section, group) for group in section.groups}
    # columns that would be empty or zero in every row are left out
    timed = any(not math.isnan(row.mean(SIMULATED)) for row in section.rows)
    # the metric first: a narrow screen shows the first columns alone
    head = ["method", *map(_column, rankings), "seeds", "rounds", "up MB", "down MB", "bits up"]
    if timed:
        head.append("simulated s")
    rows = []
    for place, row in enumerate(section.rows):
        cells = [Cell(row.name)]
        for group, found in rankings.items():
            cells.append(_marked(row, group, found.marks[place]))
        cells += [Cell(_seeds(row)), Cell(_rounds(row))]
        figures = [_amount(row.mean("comm/uplink_MB")), _amount(row.mean("comm/downlink_MB"))]
        figures.append(_fixed(row.uplink_bits, 1))
        if timed:
            figures.append(_amount(row.mean(SIMULATED)))
        figures += [_fixed(row.lost(status), 0) for status in section.losses]
        rows.append([*cells, *map(Cell, figures)])
    head, rows, alike = without_idle([*head, *section.losses], rows, 1 + len(rankings))
    return Table(
        title=section.title,
        head=head,
        rows=rows,
        notes=[*_legend(section), *alike, *_compared(section, rankings), *section.notes],
        level=_LEVEL if any(found.marked for found in rankings.values()) else "",
    )


def without_idle(
    head: Sequence[str], rows: Sequence[Sequence[Cell]], keep: int
) -> tuple[list[str], list[list[Cell]], list[str]]:
    """A table without the columns that are empty or the same in all of several rows, and notes on
    what they hold.

    Args:
        head: The names of its columns.
        rows: Its cells.
        keep: The first columns, which stay.
    """
    alike = {}
    for i in range(keep, len(head)):
        texts = {row[i].text for row in rows}
        # what a single row has is worth a column
        if texts == {"-"} or (len(texts) == 1 and len(rows) > 1):
            alike[i] = texts.pop()
    stays = [i for i in range(len(head)) if i not in alike]
    told = [f"{head[i]} {text}" for i, text in alike.items() if text != "-"]
    notes = [f"the same in all rows: {', '.join(told)}"] if told else []
    cut = []
    for row in rows:
        cut.append([row[i] for i in stays])
    return [head[i] for i in stays], cut, notes


def _compared(section: Section, rankings: Mapping[str, Ranking]) -> list[str]:
    """Notes on how many seeds rows were compared on, and on rows that were not compared."""
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
        notes.append(
            f"rows are compared seed by seed on the seeds that both have: {_from_to(counts)}"
        )
    for label in alone:
        notes.append(f"{label} is not compared: no other row has one of its seeds")
    notes += unmeasured
    # a single row is trivially the best, and needs no excuse
    if section.comparable and unclear and len(section.finished) > 1:
        notes.append(
            f"no best is marked in {', '.join(unclear)}: no row can be compared with all others "
            "and is not behind"
        )
    return notes


def _from_to(counts: Collection[int]) -> str:
    low = min(counts)
    high = max(counts)
    return str(low) if low == high else f"{low} to {high}"


def _column(group: str) -> str:
    return "average" if group == AVERAGE else group


def _legend(section: Section) -> list[str]:
    """Notes on how to read the table."""
    notes = [
        f"{section.metric.words}{' in per cent' * section.metric.is_share} after the last round, "
        "mean ± standard deviation over seeds; MB = 10^6 bytes"
    ]
    if section.metric.mode == "min":
        notes.append("the lower the better")
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


def until(section: Section, goal: Goal) -> Table | None:
    """The table of what it took to reach a goal; None where no run is finished."""
    if not section.finished:
        return None
    # runs without a simulated network count no seconds
    tags = []
    for tag in AXES:
        reached = [goal.reached(run, tag) for run in section.runs if run.finished]
        if not all(map(math.isnan, reached)):
            tags.append(tag)
    timed = "s" in tags
    name = f"{100 * goal.target:g} %"
    base = goal.base(section)
    head = ["method", "s a round"] if timed else ["method"]
    head += [f"{tag} to {name}" for tag in tags]
    rows = []
    for row in section.finished:
        cells = [row.name]
        if timed:
            cells.append(_fixed(row.mean(SIMULATED) / row.mean("round"), 1))
        for tag in tags:
            # a mean of rounds over seeds may have a fraction, the rounds of one run have none
            digits = int("MB" in tag or (tag == "rounds" and len(row.runs) > 1))
            cells.append(_reached([goal.reached(run, tag) for run in row.runs], digits))
        axis = "s" if timed else "rounds"
        sooner = goal.times_sooner(row, base, axis) if base else None
        cells.append(_over_seeds(sooner, 2, row) if sooner else "-")
        cells.append(over_seeds(row, Metric(), AVERAGE))
        rows.append(list(map(Cell, cells)))
    return Table(
        title=f"Until {name}",
        head=[*head, "times sooner", "test acc"],
        rows=rows,
        notes=_goal_notes(section, goal, base, timed),
    )


def _goal_notes(section: Section, goal: Goal, base: Row | None, timed: bool) -> list[str]:
    """Notes on what the goal means, and on the row that "times sooner" is measured against."""
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


def _marked(row: Row, group: str, mark: Mark) -> Cell:
    """The metric of a row; it stands in parentheses where the run is not finished."""
    text = over_seeds(row, row.metric, group)
    return Cell(text, mark) if row.finished or text == "-" else Cell(f"({text})")


def over_seeds(row: Row, metric: Metric, group: str) -> str:
    """A metric of a row: mean and deviation over its seeds."""
    found = row.value(group, metric)
    digits = 1
    if not metric.is_share:
        digits = 4 if abs(found.mean) < 10 else 2
    scale = metric.scale
    return _over_seeds(
        Spread(scale * found.mean, scale * found.deviation, found.count), digits, row
    )


def _over_seeds(spread: Spread, digits: int, row: Row) -> str:
    """``44.7 ± 1.1``, and of how many seeds if some of the row's have no value."""
    text = _spread(spread, digits)
    if 0 < spread.count < len(row.runs):
        text += f" ({spread.count} of {len(row.runs)} seeds)"
    return text


def _spread(spread: Spread, digits: int) -> str:
    """``44.7 ± 1.1``, or ``44.7`` where there is one seed."""
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
    # a damaged file may hold any number, and a cell has to stay short
    return f"{value:,.{digits}f}" if abs(value) < 1e12 else f"{value:.3g}"


def _amount(value: float) -> str:
    """About three figures, whatever the size of the value."""
    return _fixed(value, (value < 10) + (value < 100))


def _seeds(row: Row) -> str:
    seeds = [run.seed for run in row.runs]
    if None in seeds:
        return "-"
    return str(len(seeds)) if row.finished else f"seed {seeds[0]}"


def _rounds(row: Row) -> str:
    """How many rounds finished runs have, or how far a run that is not finished has come."""
    if not row.finished:
        run = row.runs[0]
        return f"{run.num_rounds} of {run.max_rounds or '?'}"
    return _from_to([run.num_rounds for run in row.runs])
