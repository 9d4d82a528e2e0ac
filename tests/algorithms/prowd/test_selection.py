"""The mask against enumeration: optimal, certified, capped, invariant."""

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from bhfl.algorithms.prowd import Mask
from bhfl.algorithms.prowd.selection import certified_select, mask_limit


def select(low: Tensor, high: Tensor, cap: float = 0.5) -> Tensor:
    """The mask alone."""
    return certified_select(low, high, cap=cap).mask


def draw(generator: torch.Generator, size: int, kind: int = 0) -> tuple[Tensor, Tensor]:
    """Moves of some kind: normal, heavy-tailed, or small integers, which tie."""
    low, high = (torch.randn(size, generator=generator) for _ in range(2))
    if kind == 1:
        low = low * torch.exp(2 * torch.randn(size, generator=generator))
    if kind == 2:
        low, high = (2 * low).round(), (2 * high).round()
    return low, high


def squared_cosine(low: Tensor, high: Tensor, mask: Tensor) -> float:
    low, high = low.double() * mask, high.double()
    if not low.any() or not high.any():
        return 0.0
    return float((low @ high) ** 2 / (low @ low) / (high @ high))


def best_of_all_masks(low: Tensor, high: Tensor) -> Tensor:
    """Largest squared cosine for every cap 1..d, over all 2**d masks."""
    low, high = low.double(), high.double()
    size = len(low)
    masks = (torch.arange(2**size).unsqueeze(1) >> torch.arange(size)) & 1
    gain, cost = masks.double() @ (low * high), masks.double() @ low.square()
    value = torch.where((gain > 0) & (cost > 0), gain.square() / cost / (high @ high), 0.0)
    best = torch.zeros(size + 1, dtype=torch.float64).scatter_reduce_(
        0, masks.sum(1), value, "amax"
    )
    return best.cummax(0).values[1:]


def best_of_all_scalars(low: Tensor, high: Tensor) -> Tensor:
    """The same through theorem 1: the best set for some t, and that changes only where two terms
    cross.
    """
    gain, cost = low.double() * high.double(), low.double().square()
    crossings = (
        (gain.unsqueeze(0) - gain.unsqueeze(1)) / (cost.unsqueeze(0) - cost.unsqueeze(1)) * 2
    )
    events = torch.cat([crossings.flatten(), 2 * gain / cost])
    events = torch.cat([torch.zeros(1), events[events.isfinite() & (events > 0)]]).unique()
    middles = torch.cat([(events[1:] + events[:-1]) / 2, events[-1:] * 2])
    terms, order = (2 * gain - middles.unsqueeze(1) * cost).sort(dim=1, descending=True)
    gains, costs = gain[order].cumsum(1), cost[order].cumsum(1)
    value = torch.where(terms > 0, gains.square() / costs, 0.0) / high.double().square().sum()
    return value.amax(0).cummax(0).values


