"""Runs as tables: those that may be compared share a section, and those that differ in nothing but
the seed share a row.
"""

import math
import statistics
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any

from bhfl.checks import printable
from bhfl.report.metric import AVERAGE as AVERAGE
from bhfl.report.metric import Metric, Mode, asked, monitored
from bhfl.report.reading import TRIALS, Run
from bhfl.report.settings import Options, labels, method, task, titles
from bhfl.settings import MAKE_THE_RUN, Role
from bhfl.tags import LOST, Status
from bhfl.told import told_of


@dataclass(frozen=True)
class Spread:
    """The mean and the sample standard deviation over seeds, which is nan for a single one."""

    mean: float
    deviation: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """The mean and deviation of the finite values; NaN if there are none."""
        finite = [value for value in values if math.isfinite(value)]
        mean = statistics.mean(finite) if finite else math.nan
        deviation = statistics.stdev(finite) if len(finite) > 1 else math.nan
        return cls(mean, deviation, len(finite))


@dataclass(frozen=True)
class Row:
    """One method: its finished runs, by seed, or a single run that is not finished.

    Args:
        label: What the method is called, in all tables and pictures.
        runs: Its runs, one or more.
        metric: What it is compared by.
    """

    label: str
    runs: tuple[Run, ...]
    metric: Metric = field(default_factory=Metric)

    @property
    def finished(self) -> bool:
        """Whether its figures are those of whole runs."""
        return self.runs[0].finished

    @property
    def name(self) -> str:
        """The label, and the seed of a run that is not finished: a label may have several such."""
        seed = self.runs[0].seed
        return self.label if self.finished or seed is None else f"{self.label}, seed {seed}"

    def value(self, group: str, metric: Metric | None = None) -> Spread:
        """The metric of a bit group, see `Metric.of`; another one than the row's where it is
        given.
        """
        return Spread.of([(metric or self.metric).of(run, group) for run in self.runs])

    def by_seed(self, group: str) -> dict[int | None, float]:
        """The metric of the runs that have one, by their seeds."""
        found = {run.seed: self.metric.of(run, group) for run in self.runs}
        return {seed: value for seed, value in found.items() if math.isfinite(value)}

    def mean(self, tag: str) -> float:
        """The mean of the runs' last values of a tag."""
        return Spread.of([run.last(tag) for run in self.runs]).mean

    def total(self, tag: str) -> float:
        """The mean of the runs' sums of a tag over rounds."""
        return Spread.of([run.total(tag) for run in self.runs]).mean

    def lost(self, status: Status) -> float:
        """The number of updates that ended with this status, as a mean over the runs."""
        return self.total(f"clients/{status}")

    @property
    def uplink_bits(self) -> float:
        """The bits that a weight took on its way up, headers and scales included, if it came down
        as float32; nan where nothing came down, or some of it with fewer bits.
        """
        for run in self.runs:
            if told_of(run.told, Role).get("trainer.downlink") not in (None, "float32", 32):
                return math.nan
        # weights come down at 32 bits, headers aside, so that their number need not be known
        up = self.total("uplink_bytes")
        down = self.total("downlink_bytes")
        return 32 * up / down if down else math.nan


