"""Sums that do not depend on order: exact equality, and bounds from exact arithmetic."""

import itertools
import math
import random
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bhfl.engine.devices import Devices
from bhfl.engine.sums import NO_GRID, ExactSum, Grid
from bhfl.engine.types import Client
from bhfl.quant import BitSpec

CHUNK = 2**15
"""Entries that are looked at together."""
ONE = torch.ones(())


def cohort(*weights: int) -> list[Client]:
    spec = BitSpec.parse(32)
    # shared, as in a fleet: to find them for each of a million clients takes a minute
    devices = Devices.of(spec)
    return [Client(i, spec, weight, weight, devices) for i, weight in enumerate(weights)]


def grid_of(largest: float, *weights: int) -> Grid:
    return Grid.of({"w": torch.tensor([largest, -largest / 3])}, cohort(*weights))


def terms(count: int, numel: int, seed: int) -> list[tuple[torch.Tensor, int]]:
    """Vectors whose entries span forty binary orders of magnitude, with weights."""
    generator = torch.Generator().manual_seed(seed)
    exponents = torch.randint(-40, 8, (count, numel), generator=generator)
    values = torch.randn(count, numel, generator=generator) * 2.0**exponents
    return [(row, int(torch.randint(1, 2000, (), generator=generator))) for row in values]


# a grid of which all terms are too large, of which some are, and of which none is; and no grid
LARGEST = (2.0**-60, 1.0, 2.0**12, 0.0)


@pytest.mark.parametrize("largest", LARGEST)
def test_any_order_and_any_split_over_processes_give_the_same_bits(largest):
    rows = terms(50, 257, seed=1)
    grid = grid_of(largest, *(weight for _, weight in rows))
    totals = []
    for order in range(4):
        shuffled = random.Random(order).sample(rows, len(rows))
        parts = [ExactSum(257, grid) for _ in range(order + 1)]
        for i, (row, weight) in enumerate(shuffled):
            parts[i % len(parts)].add(row, weight)
        total = ExactSum(257, grid)
        for part in parts:
            total.merge(part, ONE)
        totals.append(total.value())
    assert all(torch.equal(totals[0], other) for other in totals[1:])


@given(
    st.lists(st.floats(-4, 4, width=32), min_size=1, max_size=5),
    st.sampled_from([0.5, 1.0, 3.0]),
    st.lists(st.integers(1, 1000), min_size=5, max_size=5),
)
@settings(deadline=None, max_examples=100)
def test_every_permutation_has_the_same_bits(values, largest, weights):
    grid = grid_of(largest, *weights)
    found = set()
    for order in itertools.permutations(list(zip(values, weights, strict=False))):
        total = ExactSum(1, grid)
        for value, weight in order:
            total.add(torch.tensor([value]), weight)
        found.add(total.value().item())
    assert len(found) == 1


@given(st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=8), st.integers(1, 10**6))
@settings(deadline=None, max_examples=200)
def test_the_sum_of_parts_is_the_exact_one_rounded(values, weight):
    total = ExactSum(1)
    for value in values:
        total.add(torch.tensor([value]), weight)
    exact = sum(Fraction(value) * weight for value in values)
    assert abs(Fraction(total.value().item()) - exact) <= max(abs(exact), 1) * Fraction(1, 2**50)


