"""Tables as text: for the console, as Markdown, and as CSV with every number in full."""

import csv
import io
import math
import re
from collections.abc import Sequence

from bhfl.checks import aligned
from bhfl.report.goals import AXES, SIMULATED, Goal
from bhfl.report.rows import Row, Section, Spread
from bhfl.report.tables import Cell, Table
from bhfl.tags import LOST

_MARKS = {"": "", "best": "*", "level": "~"}


def console(table: Table) -> str:
    """Aligned columns between rules; marks behind the figures."""
    marked: set[int] = set()
    for row in table.rows:
        marked.update(i for i, cell in enumerate(row) if cell.mark)
    lines = []
    for row in (list(map(Cell, table.head)), *table.rows):
        texts = [cell.text for cell in row]
        for i in marked:  # a column with marks has room for one in every line
            texts[i] += _MARKS[row[i].mark] or " "
        lines.append(texts)
    body = [line.rstrip() for line in aligned(lines)]
    rule = "-" * max(map(len, body))
    legend = [f"*: best of its column; ~: {table.level}"] if table.level else []
    return "\n".join([table.title, rule, body[0], rule, *body[1:], rule, *table.notes, *legend])


def markdown(table: Table) -> str:
    """A table whose best figures are bold, and those level with them italic."""
    around = {"": "", "best": "**", "level": "*"}
    lines = [f"## {_escaped(table.title)}", ""]
    lines.append(f"| {' | '.join(map(_escaped, table.head))} |")
    lines.append("|---|" + "---:|" * (len(table.head) - 1))
    for row in table.rows:
        cells = [f"{around[cell.mark]}{_escaped(cell.text)}{around[cell.mark]}" for cell in row]
        lines.append(f"| {' | '.join(cells)} |")
    lines.append("")
    lines += [f"- {_escaped(note)}" for note in table.notes]
    if table.level:
        lines.append(f"- **bold**: best of its column; *italic*: {table.level}")
    return "\n".join(lines)


def _escaped(text: str) -> str:
    """Text that is no markup, neither of Markdown nor of HTML."""
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_{}\[\]|~#!])", r"\\\1", text)


def as_csv(sections: Sequence[Section], goal: Goal | None = None) -> str:
    """One line a row of all tables, accuracies in 0..1, an empty field where there is nothing."""
    groups: dict[str, None] = {}
    for section in sections:
        groups |= dict.fromkeys(section.groups)
    lines = []
    for section in sections:
        lines += [_numbers(section, row, list(groups), goal) for row in section.rows]
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
        "settings": section.title,
        "method": row.label,
        "state": "finished" if row.finished else "not finished",
        "seeds": " ".join(str(run.seed) for run in row.runs),
        "rounds": row.mean("round"),
    }
    for group in groups:
        found = row.accuracy(group) if row.finished else Spread.of([])
        line |= {f"test_acc_{group}": found.mean, f"test_acc_{group}_std": found.deviation}
        line[f"test_acc_{group}_seeds"] = found.count
        line[f"val_acc_{group}"] = row.mean(f"val/{row.runs[0].metric}_{group}")
    line["up_MB"] = row.mean("comm/uplink_MB")
    line["down_MB"] = row.mean("comm/downlink_MB")
    line["bits_up"] = row.uplink_bits
    line["simulated_seconds"] = row.mean(SIMULATED)
    line["seconds"] = row.total("time/round_s")
    line |= {status: row.total(f"clients/{status}") for status in LOST}
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
