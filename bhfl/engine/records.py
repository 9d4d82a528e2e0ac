"""What became of each client in a round, and the numbers that follow from it."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain

from bhfl.engine.availability import WHOLE, Course
from bhfl.engine.exchange import NO_EXAMPLES, Fault
from bhfl.engine.types import Metrics
from bhfl.tags import ABSENT, BYTES, STATUSES, Status

_DOWN = ("downlink_bytes", "header_bytes", "whole_bytes")
_NOTHING = 1e-30
"""Values below it are none: codes of nothing have the smallest scale there is."""
_FAR = 1000.0
"""Times the median of a round at which an update is told of."""


@dataclass
class ClientRecord:
    """What became of one client in a round, with bytes as measured on its payloads."""

    client: int
    group: str
    weight: float
    rank: int = 0
    """The process that trained it."""
    status: Status = "ok"
    reason: str = ""
    downlink_bytes: int = 0
    uplink_bytes: int = 0
    header_bytes: int = 0
    """The part of both that is not tensor content."""
    whole_bytes: int = 0
    """The part of `downlink_bytes` that was whole weights, of a client without anything that
    differences could be to.
    """
    refused: Mapping[str, int] = field(default_factory=dict)
    """The parts of all three that came before the client said that it lacks what is frozen."""
    closing_bytes: int = 0
    """The part of `downlink_bytes` that came when the round had ended."""
    course: Course = WHOLE
    """What happened to it besides, see `bhfl.engine.availability`."""
    num_examples: int = 0
    """Examples trained on, each as often as it was seen."""
    num_steps: int = 0
    """Optimiser steps made."""
    seconds: float = 0.0
    simulated_seconds: float | None = None
    """What passes on the simulated network from the start of the round until its update has
    arrived, or until its last attempt has come to nothing; None without a network, and of a client
    that failed.
    """
    metrics: Metrics = field(default_factory=dict)
    measured: Metrics = field(default_factory=dict)
    """What its model is worth on its own validation samples, see `bhfl.engine.exchange.Reply`."""
    holds: bool | None = None
    """What it said of the frozen tensors, likewise."""
    anew: bool = False
    """Whether it has begun its state anew, likewise."""
    largest: float = 0.0
    """The largest magnitude in its update."""
    traceback: str = ""
    origin: str = ""
    """The type and line of an error, see `bhfl.engine.exchange.Fault`, as for `broken_hook`."""
    lost: bool = False
    carried: bool = False
    broken_hook: bool = False

    @property
    def retry_bytes(self) -> int:
        """The part of the bytes both ways that was sent before, and came to nothing."""
        found = self.refused.get("downlink_bytes", 0)
        down = self.downlink_bytes - self.closing_bytes - found
        for sent, times in (
            (down, self.course.downloads),
            (self.uplink_bytes, self.course.uploads),
        ):
            found += sent - sent // max(1, times)
        return found

    def end_early(self) -> None:
        """Go by the course of a client that has nothing to send, with the bytes of its downloads
        alone.
        """
        course = self.course.unsent()
        self._charge(course.downloads)
        self.course = course

    def ask_again(self) -> None:
        """Count what was sent to a client that lacks what is frozen once: it says so before it
        trains, and its course begins with the next message.
        """
        self._charge(1)
        self.refused = {key: getattr(self, key) for key in _DOWN}

    def _charge(self, downloads: int) -> None:
        """Count the last message down so often, in the place of the downloads of the course."""
        for key in _DOWN:
            before = self.refused.get(key, 0)
            once = (getattr(self, key) - before) // self.course.downloads
            setattr(self, key, before + downloads * once)

    def become(self, fault: Fault) -> None:
        """Take down why there is no update."""
        vars(self).update(vars(fault))


def with_updates(records: Sequence[ClientRecord]) -> list[ClientRecord]:
    """Those of clients whose updates were folded in."""
    return [record for record in records if record.status == "ok"]


def keeping(records: Sequence[ClientRecord]) -> list[ClientRecord]:
    """Those of clients that keep what they came to: with updates, or to send them later."""
    return [record for record in records if record.status == "ok" or record.carried]


def asked_to_train(records: Sequence[ClientRecord]) -> list[ClientRecord]:
    """Those of clients that had to train: they have examples, and did not drop out for good."""
    return [r for r in records if r.reason != NO_EXAMPLES and r.course.uploads]


def round_metrics(records: Sequence[ClientRecord], *, availability: bool = False) -> Metrics:
    """The round's tags that follow from its records: `train/loss` and other means over clients,
    counts.

    Args:
        records: Those of the round.
        availability: Whether to count what ``trainer.availability`` does to clients, too.
    """
    statuses = STATUSES if availability else [one for one in STATUSES if one not in ABSENT]
    metrics = {f"clients/{status}": 0.0 for status in statuses}
    for record in records:
        metrics[f"clients/{record.status}"] += 1
    if availability:
        metrics["clients/stragglers"] = float(sum(record.course.part < 1 for record in records))
        metrics["clients/retries"] = float(sum(record.course.retries for record in records))
        metrics["retry_bytes"] = sum(record.retry_bytes for record in records)
    ok = with_updates(records)
    if anew := sum(record.anew for record in keeping(records)):
        metrics["clients/anew"] = float(anew)
    # in the order in which they come, which of a set would be another one in each process
    for name in dict.fromkeys(chain.from_iterable(record.metrics for record in ok)):
        having = [record for record in ok if name in record.metrics]
        total = sum(record.weight for record in having)
        metrics[name] = sum(record.weight * record.metrics[name] for record in having) / total
    return metrics


def problems(records: Sequence[ClientRecord]) -> list[str]:
    """A sentence for each client whose update does not count, or that has begun anew.

    Args:
        records: Those of a round.
    """
    found = []
    for record in records:
        if record.status not in ("ok", *ABSENT):
            found.append(f"client {record.client} {record.status}: {record.reason}")
        # of one that keeps nothing of the round, it is told when it does
        if record.anew and record in keeping([record]):
            told = "what it kept is lost on its machine"
            found.append(f"client {record.client} has begun anew: {told}")
    return found


def outliers(records: list[ClientRecord]) -> str:
    """Which updates of a round were so much larger than the others that the mean is theirs, or an
    empty string.
    """
    ok = with_updates(records)
    # the lower of two: the larger one of two clients must not pass for usual
    usual = statistics.median_low(record.largest for record in ok) if ok else 0.0
    far = [record for record in ok if record.largest > _FAR * usual > _NOTHING]
    if not far:
        return ""
    worst = max(far, key=lambda record: record.largest)
    return (
        f"client {worst.client} sent values up to {worst.largest:.3g}, the median client up to "
        f"{usual:.3g}: the mean is its own ({len(far)} of {len(ok)} clients are so far off); "
        "algorithms such as Median and ClippedMean withstand such clients"
    )


class Ledger:
    """Bytes up and down since the first round, by bit group; the only source of communication
    figures.
    """

    def __init__(self, state: Mapping[str, Mapping[str, int]] | None = None) -> None:
        self.by_group: dict[str, dict[str, int]] = {g: dict(b) for g, b in (state or {}).items()}

    def add(self, records: list[ClientRecord]) -> dict[str, int]:
        """Count a round's payloads, of failed and rejected clients too; the round's own bytes."""
        total = dict.fromkeys(BYTES, 0)
        for record in records:
            row = self.by_group.setdefault(record.group, dict.fromkeys(BYTES, 0))
            for key in BYTES:
                row[key] += getattr(record, key)
                total[key] += getattr(record, key)
        return total

    def total(self, key: str) -> int:
        """One of `BYTES` over all groups."""
        return sum(row[key] for row in self.by_group.values())

    def metrics(self) -> Metrics:
        """Cumulative megabytes (10^6 bytes)."""
        up = self.total("uplink_bytes") / 1e6
        down = self.total("downlink_bytes") / 1e6
        return {"comm/uplink_MB": up, "comm/downlink_MB": down, "comm/total_MB": up + down}