@pytest.mark.parametrize("trials", [120, pytest.param(667, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", [0, 1, 2])
def test_equals_brute_force_for_every_cap(kind: int, trials: int) -> None:
    generator = torch.Generator().manual_seed(kind)
    for trial in range(trials):
        low, high = draw(generator, 1 + trial % 12, kind)
        for cap, best in enumerate(best_of_all_masks(low, high).tolist(), start=1):
            found = certified_select(low, high, cap=cap)
            assert found.mask.sum() <= cap
            assert found.cosine**2 == pytest.approx(best, rel=1e-9, abs=1e-12)
            assert squared_cosine(low, high, found.mask) == pytest.approx(best, rel=1e-9, abs=1e-12)
            assert found.bound**2 >= best * (1 - 1e-9)


@pytest.mark.parametrize("kind", [0, 1])
def test_guarantee_against_enumeration(kind: int) -> None:
    generator = torch.Generator().manual_seed(10 + kind)
    for size in (40, 70, 120):
        low, high = draw(generator, size, kind)
        best = best_of_all_scalars(low, high)
        for cap in (1, 2, 5, size // 4, size // 2, size):
            found = certified_select(low, high, cap=cap)
            assert found.cosine**2 >= (1 - 0.05**2 - 1e-9) * best[cap - 1]
            assert found.cosine**2 >= (1 - 0.05**2 - 1e-9) * found.bound**2
            assert found.bound**2 >= best[cap - 1] * (1 - 1e-9)


def test_two_hundred_entries_are_solved_exactly() -> None:
    low, high = draw(torch.Generator().manual_seed(5), 200)
    best = best_of_all_scalars(low, high)
    for cap in (1, 10, 60, 200):
        assert certified_select(low, high, cap=cap).cosine ** 2 == pytest.approx(
            float(best[cap - 1]), rel=1e-9
        )


@pytest.mark.parametrize("kind", [0, 1])
def test_without_a_cap_it_is_the_best_prefix_by_ratio(kind: int) -> None:
    low, high = draw(torch.Generator().manual_seed(7), 5000, kind)
    gain, cost = low.double() * high.double(), low.double().square()
    agree = gain > 0
    order = (gain / cost)[agree].argsort(descending=True)
    value = gain[agree][order].cumsum(0).square() / cost[agree][order].cumsum(0)
    expected = torch.zeros(5000, dtype=torch.bool)
    expected[agree.nonzero().flatten()[order[: int(value.argmax()) + 1]]] = True
    assert torch.equal(select(low, high, cap=1.0), expected)
    assert torch.equal(select(low, high, cap=int(expected.sum())), expected)


@pytest.mark.parametrize("cap", [1.0, 0.3, 17])
def test_positive_factors_change_nothing(cap: float) -> None:
    low, high = (move.double() for move in draw(torch.Generator().manual_seed(3), 1000))
    mask = select(low, high, cap=cap)
    assert torch.equal(select(8 * low, high / 4, cap=cap), mask)
    assert torch.equal(select(1e-6 * low, 37.1 * high, cap=cap), mask)


def test_equal_moves_are_kept_whole_and_opposite_ones_not_at_all() -> None:
    low = torch.randn(6, 7, generator=torch.Generator().manual_seed(0))
    equal, opposite = certified_select(low, 2 * low, cap=1.0), certified_select(low, -low)
    assert equal.mask.shape == low.shape
    assert equal.mask.all()
    assert equal.cosine == equal.bound == 1.0
    assert not opposite.mask.any()
    assert opposite.cosine == opposite.bound == 0.0


def test_cosine_grows_with_the_cap() -> None:
    low, high = draw(torch.Generator().manual_seed(4), 3000, 1)
    cosines = [certified_select(low, high, cap=cap / 20).cosine for cap in range(1, 21)]
    assert all(smaller <= larger * (1 + 1e-9) for smaller, larger in pairwise(cosines))


@pytest.mark.parametrize("cap", [0.01, 0.1, 0.5, 1.0])
def test_a_layer_is_certified_far_beyond_the_guarantee(cap: float) -> None:
    low, high = draw(torch.Generator().manual_seed(6), 200_000)
    found = certified_select(low, high + 0.3 * low, cap=cap)
    assert found.mask.sum() <= cap * 200_000
    assert found.cosine >= found.bound * (1 - 1e-9)
    assert found.cosine**2 == pytest.approx(squared_cosine(low, high + 0.3 * low, found.mask))


def test_a_landscape_without_a_peak_still_meets_the_guarantee() -> None:
    ratio = torch.exp(8 * torch.rand(20_000, generator=torch.Generator().manual_seed(8)))
    for cap in (0.05, 0.5):
        # every scale of t is as good as the next
        found = certified_select(1 / ratio, torch.ones_like(ratio), cap=cap)
        assert found.cosine**2 >= (1 - 0.05**2) * found.bound**2


def test_ties_go_to_the_first() -> None:
    ones = torch.ones(6)
    assert select(ones, ones, cap=2).tolist() == [True, True, False, False, False, False]
    assert select(
        torch.tensor([1.0, 2, 1, 2, 2]), torch.tensor([1.0, 2, 1, 2, 2]), cap=2
    ).nonzero().flatten().tolist() == [1, 3]


def test_nothing_to_select_from() -> None:
    zero, some = torch.zeros(4), torch.tensor([1.0, -1.0, 0.0, 2.0])
    for low, high in ((zero, some), (some, zero), (zero, zero)):
        found = certified_select(low, high)
        assert (found.mask.any(), found.cosine, found.bound) == (False, 0.0, 0.0)
    assert select(torch.empty(0, 3), torch.empty(0, 3)).shape == (0, 3)
    assert select(some, some, cap=1.0).tolist() == [True, True, False, True]


def test_tiny_and_huge_moves_neither_vanish_nor_overflow() -> None:
    low, high = draw(torch.Generator().manual_seed(9), 50)
    mask = select(low, high, cap=0.2)
    assert torch.equal(select(low * 2.0**-120, high * 2.0**-120, cap=0.2), mask)
    assert torch.equal(select(low * 2.0**120, high * 2.0**120, cap=0.2), mask)


def test_mask_limit() -> None:
    assert [mask_limit(tau, 100) for tau in (1.0, 0.29, 0.001, 7, 1000)] == [100, 29, 1, 7, 1000]


@pytest.mark.parametrize("tau", [2.0, 0.0, -0.5, 0, -3, True, math.nan, "half"])
def test_tau_out_of_range(tau: Any) -> None:
    message = r"tau must be in \(0, 1\] \(a fraction\) or a positive integer \(a count\), got"
    with pytest.raises(ValueError, match=message):
        Mask(tau=tau)


def test_errors_name_what_is_wrong() -> None:
    for bad in (math.nan, math.inf):
        with pytest.raises(ValueError, match="low and high must be finite, got NaN or infinity"):
            select(torch.tensor([1.0, bad]), torch.ones(2))
