"""Campaigns take turns until the time is over; what failed is told with the seed that makes it fail
again.
"""

from __future__ import annotations

import random
import signal
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

LONGEST_SECONDS = 300
"""An attempt that takes longer has failed."""


@dataclass
class Campaign:
    """Attempts of one kind, each drawn from a seed of its own.

    Attributes: name: What the campaign is called. attempt: Tries once in an empty folder, and
        returns what it counted; whatever it raises is a failure. counts: What all attempts counted.
        failed: Seed and error of those that failed.
    """

    name: str
    attempt: Callable[[random.Random, Path], Counter[str]]
    seconds: float = 0.0
    attempts: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    failed: list[tuple[int, str]] = field(default_factory=list)

    def once(self, seed: int) -> None:
        """One attempt, in a folder that is removed afterwards."""
        start = time.monotonic()
        try:
            with (
                tempfile.TemporaryDirectory(prefix="soak-", ignore_cleanup_errors=True) as folder,
                alarm(),
            ):
                self.counts += self.attempt(random.Random(f"{self.name} {seed}"), Path(folder))
        except Exception:
            self.failed.append((seed, traceback.format_exc()))
        self.attempts += 1
        self.seconds += time.monotonic() - start


@contextmanager
def alarm() -> Iterator[None]:
    """TimeoutError in what takes too long."""

    def ring(number: int, frame: object) -> None:
        raise TimeoutError(f"it took more than {LONGEST_SECONDS} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(LONGEST_SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def soak(campaigns: Sequence[Campaign], minutes: float, seed: int, *, once: bool = False) -> int:
    """Run the campaigns, the one that has had the least time next.

    Args:
        campaigns: At least one.
        minutes: No attempt begins after these.
        seed: Of the first attempt of each campaign; the next has the next number.
        once: Make one attempt of each campaign, however long they take.

    Returns:
        The exit code: 1 if any attempt failed.
    """
    deadline = time.monotonic() + 60 * minutes
    while (
        not all(campaign.attempts for campaign in campaigns)
        if once
        else time.monotonic() < deadline
    ):
        campaign = min(campaigns, key=lambda one: (one.attempts > 0 if once else 0, one.seconds))
        before = len(campaign.failed)
        campaign.once(seed + campaign.attempts)
        for failed_seed, error in campaign.failed[before:]:
            print(f"FAILED: {again(campaign, failed_seed)}\n{error}", flush=True)
    return report(campaigns)


def again(campaign: Campaign, seed: int) -> str:
    """The command that makes one attempt again."""
    return f"python -m tests.soak --only {campaign.name} --seed {seed} --once"


def report(campaigns: Sequence[Campaign]) -> int:
    """Print what was tried; 1 if anything failed."""
    for campaign in campaigns:
        counted = ", ".join(f"{count} {what}" for what, count in sorted(campaign.counts.items()))
        print(
            f"{campaign.name:12} {campaign.attempts:5} attempts, {len(campaign.failed)} failed, "
            f"{campaign.seconds:6.0f} s: {counted}"
        )
    failures = [(campaign, seed) for campaign in campaigns for seed, _ in campaign.failed]
    for campaign, seed in failures:
        print(f"failed: {again(campaign, seed)}")
    print("all is well" if not failures else f"{len(failures)} attempts failed", flush=True)
    return int(bool(failures))
