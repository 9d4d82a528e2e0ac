"""A federation whose every sample is given, and modules that tell what happened to them."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from bhfl.engine.client.store import ClientStore
from bhfl.engine.random import RandomKeys

FEATURES, CLASSES = 6, 3
Points = tuple[Tensor, Tensor]


def points(count: int, seed: int = 0) -> Points:
    """Inputs ``[count, FEATURES]`` and labels ``[count]``."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, FEATURES, generator=generator), torch.randint(
        CLASSES, (count,), generator=generator
    )


class HandMade:
    """A data module that is no LightningDataModule: it has the methods of `FederatedData`, and
    nothing else.

    Args:
        clients: The samples of each client.
        batch_size: Samples in a batch.
        held_out: Samples for validation and for testing; none for no validation.
        shuffle: Whether clients draw the order of their samples.
        own: Samples of each client for its own validation and test.
    """

    def __init__(
        self,
        clients: Sequence[Points],
        batch_size: int = 4,
        held_out: Points | None = None,
        shuffle: bool = False,
        own: Sequence[Points] = (),
    ) -> None:
        self.clients = list(clients)
        self.batch_size = batch_size
        self.held_out = held_out
        self.shuffle = shuffle
        self.own = own

    def prepare_data(self) -> None: ...

    def setup(self, stage: str) -> None: ...

    def federate(self, num_clients: int, seed: int) -> list[int]:
        if num_clients != len(self.clients):
            raise ValueError(f"there are {len(self.clients)} clients, got {num_clients}")
        return [len(labels) for _, labels in self.clients]

    def partition_record(self) -> dict[str, Any]:
        content = b"".join(labels.numpy().tobytes() for _, labels in self.clients)
        return {
            "scheme": "hand-made",
            "seed": 0,
            "sha256": hashlib.sha256(content).hexdigest(),
            "clients": [],
        }

    def client_batches(self, client_id: int, rng: RandomKeys, epoch: int) -> Iterable[Points]:
        inputs, labels = self.clients[client_id]
        order = torch.arange(len(labels))
        if self.shuffle:
            order = torch.randperm(len(labels), generator=rng.torch("shuffle", epoch))
        for chosen in order.split(self.batch_size):
            yield inputs[chosen], labels[chosen]

    def num_batches(self, client_id: int) -> int:
        return -(-len(self.clients[client_id][1]) // self.batch_size)

    def client_val_batches(self, client_id: int) -> Iterable[Points] | None:
        return [self.own[client_id]] if self.own else None

    def client_test_batches(self, client_id: int) -> Iterable[Points] | None:
        return self.client_val_batches(client_id)

    def val_batches(self) -> Iterable[Points]:
        return [self.held_out] if self.held_out is not None else []

    def test_batches(self) -> Iterable[Points]:
        return self.val_batches()


class Module(L.LightningModule):
    """A small classifier; `rates` takes down the learning rate of every optimiser step."""

    def __init__(self, net: nn.Module | None = None) -> None:
        super().__init__()
        self.net = net or nn.Sequential(nn.Linear(FEATURES, 7), nn.ReLU(), nn.Linear(7, CLASSES))
        self.rates: list[float] = []

    def training_step(self, batch: Points, batch_idx: int) -> Any:
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch: Points, batch_idx: int) -> None:
        logits = self.net(batch[0])
        self.log("val/loss", nn.functional.cross_entropy(logits, batch[1]))
        self.log("val/acc", (logits.argmax(1) == batch[1]).float().mean())

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        self.rates.append(optimizer.param_groups[0]["lr"])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.1, momentum=0.9)


def client_rows(run: Path) -> list[dict[str, str]]:
    """The rows of a run's ``clients.csv``, without real seconds."""
    with open(run / "clients.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        del row["seconds"]
    return rows


def float_state(module: nn.Module) -> dict[str, Tensor]:
    """A copy of a module's state."""
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


def keep(store: ClientStore, client: int, round: int, state: dict[str, Any]) -> None:
    """Let a client keep `state` as of `round` finished rounds."""
    store.put(client, round, state)
    store.commit([client])
