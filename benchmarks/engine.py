"""A round of the engine against a bare PyTorch loop that does the same work."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.nn import functional as F

from benchmarks.contest import contest, line

CONFIG = """
clients: {int8: 5, float32: 5}
algorithm: FedAvg
model: {class_path: Classifier, init_args: {net: cnn}}
data: {class_path: FakeImages, init_args: {num_train: 5000, num_test: 200, shape: [3, 32, 32], batch_size: 50}}
"""  # noqa: E501
FIT = (sys.executable, "-m", "bhfl", "fit")


def _trainer(clients: int, images: int, folder: str, **options):
    from bhfl.data import FakeImages
    from bhfl.engine.trainer import FederatedTrainer
    from bhfl.models import Classifier

    torch.manual_seed(0)
    data = FakeImages(
        num_train=clients * images,
        num_test=10,
        shape=(3, 32, 32),
        batch_size=min(50, images),
        val_fraction=0.0,
    )
    options |= {"default_root_dir": folder, "logger": False, "devices": 1}
    trainer = FederatedTrainer({32: clients}, **options)
    return trainer, Classifier("cnn", input_shape=(3, 32, 32)), data


def engine(clients: int, images: int) -> Callable[[], None]:
    """Rounds of `FederatedTrainer`: payloads, checks and exact sums included."""
    from bhfl.engine.client.store import ClientStore
    from bhfl.engine.loan import Loan
    from bhfl.engine.rounds import run_round
    from bhfl.engine.session import Session
    from bhfl.engine.system import keep_freed_memory

    torch.set_num_threads(1)
    keep_freed_memory()
    trainer, model, data = _trainer(clients, images, tempfile.mkdtemp())
    session = Session(trainer, Loan(model, data), ["fit"])
    session.store = ClientStore(Path(tempfile.mkdtemp()))

    def turn() -> None:
        session.server, records = run_round(session, session.server, [])
        if any(record.status != "ok" for record in records):
            raise RuntimeError(records[0].reason)

    return turn


def bare(clients: int, images: int, stock: bool) -> Callable[[], None]:
    """The loop that a researcher writes: load, train, add up, divide.

    Args:
        clients: The number of clients.
        images: The images of each client.
        stock: Leave tensors contiguous and the allocator of memory as it is.
    """
    from bhfl.engine.system import keep_freed_memory
    from bhfl.models import Classifier

    torch.set_num_threads(1)
    if not stock:
        keep_freed_memory()
    torch.manual_seed(0)
    model = Classifier("cnn", input_shape=(3, 32, 32))
    layout = torch.contiguous_format if stock else torch.channels_last
    model.to(memory_format=layout)
    pixels = torch.randint(0, 256, (clients, images, 3, 32, 32), dtype=torch.uint8)
    labels = torch.randint(0, 10, (clients, images))
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    batch = min(50, images)

    def turn() -> None:
        nonlocal weights
        total = {name: torch.zeros_like(tensor) for name, tensor in weights.items()}
        for client in range(clients):
            model.load_state_dict(weights)
            optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
            for chosen in torch.randperm(images).split(batch):
                x = pixels[client][chosen].to(torch.float32).div_(255).sub_(0.5).div_(0.25)
                logits = model(x.contiguous(memory_format=layout))
                loss = F.cross_entropy(logits, labels[client][chosen])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            for name, tensor in model.state_dict().items():
                total[name].add_(tensor, alpha=images)
        weights = {name: tensor / (clients * images) for name, tensor in total.items()}

    return turn


def rounds() -> None:
    """Measure the engine's overhead at two shapes of a fleet."""
    for clients, images, bound, turns in ((10, 1000, 1.03, 5), (1000, 10, 1.05, 3)):
        entries = {
            "engine": (engine, (clients, images)),
            "bare": (bare, (clients, images, False)),
            "stock": (bare, (clients, images, True)),
        }
        seconds = contest(entries, turns)
        what = f"round of {clients:,} clients x {images:,} images: engine / bare loop"
        line(f"{what}, same settings", seconds["engine"] / seconds["bare"], bound)
        bound_stock = 0.90 if clients == 10 else None
        line(f"{what}, stock", seconds["engine"] / seconds["stock"], bound_stock)


def processes() -> None:
    """Measure two processes against one: the fastest round of four, as the command runs them."""
    found: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(3):
        for devices, seconds in found.items():
            with tempfile.TemporaryDirectory() as folder:
                config = Path(folder) / "config.yaml"
                config.write_text(CONFIG)
                command = [*FIT, f"--config={config}", "--trainer.max_rounds=4"]
                command += [f"--trainer.devices={devices}", f"--trainer.default_root_dir={folder}"]
                subprocess.run(command, check=True, capture_output=True)
                rows = (Path(folder) / "bhfl/version_0/rounds.jsonl").read_text().splitlines()
                seconds.append(min(json.loads(row)["time/round_s"] for row in rows))
    line("round on two processes / one", min(found[2]) / min(found[1]), 0.60)


def peak(clients: int) -> None:
    """Train one round of `clients` clients on 10,000 images in all, and print the peak memory of
    this process in MiB.
    """
    with tempfile.TemporaryDirectory() as folder:
        trainer, model, data = _trainer(clients, 10_000 // clients, folder, max_rounds=1)
        trainer.fit(model, data)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def memory() -> None:
    """Measure peak memory, which should not grow with the number of clients."""
    found = {}
    for clients in (10, 1000):
        script = f"from benchmarks.engine import peak; peak({clients})"
        command = [sys.executable, "-c", script]
        out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        found[clients] = float(out.split()[-1])
    line("peak memory, 1,000 clients / 10 clients", found[1000] / found[10], 1.05)


def start_up() -> None:
    """Measure CPU seconds from the command to the end of a run of one tiny round."""
    with tempfile.TemporaryDirectory() as folder:
        config = Path("configs/digits/fedavg.yaml").resolve()
        command = [*FIT, f"--config={config}", "--trainer.max_rounds=1"]
        command += ["--trainer.local_steps=1", f"--trainer.default_root_dir={folder}"]
        found = []
        for _ in range(3):
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            subprocess.run(command, check=True, capture_output=True)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            found.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
            time.sleep(0.5)
    line("start-up and one local step a client, CPU seconds", min(found), 8, " s")


def run() -> None:
    """Measure all of it."""
    rounds()
    processes()
    memory()
    start_up()
