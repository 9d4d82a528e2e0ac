"""Data modules that are not ours get defaults for the methods that they lack."""

import pytest
import torch

from bhfl.algorithms import FedLQ
from bhfl.engine.types import Client, server_data
from bhfl.quant import BitSpec
from tests.engine.hand_made import HandMade, points
from tests.engine.test_refusal import run
from tests.federation import fake


def test_our_own_are_taken_as_they_are():
    data = fake(holdout=12)
    assert server_data(data) is data


def test_a_foreign_one_gets_what_it_lacks():
    data = server_data(HandMade([points(9), points(5)], held_out=points(7)))
    assert data.num_holdout() == 0
    assert list(data.holdout_batches(3)) == []
    ((_, labels),) = data.val_batches(3)
    assert len(labels) == 7
    assert data.num_batches(0) == 3
    assert server_data(data) is data


def test_its_own_attributes_are_believed():
    data = HandMade([points(9)], batch_size=5)
    client = Client(0, BitSpec(), num_examples=9)
    assert server_data(data).client_batch_size(client) == 5
    del data.batch_size
    data.num_batches = lambda client: 2
    assert server_data(data).client_batch_size(client) == 5
    data.holdout = 2
    data.holdout_batches = lambda: [torch.ones(2, 3)]
    assert server_data(data).num_holdout() == 2
    assert len(list(server_data(data).holdout_batches())) == 1


def test_its_own_methods_are_believed_where_it_lacks_others():
    data = HandMade([points(9)], batch_size=5)
    data.num_holdout = lambda: 4
    # nothing hands the samples out
    assert server_data(data).num_holdout() == 0
    data.holdout_batches = lambda: [torch.ones(4, 3)]
    assert server_data(data).num_holdout() == 4
    data.client_batch_size = lambda client: 3
    assert server_data(data).client_batch_size(Client(0, BitSpec(), num_examples=9)) == 3


def test_a_method_that_needs_a_holdout_says_so(tmp_path):
    with pytest.raises(ValueError, match=r"data\.holdout must be at least 1 for FedLQ"):
        run(tmp_path, FedLQ())
