"""How a metric is spread over clients, each measured on test samples of its own."""

import csv
import math
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from bhfl.checks import printable
from bhfl.files.lines import number_of
from bhfl.report.metric import AVERAGE, Metric
from bhfl.report.rows import Section
from bhfl.report.tables import Cell, Table, over_seeds, without_idle
from bhfl.tags import CLIENTS_CSV, SPREAD

_WORDS = {"mean": "mean", "std": "std", "worst10": "worst 10 %", "jain": "Jain's index"}
MAX_CLIENTS = 100_000
"""The clients of a run that are drawn at most."""


class Tested(NamedTuple):
    """A client in the final test: its group, its training samples, and what its model is worth."""

    group: str
    samples: float
    value: float


def over_clients(section: Section) -> Table | None:
    """The table of a section; None where no clients have test samples of their own."""
    name = _name(section)
    rows = []
    for row in section.finished:
        for group in (AVERAGE, *(group for group in section.groups if group != AVERAGE)):
            cells = [Cell(row.name), Cell("all" if group == AVERAGE else group)]
            for word in SPREAD:
                # an index is no share, whatever it is of
                metric = Metric(f"clients_test/{name}_{word}")
                cells.append(Cell(over_seeds(row, metric, group)))
            if any(cell.text != "-" for cell in cells[2:]):
                rows.append(cells)
    if not rows:
        return None
    words = Metric(f"clients_test/{name}").words
    head, rows, alike = without_idle(["method", "clients", *_WORDS.values()], rows, 2)
    return Table(
        title=f"{words[0].upper()}{words[1:]} over clients",
        head=head,
        rows=rows,
        notes=[
            *alike,
            "each client is measured on its own test samples and counts alike; mean ± standard "
            "deviation over seeds; worst 10 %: the mean of the worst tenth of the clients; Jain's "
            "index: 1 where all have the same",
        ],
    )


def _name(section: Section) -> str:
    """The metric that is spread, without what is said of its spread already."""
    name = section.metric.name
    for word in SPREAD:
        name = name.removesuffix(f"_{word}")
    return name


def read_tested(folder: Path, name: str) -> list[Tested]:
    """The clients of a run that were tested, as its ``clients.csv`` has them; up to where it is
    damaged.
    """
    found: list[Tested] = []
    column = f"test/{name}"
    with (
        suppress(OSError, csv.Error, UnicodeDecodeError),
        open(folder / CLIENTS_CSV, encoding="utf-8", newline="") as file,
    ):
        for row in csv.DictReader(file):
            if row.get("stage") != "test" or len(found) >= MAX_CLIENTS:
                continue
            samples = number_of(row.get("samples"))
            value = number_of(row.get(column))
            if math.isfinite(samples + value):
                found.append(Tested(printable(row.get("group")), samples, value))
    return found


def points(section: Section) -> dict[str, Sequence[Tested]]:
    """The tested clients of each finished row's first seed, by its label."""
    name = _name(section)
    found = {row.label: read_tested(row.runs[0].folder, name) for row in section.finished}
    return {label: clients for label, clients in found.items() if clients}
