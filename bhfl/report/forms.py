"""Tables as text: for the console, as Markdown, and as CSV with every number in full."""

import csv
import io
import math
import re
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

from bhfl.checks import aligned
from bhfl.report.goals import AXES, SIMULATED, Goal
from bhfl.report.rows import Row, Section, Spread
from bhfl.report.tables import Cell, Table
from bhfl.tags import LOST

_MARKS = {"": " ", "best": "*", "level": "~"}


def console(table: Table) -> str:
    """A table for a console: aligned columns between rules, with marks behind the figures."""
    columns = []
    for cells in zip(map(Cell, table.head), *table.rows, strict=True):
        texts = [cell.text for cell in cells]
        if any(cell.mark for cell in cells):
            # there is room for a mark in every line, so that the figures stay aligned
            texts = [cell.text + _MARKS[cell.mark] for cell in cells]
        columns.append(texts)
    body = [line.rstrip() for line in aligned(list(zip(*columns, strict=True)))]
    rule = "-" * max(map(len, body))
    legend = [f"*: best of its column; ~: {table.level}"] if table.level else []
    return "\n".join([table.title, rule, body[0], rule, *body[1:], rule, *table.notes, *legend])


def markdown(table: Table) -> str:
    """A table in Markdown: the best figures are bold, and those level with them italic."""
    around = {"": "", "best": "**", "level": "*"}
    lines = [f"## {_escaped(table.title)}", ""]
    lines.append(f"| {' | '.join(map(_escaped, table.head))} |")
    # names to the left, figures to the right
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
    """Text that neither Markdown nor HTML takes for markup: names come from files of others."""
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_{}\[\]|~#!])", r"\\\1", text)


def as_csv(sections: Sequence[Section], goal: Goal | None = None) -> str:
    """The rows of all sections as CSV: shares in 0..1, and empty fields for missing values."""
    groups = list(dict.fromkeys(chain.from_iterable(section.groups for section in sections)))
    lines = []
    for section in sections:
        for row in section.rows:
            lines.append(filled(_numbers(section, row, groups, goal)))
    return csv_text(lines)


def ruled(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells as aligned lines, with a rule below the first."""
    head, *lines = aligned(rows)
    return "\n".join([head, "-" * len(head), *lines])


def csv_text(lines: Sequence[Mapping[str, Any]]) -> str:
    """Lines as CSV, with the columns of all of them."""
    text = io.StringIO()
    columns = dict.fromkeys(chain.from_iterable(lines))
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def filled(line: Mapping[str, Any]) -> dict[str, Any]:
    """A line of the CSV with its fields as they are written."""
    return {key: _field(value) for key, value in line.items()}


def _field(value: str | float) -> str | float:
    """A field of the CSV: it is empty for nan, and no spreadsheet takes text for a formula."""
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
        # the accuracy of a run that is cut off is no test accuracy
        found = row.value(group) if row.finished else Spread.of([])
        column = f"{row.metric.tag.replace('/', '_')}_{group}"
        line |= {column: found.mean, f"{column}_std": found.deviation}
        line[f"{column}_seeds"] = found.count
        if row.metric.stage == "test":
            tag = row.metric.before(row.runs[0], group)[0]
            line[f"val_{row.metric.name}_{group}"] = row.mean(tag)
    line["up_MB"] = row.mean("comm/uplink_MB")
    line["down_MB"] = row.mean("comm/downlink_MB")
    line["bits_up"] = row.uplink_bits
    line["simulated_seconds"] = row.mean(SIMULATED)
    line["seconds"] = row.total("time/round_s")
    line |= {status: row.lost(status) for status in LOST}
    return line | (_until_numbers(row, goal) if goal else {})


def _until_numbers(row: Row, goal: Goal) -> dict[str, str | float]:
    """What it took to reach the goal if every seed did, and how many seeds did."""
    line: dict[str, str | float] = {}
    for axis in AXES:
        values = [goal.reached(run, axis) for run in row.runs] if row.finished else []
        # a mean over the seeds that got there would flatter a row of which some never do
        found = Spread.of(values if all(map(math.isfinite, values)) else [])
        name = f"{axis.replace(' ', '_')}_to_{goal.target:g}"
        line |= {name: found.mean, f"{name}_std": found.deviation}
        line[f"reached_{goal.target:g}"] = sum(map(math.isfinite, values))
    return line
