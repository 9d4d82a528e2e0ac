"""Where in the run a process's module is: its round, its client, and what is lent to it there."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.fabric.loggers import Logger
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.utilities.types import LRSchedulerConfig

from bhfl.engine.types import Client, FederatedData
from bhfl.settings import LocalTraining, Settings


class Place:
    """A place in the run. All that a module is told of it is a function of the round and the
    client.

    Args:
        data: The data of the run.
        settings: The trainer's settings.
        stage: What is being set up: ``train``, ``val``, ``test`` or ``predict``.
    """

    def __init__(self, data: FederatedData, settings: Settings, stage: str) -> None:
        self.data = data
        self.settings = settings
        self.stage = stage
        self.clients: Sequence[Client] = ()
        """The fleet, once the data are split."""
        self.loggers: list[Any] = _without_a_run(settings.output.logger)
        self.folder: Path | None = None
        self.change_gradients: Callable[[], None] | None = None
        """Called between backward and clipping."""
        self.without_loss = False
        """Whether the training step computed last returned no loss, so that there is nothing to
        step on.
        """
        self.lend([], [])
        self.begin(0)

    def begin(
        self, round: int, client: Client | None = None, training: LocalTraining | None = None
    ) -> None:
        """Go to the start of a client's round, or between the clients: there it counts what the
        largest of them does.

        Args:
            round: Rounds finished.
            client: Who trains now, None where nobody does.
            training: How it trains; the trainer's settings where nobody does.
        """
        self.round = round
        self.client = client
        self.training = training or self.settings.training
        self.epoch = self.step = 0
        """Epochs finished and optimiser steps taken in this round."""

    def open(self, folder: Path, loggers: Sequence[Any]) -> None:
        """Take the run folder, and its loggers where this process writes any."""
        self.folder = folder
        self.loggers = list(loggers) or self.loggers

    def lend(
        self, optimizers: Sequence[LightningOptimizer], schedules: Sequence[LRSchedulerConfig]
    ) -> None:
        """Let the module find these by `optimizers()`, `lr_schedulers()` and `toggle_optimizer()`;
        empty for none.
        """
        self.optimizers = list(optimizers)
        self.schedules = list(schedules)

    def count(self) -> None:
        """Take note of one more optimiser step."""
        self.step += 1

    @contextmanager
    def evaluating(self, stage: str) -> Iterator[None]:
        """Say that the module is being validated or tested, or predicts."""
        before, self.stage = self.stage, stage
        try:
            yield
        finally:
            self.stage = before

    @contextmanager
    def as_it_was(self, interval: str, done: int) -> Iterator[None]:
        """Stand where so many steps, or epochs, of the client were done, in whatever round that
        was.
        """
        before = self.round, self.epoch, self.step
        batches = max(1, self.num_batches)
        # `done` counts from the first round on: rounds before would be added once more
        self.round = 0
        if interval == "epoch":
            # Lightning steps schedules before it counts the epoch
            self.epoch = done - 1
            self.step = done * batches
        else:
            self.epoch = (done - 1) // batches
            self.step = done
        try:
            yield
        finally:
            self.round, self.epoch, self.step = before

    @property
    def num_batches(self) -> int:
        """Training batches in a local epoch."""
        if self.client is not None:
            return self.data.num_batches(self.client.id)
        # at set-up configure_optimizers sizes its schedules by it, and no client makes more
        return max(map(self.data.num_batches, range(len(self.clients))), default=0)

    @property
    def planned_epochs(self) -> int:
        """Local epochs of a round, the last of which may be cut short."""
        steps = self.training.local_steps
        if steps is None:
            return self.training.local_epochs
        return math.ceil(steps / max(self.num_batches, 1))

    @property
    def planned_steps(self) -> int:
        """Optimiser steps of a round."""
        return self.training.planned_steps(self.num_batches)


def _without_a_run(chosen: Any) -> list[Any]:
    """The loggers of a module where no run folder is open, or in another process than the first,
    which writes.
    """
    if chosen is True:
        # it takes any call, so that modules log in every process alike, and writes nothing
        return [DummyLogger()]
    return [chosen] if isinstance(chosen, Logger) else list(chosen or [])
