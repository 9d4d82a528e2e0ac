"""Accuracy per bit group: the global model as each group would run it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from torch import Tensor

from bhfl.engine.own import Own
from bhfl.engine.records import gather
from bhfl.engine.rounds import Rounds
from bhfl.engine.types import Client, Params, ServerState
from bhfl.quant import BitSpec

GLOBAL = "global"
"""Key of the float32 server model among the groups' results."""

Stage = Literal["val", "test"]


@dataclass(frozen=True)
class Task:
    """One pass over the evaluation set: a model, run at a spec, whose result counts for `key`."""

    key: str
    spec: BitSpec
    tensors: Callable[[], Mapping[str, Tensor]]


class Evaluator:
    """Evaluates a server state over its fleet; passes are spread over the processes, each done
    whole by one.

    A pass is never split: dynamic activation ranges and metric states then do not depend on how
    many processes there are, and a user's `validation_step`, hooks and torchmetrics work as they
    are.
    """

    def __init__(self, rounds: Rounds) -> None:
        self.rounds = rounds
        self.worker = rounds.worker
        self.clients = rounds.clients
        self.groups = {client.group: client.spec for client in self.clients}
        self.shares = {
            g: sum(c.group == g for c in self.clients) / len(self.clients) for g in self.groups
        }

    def __call__(
        self,
        server: ServerState,
        batches: Callable[[], Iterable[Any]],
        stage: Stage,
        kept: Callable[[Client], Mapping[str, Any]],
    ) -> dict[str, float]:
        """The metrics of `stage`, tagged: ``val/acc`` (the server's float32 model),
        ``val/acc_<group>``, ``val/acc_avg`` (weighted by the groups' numbers of clients),
        ``val/acc_min``.
        """
        fabric = self.worker.fabric
        self.worker.place.begin(server.round)
        tasks = list(self._tasks(server, kept))
        self.worker.layout.take_(server.channels_last)
        mine = []
        for index in range(fabric.global_rank, len(tasks), fabric.world_size):
            task = tasks[index]
            self.worker.load_global(task.tensors(), task.spec)
            mine.append((index, task.key, self.worker.evaluate(batches(), stage)))
        results: dict[str, list[dict[str, float]]] = {}
        for _, key, metrics in sorted(gather(fabric, mine), key=lambda result: result[0]):
            results.setdefault(key, []).append(metrics)
        return self._tag({key: _mean(rows) for key, rows in results.items()}, stage)

    def by_client(self, server: ServerState) -> bool:
        """Whether the model of any group is not whole without what its clients keep."""
        return any(self.rounds.own.missing(self._of_group(server, group)) for group in self.groups)

    def _of_group(self, server: ServerState, group: str) -> Params:
        """The model of a group, without what is its clients' own."""
        return {
            **self.rounds.hooks.group_params(server, group),
            **self.rounds.buffers.of(server, group),
        }

    def _tasks(
        self, server: ServerState, kept: Callable[[Client], Mapping[str, Any]]
    ) -> Iterator[Task]:
        own = self.rounds.own
        for group, spec in self.groups.items():
            given = self._of_group(server, group)
            if not own.missing(given):
                yield Task(group, spec, partial(own.whole, server, given))
                continue
            for client in (client for client in self.clients if client.group == group):
                yield Task(
                    group, spec, partial(_with_own, own, server, given, partial(kept, client))
                )
        if self.rounds.algorithm.communicates and not any(
            spec.is_float for spec in self.groups.values()
        ):
            buffers = self.rounds.buffers.of(server, next(iter(self.groups)))
            yield Task(GLOBAL, BitSpec(), partial(own.whole, server, {**server.params, **buffers}))

    def _tag(self, results: dict[str, dict[str, float]], stage: Stage) -> dict[str, float]:
        overall = results.pop(GLOBAL, None)
        metrics: dict[str, float] = {}
        for name in next(iter(results.values()), {}):
            values = {group: result[name] for group, result in results.items()}
            floating = next(
                (values[g] for g, spec in self.groups.items() if spec.is_float), math.nan
            )
            if self.rounds.algorithm.communicates:
                metrics[f"{stage}/{name}"] = overall[name] if overall else floating
            metrics.update({f"{stage}/{name}_{group}": value for group, value in values.items()})
            metrics[f"{stage}/{name}_avg"] = sum(
                self.shares[group] * value for group, value in values.items()
            )
            metrics[f"{stage}/{name}_min"] = min(values.values())
        return metrics


def _with_own(
    own: Own, server: ServerState, given: Params, kept: Callable[[], Mapping[str, Any]]
) -> Params:
    return own.whole(server, given, kept())


def _mean(rows: list[dict[str, float]]) -> dict[str, float]:
    return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}
