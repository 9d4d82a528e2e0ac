"""Runs of two ranks, of which one meets a fate at a named point: for tests, and for campaigns of
many.
"""

from __future__ import annotations

import os
import secrets
import signal
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any

import torch

import bhfl.engine.fit
from bhfl.engine.client.worker import Worker
from bhfl.engine.coordinator import Coordinator
from bhfl.engine.launch import Watch
from bhfl.engine.run import Run
from bhfl.engine.session import Session
from bhfl.main import main

POINTS: dict[str, tuple[Any, str]] = {
    "before they meet": (Watch, "meet"),
    "while torch connects them": (torch.distributed, "init_process_group"),
    "before set-up": (Session, "_set_up"),
    "in set-up": (Session, "init_server"),
    "opening the run": (bhfl.engine.fit, "open_run"),
    "training a client": (Worker, "train"),
    "combining": (Coordinator, "combine"),
    "validating": (Session, "evaluate"),
    "saving": (Run, "save"),
}
"""The functions at whose first call something happens."""


def _raise() -> None:
    raise RuntimeError("a fault of this rank alone")


FATES: dict[str, Callable[[], object]] = {
    "killed": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "frozen": lambda: os.kill(os.getpid(), signal.SIGSTOP),
    "asleep": lambda: time.sleep(10**6),
    "gone": lambda: os._exit(0),
    "faulty": _raise,
}


class EarlyError(RuntimeError):
    """A rank ended before the point was reached."""


@dataclass
class End:
    """How the rank that was left came to its end."""

    code: int | None
    seconds: float
    """From the fate of the other one on."""
    said: str


def arguments(folder: Path, timeout_seconds: int, *more: str) -> list[str]:
    """The command of each rank."""
    return [
        "bhfl", "fit", "--clients", "{int8: 2, float32: 1}", "--data", "FakeImages",
        "--data.num_train", "24", "--data.num_test", "8", "--data.shape", "[1, 8, 8]",
        "--trainer.accelerator", "cpu", "--trainer.max_rounds", "100000",
        "--trainer.logger", "false", "--trainer.devices", "2",
        "--trainer.timeout_seconds", str(timeout_seconds),
        "--trainer.default_root_dir", str(folder), *more,
    ]  # fmt: skip


def meet_fate(point: str, fate: str, mark: Path) -> None:
    """Let this process meet its fate at the first call of a function."""
    owner, name = POINTS[point]
    original = getattr(owner, name)

    def fatal(*args: Any, **kwargs: Any) -> Any:
        mark.touch()
        FATES[fate]()
        return original(*args, **kwargs)

    setattr(owner, name, fatal)


def rank_of(folder: Path, rank: int, port: int, args: list[str], point: str, fate: str) -> None:
    """One process, as a cluster would start it."""
    names = {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "GROUP_RANK": 0,
        "WORLD_SIZE": 2,
        "LOCAL_WORLD_SIZE": 2,
    }
    names |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": 1}
    os.environ |= {name: str(value) for name, value in names.items()}
    output = os.open(folder / f"rank{rank}.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    if point:
        meet_fate(point, fate, folder / "mark")
    sys.argv = args
    main()


def free_port() -> int:
    """A port that nobody listens at, of those that the system gives to nobody else in the
    meantime.
    """
    while True:
        port = secrets.choice(range(20_000, 32_000))
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def left_alone(
    processes: BaseContext,
    folder: Path,
    victim: int,
    point: str,
    fate: str,
    timeout_seconds: int,
    how: int = 0,
) -> End:
    """Start two ranks, of which `victim` meets its `fate` at `point`, and wait for the other one's
    end.

    Args:
        processes: Starts them.
        folder: For what they write.
        victim: Rank 0 or 1.
        point: One of `POINTS`.
        fate: One of `FATES`.
        timeout_seconds: The option of the trainer.
        how: A signal that the other one is sent two seconds after the fate.
    """
    folder.mkdir(parents=True, exist_ok=True)
    port, args = free_port(), arguments(folder, timeout_seconds)
    ranks = [
        processes.Process(  # type: ignore[attr-defined]
            target=rank_of, args=(folder, rank, port, args, point if rank == victim else "", fate)
        )
        for rank in (0, 1)
    ]
    try:
        for rank in ranks:
            rank.start()
        while not (folder / "mark").exists():
            if not all(rank.is_alive() for rank in ranks) and not (folder / "mark").exists():
                said = [path.read_text() for path in sorted(folder.glob("rank*.txt"))]
                raise EarlyError("\n".join(said))
            time.sleep(0.02)
        begun, other = time.monotonic(), ranks[1 - victim]
        if how:
            other.join(2.0)
            os.kill(other.pid, how)
            begun = time.monotonic()
        other.join(3 * timeout_seconds + 20)
        return End(
            other.exitcode, time.monotonic() - begun, (folder / f"rank{1 - victim}.txt").read_text()
        )
    finally:
        for rank in ranks:
            rank.kill()
            rank.join()
