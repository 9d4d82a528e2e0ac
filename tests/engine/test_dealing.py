"""Clients are dealt out to processes by what they are expected to take, each exactly once."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bhfl.engine.dealing import Dealer, shares
from bhfl.engine.records import ClientRecord
from bhfl.engine.types import Client
from bhfl.quant import BitSpec


def fleet(num_clients: int, bits: int = 32) -> list[Client]:
    return [Client(i, BitSpec.parse(bits), 10) for i in range(num_clients)]


@given(st.lists(st.floats(0, 1e6), max_size=60), st.integers(1, 9))
def test_everyone_is_dealt_out_exactly_once(costs: list[float], num_processes: int) -> None:
    clients = fleet(len(costs))
    dealt = shares(clients, costs, num_processes)
    assert len(dealt) == num_processes
    for own in dealt:
        assert [client.id for client in own] == sorted(client.id for client in own)
    assert sorted(client.id for own in dealt for client in own) == list(range(len(costs)))


def test_equal_clients_are_dealt_out_in_turn() -> None:
    dealt = shares(fleet(7), [1.0] * 7, 3)
    assert [[client.id for client in own] for own in dealt] == [[0, 3, 6], [1, 4], [2, 5]]


@pytest.mark.parametrize(("num_processes", "least"), [(8, 0.998), (64, 0.98)])
def test_nobody_waits_long_for_the_last(num_processes: int, least: float) -> None:
    """1,000 clients a round, whose sizes are log-normal with sigma 0.5, twenty draws."""
    rng = np.random.default_rng(0)
    clients = fleet(1000)
    for _ in range(20):
        costs = rng.lognormal(0.0, 0.5, 1000).tolist()
        dealt = shares(clients, costs, num_processes)
        longest = max(sum(costs[client.id] for client in own) for own in dealt)
        assert sum(costs) / (num_processes * longest) >= least


def processes(world_size: int, rank: int) -> Any:
    return SimpleNamespace(world_size=world_size, global_rank=rank, broadcast=lambda value: value)


def test_what_a_group_takes_is_learnt() -> None:
    clients = [*fleet(2, 8), *(Client(i, BitSpec(), 10) for i in (2, 3))]
    dealers = [Dealer(processes(2, rank), lambda client: 4) for rank in range(2)]
    first = [[client.id for client in dealer.deal(clients)] for dealer in dealers]
    assert first == [[0, 2], [1, 3]]
    records = [
        ClientRecord(client.id, client.group, 1.0, seconds=1.0 if client.id < 2 else 3.0)
        for client in clients
    ]
    records[0].status = "failed"
    records[0].seconds = 99.0
    for dealer in dealers:
        dealer.learn(clients, records)
    # three of the quick ones against one of the slow ones
    cohort = [clients[0], clients[1], clients[2]]
    after = [[client.id for client in dealer.deal(cohort)] for dealer in dealers]
    assert after == [[2], [0, 1]]


def test_a_group_that_nobody_has_seen_is_as_quick_as_the_others() -> None:
    dealer = Dealer(processes(2, 0), lambda client: 2)
    dealer.learn(fleet(1), [ClientRecord(0, "float32", 1.0, seconds=3.0)])
    assert dealer._cost(Client(1, BitSpec.parse(8), 10)) == 3.0
