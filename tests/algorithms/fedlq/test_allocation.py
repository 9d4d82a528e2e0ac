"""The knapsack: exact where it says so, never over budget, never worse than one width for all
layers.
"""

import itertools
import math
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bhfl.algorithms.fedlq.allocation import MAX_STATES, Allocation, Solver, allocate, layer_bits

WIDTHS = (2, 3, 4, 6, 8, 16, 32)
SOLVERS = get_args(Solver)


def convex_costs(
    sizes: np.ndarray, curvature: np.ndarray, candidates: tuple[int, ...] = WIDTHS
) -> np.ndarray:
    """`h d / s^2`: what the closed-form variance looks like; nothing at 32 bits."""
    levels = 2.0 ** (np.array(candidates) - 1) - 1
    return (curvature * sizes)[:, None] / levels**2 * (np.array(candidates) < 32)


def wire_sizes(sizes: Any, candidates: Any) -> np.ndarray:
    return np.array([[layer_bits(int(size), bits) for bits in candidates] for size in sizes])


def brute_force(costs: np.ndarray, sizes: Any, candidates: Any, budget: float) -> float:
    """The least cost of all assignments that fit, or infinity."""
    table = wire_sizes(sizes, candidates)
    choices = np.array(list(itertools.product(range(len(candidates)), repeat=len(sizes))))
    rows = np.arange(len(sizes))
    fits = table[rows, choices].sum(1) <= budget
    return float(costs[rows, choices].sum(1)[fits].min(initial=math.inf))


def cost_of(found: Allocation, costs: np.ndarray, candidates: tuple[int, ...] = WIDTHS) -> float:
    """What the widths that were found cost."""
    columns = [candidates.index(bits) for bits in found.bits]
    return float(costs[range(len(costs)), columns].sum())


def size_of(found: Allocation, sizes: Any) -> int:
    """What the widths that were found take on the wire."""
    return sum(layer_bits(int(size), bits) for size, bits in zip(sizes, found.bits, strict=True))


def best_uniform(costs: np.ndarray, sizes: Any, candidates: Any, budget: float) -> float:
    fits = wire_sizes(sizes, candidates).sum(0) <= budget
    return float(costs.sum(0)[fits].min(initial=math.inf))


@st.composite
def problems(draw: st.DrawFn) -> tuple[np.ndarray, list[int], tuple[int, ...], int]:
    """Up to 6 layers and 4 widths (4,096 assignments), any costs, any budget from a byte to more
    than enough.
    """
    num_layers = draw(st.integers(1, 6))
    candidates = tuple(draw(st.permutations(WIDTHS))[: draw(st.integers(1, 4))])
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    sizes = np.exp(
        rng.uniform(0, math.log(draw(st.sampled_from([4, 200, 10**6]))), num_layers)
    ).astype(int)
    if draw(st.booleans()):
        costs = convex_costs(sizes, np.exp(rng.normal(0, 2, num_layers)), candidates)
    else:
        costs = rng.integers(
            0, draw(st.sampled_from([2, 50, 10**6])), (num_layers, len(candidates))
        ).astype(float)
    most = int(wire_sizes(sizes, candidates).sum(0).max())
    return costs, sizes.tolist(), candidates, draw(st.integers(1, most + 100))


@given(problems())
@settings(max_examples=250, deadline=None)
def test_dp_is_brute_force(problem: tuple[np.ndarray, list[int], tuple[int, ...], int]) -> None:
    costs, sizes, candidates, budget = problem
    best = brute_force(costs, sizes, candidates, budget)
    found = allocate(costs, sizes, candidates, budget)
    assert found.feasible == math.isfinite(best)
    if found.feasible:
        assert cost_of(found, costs, candidates) == pytest.approx(best, rel=1e-12)


@given(problems())
@settings(max_examples=150, deadline=None)
def test_every_solver_keeps_the_budget_and_beats_uniform(
    problem: tuple[np.ndarray, list[int], tuple[int, ...], int],
) -> None:
    costs, sizes, candidates, budget = problem
    found = {
        solver: allocate(costs, sizes, candidates, budget, solver=solver) for solver in SOLVERS
    }
    best = cost_of(found["dp"], costs, candidates)
    for allocation in found.values():
        assert size_of(allocation, sizes) <= budget or not allocation.feasible
        if allocation.feasible:
            cost = cost_of(allocation, costs, candidates)
            assert best <= cost * (1 + 1e-12)
            assert cost <= best_uniform(costs, sizes, candidates, budget) * (1 + 1e-12)


def test_a_larger_budget_never_costs_more() -> None:
    rng = np.random.default_rng(0)
    sizes = np.exp(rng.uniform(4, 12, 30)).astype(int)
    costs = convex_costs(sizes, np.exp(rng.normal(0, 2, 30)))
    least, most = wire_sizes(sizes, WIDTHS).sum(0)[[0, -1]]
    found = [
        cost_of(allocate(costs, sizes.tolist(), WIDTHS, budget), costs)
        for budget in np.linspace(least, most, 60)
    ]
    assert all(later <= earlier * (1 + 1e-12) for earlier, later in itertools.pairwise(found))
    assert found[-1] == 0


