"""What the runs of a report are compared by: what they monitored, or any metric that they have."""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Literal

from bhfl.checks import suggestion
from bhfl.report.reading import Run, number
from bhfl.settings import Role
from bhfl.tags import ACCURACIES
from bhfl.told import told_of

AVERAGE = "avg"
"""The mean over clients, beside the bit groups."""
Mode = Literal["max", "min"]

_SHARE = re.compile(rf"({'|'.join(ACCURACIES)})(_mean|_std|_worst10)?")
_TESTED = {"val": "test", "clients_val": "clients_test"}
"""What is monitored, and what is measured at the end in its place."""


@dataclass(frozen=True)
class Metric:
    """What rows are compared by.

    Args:
        tag: It without its end: ``test/acc`` stands for ``test/acc_<group>`` and ``test/acc_avg``.
        mode: Whether it is better at its ``max`` or ``min``.
    """

    tag: str = f"test/{ACCURACIES[0]}"
    mode: Mode = "max"

    @property
    def stage(self) -> str:
        """The part before the slash."""
        return self.tag.partition("/")[0]

    @property
    def name(self) -> str:
        """The part behind the slash."""
        return self.tag.partition("/")[2]

    @property
    def sign(self) -> int:
        """What makes a higher value the better one."""
        return 1 if self.mode == "max" else -1

    @property
    def is_share(self) -> bool:
        """Whether it is told in per cent."""
        return _SHARE.fullmatch(self.name) is not None

    @property
    def scale(self) -> int:
        """What its values are multiplied by where they are told."""
        return 100 if self.is_share else 1

    @property
    def words(self) -> str:
        """What it is called: ``test accuracy``."""
        words = {"val": "validation", "clients_val": "own validation", "clients_test": "own test"}
        return (
            f"{words.get(self.stage, self.stage)} "
            f"{'accuracy' if self.name in ACCURACIES else self.name}"
        )

    @property
    def heading(self) -> str:
        """What it is called in headings, whatever it is measured on: ``Accuracy``."""
        return "Accuracy" if self.name in ACCURACIES else self.name

    def axis(self, begun: bool = False) -> str:
        """The name of an axis; of its values in the rounds where they are meant."""
        words = self.words.replace("test", "validation") if begun else self.words
        return words + ", %" * self.is_share

    def text(self, value: float, digits: int = 1) -> str:
        """A value as a report tells it: with so many digits in per cent, else with four or two."""
        if not self.is_share:
            digits = 4 if abs(value) < 10 else 2
        return f"{self.scale * value:,.{digits}f}" if abs(value) < 1e12 else f"{value:.3g}"

    def before(self, run: Run, group: str) -> list[str]:
        """The tags that may hold it in the rounds of a run."""
        stages = {end: begun for begun, end in _TESTED.items()}
        return self._tags(run, stages.get(self.stage, self.stage), group)

    def _tags(self, run: Run, stage: str, group: str) -> list[str]:
        # a model may call its accuracy by another name than others do
        name = run.metric if self.name in ACCURACIES else self.name
        tag = f"{stage}/{name}"
        return [f"{tag}_{AVERAGE}", tag] if group == AVERAGE else [f"{tag}_{group}"]

    def of(self, run: Run, group: str) -> float:
        """Its value at the end of a run, of a bit group or on average; that of the last validation
        where a test is meant and the run is not finished. NaN where there is none.
        """
        if self.stage in _TESTED.values() and run.finished:
            found = [number(run.metrics.get(tag)) for tag in self._tags(run, self.stage, group)]
        else:
            found = [run.last(tag) for tag in self.before(run, group)]
        return next(filter(math.isfinite, found), math.nan)


def monitored(runs: Sequence[Run]) -> Metric:
    """What runs chose their best round by, measured on the test split where they have it there; the
    test accuracy where that is not known.
    """
    told = next((told for run in runs if (told := _choice(run))), None)
    if told is None:
        return Metric()
    tag, mode = told
    stage, _, name = _stem(tag, runs).partition("/")
    tested = Metric(f"{_TESTED.get(stage, stage)}/{name}", mode)
    groups = [AVERAGE, *chain.from_iterable(run.groups for run in runs)]
    whole = [run for run in runs if run.finished]
    for run in whole:
        if any(math.isfinite(tested.of(run, group)) for group in groups):
            return tested
    return Metric(f"{stage}/{name}", mode) if whole else tested


def asked(tag: str, mode: Mode | None, runs: Sequence[Run]) -> Metric:
    """The metric of a name that a user gave.

    Raises:
        ValueError: It is that of one group, or the least of them, or its mode is not known.
    """
    stem = _stem(tag, runs)
    if tag not in (stem, f"{stem}_{AVERAGE}"):
        raise ValueError(
            f"--metric must be one of all groups, got {tag!r}: give {stem}, by which runs are "
            "compared in each group and on average"
        )
    known = monitored(runs)
    same = known.name == stem.partition("/")[2]
    if mode is None and not same:
        raise ValueError(
            f"--mode must be max or min with --metric {tag}, as the runs monitored "
            f"{known.tag.replace('test', 'val')}"
        )
    return Metric(stem, mode or known.mode)


def check_known(tag: str, runs: Sequence[Run]) -> None:
    """Refuse a metric that no run has.

    Raises:
        ValueError: Naming the nearest that there is.
    """
    tags = set(chain.from_iterable([*run.tags, *run.metrics] for run in runs))
    known = {known for known in tags if "/" in known}
    known |= {known.removesuffix(f"_{AVERAGE}") for known in known}
    if tag not in known:
        stems = {one.removesuffix("_min") for one in known if f"{one}_{AVERAGE}" in known}
        raise ValueError(
            f"--metric must be one that the runs logged, got {tag!r}"
            f"{suggestion(tag, known, others=False) or suggestion(tag, stems)}"
        )


def _choice(run: Run) -> tuple[str, Mode] | None:
    """The metric that a run monitored, and its mode; None where that is not known."""
    options = told_of(run.told, [Role.CHOICE])
    tag = options.get("trainer.monitor")
    mode = options.get("trainer.mode")
    if not isinstance(tag, str) or "/" not in tag or mode not in ("max", "min"):
        return None
    return tag, mode


def _stem(tag: str, runs: Iterable[Run]) -> str:
    """A tag without its end, where there are such tags of several groups."""
    for end in (AVERAGE, "min", *chain.from_iterable(run.groups for run in runs)):
        stem = tag.removesuffix(f"_{end}")
        if stem != tag and any(f"{stem}_{AVERAGE}" in {*run.tags, *run.metrics} for run in runs):
            return stem
    return tag
