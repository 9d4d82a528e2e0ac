"""Who has which samples, without training."""

import numpy as np
import torch

from bhfl.analysis import partition
from bhfl.data import Dirichlet, FakeImages, FromDatasets
from bhfl.engine import FederatedTrainer
from tests.engine.hand_made import HandMade


def trainer(fleet=None, **options):
    return FederatedTrainer(fleet or {8: 2, 32: 3}, logger=False, **options)


def test_the_clients_are_those_of_a_fit():
    data = FakeImages(200, 20, (1, 4, 4), partition=Dirichlet(0.5), client_test_fraction=0.2)
    found = partition(trainer(), data)
    assert found.groups == ["int8", "float32"]
    assert found.group_of.tolist() == [0, 0, 1, 1, 1]
    assert found.samples.tolist() == data.federate(5, 0)
    assert found.test.tolist() == [len(part) for part in data.split.client_test]
    assert found.labels.sum(axis=1).tolist() == found.samples.tolist()
    assert "FakeImages by Dirichlet(alpha=0.5" in found.title


def test_what_clients_bring_is_counted():
    pairs = [(torch.rand(n, 2), torch.zeros(n)) for n in (3, 4)]
    data = FromDatasets(pairs, pairs, val=pairs[::-1], val_fraction=0.0)
    found = partition(trainer({8: 1, 32: 1}), data)
    assert [part.tolist() for part in (found.samples, found.val, found.test)] == [
        [3, 4],
        [4, 3],
        [3, 4],
    ]
    assert found.labels is None


def test_data_of_one_s_own_need_count_nothing(monkeypatch):
    points = [(torch.rand(n, 2), torch.zeros(n)) for n in (3, 4)]
    found = partition(trainer({8: 1, 32: 1}), HandMade(points))
    assert (found.samples.tolist(), found.val.tolist(), found.labels) == ([3, 4], [0, 0], None)


def test_too_many_numbers_of_labels_are_left_out(monkeypatch):
    monkeypatch.setattr("bhfl.data.datamodule._MOST_COUNTS", 49)
    assert partition(trainer(), FakeImages(60, 20, (1, 4, 4))).labels is None
    monkeypatch.setattr("bhfl.data.datamodule._MOST_COUNTS", 50)
    assert np.shape(partition(trainer(), FakeImages(60, 20, (1, 4, 4))).labels) == (5, 10)


def test_targets_of_any_size_take_no_memory():
    pair = (torch.rand(6, 2), torch.tensor([0, 1, 2, 3, 4, 2**62]))
    found = partition(trainer({8: 1, 32: 1}), FromDatasets(pair, pair, val_fraction=0.0))
    assert (found.samples.tolist(), found.labels) == ([3, 3], None)