@given(st.data())
@settings(deadline=None, max_examples=200)
def test_the_mean_is_as_exact_as_the_grid_says(data):
    """It is off by ``K * min(16, heaviest / mean) * 2**-61`` of the model's largest value at most,
    beside the rounding of one float64.
    """
    weights = data.draw(st.lists(st.integers(1, 10**5), min_size=1, max_size=12), label="weights")
    largest = data.draw(st.floats(2.0**-100, 1e4, width=32), label="largest")
    size = data.draw(st.sampled_from([0.1, 2.0, 1e6]), label="size")
    draw = torch.Generator().manual_seed(data.draw(st.integers(0, 99), label="seed"))
    model = torch.tensor([largest], dtype=torch.float32)
    grid = Grid.of({"w": model}, cohort(*weights))
    total, exact = ExactSum(1, grid), Fraction(0)
    for weight in weights:
        value = model * size * (2 * torch.rand(1, generator=draw) - 1)
        total.add(value, weight)
        exact += Fraction(value.item()) * weight
    assert (total.parts is None) or size > 2 or max(weights) > 8 * sum(weights) / len(weights)
    skew = min(16, len(weights) * max(weights) / sum(weights))
    bound = Fraction(model.item()) * Fraction(len(weights) * skew) / 2**61
    # what splitting cuts off, and what the last float64 rounds
    bound += Fraction(len(weights), 2**84 * sum(weights)) + abs(exact) / sum(weights) / 2**51
    assert abs(Fraction(total.value().item()) - exact) / sum(weights) <= bound


