"""A LightningModule and a dataset to begin with: put yours in their place."""

from typing import Literal

import lightning as L
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

Sample = tuple[Tensor, Tensor]


class MyData(Dataset[Sample]):
    """Noisy sines and squares of 32 samples each, and which of the two each one is.

    Args:
        split: The waves to train with, or others to test with.
    """

    def __init__(self, split: Literal["train", "test"] = "train") -> None:
        generator = torch.Generator().manual_seed(0 if split == "train" else 1)
        self.targets = torch.arange(600) % 2
        phase = torch.rand(600, 1, generator=generator)
        sines = (6.28 * torch.arange(32) / 32 + phase).sin()
        waves = torch.where(self.targets[:, None] == 0, sines, sines.sign())
        self.waves = waves + 0.2 * torch.randn(600, 32, generator=generator)

    def __len__(self) -> int:
        """The number of waves."""
        return len(self.targets)

    def __getitem__(self, index: int) -> Sample:
        """One wave ``[32]``, and its label."""
        return self.waves[index], self.targets[index]


class MyModule(L.LightningModule):
    """Tells sines from squares. It is written for Lightning, and knows nothing of bhfl.

    Args:
        width: The number of hidden units.
        lr: The learning rate.
    """

    def __init__(self, width: int = 32, lr: float = 0.01) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(32, width), nn.ReLU(), nn.Linear(width, 2))
        self.lr = lr

    def training_step(self, batch: Sample, batch_idx: int) -> Tensor:
        """The loss of a batch."""
        waves, targets = batch
        return nn.functional.cross_entropy(self.net(waves), targets)

    def validation_step(self, batch: Sample, batch_idx: int) -> None:
        """Log what a table shows by bit-width: ``val/NAME``."""
        self._measure(batch, "val")

    def test_step(self, batch: Sample, batch_idx: int) -> None:
        """Log the same of the test split: ``test/NAME``."""
        self._measure(batch, "test")

    def _measure(self, batch: Sample, stage: str) -> None:
        waves, targets = batch
        logits = self.net(waves)
        self.log(f"{stage}/loss", nn.functional.cross_entropy(logits, targets))
        self.log(f"{stage}/acc", (logits.argmax(1) == targets).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Each client trains with an optimiser of its own."""
        return torch.optim.Adam(self.parameters(), self.lr)