@dataclass(frozen=True)
class Section:
    """Rows that may be compared: they have the same fleet, data, model and links.

    Args:
        title: What tells the section from others.
        rows: The rows by first appearance; those that are not finished stand at the end.
        notes: What a reader ought to know of the runs.
        comparable: Whether it is known that the rows may be compared.
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
        """The bit groups of the runs, and the average where there are several groups."""
        # a run that is cut off may know fewer groups, or others, than those that are whole
        counted = [run for run in self.runs if run.finished or not self.finished]
        found = list(dict.fromkeys(chain.from_iterable(run.groups for run in counted)))
        all = [*found, AVERAGE] if len(found) > 1 else found or [AVERAGE]
        measured = [group for group in all if self._has(group)]
        # a metric that is none of groups, such as a loss in training
        return measured or [group for group in [AVERAGE] if self._has(group)]

    def _has(self, group: str) -> bool:
        """Whether any row has a value there."""
        return any(row.value(group).count for row in self.rows)

    @property
    def metric(self) -> Metric:
        """What its rows are compared by."""
        return self.rows[0].metric

    @property
    def losses(self) -> list[Status]:
        """What became of updates that did not count, as far as there are such updates."""
        found = []
        for status in LOST:
            if any(row.lost(status) for row in self.rows):
                found.append(status)
        return found

    @property
    def finished(self) -> list[Row]:
        """The rows of whole runs."""
        return [row for row in self.rows if row.finished]


# ---- grouping ------------------------------------------------------------------------------------


def without_trials(runs: Sequence[Run]) -> list[Run]:
    """Runs without those by which sweeps chose an option, which a warning counts.

    A run there counts where others, of the same method and seed, are none of such: a sweep does not
    make it twice. Where all are of such, all count.
    """
    known = [(method(run.told), run.seed) for run in runs if TRIALS not in run.folder.parts]
    found = [run for run in runs if (method(run.told), run.seed) in known]
    left = len(runs) - len(found)
    if found and left:
        warnings.warn(
            f"{left} runs that tune an option of a sweep are left out: give their folder {TRIALS} "
            "to see them",
            stacklevel=2,
        )
    return found or list(runs)


def sections(
    runs: Sequence[Run], metric: str | None = None, mode: Mode | None = None
) -> list[Section]:
    """All runs, in sections by first appearance; runs of unknown settings come last, each with a
    row of its own.

    Args:
        runs: The runs.
        metric: The tag that they are compared by; what each section monitored by default.
        mode: Whether it is better at its ``max`` or ``min``; as it was monitored by default.

    Raises:
        ValueError: The metric is that of one group, or the mode is not known.
    """

    def compared(members: Sequence[Run]) -> Metric:
        chosen = monitored(members) if metric is None else asked(metric, mode, members)
        return replace(chosen, mode=mode or chosen.mode)

    tasks = _alike([run for run in runs if _is_known(run)], task)
    names = titles([members[0].told for members in tasks])
    found = [
        _section(title, members, compared(members))
        for title, members in zip(names, tasks, strict=True)
    ]
    if unknown := [run for run in runs if not _is_known(run)]:
        rows = []
        for run in unknown:
            label = printable(f"{run.folder.parent.name}/{run.folder.name}")
            rows.append(Row(label, (run,), compared(unknown)))
        notes = (*map(_note, unknown), "runs of unknown settings are not compared")
        found.append(Section("settings unknown", _ordered(rows), notes, comparable=False))
    return found


def _alike(
    runs: Sequence[Run], settings: Callable[[Mapping[str, Any]], Options]
) -> list[list[Run]]:
    """Runs in lists of those whose `settings` are the same, by first appearance."""
    # as sets: the order of options says nothing
    found: dict[frozenset[tuple[str, str]], list[Run]] = {}
    for run in runs:
        found.setdefault(frozenset(settings(run.told).items()), []).append(run)
    return list(found.values())


def _is_known(run: Run) -> bool:
    """Whether it is known what a run was told to do, so that it may be compared with others."""
    # the model of a run of Python's is an identity: its class may be another one of that name
    known = told_of(run.told, (*MAKE_THE_RUN, Role.IDENTITY))
    parts = [known.get(part) for part in ("algorithm", "clients", "data", "model")]
    return run.seed is not None and all(parts)


def _section(title: str, runs: Sequence[Run], metric: Metric) -> Section:
    """The section of runs that share their task."""
    methods = _alike(runs, method)
    options = [method(members[0].told) for members in methods]
    named = _given_names(methods) or labels(options)
    rows = []
    repeated = []
    for label, members in zip(named, methods, strict=True):
        # several runs that are cut off have a row each, as their rounds differ
        finished = {}
        for run in sorted(members, key=lambda run: run.seed or 0):
            if not run.finished:
                rows.append(Row(label, (run,), metric))
            elif run.seed in finished:
                repeated.append(
                    f"{printable(run.folder)} repeats {label} with seed {run.seed} and is left out"
                )
            else:
                finished[run.seed] = run
        if finished:
            rows.append(Row(label, tuple(finished.values()), metric))
    shown = chain.from_iterable(row.runs for row in rows)
    doubtful = [_note(run) for run in shown if run.faults or not run.finished]
    notes = (*_differences(options, named), *repeated, *doubtful)
    return Section(title, _ordered(rows), notes)


def _given_names(methods: Sequence[Sequence[Run]]) -> list[str]:
    """The names that the runs of the methods were given, if every method has one of its own."""
    found = []
    for members in methods:
        names = {run.name for run in members}
        found.append(names.pop() if len(names) == 1 else "")
    return found if all(found) and len(set(found)) == len(found) else []


def _ordered(rows: Sequence[Row]) -> tuple[Row, ...]:
    return tuple(sorted(rows, key=lambda row: not row.finished))


def _note(run: Run) -> str:
    """What is the matter with a run."""
    problems = list(run.faults)
    if run.missing:
        problems.insert(0, f"not finished: {run.missing}")
    # where nothing is known at all, a fault says so already
    if run.told and run.seed is None:
        problems.append("its seed is unknown")
    return f"{printable(run.folder)}: {'; '.join(problems)}"


def _differences(methods: Sequence[Options], named: Sequence[str]) -> list[str]:
    """Notes on options that differ between rows and that no label tells. The algorithms' own are
    left out: they are meant to differ.
    """
    notes = []
    for key in dict.fromkeys(chain.from_iterable(methods)):
        above, _, word = key.rpartition(".")
        # a group is told with all that is in it
        in_group = any(options.get(above) == "True" for options in methods)
        if in_group or key.startswith("algorithm"):
            continue
        values = dict.fromkeys(_spelled(options, key) for options in methods)
        if len(values) > 1 and not any(f"{word}=" in label for label in named):
            notes.append(f"rows also differ in {word}: {' or '.join(values)}")
    return notes


def _spelled(options: Options, key: str) -> str:
    """An option as a configuration says it: a group of options by what is in it."""
    value = options.get(key, "none")
    inside = [
        f"{name.removeprefix(key)[1:]}: {its}"
        for name, its in options.items()
        if name.startswith(f"{key}.")
    ]
    return f"{{{', '.join(inside)}}}" if inside and value == "True" else value
