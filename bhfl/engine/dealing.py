"""Which process trains which clients of a round; no result depends on it."""

import heapq
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from bhfl.engine.records import ClientRecord, with_updates
from bhfl.engine.types import Client

if TYPE_CHECKING:
    from lightning.fabric import Fabric


class Dealer:
    """Deals out the clients of each round, longest first, each to the process with least to do.

    A client is expected to take its planned steps times the seconds that a step of its group has
    taken so far. Nothing of this is kept for a run that goes on: its first round goes by steps
    alone.

    Args:
        fabric: The processes.
        steps: Optimiser steps that are planned for a client in a round.
    """

    def __init__(self, fabric: "Fabric", steps: Callable[[Client], int]) -> None:
        self.fabric = fabric
        self.steps = steps
        self.num_dealt = 0
        """The clients of the last round that this process trains."""
        self._seconds: dict[str, float] = defaultdict(float)
        self._steps: dict[str, int] = defaultdict(int)

    def deal(self, cohort: Sequence[Client]) -> list[Client]:
        """The clients that this process trains, in the order of their ids; a collective.

        Args:
            cohort: The clients of the round.
        """
        mine = list(cohort)
        if self.fabric.world_size > 1:
            # the figures of one process for all, so that every client is dealt out exactly once
            costs = self.fabric.broadcast([self._cost(client) for client in cohort])
            mine = shares(cohort, costs, self.fabric.world_size)[self.fabric.global_rank]
        self.num_dealt = len(mine)
        return mine

    def learn(self, fleet: Sequence[Client], records: Sequence[ClientRecord]) -> None:
        """Take down what the clients of a round took."""
        for record in with_updates(records):
            self._seconds[record.group] += record.seconds
            self._steps[record.group] += self.steps(fleet[record.client])

    def _cost(self, client: Client) -> float:
        """Seconds that a client is expected to take, or its steps where none was measured."""
        if steps := self._steps[client.group]:
            pace = self._seconds[client.group] / steps
        else:
            pace = sum(self._seconds.values()) / max(1, sum(self._steps.values())) or 1.0
        return self.steps(client) * pace


def shares(
    cohort: Sequence[Client], costs: Sequence[float], num_processes: int
) -> list[list[Client]]:
    """The clients of each process, in the order of the cohort: longest first to whoever has least
    to do (Graham 1969, "Bounds on multiprocessing timing anomalies").

    Args:
        cohort: The clients of the round, in the order of their ids.
        costs: What each is expected to take.
        num_processes: How many share them.
    """
    loads = [(0.0, rank) for rank in range(num_processes)]
    dealt: list[list[int]] = [[] for _ in loads]
    # a stable sort: of equal ones the lowest id comes first
    for index in sorted(range(len(cohort)), key=lambda index: -costs[index]):
        load, rank = loads[0]
        heapq.heapreplace(loads, (load + costs[index], rank))
        dealt[rank].append(index)
    return [list(map(cohort.__getitem__, sorted(indices))) for indices in dealt]
