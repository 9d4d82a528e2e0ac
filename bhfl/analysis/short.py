"""Clients that make a few steps of a round, while what crosses to them and back is taken down."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from bhfl.engine.exchange import Clients, Measured, Reply, Task, Verdict


class ShortClients:
    """Clients that make a few steps alone; what crosses to them and back is taken down."""

    def __init__(self, clients: Clients) -> None:
        self.clients = clients
        self.steps = 1
        self.saves_in_int8 = True
        self.sent = b""
        self.once = b""
        self.reply: Any = None

    def train(self, tasks: Iterator[Task]) -> Iterator[Reply]:
        """The replies, each kept until the next one."""
        for reply in self.clients.train(map(self._shortened, tasks)):
            self.reply = reply
            yield reply

    def _shortened(self, task: Task) -> Task:
        self.sent = task.downlink
        self.once = task.body
        assert task.training is not None
        lean = task.training.save_in_int8 and self.saves_in_int8
        training = replace(task.training, local_steps=self.steps, save_in_int8=lean)
        return replace(task, training=training)

    def evaluate(self, tasks: Iterator[Task]) -> Iterator[Measured]:
        """What the clients' own models are worth."""
        return self.clients.evaluate(tasks)

    def close(self, round: int, verdicts: Mapping[int, Verdict]) -> None:
        """End a round."""
        self.clients.close(round, verdicts)
