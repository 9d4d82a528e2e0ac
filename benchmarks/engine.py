"""A round of the engine against a bare PyTorch loop that does the same work.

The work: FedAvg, 10,000 images of 32x32 pixels dealt out evenly to the clients, batches of 50, one
local epoch, SGD at 0.05, a CNN of 545,098 parameters, all clients in each round, and 2,000 test
images at its end.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch.nn import functional as F

from benchmarks.contest import contest, line, now, ratio, since

NUM_TRAIN = 10_000
NUM_TEST = 2_000
BATCH = 50
LR = 0.05
CONFIG = """
clients: {int8: 5, float32: 5}
algorithm: FedAvg
model: {class_path: Classifier, init_args: {net: cnn}}
data: {class_path: FakeImages, init_args: {num_train: 5000, num_test: 200, shape: [3, 32, 32], batch_size: 50}}
"""  # noqa: E501
FIT = (sys.executable, "-m", "bhfl", "fit")


def _model():
    from bhfl.models import Classifier

    torch.manual_seed(0)

    def optimizer(parameters):
        return torch.optim.SGD(parameters, LR)

    return Classifier("cnn", input_shape=(3, 32, 32), optimizer=optimizer)


def _trainer(clients: int, folder: str, num_train: int = NUM_TRAIN, holdout: int = 0, **options):
    from bhfl.data import FakeImages
    from bhfl.engine.trainer import FederatedTrainer

    data = FakeImages(
        num_train=num_train + holdout,
        holdout=holdout,
        num_test=NUM_TEST,
        shape=(3, 32, 32),
        batch_size=BATCH,
        val_fraction=0.0,
    )
    options |= {"default_root_dir": folder, "logger": False, "devices": 1}
    trainer = FederatedTrainer({32: clients}, **options)
    return trainer, _model(), data


def session_of(clients: int, folder: str, num_train: int = NUM_TRAIN, **options):
    """A session with the work of this file, as it stands before the first round.

    Args:
        clients: The number of clients.
        folder: Where they keep what they keep.
        num_train: The number of images.
        **options: The trainer's.
    """
    torch.set_num_threads(1)
    return opened(*_trainer(clients, folder, num_train, **options), folder)


def opened(trainer, model, data, folder: str):
    """A session as `fit` has it before the first round, its memory format chosen.

    Args:
        trainer: Its settings.
        model: Its module.
        data: Its data.
        folder: Where clients keep what they keep.
    """
    from bhfl.engine.client.store import ClientStore
    from bhfl.engine.formats import with_format
    from bhfl.engine.loan import Loan
    from bhfl.engine.session import Session
    from bhfl.engine.system import keep_freed_memory

    keep_freed_memory()
    session = Session(trainer, Loan(model, data), ["fit", "test"])
    session.store = ClientStore(Path(folder) / "clients")
    session.server = with_format(
        session.server, session.settings, session.worker, session.fleet, session.data
    )
    return session


def engine(
    clients: int, num_train: int = NUM_TRAIN, clients_per_round: int | None = None
) -> Callable[[], None]:
    """Rounds of `FederatedTrainer`: payloads, checks and exact sums included."""
    session = session_of(
        clients, tempfile.mkdtemp(), num_train, clients_per_round=clients_per_round
    )
    return rounds_of(session)


def rounds_of(session) -> Callable[[], None]:
    """Rounds of a session, one a turn, each with its test."""
    from bhfl.engine.rounds import run_round

    def turn() -> None:
        session.server, records = run_round(session, session.server, [])
        if any(record.status != "ok" for record in records):
            raise RuntimeError(records[0].reason)
        session.evaluate("test")

    return turn


def bare(clients: int, stock: bool) -> Callable[[], None]:
    """The loop that a researcher writes: load, train, add up, divide, test.

    Args:
        clients: The number of clients.
        stock: Leave tensors contiguous and the allocator of memory as it is.
    """
    from bhfl.engine.system import keep_freed_memory

    torch.set_num_threads(1)
    if not stock:
        keep_freed_memory()
    model = _model()
    layout = torch.contiguous_format if stock else torch.channels_last
    model.to(memory_format=layout)
    images = NUM_TRAIN // clients
    pixels = torch.randint(0, 256, (clients, images, 3, 32, 32), dtype=torch.uint8)
    labels = torch.randint(0, 10, (clients, images))
    test_pixels = torch.randint(0, 256, (NUM_TEST, 3, 32, 32), dtype=torch.uint8)
    test_labels = torch.randint(0, 10, (NUM_TEST,))
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    def batch(pixels: torch.Tensor) -> torch.Tensor:
        x = pixels.to(torch.float32).div_(255).sub_(0.5).div_(0.25)
        return x.contiguous(memory_format=layout)

    def turn() -> None:
        nonlocal weights
        total = {name: torch.zeros_like(tensor) for name, tensor in weights.items()}
        for client in range(clients):
            model.load_state_dict(weights)
            optimizer = torch.optim.SGD(model.parameters(), LR)
            for chosen in torch.randperm(images).split(BATCH):
                logits = model(batch(pixels[client][chosen]))
                loss = F.cross_entropy(logits, labels[client][chosen])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            for name, tensor in model.state_dict().items():
                total[name].add_(tensor, alpha=images)
        weights = {name: tensor / (clients * images) for name, tensor in total.items()}
        model.load_state_dict(weights)
        with torch.no_grad():
            for x, y in zip(test_pixels.split(256), test_labels.split(256), strict=True):
                logits = model(batch(x))
                float(F.cross_entropy(logits, y))
                float((logits.argmax(1) == y).float().mean())

    return turn


def rounds() -> None:
    """Measure the engine's overhead at three sizes of a fleet, and that of a large fleet."""
    bounds = {10: (1.02, None), 100: (1.04, None), 1000: (1.20, 0.85)}
    for clients, (bound, bound_stock) in bounds.items():
        entries = {
            "engine": (engine, (clients,)),
            "bare": (bare, (clients, False)),
            "stock": (bare, (clients, True)),
        }
        if clients == 1000:
            entries["many"] = (engine, (10_000, 10 * NUM_TRAIN, 1000))
        seconds = contest(entries, 3)
        what = f"round of {clients:,} clients x {NUM_TRAIN // clients:,} images: engine"
        ours = seconds["engine"]
        ratio(f"{what} / bare loop, same settings", ours, seconds["bare"], bound)
        ratio(f"{what} / bare loop, stock", ours, seconds["stock"], bound_stock)
    ratio("round of 1,000 of 10,000 clients / of 1,000", seconds["many"], ours, 1.02)


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
                # the first row is of validation before training
                seconds.append(min(json.loads(row)["time/round_s"] for row in rows[1:]))
    quotient = min(found[2]) / min(found[1])
    line("round on two processes / one", quotient, 0.55, told="wall time of the fastest")


def peak(clients: int) -> None:
    """Train one round of `clients` clients on 10,000 images in all, and print the peak memory of
    this process in MiB.
    """
    with tempfile.TemporaryDirectory() as folder:
        trainer, model, data = _trainer(clients, folder, max_rounds=1)
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
            start = now()
            subprocess.run(command, check=True, capture_output=True)
            found.append(since(start).cpu)
    line("start-up and one local step a client, CPU seconds", min(found), 8, " s")


def run() -> None:
    """Measure all of it."""
    rounds()
    processes()
    memory()
    start_up()
