"""Curves are in order whatever the clock does, and no run ends because of them."""

from __future__ import annotations

import csv
import resource
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from lightning.fabric.loggers.logger import Logger
from lightning.fabric.utilities.rank_zero import rank_zero_only
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from bhfl.engine.loggers import Loggers
from tests.federation import fit


def rows(*rounds: int) -> list[dict]:
    return [{"round": round, "train/loss": 1 / round, "val/acc": 0.5} for round in rounds]


def write(folder: Path, first: int, last: int) -> None:
    """What a run does that goes on before round `first` and stops after round `last`."""
    loggers = Loggers(True, folder)
    loggers.begin(rows(*range(1, first)), {})
    for row in rows(*range(first, last + 1)):
        loggers.log(row)
    loggers.close()


def curve(folder: Path) -> list[int]:
    events = EventAccumulator(str(folder))
    events.Reload()
    return [event.step for event in events.Scalars("train/loss")]


@pytest.mark.parametrize("jumps", [[-1000, 0], [0, 0, 0], [-10, -3000, 5], [3600, -3600, -3600]])
def test_curves_are_in_order_whatever_the_clock_does(tmp_path, monkeypatch, jumps):
    now = 1_800_000_000.0
    monkeypatch.setattr(time, "time", lambda: now)
    write(tmp_path, 1, 5)
    for part, jump in enumerate(jumps, 1):
        now += jump
        write(tmp_path, 3 * part, 3 * part + 4)  # goes on from some rounds before
    last = 3 * len(jumps) + 4
    assert curve(tmp_path) == list(range(1, last + 1))
    with open(tmp_path / "metrics.csv", newline="") as file:
        assert [int(row["step"]) for row in csv.DictReader(file)] == list(range(1, last + 1))


def test_event_files_keep_their_names_where_the_clock_goes_on(tmp_path, monkeypatch):
    for now in (1_800_000_000.0, 1_800_000_001.0):
        monkeypatch.setattr(time, "time", lambda now=now: now)
        write(tmp_path, 1, 1)
    assert sorted(path.name[:31] for path in tmp_path.glob("events*")) == [
        "events.out.tfevents.1800000000.", "events.out.tfevents.1800000001.",
    ]  # fmt: skip


@contextmanager
def small_files(limit: int) -> Iterator[None]:
    """No file can grow beyond so many bytes, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnhandledThreadExceptionWarning"
)  # TensorBoard's own
def test_tensorboard_on_a_full_disk_is_left_out_and_its_file_is_named(tmp_path):
    loggers = Loggers(True, tmp_path)
    loggers.begin([], {})
    with small_files(3000), warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for row in rows(*range(1, 200)):
            loggers.log(row)
    messages = [str(warning.message) for warning in told]
    for name in ("TensorBoardLogger", "CSVLogger"):
        (message,) = (
            message for message in messages if message.startswith(f"{name} is left out from now on")
        )
        assert f"it cannot write to {tmp_path}" in message
        assert message.endswith("File too large; rounds.jsonl goes on")
    assert loggers.active == []


def test_loggers_that_cannot_even_begin(tmp_path):
    (tmp_path / "metrics.csv").mkdir()
    loggers = Loggers(True, tmp_path)
    with pytest.warns(
        UserWarning, match=r"CSVLogger is left out from now on: it cannot write to .*metrics\.csv"
    ):
        loggers.begin([], {})
    assert [type(logger).__name__ for logger in loggers.active] == ["TensorBoardLogger"]


class Offline(Logger):
    """A logger of a service that does not answer."""

    name, version = "offline", "0"

    def log_metrics(self, metrics, step=None) -> None:
        raise RuntimeError("no answer\nfrom the service")

    def log_hyperparams(self, params, *args, **kwargs) -> None:
        pass


def test_a_service_that_does_not_answer_is_left_out_once(tmp_path):
    loggers = Loggers(Offline(), tmp_path)
    loggers.begin([], {})
    expected = (
        "Offline is left out from now on: RuntimeError: no answer from the service; "
        "rounds.jsonl goes on"
    )
    with pytest.warns(UserWarning, match=expected):
        loggers.log(rows(1)[0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loggers.log(rows(2)[0])
        loggers.close()


def test_a_local_rank_that_is_left_in_the_environment_loses_no_curves(tmp_path, monkeypatch):
    # as Lightning reads it from LOCAL_RANK when it is imported
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    fit(tmp_path, max_rounds=1, logger=True)
    assert list(tmp_path.rglob("metrics.csv"))
