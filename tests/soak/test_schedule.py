"""The campaigns take turns, and what fails can be made again; each is tried once, small."""

from __future__ import annotations

import random
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.soak import kills, mutated
from tests.soak.schedule import Campaign, alarm, soak


def taking(seconds, fails=()):
    """A campaign's attempt; it fails where its draw is among `fails`."""

    def attempt(rng, folder):
        assert list(folder.iterdir()) == []
        (folder / "written").touch()
        time.sleep(seconds)
        if rng.random() in fails:
            raise RuntimeError("found")
        return Counter(tries=1)

    return attempt


def test_campaigns_share_the_time(capsys):
    short, long = Campaign("short", taking(0.01)), Campaign("long", taking(0.1))
    begun = time.monotonic()
    assert soak([short, long], 0.02, seed=1) == 0
    assert 1.2 <= time.monotonic() - begun < 1.2 + 0.5
    assert short.seconds == pytest.approx(long.seconds, abs=0.3)
    assert short.attempts > 3 * long.attempts > 3
    assert f"{short.attempts} tries" in capsys.readouterr().out


def test_a_failure_is_told_with_its_seed_which_fails_again(capsys):
    draws = [random.Random(f"faulty {seed}").random() for seed in range(7, 12)]
    faulty = Campaign("faulty", taking(0.0, fails={draws[2]}))
    sound = Campaign("sound", taking(0.0))
    assert soak([faulty, sound], 0.002, seed=7) == 1
    told = capsys.readouterr().out
    assert "FAILED: python -m tests.soak --only faulty --seed 9 --once" in told
    assert "RuntimeError: found" in told
    assert told.rstrip().endswith("1 attempts failed")
    assert soak([Campaign("faulty", taking(0.0, fails={draws[2]}))], 0, seed=9, once=True) == 1
    assert soak([Campaign("faulty", taking(0.0, fails={draws[2]}))], 0, seed=10, once=True) == 0


def test_an_attempt_that_never_ends_has_failed(monkeypatch):
    monkeypatch.setattr("tests.soak.schedule.LONGEST_SECONDS", 1)
    with pytest.raises(TimeoutError, match="it took more than 1 s"), alarm():
        time.sleep(30)


@pytest.mark.parametrize(
    ("name", "number"), [("payloads", 300), ("checkpoints", 150), ("exports", 60)]
)
def test_mutations_of_every_kind(tmp_path: Path, name, number):
    counts = mutated.CAMPAIGNS[name](random.Random(name), tmp_path, number)
    assert counts[name] == number
    assert 0 < counts["refused"] <= number


@pytest.mark.slow
def test_a_run_killed_by_chance(tmp_path: Path):
    counts = kills.one_process(random.Random(1), tmp_path)
    assert sum(count for what, count in counts.items() if what.startswith("runs of ")) == 1
