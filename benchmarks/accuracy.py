"""What bits cost in accuracy (``make accuracy``): ResNet-8 on all of CIFAR-10, trained in one place
by a plain loop.

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
"""The bits of all layers, the backend that computes, and how many points of accuracy a variant may
be below float32.
"""

ENDS = ("stem.0", "head.2")
"""The first and the last layer, which have 8 bits in every quantised variant, as is usual."""

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
        """Train and test in this process.

        Args:
            archive: The pictures of CIFAR-10.

        Returns:
            The run's fields, its test accuracy, the loss of its last epoch and the CPU seconds of
            training.
        """
        torch.set_num_threads(1)
        keep_freed_memory()
        torch.manual_seed(self.seed)
        data = CIFAR10(archive=archive)
        train = data.load(train=True)
        test = data.load(train=False)
        model = self.model()
        # the time of this thread: two runs at once would slow each other's clock on the wall
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
        """Train, and tell the loss of each batch."""
        model.train()
        optimizer = torch.optim.SGD(
            model.parameters(), LEARNING_RATE, MOMENTUM, weight_decay=WEIGHT_DECAY
        )
        total = self.epochs * -(-self.images // BATCH)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, total)
        for images, labels in self.batches(train):
            optimizer.zero_grad()
            saving = save_in_int8() if self.variant.endswith("save_in_int8") else nullcontext()
            with saving:
                loss = F.cross_entropy(model(images), labels)
            loss.backward()
            optimizer.step()
            schedule.step()
            yield loss.item()

    def batches(self, train: TensorSource) -> Iterator[tuple[Tensor, Tensor]]:
        """Shuffled and augmented batches, the same for every variant."""
        generator = torch.Generator().manual_seed(self.seed)
        chosen = torch.randperm(len(train), generator=generator)[: self.images]
        for _ in range(self.epochs):
            order = chosen[torch.randperm(len(chosen), generator=generator)]
            for images, labels in train.batches(order, BATCH, generator, crop_flip):
                yield images.contiguous(memory_format=torch.channels_last), labels


@torch.no_grad()
def accuracy(model: nn.Module, test: TensorSource) -> float:
    """The share of right answers on the test split."""
    model.eval()
    right = 0
    everything = torch.arange(len(test))
    for images, labels in test.batches(everything, EVALUATION_BATCH, torch.Generator()):
        logits = model(images.contiguous(memory_format=torch.channels_last))
        right += int((logits.argmax(1) == labels).sum())
    return right / len(test)


def finished(file: Path) -> dict[Run, dict[str, Any]]:
    """The records in a file by their runs."""
    if not file.exists():
        return {}
    found = {}
    for line in file.read_text().splitlines():
        row = json.loads(line)
        found[Run(row["variant"], row["seed"], row["epochs"], row["images"])] = row
    return found


def train_all(runs: list[Run], file: Path, archive: str, jobs: int) -> None:
    """Run what is missing, some runs at a time, and write down each when it ends."""
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
    means: dict[str, float] = {}
    # float32, with which the others are compared, is the first
    for name, (_, _, aim) in VARIANTS.items():
        found = [records[run] for run in runs if run.variant == name and run in records]
        if not found:
            continue
        accuracies = [100 * one["accuracy"] for one in found]
        means[name] = statistics.mean(accuracies)
        below = f"{means['float32'] - means[name]:.2f}" if "float32" in means else "-"
        epoch = statistics.mean(one["seconds"] / one["epochs"] for one in found)
        cells = [name, f"{len(found)}", spread(accuracies), below, f"{aim:g}", f"{epoch:.0f}"]
        rows.append(cells)
    head, *body = (f"| {' | '.join(row)} |" for row in rows)
    return "\n".join([head, "|" + "---|" * len(rows[0]), *body])


def spread(values: Sequence[float]) -> str:
    """The mean and, of several values, the standard deviation."""
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
    runs = []
    for seed in options.seeds:
        for variant in options.variants:
            runs.append(Run(variant, seed, options.epochs, options.images))
    train_all(runs, options.file, options.archive, options.jobs)
    print(table(runs, finished(options.file)))


if __name__ == "__main__":
    main()