@pytest.mark.parametrize("solver", SOLVERS)
def test_without_a_limit_all_layers_get_the_largest_width(solver: Solver) -> None:
    sizes = [100, 7, 3000]
    costs = convex_costs(np.array(sizes), np.array([1.0, 0.0, 2.0]))
    assert allocate(costs, sizes, WIDTHS, math.inf, solver=solver) == Allocation((32, 32, 32), True)
    costs = convex_costs(np.array(sizes), np.ones(3))
    assert allocate(costs, sizes, WIDTHS, 10**12, solver=solver).bits == (32, 32, 32)


@pytest.mark.parametrize("solver", SOLVERS)
def test_identical_layers_get_equal_bits_up_to_one_level(solver: Solver) -> None:
    sizes, candidates = [1000] * 8, (2, 3, 4, 5, 6, 7, 8)
    costs = convex_costs(np.array(sizes), np.ones(8), candidates)
    for average in (2, 3, 4.5, 6.25, 8):
        bits = allocate(costs, sizes, candidates, int(average * 8000) + 8 * 32, solver=solver).bits
        assert max(bits) - min(bits) <= (0 if average == int(average) else 1)


def test_doubling_the_curvature_of_a_layer_never_takes_bits_from_it() -> None:
    rng = np.random.default_rng(1)
    for _ in range(60):
        sizes = np.exp(rng.uniform(3, 10, 10)).astype(int)
        curvature = np.exp(rng.normal(0, 2, 10))
        budget = float(rng.uniform(2.5, 12) * sizes.sum() + 320)
        before = allocate(convex_costs(sizes, curvature), sizes.tolist(), WIDTHS, budget).bits
        layer = int(rng.integers(10))
        curvature[layer] *= 2
        after = allocate(convex_costs(sizes, curvature), sizes.tolist(), WIDTHS, budget).bits
        assert after[layer] >= before[layer]


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("budget", [9_000, 20_000, 10**9])
def test_an_unused_layer_gets_the_fewest_bits(solver: Solver, budget: int) -> None:
    sizes = [1000, 500, 1000]
    costs = convex_costs(np.array(sizes), np.array([1.0, 0.0, 1.0]))
    assert allocate(costs, sizes, WIDTHS, budget, solver=solver).bits[1] == 2


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_budget_too_small_for_the_fewest_bits_says_so(solver: Solver) -> None:
    costs = convex_costs(np.array([80, 80]), np.ones(2))
    least = 2 * (160 + 32)
    found = allocate(costs, [80, 80], WIDTHS, least - 1, solver=solver)
    assert found == Allocation((2, 2), feasible=False)
    assert allocate(costs, [80, 80], WIDTHS, least, solver=solver).feasible


def test_bits_fill_up_like_water() -> None:
    """With `V = k 4**-b` the continuous optimum is `b_l = const + log2(h_l k_l / d_l) / 2`."""
    rng = np.random.default_rng(2)
    candidates = tuple(range(2, 17))
    sizes = rng.integers(1000, 5000, 12)
    weight = np.exp(rng.normal(0, 2, 12)) * sizes
    costs = weight[:, None] * 4.0 ** -np.array(candidates)
    bits = np.array(
        allocate(costs, sizes.tolist(), candidates, int(8 * sizes.sum()) + 12 * 32).bits
    )
    level = bits - np.log2(weight / sizes) / 2
    assert level.max() - level.min() < 1.5


def test_greedy_takes_the_most_significant_step_first_and_dp_looks_further() -> None:
    """Layer 1 saves 8 with 8 bits, layer 0 saves 9 with 16; when 16 are left greedy wastes 8 of
    them.
    """
    costs, base = np.array([[9.0, 0.0], [8.0, 0.0]]), 2 * (16 + 8) + 2 * 32
    found = {
        solver: allocate(costs, [16, 8], (2, 3), base + 16, solver=solver) for solver in SOLVERS
    }
    assert found["greedy"].bits == (2, 3)
    assert found["dp"].bits == (3, 2)
    assert found["greedy_down"].bits == (2, 3)


def test_more_partial_assignments_than_can_be_kept_still_give_a_good_answer() -> None:
    """Costs equal to sizes, as in subset sum: nothing dominates anything."""
    rng = np.random.default_rng(4)
    sizes = rng.integers(10**5, 10**6, 20).tolist()
    table = wire_sizes(sizes, WIDTHS)
    costs = (table[:, -1:] - table).astype(float)
    budget = float(8.3 * sum(sizes))
    assert len(WIDTHS) ** len(sizes) > MAX_STATES
    found, greedy = (
        allocate(costs, sizes, WIDTHS, budget, solver=solver) for solver in ("dp", "greedy")
    )
    assert size_of(found, sizes) <= budget
    assert cost_of(found, costs) <= cost_of(greedy, costs)
    assert cost_of(found, costs) <= 1.001 * (table[:, -1].sum() - budget)


def test_layer_bits_are_those_of_the_wire() -> None:
    assert layer_bits(7, 3) == 8 * 3 + 32
    assert layer_bits(7, 32) == 7 * 32


@pytest.mark.parametrize("cost", [math.nan, math.inf, -1.0])
def test_costs_that_cannot_be(cost: float) -> None:
    with pytest.raises(ValueError, match="costs must be finite and >= 0"):
        allocate([[1.0, 0.0], [cost, 0.0]], [10, 10], (2, 8), 500)
