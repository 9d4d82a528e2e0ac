"""Means over clients: exact equality, never a tolerance."""

import pickle
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bhfl.algorithms import FedAvg, FedCOMGATE, FedLQ, FedPAQ, GroupedAvg, ProWD
from bhfl.algorithms.fedlq import Sensitivity
from bhfl.algorithms.prowd import Mask
from bhfl.engine.aggregate import Flattener, GroupedMean, WeightedMean
from bhfl.engine.sums import ExactSum
from bhfl.engine.types import Client
from bhfl.quant import BitSpec
from tests.federation import fit


class OneProcess:
    world_size = 1


def client(i: int, weight: float = 1.0, bits: int = 32) -> Client:
    return Client(i, BitSpec.parse(bits), int(weight), weight)


@given(st.floats(width=32, allow_nan=False, allow_infinity=False), st.integers(1, 2**20))
@settings(deadline=None, max_examples=300)
def test_the_mean_of_one_client_is_the_client_to_the_bit(value, weight):
    if abs(value) * weight >= 2.0**35 or 0 < abs(value) < 2.0**-55:
        return  # refused before it gets here, or below the finest unit
    mean = WeightedMean({"w": torch.zeros(1)})
    mean.add({"w": torch.tensor([value])}, client(0, weight))
    assert torch.equal(mean.reduce(OneProcess())["w"], torch.tensor([value]))


def test_two_identical_clients_give_that_client():
    params = {"a": torch.randn(3, 4), "b": torch.randn(5)}
    mean = WeightedMean(params)
    mean.add(params, client(0, 7))
    mean.add(params, client(1, 5))
    reduced = mean.reduce(OneProcess())
    assert all(torch.equal(reduced[name], params[name]) for name in params)


def test_weighted_mean_is_the_weighted_mean():
    mean = WeightedMean({"w": torch.zeros(2)})
    mean.add({"w": torch.tensor([1.0, 10.0])}, client(0, 1))
    mean.add({"w": torch.tensor([4.0, 40.0])}, client(1, 2))
    assert mean.reduce(OneProcess())["w"].tolist() == [3.0, 30.0]


def test_no_client_no_mean():
    mean = WeightedMean({"w": torch.ones(2)})
    mean.expect([client(0)])
    assert mean.reduce(OneProcess()) is None


def test_a_mean_that_knows_the_cohort_is_the_same_in_float32():
    generator = torch.Generator().manual_seed(0)
    like = {"w": torch.randn(300, 70, generator=generator), "b": torch.zeros(70)}
    cohort = [client(i, weight=1 + 7 * i) for i in range(60)]
    narrow, wide = WeightedMean(like), WeightedMean(like)
    narrow.expect(cohort)
    for one in cohort:
        update = {
            name: tensor + 0.01 * torch.randn(tensor.shape, generator=generator)
            for name, tensor in like.items()
        }
        narrow.add(update, one)
        wide.add(update, one)
    assert narrow.sum.parts is None
    found, expected = narrow.reduce(OneProcess()), wide.reduce(OneProcess())
    assert all(torch.equal(found[name], expected[name]) for name in like)


def test_what_cannot_be_averaged_is_refused_and_leaves_nothing():
    mean = WeightedMean({"w": torch.ones(2)})
    mean.expect([client(0), client(1)])
    for value in (torch.nan, torch.inf, 2.0**35):
        with pytest.raises(ValueError, match="not finite or too large"):
            mean.add({"w": torch.tensor([1.0, value])}, client(0))
    mean.add({"w": torch.tensor([1.0, 2.0])}, client(1))
    assert mean.reduce(OneProcess())["w"].tolist() == [1.0, 2.0]


@pytest.mark.parametrize("start", [0.0, 3.0])
def test_groups_never_mix(start):
    like = {"w": torch.full((1,), start)}
    mean = GroupedMean(like, ["int8", "float32", "ternary"])
    mean.expect([client(0, bits=8), client(1, bits=32)])
    mean.add({"w": torch.tensor([1.0])}, client(0, bits=8))
    mean.add({"w": torch.tensor([5.0])}, client(1, bits=32))
    reduced = mean.reduce(OneProcess())
    assert {group: params["w"].item() for group, params in reduced.items()} == {
        "int8": 1.0,
        "float32": 5.0,
    }


@pytest.mark.parametrize("shapes", [[], [()], [(0,), (3, 2)], [(2, 3), (4,), ()]])
def test_flatten_and_back(shapes):
    params = {str(i): torch.randn(shape) for i, shape in enumerate(shapes)}
    flattener = Flattener(params)
    back = flattener.unflatten(flattener.flatten(params))
    assert all(torch.equal(back[name], params[name]) for name in params)


def test_what_a_vector_is_split_into_shares_no_memory():
    like = {f"w{i}": torch.zeros(64, 64) for i in range(20)}
    flattener = Flattener(like)
    for dtype in (torch.float32, torch.float64):
        params = flattener.unflatten(torch.arange(flattener.numel, dtype=dtype))
        assert len(pickle.dumps(params)) < 1.1 * 4 * flattener.numel
        assert flattener.flatten(params).tolist() == list(range(flattener.numel))


@pytest.mark.parametrize(
    "algorithm",
    [
        FedAvg,
        FedPAQ,
        partial(FedCOMGATE, allow_inexact=True),
        GroupedAvg,
        partial(ProWD, dequantizer=None),
        partial(ProWD, Mask(per="group", coarse=1.0), None, payload="delta"),
        partial(FedLQ, "delta", sensitivity=Sensitivity(shrinkage=0.0)),
    ],
)
def test_the_sums_of_every_method_know_the_cohort(tmp_path, monkeypatch, algorithm):
    """None of a usual run's terms is too large for eight bytes an entry."""
    asked = []
    monkeypatch.setattr(ExactSum, "_split", lambda total, *terms: asked.append(terms))
    row = fit(tmp_path, algorithm(), max_rounds=2).run.history[-1]
    assert row["clients/ok"] == 4
    assert asked == []
