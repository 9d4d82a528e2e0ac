"""Clients with quadratic losses, whose optimum is known: ``F_i(w) = 1/2 sum h_i (w - t_i)^2``."""

from __future__ import annotations

import lightning as L
import torch
from torch import nn

SHAPE = (8, 5)


class Data:
    """One full batch ``(h_i, t_i)`` a client, the same at every step."""

    def __init__(self, num_clients: int, steps: int = 10, spread: float = 1.0) -> None:
        generator = torch.Generator().manual_seed(7)
        self.steps = steps
        self.h = 0.5 + torch.rand(num_clients, *SHAPE, generator=generator)
        self.t = spread * torch.randn(num_clients, *SHAPE, generator=generator)

    def optimum(self) -> torch.Tensor:
        """Minimiser of the mean loss."""
        return (self.h * self.t).double().sum(0) / self.h.double().sum(0)

    def prepare_data(self) -> None:
        pass

    def setup(self, stage: str) -> None:
        pass

    def federate(self, num_clients: int, seed: int) -> list[int]:
        return [1] * num_clients

    def partition_record(self) -> dict:
        return {}

    def num_batches(self, client_id: int) -> int:
        return self.steps

    def client_batches(self, client_id, rng, epoch):
        return [(self.h[client_id], self.t[client_id])] * self.steps

    def client_val_batches(self, client_id):
        return None

    def val_batches(self):
        return []

    def test_batches(self):
        return []


class Module(L.LightningModule):
    """A weight of two dimensions, so that it is quantised, trained by plain SGD."""

    def __init__(self, lr: float = 0.05) -> None:
        super().__init__()
        self.weight, self.lr = nn.Parameter(torch.zeros(SHAPE)), lr

    def training_step(self, batch, batch_idx):
        h, t = batch
        return 0.5 * (h * (self.weight - t).square()).sum()

    def validation_step(self, batch, batch_idx):
        pass

    def test_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), self.lr)


class Paced(Module):
    """A second weight of the same loss, whose rate is a fifth."""

    def __init__(self) -> None:
        super().__init__()
        self.slow = nn.Parameter(torch.zeros(SHAPE))

    def training_step(self, batch, batch_idx):
        h, t = batch
        return super().training_step(batch, batch_idx) + 0.5 * (h * (self.slow - t).square()).sum()

    def configure_optimizers(self):
        slow = {"params": [self.slow], "lr": self.lr / 5}
        return torch.optim.SGD([{"params": [self.weight]}, slow], self.lr)
