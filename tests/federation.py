"""Small federations that train in a fraction of a second, for tests of whole runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import nn

from bhfl.data import FakeImages
from bhfl.engine.algorithm import Algorithm
from bhfl.engine.trainer import FederatedTrainer

SHAPE = (1, 6, 6)
CLASSES = 4


class Net(nn.Sequential):
    """A convolution, a norm layer on demand, and two linear layers: odd sizes on purpose."""

    def __init__(self, batch_norm: bool = False) -> None:
        layers = [nn.Conv2d(1, 5, 3), nn.BatchNorm2d(5)] if batch_norm else [nn.Conv2d(1, 5, 3)]
        super().__init__(
            *layers, nn.ReLU(), nn.Flatten(), nn.Linear(80, 13), nn.ReLU(), nn.Linear(13, CLASSES)
        )


class Client(L.LightningModule):
    """A client as a user would write it."""

    def __init__(
        self, net: nn.Module | None = None, lr: float = 0.05, momentum: float = 0.9
    ) -> None:
        super().__init__()
        self.net = net or Net()
        self.lr = lr
        self.momentum = momentum

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        x, y = batch
        return nn.functional.cross_entropy(self.net(x), y)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        logits = self.net(x)
        self.log("val/loss", nn.functional.cross_entropy(logits, y), batch_size=len(y))
        self.log("val/acc", (logits.argmax(1) == y).float().mean(), batch_size=len(y))

    def test_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        self.log("test/acc", (self.net(x).argmax(1) == y).float().mean(), batch_size=len(y))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), self.lr, momentum=self.momentum)


def fit(
    folder: Path,
    algorithm: Algorithm | None = None,
    clients: Any = None,
    module: Callable[[], L.LightningModule] = Client,
    data: Any = None,
    ckpt_path: str | None = None,
    **options: Any,
) -> FederatedTrainer:
    """A finished run of three rounds, unless `options` say otherwise; the trainer holds what came
    of it.
    """
    settings = {
        "max_rounds": 3,
        "logger": False,
        "default_root_dir": str(folder),
        "devices": 1,
        # to try another order of memory takes longer than a round, and is tested by itself
        "channels_last": False,
        # validation before training is beside the point of most tests too
        "validate_first": False,
        **options,
    }
    trainer = FederatedTrainer(clients or {8: 2, 32: 2}, algorithm, **settings)
    torch.manual_seed(0)
    trainer.fit(module(), data or fake(), ckpt_path=ckpt_path)
    return trainer


def fake(num_train: int = 64, **options: Any) -> FakeImages:
    """Images whose classes can be told apart."""
    settings = {"num_test": 40, "batch_size": 8, "val_fraction": 0.1, **options}
    return FakeImages(num_train=num_train, shape=SHAPE, num_classes=CLASSES, **settings)


def code_bytes(numel: int, bits: int) -> int:
    """What packed codes take: those of 2 bits, which are ternary, go five a byte."""
    return -(-numel // 5) if bits == 2 else -(-numel * bits // 8)


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    """Equal names and equal bits."""
    return first.keys() == second.keys() and all(
        torch.equal(first[name], second[name]) for name in first
    )
