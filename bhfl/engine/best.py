"""The best rounds of a run: by the monitored metric, and by that of each bit group."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from bhfl.engine.types import Row

ALL = ""
"""Stands for all clients where else a bit group is named."""


@dataclass(frozen=True)
class Best:
    """The round whose monitored metric was the best."""

    monitor: str
    """The tag of the metric."""
    value: float | None = None
    """None where it never had a value."""
    round: int = 0
    """The number of the round, from 1; 0 where there is none."""

    def after(self, row: Row, mode: str) -> "Best":
        """The best round, now that another one is done.

        Args:
            row: The metrics of that round.
            mode: Whether the metric is better at its ``max`` or ``min``.

        Returns:
            That round where it is better than all before, else the present one.
        """
        value = row.get(self.monitor)
        if value is None or not _better(value, self.value, mode):
            return self
        return replace(self, value=value, round=row["round"])


def _better(value: float, best: float | None, mode: str, min_delta: float = 0.0) -> bool:
    """Whether a value is better than the best so far by more than `min_delta`."""
    if not math.isfinite(value):
        return False
    if best is None:
        return True
    return value > best + min_delta if mode == "max" else value < best - min_delta


def watched(monitor: str, groups: Iterable[str], by_group: bool) -> dict[str, Best]:
    """What is looked for: the best round by `monitor`, and that of each bit group by its own metric
    where that is asked for.

    Args:
        monitor: The trainer's option.
        groups: The labels of the bit groups.
        by_group: The trainer's `best_by_group`.

    Raises:
        ValueError: `monitor` has no values by bit group.

    >>> list(watched("val/acc_avg", ["int8", "float32"], True).values())[1]
    Best(monitor='val/acc_int8', value=None, round=0)
    """
    found = {ALL: Best(monitor)}
    if not by_group:
        return found
    if not monitor.startswith("val/"):
        raise ValueError(
            "trainer.best_by_group needs a trainer.monitor that validation logs by bit group, such "
            f"as val/acc_avg, got {monitor!r}"
        )
    labels = list(groups)
    name = monitor
    # one may end with another
    for label in sorted([*labels, "avg", "min"], key=len, reverse=True):
        if monitor.endswith(f"_{label}"):
            name = monitor.removesuffix(f"_{label}")
            break
    return found | {label: Best(f"{name}_{label}") for label in labels}


def waited(history: Sequence[Row], monitor: str, mode: str, min_delta: float) -> int:
    """Values of a metric since the last one that was better by more than `min_delta`.

    What is compared with is the last value that was better by so much, as in Lightning's
    `EarlyStopping`: small steps that add up to more are no standstill.

    Args:
        history: The rows of all rounds.
        monitor: The tag of the metric.
        mode: Whether the metric is better at its ``max`` or ``min``.
        min_delta: How much better a value must be.

    >>> waited([{"a": 0.5}, {"a": 0.55}, {"b": 9.0}, {"a": 0.59}], "a", "max", 0.1)
    2
    >>> waited([{"a": 0.5}, {"a": 0.55}, {"b": 9.0}, {"a": 0.65}], "a", "max", 0.1)
    0
    """
    best = None
    since = 0
    for row in history:
        value: Any = row.get(monitor)
        if value is None:
            continue
        since += 1
        if _better(value, best, mode, min_delta):
            best = value
            since = 0
    return since


def checkpoint_name(group: str) -> str:
    """The file of the best round of a bit group, or of all clients.

    >>> checkpoint_name("int8"), checkpoint_name(ALL)
    ('best-int8.ckpt', 'best.ckpt')
    """
    return f"best-{group}.ckpt" if group else "best.ckpt"


def told(bests: Mapping[str, Best]) -> dict[str, Any]:
    """Best rounds as ``summary.json`` has them: those of groups where they were looked for."""
    found = {group: dict(vars(best)) for group, best in bests.items()}
    entries: dict[str, Any] = {"best": found.pop(ALL)}
    return entries | ({"best_by_group": found} if found else {})
