"""A fleet of a million clients of ten samples each, split by a column of ids: what it takes before
the first round, and what memory it needs beside a fleet of a hundred clients of the same data.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
import time
import tracemalloc

import lightning as L
import numpy as np
import torch
from torch.nn import functional as F

from benchmarks.contest import line

SAMPLES = 10_000_000
CLIENTS = 1_000_000
PER_ROUND = 100


class Tiny(L.LightningModule):
    """One linear layer, so that next to nothing is left but the fleet."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(8, 4)

    def training_step(self, batch: list[torch.Tensor], index: int) -> torch.Tensor:
        inputs, targets = batch
        return F.cross_entropy(self.layer(inputs.float()), targets.long())

    def validation_step(self, batch: list[torch.Tensor], index: int) -> None:
        self.log("loss", self.training_step(batch, index))

    test_step = validation_step

    def on_fit_start(self) -> None:
        """Tell what is kept by now. What comes later goes to files, and is traced very slowly."""
        if tracemalloc.is_tracing():
            print(tracemalloc.get_traced_memory()[0])
            tracemalloc.stop()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.01)


def measure(clients: int, what: str) -> None:
    """Train one step of each client of one round, and print a figure.

    Args:
        clients: The number of clients among which all samples are split.
        what: ``cpu``, the CPU seconds until the first round begins; ``bytes``, the bytes that
            are kept when all is set up; ``peak``, the peak memory of this process beside the data,
            in MiB.
    """
    from bhfl.callbacks import Callback
    from bhfl.data import ByColumn, FromDatasets
    from bhfl.engine.trainer import FederatedTrainer

    inputs = torch.zeros(SAMPLES, 8, dtype=torch.uint8)
    targets = torch.arange(SAMPLES).remainder_(4).to(torch.uint8)
    ids = np.repeat(np.arange(clients, dtype=np.int32), SAMPLES // clients)
    num_bytes = inputs.nbytes + targets.nbytes + ids.nbytes
    few = torch.utils.data.TensorDataset(inputs[:100], targets[:100])

    class Begun(Callback):
        def on_fit_start(self, trainer: FederatedTrainer) -> None:
            if what == "cpu":
                print(time.process_time() - start)

    with tempfile.TemporaryDirectory() as folder:
        start = time.process_time()
        if what == "bytes":
            tracemalloc.start()
        data = FromDatasets(
            torch.utils.data.TensorDataset(inputs, targets),
            few,
            partition=ByColumn(ids),
            val_fraction=0.001,
        )
        trainer = FederatedTrainer(
            [{"bits": 8, "fraction": 0.5}, {"bits": 32, "fraction": 0.5}],
            num_clients=clients,
            clients_per_round=PER_ROUND,
            max_rounds=1,
            monitor="train/loss",
            mode="min",
            local_steps=1,
            default_root_dir=folder,
            logger=False,
            devices=1,
            callbacks=[Begun()],
        )
        trainer.fit(Tiny(), data)
    if what == "peak":
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - num_bytes / 2**20)


def measured(clients: int, what: str) -> float:
    """The figure of a process of its own."""
    script = f"from benchmarks.fleet import measure; measure({clients}, {what!r})"
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def run() -> None:
    """Print the figures."""
    many = f"{CLIENTS:,} clients x {SAMPLES // CLIENTS} samples"
    line(f"start-up of {many}, CPU seconds", measured(CLIENTS, "cpu"), 10, " s")
    line(f"memory kept of {many}, bytes a client", measured(CLIENTS, "bytes") / CLIENTS, 100, " B")
    ours = measured(CLIENTS, "peak")
    ratio = ours / measured(PER_ROUND, "peak")
    line(f"peak memory, {many} / {PER_ROUND}, data left out", ratio, 1.10, told=f"{ours:.0f} MiB")