def test_the_largest_terms_of_the_largest_cohort_do_not_leave_int64():
    number = 10**6
    grid = Grid.of({"w": torch.tensor([1.0])}, cohort(7) * number)
    assert grid.bound * number / grid.unit < 2**63 - number
    total = ExactSum(2, grid)
    values = torch.tensor([2.0, -2.0])
    for _ in range(1000):
        total.add(values, 7)
    assert total.parts is None
    assert int(total.lane[0]) == -int(total.lane[1])
    assert int(total.lane[0]) * (number // 1000) < 2**63


def test_a_million_clients():
    """Each term is cut off by less than a unit: the mean is off by 4.5e-13 of 1 at most."""
    number, draw = 10**6, random.Random(0)
    grid = Grid.of({"w": torch.tensor([1.0])}, cohort(10) * number)
    distinct = [torch.rand(3, generator=torch.Generator().manual_seed(i)) for i in range(64)]
    total, counts = ExactSum(3, grid), [0] * 64
    for _ in range(2000):
        chosen = draw.randrange(64)
        counts[chosen] += 1
        total.add(distinct[chosen], 10)
    assert total.parts is None
    # all clients, as 500 processes of 2,000 each
    whole = ExactSum(3, grid)
    for _ in range(number // 2000):
        whole.merge(total, ONE)
    for entry in range(3):
        parts = zip(distinct, counts, strict=True)
        exact = sum(Fraction(values[entry].item()) * count for values, count in parts) / 2000
        mean = Fraction(whole.value()[entry].item()) / (10 * number)
        assert abs(mean - exact) <= Fraction(4.6e-13)


def test_a_zero_start_has_no_grid():
    assert Grid.of({"w": torch.zeros(3), "b": torch.zeros(0)}, cohort(1, 2)) is NO_GRID
    assert Grid.of({}, cohort(1)) is NO_GRID
    assert Grid.of({"w": torch.ones(3)}, cohort(0, 0)) is NO_GRID
    assert Grid.of({"w": torch.tensor([math.inf])}, cohort(1)) is NO_GRID
    total = ExactSum(2)
    assert total.value().tolist() == [0, 0]
    total.add(torch.tensor([1.0, 1e-12]), 3)
    assert total.value().tolist() == [3.0, 3 * float(torch.tensor(1e-12))]


def test_only_the_chunk_that_is_too_large_is_split():
    model = torch.randn(3 * CHUNK, generator=torch.Generator().manual_seed(0))
    total = ExactSum(len(model), Grid.of({"w": model}, cohort(1, 1)))
    far = model.clone()
    far[CHUNK + 5] = 1e6
    total.add(model, 1.0)
    assert total.parts is None
    total.add(far, 1.0)
    assert total.parts is not None
    held = total.parts.abs().sum(0) > 0
    assert not held[:CHUNK].any()
    assert held[CHUNK : 2 * CHUNK].any()
    assert not held[2 * CHUNK :].any()
    assert torch.equal(total.value(), model.double() + far.double())


def test_where_a_term_goes_does_not_depend_on_what_came_before():
    grid = grid_of(1.0, 1, 1, 1)
    near, far = torch.tensor([0.3, 0.1]), torch.tensor([0.7, 1e6])
    totals = []
    for order in ((near, far, near), (far, near, near), (near, near, far)):
        total = ExactSum(2, grid)
        for values in order:
            total.add(values)
        assert total.parts is not None
        totals.append((total.lane.tolist(), total.parts.tolist()))
    assert totals[0] == totals[1] == totals[2]


def test_a_client_a_million_times_larger_takes_nothing_from_the_others():
    draw = torch.Generator().manual_seed(3)
    rows = [torch.randn(100, generator=draw) for _ in range(9)]
    grid = Grid.of({"w": rows[0]}, cohort(*([5] * 10)))
    total = ExactSum(100, grid)
    for row in rows:
        total.add(row, 5)
    small = total.value()
    total.add(1e6 * rows[0], 5)
    total.add(-1e6 * rows[0], 5)
    assert torch.equal(total.value(), small)


def test_a_client_that_weighs_a_million_times_more_takes_nothing_from_the_others():
    weights = [1] * 999 + [10**6]
    grid = grid_of(1.0, *weights)
    total = ExactSum(1, grid)
    value = torch.tensor([0.1])
    for weight in weights:
        total.add(value, weight)
    exact = Fraction(value.item()) * sum(weights)
    assert total.parts is not None
    assert abs(Fraction(total.value().item()) - exact) <= exact / 2**52


@pytest.mark.parametrize("largest", [0.0, 2.0])
def test_chunks_do_not_show(largest):
    row = torch.randn(3 * 2**16 + 5, generator=torch.Generator().manual_seed(0))
    whole = ExactSum(row.numel(), grid_of(largest, 3))
    whole.add(row, 3)
    assert torch.allclose(whole.value(), row.double() * 3, rtol=0, atol=1e-17)


@pytest.mark.parametrize("largest", LARGEST)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_weight_per_entry(largest, dtype):
    total = ExactSum(3, grid_of(largest, 2))
    total.add(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, 0.0, 2.0], dtype=dtype))
    assert total.value().tolist() == [1.0, 0.0, 6.0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("largest", LARGEST)
def test_values_of_any_float(dtype, largest):
    total = ExactSum(2, grid_of(largest, 4))
    total.add(torch.tensor([0.75, -1.5], dtype=dtype, requires_grad=True), 4)
    assert total.value().tolist() == [3.0, -6.0]


@pytest.mark.parametrize("largest", LARGEST)
def test_a_merged_sum_keeps_what_is_asked_for(largest):
    grid = grid_of(largest, 1, 1)
    low, total = ExactSum(3, grid), ExactSum(3, grid)
    low.add(torch.tensor([1.0, 2.0, 0.5]))
    low.add(torch.tensor([1e7, 1.0, 1.0]))
    total.merge(low, torch.tensor([1.0, 0.0, 1.0]))
    assert total.value().tolist() == [1e7 + 1, 0.0, 1.5]
    with pytest.raises(AssertionError):
        total.merge(ExactSum(3, grid_of(3.0, 1)), ONE)


@pytest.mark.parametrize("largest", LARGEST)
def test_pieces_are_summed_as_what_they_are_cut_from(largest):
    """Whether the grid takes all of them, some chunks, or none."""
    whole, cut = (ExactSum(2 * CHUNK, grid_of(largest, 3, 5)) for _ in range(2))
    for row, _ in terms(2, 2 * CHUNK, seed=6):
        most = 3 * float(row.abs().max())
        whole.add(row, 3)
        cut.add_pieces([*torch.split(row, [1, 40_000, 0, 2 * CHUNK - 40_001])], 3, most)
    assert torch.equal(whole.lane, cut.lane)
    assert (whole.parts is None) == (cut.parts is None)
    assert torch.equal(whole.value(), cut.value())


def test_no_pieces_add_nothing():
    total = ExactSum(0)
    total.add_pieces([], 3, 0.0)
    assert len(total.value()) == 0
