"""`make accuracy`: what bits cost in accuracy, ResNet-8 on all of CIFAR-10, trained centrally by a
plain loop.

Every variant has BatchNorm, the same batches and the same schedule: SGD with momentum, a cosine to
zero, random crops and mirror images. A finished run is one line of JSON, and is not repeated.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing as mp
import statistics
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bhfl.data import CIFAR10, TensorSource
from bhfl.data.augment import crop_flip
from bhfl.engine.system import keep_freed_memory
from bhfl.models import ResNet8
from bhfl.quant import quantize_, save_in_int8, seed_

VARIANTS: dict[str, tuple[Any, str, float]] = {
    "float32": (32, "fake", 0.0),
    "8 bits, integer": (8, "integer", 0.5),
    "8 bits, integer, save_in_int8": (8, "integer", 0.5),
    "4 bits": (4, "fake", 1.5),
    "ternary": ("ternary", "fake", 5.0),
}
"""Bits of all layers, how they compute, and the points of accuracy below float32 that are aimed at,
at most.
"""

ENDS = ("stem.0", "head.2")
"""The first and the last layer, which have at least 8 bits, as is usual."""

BATCH = 128
LEARNING_RATE = 0.1
MOMENTUM = 0.9
WEIGHT_DECAY = 5e-4
EVALUATION_BATCH = 500


@dataclass(frozen=True)
class Run:
    """What tells one run from another."""

    variant: str
    seed: int
    epochs: int
    images: int

    def record(self, archive: str) -> dict[str, Any]:
        """Train and test in this process."""
        torch.set_num_threads(1)
        keep_freed_memory()
        torch.manual_seed(self.seed)
        data = CIFAR10(archive=archive)
        train, test = data.load(train=True), data.load(train=False)
        model = self.model()
        start = time.thread_time()
        losses = list(self.steps(model, train))
        seconds = time.thread_time() - start
        tail = losses[-len(losses) // self.epochs :]
        found = {
            "accuracy": accuracy(model, test),
            "loss": sum(tail) / len(tail),
            "seconds": seconds,
        }
        return {**asdict(self), **found}

    def model(self) -> nn.Module:
        """The network, quantised."""
        spec, backend, _ = VARIANTS[self.variant]
        model = quantize_(ResNet8(10, (3, 32, 32), norm="batch"), spec, backend=backend)
        if spec != 32:
            quantize_(model, 8, lambda name, _: name in ENDS)
        seed_(model, torch.Generator().manual_seed(self.seed))
        return model.to(memory_format=torch.channels_last)

    def steps(self, model: nn.Module, train: TensorSource) -> Iterator[float]:
        """Train; the loss of each batch."""
        model.train()
        optimizer = torch.optim.SGD(
            model.parameters(), LEARNING_RATE, MOMENTUM, weight_decay=WEIGHT_DECAY
        )
        total = self.epochs * -(-self.images // BATCH)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, total)
        for images, labels in self.batches(train):
            optimizer.zero_grad()
            with save_in_int8() if self.variant.endswith("save_in_int8") else nullcontext():
                loss = F.cross_entropy(model(images), labels)
            loss.backward()
            optimizer.step()
            schedule.step()
            yield loss.item()

    def batches(self, train: TensorSource) -> Iterator[tuple[Tensor, Tensor]]:
        """Shuffled and augmented, the same for every variant."""
        generator = torch.Generator().manual_seed(self.seed)
        chosen = torch.randperm(len(train), generator=generator)[: self.images]
        for _ in range(self.epochs):
            order = chosen[torch.randperm(len(chosen), generator=generator)]
            for images, labels in train.batches(order, BATCH, generator, crop_flip):
                yield images.contiguous(memory_format=torch.channels_last), labels


@torch.no_grad()
def accuracy(model: nn.Module, test: TensorSource) -> float:
    """Share of right answers on the test split."""
    model.eval()
    right = 0
    for images, labels in test.batches(
        torch.arange(len(test)), EVALUATION_BATCH, torch.Generator()
    ):
        right += int(
            (model(images.contiguous(memory_format=torch.channels_last)).argmax(1) == labels).sum()
        )
    return right / len(test)


def finished(file: Path) -> dict[Run, dict[str, Any]]:
    """The records of the file by their runs."""
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    return {
        Run(*(row[key] for key in ("variant", "seed", "epochs", "images"))): row for row in rows
    }


def train_all(runs: list[Run], file: Path, archive: str, jobs: int) -> None:
    """What is missing, some at a time; each is written when it ends."""
    missing = [run for run in runs if run not in finished(file)]
    file.parent.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(jobs, mp.get_context("spawn")) as pool:
        for future in as_completed([pool.submit(run.record, archive) for run in missing]):
            line = json.dumps(future.result())
            with file.open("a") as stream:
                stream.write(line + "\n")
            print(line, flush=True)


def table(runs: list[Run], records: dict[Run, dict[str, Any]]) -> str:
    """Test accuracy in per cent, mean and standard deviation over seeds, as Markdown."""
    rows = [["variant", "seeds", "test accuracy", "below float32", "aim", "CPU s an epoch"]]
    found = {
        name: [records[run] for run in runs if run.variant == name and run in records]
        for name in VARIANTS
    }
    means = {
        name: 100 * sum(one["accuracy"] for one in some) / len(some)
        for name, some in found.items()
        if some
    }
    for name, mean in means.items():
        below = f"{means['float32'] - mean:.2f}" if "float32" in means else "-"
        cells = [
            name,
            f"{len(found[name])}",
            spread([100 * one["accuracy"] for one in found[name]]),
            below,
        ]
        epoch = statistics.mean(one["seconds"] / one["epochs"] for one in found[name])
        rows.append([*cells, f"{VARIANTS[name][2]:g}", f"{epoch:.0f}"])
    head, *body = (f"| {' | '.join(row)} |" for row in rows)
    return "\n".join([head, "|" + "---|" * len(rows[0]), *body])


def spread(values: Sequence[float]) -> str:
    """Mean and standard deviation."""
    deviation = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{deviation}"


def main() -> None:
    """Train what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--archive", default="../shared/data/cifar10-jpg.tar.gz", help="pictures of CIFAR-10"
    )
    parser.add_argument(
        "--file", type=Path, default=Path("runs/accuracy.jsonl"), help="one line a finished run"
    )
    parser.add_argument("--variants", nargs="+", default=[*VARIANTS], choices=[*VARIANTS])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument(
        "--images", type=int, default=50_000, help="training images, at most 50,000"
    )
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, of one thread each")
    options = parser.parse_args()
    runs = [
        Run(variant, seed, options.epochs, options.images)
        for seed in options.seeds
        for variant in options.variants
    ]
    train_all(runs, options.file, options.archive, options.jobs)
    print(table(runs, finished(options.file)))


if __name__ == "__main__":
    main()
