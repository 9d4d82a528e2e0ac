"""The cohort of a round, as a pure function of the seed and the round."""

from collections.abc import Sequence
from typing import Literal

import numpy as np

from bhfl.engine.random import RandomKeys
from bhfl.engine.roster import members
from bhfl.engine.types import Client
from bhfl.settings import Cohort


def cohort_size(num_clients: int, clients_per_round: int | float | None) -> int:
    """Clients in a round: a count, a fraction of the fleet rounded to the nearest and at least one,
    or all (None).
    """
    if clients_per_round is None:
        return num_clients
    # 1 is one client and 1.0 all of them: the type alone tells a count from a fraction
    if isinstance(clients_per_round, float):
        return max(1, round(clients_per_round * num_clients))
    return clients_per_round


def cohort_of(clients: Sequence[Client], cohort: Cohort, round: int) -> list[Client]:
    """The clients of one round, as the trainer's settings say."""
    if cohort.sampling == "poisson":
        rate = inclusion_rate(len(clients), cohort.clients_per_round)
        return poisson_cohort(clients, rate, cohort.seed, round)
    size = cohort_size(len(clients), cohort.clients_per_round)
    return sample_cohort(clients, size, cohort.seed, round, cohort.sampling)


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
    groups = list(members(clients).values())
    places = _share_out(size, list(map(len, groups)), rng)
    cohort = []
    for group, count in zip(groups, places, strict=True):
        cohort += [clients[group[i]] for i in rng.choice(len(group), count, replace=False)]
    return sorted(cohort, key=lambda client: client.id)


def inclusion_rate(num_clients: int, clients_per_round: int | float | None) -> float:
    """The probability with which a client takes part in a round of ``sampling: poisson``."""
    if isinstance(clients_per_round, float):
        return clients_per_round
    return cohort_size(num_clients, clients_per_round) / num_clients


def poisson_cohort(clients: Sequence[Client], rate: float, seed: int, round: int) -> list[Client]:
    """The clients of one round, each of which takes part with probability `rate` whatever the
    others do, in the order of their ids: a function of (seed, round).
    """
    draws = RandomKeys(seed, round).numpy("sample").random(len(clients))
    return [clients[int(id)] for id in np.flatnonzero(draws < rate)]


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
        # no group has more places than clients, and none less than one
        movable = [i for i, n in enumerate(group_sizes) if 1 <= places[i] + step <= n]
        i = max(movable, key=lambda i: step * (quotas[i] - places[i]))
        places[i] += step
    return places
