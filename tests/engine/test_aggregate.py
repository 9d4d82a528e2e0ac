"""Sums that do not depend on order: exact equality, never a tolerance."""

import pickle
import random
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bhfl.engine.aggregate import ExactSum, Flattener, GroupedMean, WeightedMean
from bhfl.engine.types import Client
from bhfl.quant import BitSpec


class OneProcess:
    world_size = 1


def client(i: int, weight: float = 1.0, bits: int = 32) -> Client:
    return Client(i, BitSpec.parse(bits), int(weight), weight)


def terms(count: int, numel: int, seed: int) -> list[tuple[torch.Tensor, int]]:
    """Vectors whose entries span forty binary orders of magnitude, with weights."""
    generator = torch.Generator().manual_seed(seed)
    exponents = torch.randint(-40, 8, (count, numel), generator=generator)
    values = torch.randn(count, numel, generator=generator) * 2.0**exponents
    return [(row, int(torch.randint(1, 2000, (), generator=generator))) for row in values]


def test_any_order_and_any_split_over_processes_give_the_same_bits():
    rows = terms(50, 257, seed=1)
    totals = []
    for order in range(4):
        shuffled = random.Random(order).sample(rows, len(rows))
        parts = [ExactSum(257) for _ in range(order + 1)]
        for i, (row, weight) in enumerate(shuffled):
            parts[i % len(parts)].add(row, weight)
        total = ExactSum(257)
        for part in parts:
            total.parts += part.parts
        totals.append(total.value())
    assert all(torch.equal(totals[0], other) for other in totals[1:])


@given(st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=8), st.integers(1, 10**6))
@settings(deadline=None, max_examples=200)
def test_the_sum_is_the_exact_one_rounded(values, weight):
    total = ExactSum(1)
    for value in values:
        total.add(torch.tensor([value]), weight)
    exact = sum(Fraction(value) * weight for value in values)
    assert abs(Fraction(total.value().item()) - exact) <= max(abs(exact), 1) * Fraction(1, 2**50)


@given(st.floats(width=32, allow_nan=False, allow_infinity=False), st.integers(1, 2**20))
@settings(deadline=None, max_examples=300)
def test_the_mean_of_one_client_is_the_client_to_the_bit(value, weight):
    if abs(value) * weight >= 2.0**35 or 0 < abs(value) < 2.0**-55:
        return  # refused before it gets here, or below the finest unit
    mean = WeightedMean({"w": torch.zeros(1)})
    mean.add({"w": torch.tensor([value])}, client(0, weight))
    assert torch.equal(mean.reduce(OneProcess())["w"], torch.tensor([value]))


def test_chunks_do_not_show():
    row = torch.randn(3 * 2**16 + 5, generator=torch.Generator().manual_seed(0))
    whole = ExactSum(row.numel())
    whole.add(row, 3)
    assert torch.equal(whole.value(), row.double() * 3)


def test_a_weight_per_entry():
    total = ExactSum(3)
    total.add(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, 0.0, 2.0]))
    assert total.value().tolist() == [1.0, 0.0, 6.0]


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
    assert WeightedMean({"w": torch.zeros(2)}).reduce(OneProcess()) is None


def test_groups_never_mix():
    like = {"w": torch.zeros(1)}
    mean = GroupedMean(like, ["int8", "float32", "ternary"])
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
