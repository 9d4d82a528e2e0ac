"""Lost processes, signals and full disks: a run ends in time, in order and in a line, and can be
resumed.
"""

from __future__ import annotations

import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from functools import cache
from pathlib import Path

from bhfl.engine.checkpoint import digest, load_last
from tests.engine.lost_ranks import FATES, POINTS, left_alone
from tests.processes import PROCESSES

TIMEOUT_SECONDS = 8
"""How long a process waits for another that is lost."""
SLACK_SECONDS = 15
"""What its end may take beyond that, on a busy machine."""
ROUNDS = 6
BEGINNING_SECONDS = 1.0
"""Before these Python itself may still be starting, and a signal ends it as it ends any process."""


def lost_ranks(rng: random.Random, folder: Path) -> Counter[str]:
    """One of two processes meets its fate at a named point; the other ends in time and says so in a
    line.
    """
    fates = sorted(
        {(point, fate) for point in POINTS for fate in FATES} - {("training a client", "faulty")}
    )
    # a faulty client is no end of a run
    (point, fate), victim = rng.choice(fates), rng.randrange(2)
    end = left_alone(PROCESSES, folder, victim, point, fate, TIMEOUT_SECONDS)
    what = (
        f"rank {victim} {fate} {point}: the other ended with {end.code} after {end.seconds:.1f} s\n"
        f"{end.said}"
    )
    assert end.code not in (None, 0), what
    assert end.seconds < TIMEOUT_SECONDS + SLACK_SECONDS, what
    assert "Traceback" not in end.said or fate == "faulty", what
    return Counter({f"{fate}": 1})


def arguments(folder: Path) -> list[str]:
    """A small run of one process."""
    return [
        "fit", "--clients", "{int8: 2, float32: 1}", "--data", "FakeImages",
        "--data.num_train", "64", "--data.num_test", "8", "--data.shape", "[1, 8, 8]",
        "--algorithm", "FedCOMGATE", "--algorithm.allow_inexact", "true",
        "--trainer.accelerator", "cpu", "--trainer.devices", "1",
        "--trainer.max_rounds", str(ROUNDS), "--trainer.default_root_dir", str(folder),
    ]  # fmt: skip


def resuming(folder: Path) -> list[str]:
    """The options that go on from a checkpoint, where there is one; else the folder is put
    aside.
    """
    if any(folder.glob("bhfl/version_0/checkpoints/round=*.ckpt")):
        return ["--ckpt_path", "last"]
    if (folder / "bhfl").exists():
        (folder / "bhfl").rename(folder / f"given_up_{time.time_ns()}")
    return []


def begin(folder: Path, largest_file: int | None = None) -> subprocess.Popen[str]:
    """The command, begun; no file of it may be larger."""

    def limit() -> None:
        if largest_file is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))

    output = open(folder.parent / f"{folder.name}.txt", "w")  # noqa: SIM115  # outside, and open as long as the process
    words = [sys.executable, "-m", "bhfl", *arguments(folder), *resuming(folder)]
    with output:
        return subprocess.Popen(
            words,
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            preexec_fn=limit,
        )


def said(folder: Path) -> str:
    """What the newest command has printed."""
    return (folder.parent / f"{folder.name}.txt").read_text()


def result(folder: Path) -> str:
    """The digest of the last server state."""
    return digest(load_last(folder / "bhfl" / "version_0" / "checkpoints")["server"])


def finish(folder: Path) -> str:
    """Go on to the end; what it came to."""
    code = begin(folder).wait()
    assert code == 0, f"it cannot be resumed: {code}\n{said(folder)}"
    return result(folder)


@cache
def undisturbed() -> str:
    """What the run comes to when nothing happens to it."""
    folder = Path(tempfile.mkdtemp(prefix="soak-whole-"), "run")
    folder.mkdir()
    try:
        return finish(folder)
    finally:
        shutil.rmtree(folder.parent, ignore_errors=True)


def signals(rng: random.Random, folder: Path) -> Counter[str]:
    """A run that is sent SIGINT or SIGTERM, once or twice: 130 or 143, no traceback, and it can be
    resumed.
    """
    whole, run = undisturbed(), folder / "run"
    run.mkdir()
    how = rng.choice([signal.SIGINT, signal.SIGTERM])
    begun = time.monotonic()
    process = begin(run)
    try:
        delay = rng.uniform(0.5, 15.0)
        time.sleep(delay)
        os.kill(process.pid, how)
        if rng.random() < 0.4:
            time.sleep(rng.uniform(0.0, 1.0))
            if process.poll() is None:
                os.kill(process.pid, how)
        code = process.wait(60)
    finally:
        process.kill()
        process.wait()
    told = (
        f"{how.name} after {delay:.2f} s: {code} after {time.monotonic() - begun:.1f} s\n"
        f"{said(run)}"
    )
    right = {0, 128 + how} | ({-how} if delay < BEGINNING_SECONDS else set())
    assert code in right, told
    assert "Traceback" not in said(run), told
    assert finish(run) == whole, "the resumed run is another one"
    return Counter({how.name: 1, "too late": code == 0})


def full_disk(rng: random.Random, folder: Path) -> Counter[str]:
    """A run that can write no file beyond some size: a line that names a file, and it can be
    resumed.
    """
    whole, run = undisturbed(), folder / "run"
    run.mkdir()
    largest = int(10 ** rng.uniform(2.0, 5.0))
    code = begin(run, largest).wait()
    told = f"no file beyond {largest} bytes: {code}\n{said(run)}"
    assert code in (0, 2, 3, 4), told
    assert "Traceback" not in said(run), told
    assert code == 0 or str(run) in said(run) or "File too large" not in said(run), told
    assert finish(run) == whole, "the resumed run is another one"
    return Counter({"full disks": 1, "harmless": code == 0})


CAMPAIGNS = {"ranks": lost_ranks, "signals": signals, "disk": full_disk}
