"""The report's tables: for the console, as Markdown, and as CSV with every number in full."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from bhfl.report.goals import AXES, SIMULATED, Goal
from bhfl.report.ranking import Mark, Ranking, ranking
from bhfl.report.reading import LOST
from bhfl.report.rows import AVERAGE, Row, Section, Spread

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
    groups, extra = section.groups, _optional(section)
    head = ["method", "seeds", "rounds", *map(_column, groups)]
    head += ["up MB", "down MB", "bits up", *extra]
    rows, rankings = [], {group: ranking(section, group) for group in groups}
    for place, row in enumerate(section.rows):
        cells = [Cell(row.name), Cell(_seeds(row)), Cell(_rounds(row))]
        cells += [_accuracy(row, group, rankings[group].marks[place]) for group in groups]
        sent = [_amount(row.mean(tag)) for tag in ("comm/uplink_MB", "comm/downlink_MB")]
        cells += map(
            Cell, [*sent, _fixed(row.uplink_bits, 1), *(value(row) for value in extra.values())]
        )
        rows.append(cells)
    level = _LEVEL if any(found.marked for found in rankings.values()) else ""
    return Table(
        section.title,
        head,
        rows,
        [*_legend(section), *_compared(section, rankings), *section.notes],
        level,
    )


def _compared(section: Section, rankings: Mapping[str, Ranking]) -> list[str]:
    """On how many seeds rows were compared, and which were not."""
    notes = []
    counts = sorted({count for found in rankings.values() for count in found.counts})
    if counts:
        said = str(counts[-1]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
        notes.append(f"rows are compared seed by seed on the seeds that both have: {said}")
    columns = {_column(group): found for group, found in rankings.items()}
    for row in dict.fromkeys(row.label for found in columns.values() for row in found.alone):
        notes.append(f"{row} is not compared: no other row has one of its seeds")
    for column, found in columns.items():
        notes += [
            f"{row.label} is not compared in {column}: a seed has no value"
            for row in found.unmeasured
        ]
    unclear = [column for column, found in columns.items() if not found.marked]
    if section.comparable and unclear and len(section.finished) > 1:
        notes.append(
            f"no best is marked in {', '.join(unclear)}: no row can be compared with all others "
            "and is not behind"
        )
    return notes


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
    base = goal.base(section)
    runs = [run for row in section.finished for run in row.runs]
    tags = [tag for tag in AXES if not all(math.isnan(goal.reached(run, tag)) for run in runs)]
    timed, name = "s" in tags, f"{100 * goal.target:g} %"
    head = [
        "method",
        *(["s a round"] if timed else []),
        *(f"{tag} to {name}" for tag in tags),
        "times sooner",
    ]
    rows = []
    for row in section.finished:
        cells = [row.name, *([_fixed(row.mean(SIMULATED) / row.mean("round"), 1)] if timed else [])]
        digits = {tag: int("MB" in tag or (tag == "rounds" and len(row.runs) > 1)) for tag in tags}
        cells += [
            _reached([goal.reached(run, tag) for run in row.runs], digits[tag]) for tag in tags
        ]
        sooner = goal.times_sooner(row, base, "s" if timed else "rounds") if base else None
        cells += [_over_seeds(sooner, 2, row) if sooner else "-"]
        cells += [_over_seeds(_percent(row.accuracy(AVERAGE)), 1, row)]
        rows.append([Cell(text) for text in cells])
    median = (
        f"the median of {goal.window} successive validations" if goal.window > 1 else "a validation"
    )
    return Table(f"Until {name}", [*head, "test acc"], rows, [
        f"until {median} of all clients reached {name}; "
        "seeds that never did are counted, not averaged",
        f"times sooner: than {base.label}, in {'seconds' if timed else 'rounds'}, seed by seed"
        if base
        else f"times sooner: there is no {goal.baseline} here"
        if section.comparable
        else "times sooner: runs of unknown settings are not compared",
    ])  # fmt: skip


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
    return _fixed(value, 2 if value < 10 else 1 if value < 100 else 0)


def _seeds(row: Row) -> str:
    seeds = [run.seed for run in row.runs]
    return "-" if None in seeds else str(len(seeds)) if row.finished else f"seed {seeds[0]}"


def _rounds(row: Row) -> str:
    """Of whole runs their number; of one that is not finished, how far it has come."""
    if not row.finished:
        run = row.runs[0]
        return f"{run.num_rounds} of {run.max_rounds or '?'}"
    counts = [run.num_rounds for run in row.runs]
    return str(counts[0]) if len(set(counts)) == 1 else f"{min(counts)} to {max(counts)}"


# ---- forms ---------------------------------------------------------------------------------------

_MARKS = {"": "", "best": "*", "level": "~"}


def console(table: Table) -> str:
    """Aligned columns between rules; marks behind the figures."""
    marked = {i for row in table.rows for i, cell in enumerate(row) if cell.mark}
    lines = [[f"{h} " if i in marked else h for i, h in enumerate(table.head)]]
    lines += [
        [
            cell.text + (_MARKS[cell.mark] or " ") if i in marked else cell.text
            for i, cell in enumerate(row)
        ]
        for row in table.rows
    ]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    body = [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip()
        for row in lines
    ]
    rule = "-" * max(map(len, body))
    legend = [f"*: best of its column; ~: {table.level}"] if table.level else []
    return "\n".join([table.title, rule, body[0], rule, *body[1:], rule, *table.notes, *legend])


def markdown(table: Table) -> str:
    """A table whose best figures are bold, and those level with them italic."""
    around = {"": "", "best": "**", "level": "*"}
    rows = [
        [f"{around[c.mark]}{_escaped(c.text)}{around[c.mark]}" for c in row] for row in table.rows
    ]
    lines = [f"| {' | '.join(row)} |" for row in [list(map(_escaped, table.head)), *rows]]
    lines.insert(1, "|---|" + "---:|" * (len(table.head) - 1))
    notes = [
        *map(_escaped, table.notes),
        *([f"**bold**: best of its column; *italic*: {table.level}"] if table.level else []),
    ]
    return "\n".join(
        [f"## {_escaped(table.title)}", "", *lines, "", *(f"- {note}" for note in notes)]
    )


def _escaped(text: str) -> str:
    """Text that is no markup, neither of Markdown nor of HTML."""
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_{}\[\]|~#!])", r"\\\1", text)


def as_csv(sections: Sequence[Section], goal: Goal | None = None) -> str:
    """One line a row of all tables, accuracies in 0..1, an empty field where there is nothing."""
    groups = list(dict.fromkeys(group for section in sections for group in section.groups))
    lines = [_numbers(section, row, groups, goal) for section in sections for row in section.rows]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(lines[0]), lineterminator="\n")
    writer.writeheader()
    for line in lines:
        writer.writerow({key: _field(value) for key, value in line.items()})
    return text.getvalue()


def _field(value: str | float) -> str | float:
    """A field of the CSV: empty for nan, and text that no spreadsheet takes for a formula."""
    if isinstance(value, str):
        return f"'{value}" if value.startswith(("=", "+", "-", "@")) else value
    return "" if math.isnan(value) else value


def _numbers(
    section: Section, row: Row, groups: Sequence[str], goal: Goal | None
) -> dict[str, str | float]:
    line: dict[str, str | float] = {
        "settings": section.title, "method": row.label,
        "state": "finished" if row.finished else "not finished",
        "seeds": " ".join(str(run.seed) for run in row.runs), "rounds": row.mean("round"),
    }  # fmt: skip
    for group in groups:
        found = row.accuracy(group) if row.finished else Spread.of([])
        line |= {f"test_acc_{group}": found.mean, f"test_acc_{group}_std": found.deviation}
        line[f"test_acc_{group}_seeds"] = found.count
        line[f"val_acc_{group}"] = row.mean(f"val/{row.runs[0].metric}_{group}")
    line |= {f"{way}_MB": row.mean(f"comm/{way}link_MB") for way in ("up", "down")}
    line |= {"bits_up": row.uplink_bits, "simulated_seconds": row.mean(SIMULATED)}
    line |= {"seconds": row.total("time/round_s")} | {
        status: row.total(f"clients/{status}") for status in LOST
    }
    return line | (_until_numbers(row, goal) if goal else {})


def _until_numbers(row: Row, goal: Goal) -> dict[str, str | float]:
    """What it took to reach the goal where every seed did, and how many did."""
    line: dict[str, str | float] = {}
    for axis in AXES:
        values = [goal.reached(run, axis) for run in row.runs] if row.finished else []
        found = Spread.of(values if all(map(math.isfinite, values)) else [])
        name = f"{axis.replace(' ', '_')}_to_{goal.target:g}"
        line |= {name: found.mean, f"{name}_std": found.deviation}
        line[f"reached_{goal.target:g}"] = sum(map(math.isfinite, values))
    return line
