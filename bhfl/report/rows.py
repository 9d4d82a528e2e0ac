"""Runs in tables: those that may be compared share a section, those that differ only in seed share
a row.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

from bhfl.report.reading import Run, number, printable
from bhfl.report.settings import Options, labels, method, task, titles
from bhfl.settings import MAKE_THE_RUN, told_of

AVERAGE = "avg"
"""The mean over clients, beside the bit groups."""


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation over seeds; the deviation of a single one is nan."""

    mean: float
    deviation: float = math.nan
    count: int = 1

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """The mean and deviation of the finite values; NaN if there are none."""
        finite = [value for value in values if math.isfinite(value)]
        mean = statistics.mean(finite) if finite else math.nan
        return cls(mean, statistics.stdev(finite) if len(finite) > 1 else math.nan, len(finite))


@dataclass(frozen=True)
class Row:
    """One method: its finished runs, by seed, or a single run that is not finished.

    Args:
        label: The same in all tables and pictures.
        runs: One run or more.
    """

    label: str
    runs: tuple[Run, ...]

    @property
    def finished(self) -> bool:
        """Whether its figures are those of whole runs."""
        return self.runs[0].finished

    @property
    def name(self) -> str:
        """The label, and the seed where it is a single run's row among others of the label."""
        seed = self.runs[0].seed
        return self.label if self.finished or seed is None else f"{self.label}, seed {seed}"

    def accuracy(self, group: str) -> Spread:
        """The accuracy on the test split; a run that is not finished has its last validation."""
        return Spread.of([_accuracy(run, group) for run in self.runs])

    def by_seed(self, group: str) -> dict[int | None, float]:
        """The accuracies of the runs that have one, by their seeds."""
        found = {run.seed: _accuracy(run, group) for run in self.runs}
        return {seed: value for seed, value in found.items() if math.isfinite(value)}

    def mean(self, tag: str) -> float:
        """The mean of the runs' last values."""
        return Spread.of([run.last(tag) for run in self.runs]).mean

    def total(self, tag: str) -> float:
        """The mean of the runs' sums over rounds."""
        return Spread.of([run.total(tag) for run in self.runs]).mean

    @property
    def uplink_bits(self) -> float:
        """Bits that a weight took on its way up, everything included, where it came down as
        float32; nan without.
        """
        up = self.total("uplink_bytes")
        down = self.total("downlink_bytes")
        return 32 * up / down if down else math.nan


def _accuracy(run: Run, group: str) -> float:
    tag = f"{run.metric}_{group}"
    return number(run.metrics.get(f"test/{tag}")) if run.finished else run.last(f"val/{tag}")


@dataclass(frozen=True)
class Section:
    """Rows that may be compared: the same fleet, data, model and links.

    Args:
        title: What tells it from other sections.
        rows: The rows by first appearance; what is not finished at the end.
        notes: What a reader ought to know of its runs.
        comparable: Whether it is known that they may be compared.
    """

    title: str
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()
    comparable: bool = True

    @property
    def runs(self) -> list[Run]:
        """The runs of all rows."""
        return list(chain.from_iterable(row.runs for row in self.rows))

    @property
    def groups(self) -> list[str]:
        """Bit groups, and the average where there are several."""
        found: dict[str, None] = {}
        for run in self.runs:
            if run.finished or not self.finished:
                found |= dict.fromkeys(run.groups)
        return [*found, AVERAGE] if len(found) > 1 else list(found)

    @property
    def finished(self) -> list[Row]:
        """The rows of whole runs."""
        return [row for row in self.rows if row.finished]


# ---- grouping ------------------------------------------------------------------------------------


def sections(runs: Sequence[Run]) -> list[Section]:
    """All runs, in sections by first appearance; runs of unknown settings come last, each with a
    row of its own.
    """
    known = [run for run in runs if _is_known(run)]
    unknown = [run for run in runs if not _is_known(run)]
    tasks: list[Options] = []
    members: list[list[Run]] = []
    for run in known:
        own = task(run.told)
        if own not in tasks:
            tasks.append(own)
            members.append([])
        members[tasks.index(own)].append(run)
    names = titles([part[0].told for part in members])
    found = [_section(title, part) for title, part in zip(names, members, strict=True)]
    if unknown:
        rows = [
            Row(printable(f"{run.folder.parent.name}/{run.folder.name}"), (run,)) for run in unknown
        ]
        notes = (*map(_note, unknown), "runs of unknown settings are not compared")
        found.append(Section("settings unknown", _ordered(rows), notes, comparable=False))
    return found


def _is_known(run: Run) -> bool:
    """Whether it is known what a run was told to do, so that it may be compared with others."""
    known = told_of(run.told, MAKE_THE_RUN)
    parts = [known.get(part) for part in ("algorithm", "clients", "data", "model")]
    return run.seed is not None and all(parts)


def _section(title: str, runs: Sequence[Run]) -> Section:
    methods: list[Options] = []
    for run in runs:
        if (own := method(run.told)) not in methods:
            methods.append(own)
    rows = []
    notes = []
    named = _names(methods, runs)
    for options, label in zip(methods, named, strict=True):
        like = sorted(
            (run for run in runs if method(run.told) == options), key=lambda run: run.seed or 0
        )
        finished: dict[int | None, Run] = {}
        for run in like:
            if run.finished and run.seed in finished:
                notes.append(
                    f"{printable(run.folder)} repeats {label} with seed {run.seed} and is left out"
                )
            elif run.finished:
                finished[run.seed] = run
            else:
                rows.append(Row(label, (run,)))
        if finished:
            rows.append(Row(label, tuple(finished.values())))
    notes += [_note(run) for row in rows for run in row.runs if run.faults or not run.finished]
    return Section(title, _ordered(rows), (*_differences(methods, named), *notes))


def _names(methods: Sequence[Options], runs: Sequence[Run]) -> list[str]:
    """What the methods' runs are called, if every method has one name of its own; else what their
    options say.
    """
    given = [{run.name for run in runs if method(run.told) == options} for options in methods]
    alone = all(len(names) == 1 for names in given)
    names = [next(iter(names)) for names in given] if alone else [""]
    return names if all(names) and len(set(names)) == len(names) else labels(methods)


def _ordered(rows: Sequence[Row]) -> tuple[Row, ...]:
    return tuple(sorted(rows, key=lambda row: not row.finished))


def _note(run: Run) -> str:
    """What is the matter with a run."""
    unknown = ["its seed is unknown"] if run.told and run.seed is None else []
    unfinished = [f"not finished: {run.missing}"] if run.missing else []
    return f"{printable(run.folder)}: " + "; ".join([*unfinished, *run.faults, *unknown])


def _differences(methods: Sequence[Options], named: Sequence[str]) -> list[str]:
    """Options of training, not of the algorithms, that differ between rows and that no label
    tells.
    """
    keys = dict.fromkeys(
        key for options in methods for key in options if not key.startswith("algorithm")
    )
    notes = []
    for key in keys:
        values = dict.fromkeys(options.get(key, "none") for options in methods)
        word = key.rpartition(".")[2]
        if len(values) > 1 and not any(f"{word}=" in label for label in named):
            notes.append(f"rows also differ in {word}: {' or '.join(values)}")
    return notes
