"""The work that all contestants do, in torch alone: a peer's environment has no more.

FedAvg, 10,000 images of 32x32 pixels dealt out evenly to the clients, batches of 50 in the order of
the images, one local epoch, SGD at 0.05, a CNN of 545,098 parameters, all clients in each round,
and 2,000 test images at its end.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

NUM_TRAIN = 10_000
NUM_TEST = 2_000
BATCH = 50
EVAL_BATCH = 256
LR = 0.05


class CNN(nn.Sequential):
    """The network, with the initial weights of seed 0."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__(nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
        self.extend([nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()])
        self.extend([nn.Linear(4096, 128), nn.ReLU(), nn.Linear(128, 10)])

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits of bytes, which are normalised here, as a batch is made."""
        return super().forward(pixels.to(torch.float32).div_(255).sub_(0.5).div_(0.25))


def images(clients: int) -> tuple[Tensor, Tensor]:
    """Bytes [clients, images, 3, 32, 32] and labels, the same in every environment."""
    generator = torch.Generator().manual_seed(1)
    shape = (clients, NUM_TRAIN // clients)
    pixels = torch.randint(0, 256, (*shape, 3, 32, 32), generator=generator, dtype=torch.uint8)
    return pixels, torch.randint(0, 10, shape, generator=generator)


def test_images() -> tuple[Tensor, Tensor]:
    """Bytes and labels to test with."""
    generator = torch.Generator().manual_seed(2)
    pixels = torch.randint(0, 256, (NUM_TEST, 3, 32, 32), generator=generator, dtype=torch.uint8)
    return pixels, torch.randint(0, 10, (NUM_TEST,), generator=generator)


def train(model: nn.Module, pixels: Tensor, labels: Tensor) -> None:
    """One local epoch."""
    optimizer = torch.optim.SGD(model.parameters(), LR)
    for x, y in zip(pixels.split(BATCH), labels.split(BATCH), strict=True):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()


@torch.no_grad()
def test(model: nn.Module, pixels: Tensor, labels: Tensor) -> float:
    """The mean accuracy over the batches."""
    found = []
    for x, y in zip(pixels.split(EVAL_BATCH), labels.split(EVAL_BATCH), strict=True):
        logits = model(x)
        F.cross_entropy(logits, y)
        found.append(float((logits.argmax(1) == y).float().mean()))
    return sum(found) / len(found)


def norm(weights: Mapping[str, Tensor]) -> float:
    """The length of all weights as one vector, by which results are compared."""
    return float(sum(value.double().square().sum() for value in weights.values()) ** 0.5)


def tell(**words: object) -> None:
    """Say something to who measures."""
    print(json.dumps(words), flush=True)


class Turns:
    """Rounds on demand: whoever runs them calls `over` at the end of each.

    Args:
        cpu: The CPU seconds so far of all processes that take part.
    """

    def __init__(self, cpu: Callable[[], float] = time.process_time) -> None:
        self._cpu = cpu
        self._begun: tuple[float, float] | None = None

    def over(self, norm: float) -> bool:
        """Tell what the round took, and wait until the next one is wanted. The first, which
        allocates, is told as the sign that all is ready.

        Args:
            norm: Of the weights that the round came to.

        Returns:
            Whether another round is wanted.
        """
        if self._begun is None:
            tell(ready=True)
        else:
            cpu, wall = self._begun
            tell(cpu=self._cpu() - cpu, wall=time.perf_counter() - wall, norm=norm)
        wanted = bool(sys.stdin.readline())
        self._begun = self._cpu(), time.perf_counter()
        return wanted


def serve(turn: Callable[[], float]) -> None:
    """Take turns when they are wanted.

    Args:
        turn: A round; it returns the norm of the weights that it comes to.
    """
    turns = Turns()
    while turns.over(turn()):
        pass
