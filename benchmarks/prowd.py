"""ProWD: the mask, the dequantizer on a whole network, and a round against FedAvg's."""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from benchmarks.contest import Seconds, contest, line, ratio
from benchmarks.engine import opened

if TYPE_CHECKING:
    from bhfl.engine.session import Session


def mask() -> None:
    """Measure the mask of one million entries, on one core."""
    from bhfl.algorithms.prowd.selection import certified_select

    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    high = torch.randn(1_000_000, generator=generator)
    low = high + 2 * torch.randn(1_000_000, generator=generator)
    for cap in (0.1, 0.5):
        seconds = []
        for _ in range(5):
            start = time.perf_counter()
            certified_select(low, high, cap=cap)
            seconds.append(time.perf_counter() - start)
        what = f"mask of a million entries, tau {cap}"
        line(what, 1e3 * min(seconds), 150, " ms", told="wall time of the fastest")


def dequantize() -> None:
    """Raise ResNet-18 through three steps of a ladder, and print seconds and MiB above the model.

    It runs in a process of its own, whose peak memory is that of nothing else.
    """
    from bhfl.algorithms.prowd.dequantizer import ProgressiveDequantizer
    from bhfl.models import build
    from bhfl.quant import quantize_, quantized_state

    torch.set_num_threads(2)
    codes = quantized_state(quantize_(build("resnet18", 10, (3, 32, 32)), 4))
    chain = ProgressiveDequantizer((4, 8, 16, 32))
    for block in chain.blocks:
        torch.nn.init.normal_(block.body.last.weight, std=0.01)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        chain(codes)
        seconds.append(time.perf_counter() - start)
    print(min(seconds), (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)


def new_session(method: str, distill_weight: float) -> Session:
    """A fleet of 10 clients, half of them ternary, with 1,000 images each."""
    from bhfl.algorithms import FedAvg, ProWD
    from bhfl.algorithms.prowd import Dequantizer
    from bhfl.data import FakeImages
    from bhfl.engine.trainer import FederatedTrainer
    from bhfl.models import Classifier

    torch.set_num_threads(1)
    torch.manual_seed(0)
    size = {"num_train": 10_000, "num_test": 10}
    holdout = 128 if distill_weight else 0
    data = FakeImages(**size, batch_size=50, val_fraction=0.0, holdout=holdout)
    untrained = Dequantizer(warmup_rounds=10_000, distill_weight=distill_weight)
    algorithm = FedAvg() if method == "fedavg" else ProWD(dequantizer=untrained)
    trainer = FederatedTrainer({"ternary": 5, 32: 5}, algorithm, logger=False, devices=1)
    module = Classifier("vgg7", input_shape=(3, 32, 32), net_kwargs={"width": 24})
    return opened(trainer, module, data, tempfile.mkdtemp())


def turns(method: str) -> Callable[[], None]:
    """Rounds of the fleet, without fine-tuning."""
    from bhfl.engine.rounds import run_round

    session = new_session(method, distill_weight=0.0)

    def turn() -> None:
        session.server, _ = run_round(session, session.server, [])

    return turn


def tunings(part: str) -> Callable[[], None]:
    """Fine-tunings of 30 steps on as many models as the pool holds: `all`, without distillation
    (`blocks`), or of them only what draws the `pairs`.
    """
    from bhfl.algorithms import ProWD
    from bhfl.algorithms.prowd.pairs import WeightPairs

    session = new_session("prowd", distill_weight=1.0 if part == "all" else 0.0)
    assert isinstance(session.algorithm, ProWD)
    tuning = session.algorithm.tuning
    assert tuning is not None
    models = [dict(session.server.params) for _ in range(tuning.options.pool_size)]
    steps = tuning.options.steps

    def draw() -> None:
        pairs = WeightPairs(models, tuning.specs, tuning.ladder, num_steps=steps)
        for _ in pairs.train_dataloader():
            pass

    def tune() -> None:
        tuning.tune(session.context.fabric, tuning.initial(), models, steps, seed=0)

    return draw if part == "pairs" else tune


def fine_tuning(found: dict[str, Seconds]) -> None:
    """Print fine-tuning against a FedAvg round, and how it divides."""
    what = "ProWD fine-tuning of 30 steps / a FedAvg round of the same ten clients"
    ratio(what, found["all"], found["fedavg"], 1.0)
    whole, blocks, pairs = (found[part].cpu for part in ("all", "blocks", "pairs"))
    line("    share of drawing the pairs", pairs / whole, None)
    line("    share of the blocks on the pairs", (blocks - pairs) / whole, None)
    line("    share of distillation", (whole - blocks) / whole, None)


def run() -> None:
    """Measure all of it."""
    mask()
    script = "from benchmarks.prowd import dequantize; dequantize()"
    command = [sys.executable, "-c", script]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    seconds, memory = map(float, out.split()[-2:])
    line("dequantise ResNet-18 through three steps, two cores", seconds, 2, " s")
    line("    memory above the model", memory, 500, " MiB")
    rounds = {method: (turns, (method,)) for method in ("prowd", "fedavg")}
    parts = {part: (tunings, (part,)) for part in ("all", "blocks", "pairs")}
    found = contest({**rounds, **parts}, 3)
    what = "ProWD round without fine-tuning / FedAvg round"
    ratio(what, found["prowd"], found["fedavg"], 1.5)
    fine_tuning(found)
