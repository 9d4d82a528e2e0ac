"""Randomness and cohorts as pure functions: the same draws whatever ran before, and on whichever
process.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

if TYPE_CHECKING:
    from bhfl.engine.types import Client

PURPOSES = (
    "sample", "shuffle", "augment", "dropout", "quant_up", "quant_down", "quant_train", "bandwidth",
    "compute", "partition", "server", "straggler",
)  # fmt: skip
"""Names of the streams. Appending one leaves the draws of all others as they are."""


class RandomKeys:
    """The random streams of one (seed, round, client): a generator for each purpose, none shared,
    none global.

    A method that draws more from one stream never shifts another, so two methods see the same data
    order.
    """

    def __init__(self, seed: int, round: int = 0, client: int = 0) -> None:
        self.seed = seed
        self.round = round
        self.client = client

    def _sequence(self, purpose: str, extra: tuple[int, ...]) -> np.random.SeedSequence:
        key = (PURPOSES.index(purpose), self.round, self.client, *extra)
        return np.random.SeedSequence(self.seed, spawn_key=key)

    def numpy(self, purpose: str, *extra: int) -> np.random.Generator:
        """A NumPy generator for `purpose` (one of `PURPOSES`); `extra` tells several of one purpose
        apart.
        """
        return np.random.default_rng(self._sequence(purpose, extra))

    def torch(
        self, purpose: str, *extra: int, device: torch.device | str = "cpu"
    ) -> torch.Generator:
        """A torch generator on `device` for `purpose`; `extra` as in `numpy`."""
        return torch.Generator(device).manual_seed(self.integer(purpose, *extra))

    def integer(self, purpose: str, *extra: int) -> int:
        """A 63-bit seed for `purpose`."""
        return int(self._sequence(purpose, extra).generate_state(1, np.uint64)[0] >> 1)


def seed_globals(seed: int, device: torch.device) -> None:
    """Seed the global generators: dropout and much user code draw from them. The trainer puts them
    back at its end.
    """
    random.seed(seed)
    np.random.seed(seed % 2**32)
    if device.type == "cpu":
        torch.default_generator.manual_seed(seed)
    else:
        torch.manual_seed(seed)  # of all devices, and a hundred times slower


def cohort_size(num_clients: int, clients_per_round: int | float | None) -> int:
    """Clients in a round: a count, a fraction of the fleet rounded to the nearest and at least one,
    or all (None).
    """
    if clients_per_round is None:
        return num_clients
    if isinstance(clients_per_round, float):
        return max(1, round(clients_per_round * num_clients))
    return clients_per_round


def sample_cohort(
    clients: Sequence[Client],
    size: int,
    seed: int,
    round: int,
    sampling: Literal["stratified", "uniform"],
) -> list[Client]:
    """The clients of one round, without replacement, in the order of their ids: a function of
    (seed, round).

    `stratified` shares the places out among the bit groups in proportion to their sizes, at least
    one each while places last (largest remainder); `uniform` draws from the whole fleet.
    """
    rng = RandomKeys(seed, round).numpy("sample")
    if size >= len(clients):
        return list(clients)
    if sampling == "uniform":
        chosen = rng.choice(len(clients), size, replace=False)
        return [clients[i] for i in sorted(chosen)]
    groups: dict[str, list[Client]] = {}
    for client in clients:
        groups.setdefault(client.group, []).append(client)
    places = _share_out(size, [len(members) for members in groups.values()], rng)
    cohort = [
        members[i]
        for members, count in zip(groups.values(), places, strict=True)
        for i in rng.choice(len(members), count, replace=False)
    ]
    return sorted(cohort, key=lambda client: client.id)


def _share_out(size: int, group_sizes: list[int], rng: np.random.Generator) -> list[int]:
    """`size` places over groups: one each first (a random choice where there are too few), the rest
    by quota.
    """
    if size < len(group_sizes):
        places = [0] * len(group_sizes)
        for i in rng.choice(len(group_sizes), size, replace=False):
            places[i] = 1
        return places
    total = sum(group_sizes)
    quotas = [size * n / total for n in group_sizes]
    places = [min(max(1, int(q)), n) for q, n in zip(quotas, group_sizes, strict=True)]
    while sum(places) != size:
        step = 1 if sum(places) < size else -1
        movable = [
            i for i, n in enumerate(group_sizes) if (places[i] < n if step > 0 else places[i] > 1)
        ]
        i = max(movable, key=lambda i: step * (quotas[i] - places[i]))
        places[i] += step
    return places
