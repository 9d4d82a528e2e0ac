"""A fleet of many clients is arrays, and reads as the list of them."""

import gc
import tracemalloc

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

from bhfl.data import ByColumn, FromDatasets
from bhfl.engine.fleet import Fleet
from bhfl.engine.roster import Roster, group_sizes, members, one_of_each
from bhfl.engine.sampling import sample_cohort
from bhfl.engine.types import Client

FLEET = Fleet(
    [{"bits": 8, "count": 3}, {"bits": 8, "count": 2, "name": "b"}, {"bits": 32, "count": 4}]
)
SIZES = [4, 0, 6, 1, 2, 3, 9, 8, 7]


def roster(weights: str = "samples") -> Roster:
    return Roster(FLEET.groups, FLEET.counts(), SIZES, weights)


def plain(clients: Roster, weights: str = "samples") -> list[Client]:
    """The same clients, one after the other."""
    found = []
    for devices in clients.members:
        for _ in range(devices.group.count):
            size = SIZES[len(found)]
            weight = float(size > 0) if weights == "uniform" else float(size)
            found.append(Client(len(found), devices.spec, size, weight, devices))
    return found


@pytest.mark.parametrize("weights", ["samples", "uniform"])
def test_it_reads_as_a_list(weights: str) -> None:
    clients = roster(weights)
    expected = plain(clients, weights)
    assert list(clients) == expected == [clients[i] for i in range(9)]
    assert [client.devices for client in clients] == [client.devices for client in expected]
    assert (len(clients), clients[-1], clients[2:4]) == (9, expected[-1], expected[2:4])
    assert type(clients[0].num_examples) is int
    assert expected[4] in clients
    with pytest.raises(IndexError):
        clients[9]


def test_groups_are_those_of_the_list() -> None:
    clients = roster()
    expected = plain(clients)
    for look in (one_of_each, group_sizes):
        assert look(clients) == look(expected)
    assert list(map(list, members(clients).values())) == list(members(expected).values())
    assert group_sizes(clients) == {"int8": 3, "b": 2, "float32": 4}


@pytest.mark.parametrize("sampling", ["stratified", "uniform"])
def test_cohorts_are_those_of_the_list(sampling: str) -> None:
    clients = roster()
    for round in range(20):
        for size in (1, 2, 5, 9):
            cohort = sample_cohort(clients, size, 3, round, sampling)
            assert cohort == sample_cohort(plain(clients), size, 3, round, sampling)


def test_numbers_of_samples_for_other_clients_are_refused() -> None:
    with pytest.raises(ValueError, match=r"federate must return .* each of 9 clients, got 8"):
        Roster(FLEET.groups, FLEET.counts(), SIZES[1:], "samples")


def kept(num_clients: int) -> int:
    """The bytes that a fleet of clients with ten samples each keeps."""
    inputs = torch.zeros(10 * num_clients, 1, dtype=torch.uint8)
    dataset = TensorDataset(inputs, torch.zeros(10 * num_clients, dtype=torch.uint8))
    column = ByColumn(np.repeat(np.arange(num_clients, dtype=np.int32), 10))
    fleet = Fleet({8: num_clients // 2, 32: num_clients // 2})
    gc.collect()
    tracemalloc.start()
    data = FromDatasets(dataset, dataset, partition=column, val_fraction=0.0)
    sizes = data.federate(num_clients, 0)
    clients = Roster(fleet.groups, fleet.counts(), sizes, "samples")
    del sizes
    gc.collect()
    num_bytes, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert clients[0].num_examples == len(data.split.clients[0]) == 10
    return num_bytes


def test_a_client_takes_less_than_a_hundred_bytes() -> None:
    assert kept(20_000) - kept(2_000) < 100 * 18_000
