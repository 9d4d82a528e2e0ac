"""Rounds of `FederatedTrainer` on the same images, in the same order."""

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.peers.work import (
    BATCH,
    CNN,
    EVAL_BATCH,
    LR,
    images,
    norm,
    serve,
    test_images,
)


class Classifier(L.LightningModule):
    """The network as a LightningModule."""

    def __init__(self) -> None:
        super().__init__()
        self.net = CNN()

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def test_step(self, batch: list[Tensor], batch_idx: int) -> None:
        logits = self.net(batch[0])
        self.log("test/loss", F.cross_entropy(logits, batch[1]))
        self.log("test/acc", (logits.argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), LR)


class InOrder:
    """The images of each client as a data module of the engine, without a shuffle."""

    def __init__(self, clients: int) -> None:
        self.pixels, self.labels = images(clients)
        self.held_out = test_images()

    def prepare_data(self) -> None:
        """Nothing is to be fetched."""

    def setup(self, stage: str) -> None:
        """All is there."""

    def federate(self, num_clients: int, seed: int) -> list[int]:
        return [len(labels) for labels in self.labels]

    def partition_record(self) -> dict[str, Any]:
        return {"kind": "even", "hash": str(self.labels.shape)}

    def client_batches(self, client_id: int, rng: object, epoch: int) -> Iterator[list[Tensor]]:
        pixels, labels = self.pixels[client_id], self.labels[client_id]
        yield from map(list, zip(pixels.split(BATCH), labels.split(BATCH), strict=True))

    def num_batches(self, client_id: int) -> int:
        return -(-len(self.labels[client_id]) // BATCH)

    def client_val_batches(self, client_id: int) -> None:
        """It has none."""

    def val_batches(self) -> list[Any]:
        return []

    def test_batches(self) -> Iterator[list[Tensor]]:
        pixels, labels = (values.split(EVAL_BATCH) for values in self.held_out)
        yield from map(list, zip(pixels, labels, strict=True))


def main(clients: int) -> None:
    from bhfl.engine.client.store import ClientStore
    from bhfl.engine.formats import with_format
    from bhfl.engine.loan import Loan
    from bhfl.engine.rounds import run_round
    from bhfl.engine.session import Session
    from bhfl.engine.system import keep_freed_memory
    from bhfl.engine.trainer import FederatedTrainer

    torch.set_num_threads(1)
    keep_freed_memory()
    folder = tempfile.mkdtemp()
    trainer = FederatedTrainer({32: clients}, default_root_dir=folder, logger=False, devices=1)
    session = Session(trainer, Loan(Classifier(), InOrder(clients)), ["fit", "test"])
    session.store = ClientStore(Path(tempfile.mkdtemp()))
    session.server = with_format(
        session.server, session.settings, session.worker, session.fleet, session.data
    )

    def turn() -> float:
        session.server, records = run_round(session, session.server, [])
        if any(record.status != "ok" for record in records):
            raise RuntimeError(records[0].reason)
        session.evaluate("test")
        return norm(session.server.params)

    serve(turn)


if __name__ == "__main__":
    main(int(sys.argv[1]))
