"""Memory and time of a round do not grow with the rounds, nor with the clients that are not in
it.
"""

from __future__ import annotations

import gc
import os
import statistics
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from bhfl.engine.callback import Callback
from tests.engine.hand_made import HandMade, Module, points
from tests.engine.test_resume import Remembering
from tests.federation import fit
from tests.processes import PROCESSES

pytestmark = pytest.mark.slow


class Meter(Callback):
    """A callback that measures this process after every round."""

    def __init__(self) -> None:
        self.kib: list[float] = []
        self.seconds: list[float] = []
        self.files: list[int] = []
        self.last = time.perf_counter()

    def on_round_end(self, trainer, metrics):
        now = time.perf_counter()
        self.seconds.append(now - self.last)
        if len(self.kib) % 20 == 0:
            gc.collect()
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        self.kib.append(pages * os.sysconf("SC_PAGE_SIZE") / 1024)
        self.files.append(len(os.listdir("/proc/self/fd")))
        self.last = time.perf_counter()


def measured(folder: Path, queue: Any, num_clients: int, options: dict[str, Any]) -> None:
    """In a process of its own: train, and hand back what the meter read."""
    meter, shared = Meter(), points(8)
    data = HandMade([shared] * num_clients, held_out=shared)
    groups = [
        {"bits": 8, "count": num_clients // 2},
        {"bits": 32, "count": num_clients - num_clients // 2},
    ]
    fit(
        folder,
        Remembering(),
        groups,
        Big if num_clients > 100 else Module,
        data,
        callbacks=[meter],
        **options,
    )
    queue.put(meter)


class Big(Module):
    """A model large enough to be seen if every client kept one in memory."""

    def __init__(self) -> None:
        super().__init__(
            torch.nn.Sequential(torch.nn.Linear(6, 2000), torch.nn.ReLU(), torch.nn.Linear(2000, 3))
        )


def meter_of(folder: Path, num_clients: int, **options: Any) -> Meter:
    queue = PROCESSES.Queue()
    process = PROCESSES.Process(target=measured, args=(folder, queue, num_clients, options))
    process.start()
    meter: Meter = queue.get(timeout=900)
    process.join()
    return meter


def test_rounds_leave_nothing_in_memory(tmp_path):
    meter = meter_of(tmp_path, 4, max_rounds=400, logger=True)
    first, last = statistics.median(meter.kib[95:105]), statistics.median(meter.kib[-10:])
    print(f"{(last - first) / 295:.2f} KiB a round, files {meter.files[5]} -> {meter.files[-1]}")
    assert (last - first) / 295 < 8  # the history of metrics itself takes about 3
    assert meter.files[-1] <= meter.files[5]
    early, late = statistics.median(meter.seconds[50:150]), statistics.median(meter.seconds[-100:])
    print(f"{1e3 * early:.1f} ms -> {1e3 * late:.1f} ms a round")
    assert late < 1.5 * early


def test_clients_outside_the_cohort_take_no_memory(tmp_path):
    few = meter_of(tmp_path / "few", 20, max_rounds=20, clients_per_round=10)
    many = meter_of(tmp_path / "many", 10_000, max_rounds=20, clients_per_round=10)
    print(f"{few.kib[-1]:.0f} KiB for 20 clients, {many.kib[-1]:.0f} KiB for 10,000")
    assert many.kib[-1] - many.kib[2] < 2_000
    assert statistics.median(many.seconds[2:]) < 3 * statistics.median(few.seconds[2:])
