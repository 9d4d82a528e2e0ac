import hashlib
import json

import numpy as np
import pytest
import torch

from bhfl.data.natural import ByColumn
from bhfl.data.partition import IID, Dirichlet
from bhfl.data.split import Shares, make_split

TARGETS = np.arange(1000) % 10
SHARES = {"max_samples": None, "val_fraction": 0.1, "holdout": 30, "client_val_fraction": 0.2}
DIRICHLET = Dirichlet(0.5)


def split(partition=DIRICHLET, targets=TARGETS, num_clients=8, seed=5, **changes):
    return make_split(targets, partition, num_clients, seed, Shares(**{**SHARES, **changes}))


def everything(parts):
    return torch.cat([*parts.clients, *parts.client_val, parts.val, parts.holdout])


def test_parts_are_disjoint_sorted_and_cover_all():
    parts = split()
    assert torch.equal(everything(parts).sort().values, torch.arange(1000))
    assert (len(parts.val), len(parts.holdout)) == (100, 30)
    assert torch.bincount(torch.from_numpy(TARGETS)[parts.val]).tolist() == [10] * 10
    assert all(
        torch.equal(part, part.sort().values)
        for part in (*parts.clients, *parts.client_val, parts.val)
    )
    for train, held in zip(parts.clients, parts.client_val, strict=True):
        assert len(held) == int(0.2 * (len(train) + len(held)))


def test_it_is_a_function_of_seed_and_clients():
    assert split().record() == split().record()
    assert split().record()["sha256"] != split(seed=6).record()["sha256"]
    assert split().record()["sha256"] != split(num_clients=9).record()["sha256"]


def test_record_is_json_and_its_hash_can_be_checked():
    record = json.loads(json.dumps(split().record()))
    lists = {key: record[key] for key in ("clients", "client_val", "val", "holdout")}
    text = json.dumps(lists, sort_keys=True, separators=(",", ":"))
    assert hashlib.sha256(text.encode()).hexdigest() == record["sha256"]
    assert (record["scheme"], record["seed"]) == (
        "Dirichlet(alpha=0.5, min_size=1, max_tries=100)",
        5,
    )


def test_subset_keeps_the_label_mix_and_is_a_cap():
    chosen = everything(split(max_samples=200))
    assert torch.bincount(torch.from_numpy(TARGETS)[chosen]).tolist() == [20] * 10
    assert len(everything(split(max_samples=5000))) == 1000


def test_groups_follow_their_samples_through_the_subset():
    groups = np.arange(1000) // 100
    parts = split(ByColumn(groups), num_clients=10, max_samples=500)
    for client, train in enumerate(parts.clients):
        assert set(groups[train.numpy()]) == {client}


def test_every_client_keeps_a_training_sample():
    parts = split(IID(), num_clients=870, client_val_fraction=0.99)
    assert {len(part) for part in parts.clients} == {1}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"holdout": 900},
            "data.val_fraction and data.holdout must leave clients some of 1000 training samples, "
            "got 0.1 and 900",
        ),
        (
            {"val_fraction": 0.9999, "holdout": 0},
            "^data.val_fraction must leave clients some of 1000 training samples, got 0.9999$",
        ),
        ({"seed": -1}, "seed must be an integer from 0 to 9,223,372,036,854,775,807, got -1"),
        ({"num_clients": 0}, "num_clients must be an integer from 1 to 2,147,483,648, got 0"),
        ({"num_clients": 871}, "^clients must be at most 870 for Dirichlet"),
        ({"targets": np.zeros((10, 2))}, "targets must have one dimension for a split"),
    ],
)
def test_errors(changes, message):
    with pytest.raises(ValueError, match=message):
        split(**changes)


def test_too_few_samples_are_told_with_what_left_so_few():
    with pytest.raises(ValueError, match=r"^clients must be at most 1 ") as error:
        split(IID(), val_fraction=0.999, holdout=0)
    assert error.value.__notes__ == [
        "(samples left by data.val_fraction=0.999: 1)",
    ]
    with pytest.raises(ValueError, match=r"^clients must be at most 1 ") as error:
        split(IID(), max_samples=500, val_fraction=0.99, holdout=4)
    assert error.value.__notes__ == [
        "(samples left by data.max_train_samples=500, data.val_fraction=0.99 and data.holdout=4: 1)"
    ]


class Lists(IID):
    """A partitioner that makes the lists of positions by itself, in any order."""

    def __call__(self, labels, num_clients, rng):
        return [rng.permutation(part) for part in super().__call__(labels, num_clients, rng)]


def divided(parts, fraction, rng):
    """What each client trains on and validates with, one client after the other."""
    for part in parts:
        shuffled = rng.permutation(part)
        num_val = int(fraction * len(part))
        yield tuple(sorted(shuffled[num_val:].tolist())), tuple(sorted(shuffled[:num_val].tolist()))


@pytest.mark.parametrize("fraction", [0.0, 0.2, 0.33])
@pytest.mark.parametrize("partition", [IID(), DIRICHLET, Lists()], ids=repr)
def test_all_clients_together_are_divided_as_one_by_one(partition, fraction):
    found = split(partition, val_fraction=0.0, holdout=0, client_val_fraction=fraction)
    streams = np.random.SeedSequence(5).spawn(5)
    parts = partition(TARGETS, 8, np.random.default_rng(streams[3]))
    expected = list(divided(parts, fraction, np.random.default_rng(streams[4])))
    trained = [tuple(part.tolist()) for part in found.clients]
    held = [tuple(part.tolist()) for part in found.client_val]
    assert list(zip(trained, held, strict=True)) == expected
    assert found.clients.tolist() == trained
    assert found.clients.sizes.tolist() == [found.clients.size(i) for i in range(8)]


def test_the_parts_of_a_split_read_as_a_list():
    clients = split().clients
    assert len(clients) == 8
    assert torch.equal(clients[-1], clients[7])
    assert all(map(torch.equal, clients[2:4], [clients[2], clients[3]]))
    assert clients[0].dtype == torch.int64
    with pytest.raises(IndexError):
        clients[8]
