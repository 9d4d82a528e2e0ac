"""Runs that are killed at random moments, and resumed until they are done, are those that were
never killed.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import tempfile
import time
from collections import Counter
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch

from bhfl.algorithms import FedAvg, FedCOMGATE, ProWD
from bhfl.algorithms.prowd import Dequantizer
from tests.engine.lost_ranks import free_port
from tests.engine.test_resume import DEADLY, in_process, outcome, resume_or_begin
from tests.processes import PROCESSES

METHODS: dict[str, dict[str, Any]] = {
    "fedavg": {"algorithm": FedAvg(), "server_optimizer": partial(torch.optim.Adam, lr=0.01)},
    "prowd": {
        "algorithm": ProWD(
            dequantizer=Dequantizer(
                warmup_rounds=2, period=2, first_steps=3, steps=2, distill_weight=0.0
            )
        )
    },
    "fedcomgate": {"algorithm": FedCOMGATE(4, allow_inexact=True)},
}
TIMEOUT_SECONDS = 20
"""How long a process waits for another."""


def options_of(method: str) -> dict[str, Any]:
    """Of the trainer."""
    return {"monitor": "val/acc_float32", **METHODS[method]}


@cache
def undisturbed(method: str) -> dict[str, Any]:
    """What a method's run comes to that nobody kills."""
    folder = Path(tempfile.mkdtemp(prefix="soak-whole-"))
    try:
        assert in_process(folder, **options_of(method)) == 0
        return outcome(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def one_process(rng: random.Random, folder: Path) -> Counter[str]:
    """A run of one process, killed up to eight times: after some time, or at a call of what
    writes.
    """
    method = rng.choice(sorted(METHODS))
    whole, counts = undisturbed(method), Counter({f"runs of {method}": 1})
    for _ in range(rng.randint(1, 8)):
        fate: dict[str, Any] = {"seconds": rng.uniform(0.05, 1.5)}
        if rng.random() < 0.5:
            fate = {"kill_at": rng.choice(DEADLY), "count": rng.randrange(1, 30)}
        code = in_process(folder, **fate, **options_of(method))
        assert code in (0, -signal.SIGKILL), f"the run ended with {code}"
        counts["kills"] += code != 0
        if not code:
            break
    assert in_process(folder, **options_of(method)) == 0, "the killed run cannot be resumed"
    assert outcome(folder) == whole, "the resumed run is another one"
    return counts


def rank_of(folder: Path, rank: int, port: int, options: dict[str, Any]) -> None:
    """One of two processes."""
    names = {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "GROUP_RANK": 0,
        "WORLD_SIZE": 2,
        "LOCAL_WORLD_SIZE": 2,
    }
    names |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": 1}
    os.environ |= {name: str(value) for name, value in names.items()}
    for stream in (1, 2):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
    resume_or_begin(
        folder, devices=2, accelerator="cpu", timeout_seconds=TIMEOUT_SECONDS, **options
    )


def in_two(
    folder: Path, options: dict[str, Any], seconds: float | None, victims: tuple[int, ...]
) -> list[int]:
    """Two processes that begin or go on, of which `victims` are killed after so many seconds; the
    exit codes.
    """
    give_up_unbegun(folder)
    port = free_port()
    ranks = [
        PROCESSES.Process(target=rank_of, args=(folder, rank, port, options)) for rank in (0, 1)
    ]
    try:
        for rank in ranks:
            rank.start()
        if seconds is not None:
            ranks[0].join(seconds)
            for victim in victims:
                ranks[victim].kill()
        deadline = time.monotonic() + 3 * TIMEOUT_SECONDS + 60
        for rank in ranks:
            rank.join(max(0.1, deadline - time.monotonic()))
        return [rank.exitcode for rank in ranks]
    finally:
        for rank in ranks:
            with contextlib.suppress(ValueError):
                rank.kill()
                rank.join()


def give_up_unbegun(folder: Path) -> None:
    """Put a run folder without a checkpoint aside: both processes must agree that there is none."""
    run = folder / "bhfl"
    if run.is_dir() and not any(run.glob("version_0/checkpoints/round=*.ckpt")):
        run.rename(folder / f"given_up_{time.time_ns()}")


def two_processes(rng: random.Random, folder: Path) -> Counter[str]:
    """A run of two processes, of which one or both are killed up to four times."""
    method = rng.choice(sorted(METHODS))
    whole, counts = undisturbed(method), Counter({f"runs of {method}": 1})
    for _ in range(rng.randint(1, 4)):
        victims = rng.choice([(0,), (1,), (0, 1)])
        codes = in_two(folder, options_of(method), rng.uniform(0.2, 3.5), victims)
        assert None not in codes, f"a process outlived the death of {victims}: {codes}"
        counts["kills"] += codes.count(-signal.SIGKILL)
        if codes == [0, 0]:
            break
    assert in_two(folder, options_of(method), None, ()) == [0, 0], (
        "the killed run cannot be resumed"
    )
    assert outcome(folder) == whole, "the resumed run is another one"
    return counts


CAMPAIGNS = {"kills": one_process, "kills-2": two_processes}
