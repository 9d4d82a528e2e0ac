"""Which bit-width each layer gets under a byte budget: a multiple-choice knapsack.

    min  sum_l C_l(b_l)    subject to    sum_l size_l(b_l) <= budget,   b_l in candidates

`C_l(b) = h_l V_l(b) / 2` is the loss that layer `l` is expected to cost at `b` bits
(`significance.layer_costs`) and `size_l(b)` the bits it takes on the wire. Everything here runs on
the client, once a round, on L x B numbers.

Three solvers:

- "dp" is exact (Nemhauser and Ullmann 1969: dominance over partial assignments, here pruned by the
  linear relaxation) as long as no more than `MAX_STATES` partial assignments stay in play, and
  keeps the most promising ones beyond that.
- "greedy" starts at the fewest bits and takes the affordable step with the largest significance
  `[C(b) - C(b+)] / [size(b+) - size(b)]` along each layer's lower convex hull.
- "greedy_down" starts at the most bits and undoes the least significant steps until the payload
  fits.

Shapes: L layers, B candidate widths.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, pairwise
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from bhfl.algorithms.fedlq.hull import lower_hull

Solver = Literal["dp", "greedy", "greedy_down"]
FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

MAX_STATES = 2048
"""Partial assignments the exact solver keeps; bounds its time. Five layers of four widths (4**5)
always fit.
"""


@dataclass(frozen=True)
class Allocation:
    """Bit-widths of one client's layers.

    Attributes:
        bits: The width of each layer, in the order of `sizes`.
        feasible: False when not even the smallest payload fits; `bits` is that payload, and the
            client is late.
    """

    bits: tuple[int, ...]
    feasible: bool


@dataclass(frozen=True)
class _Menu:
    """What one layer may choose: every option is larger, and strictly better, than the one before
    it.
    """

    bits: IntArray
    sizes: IntArray
    costs: FloatArray


_Menus = Sequence[_Menu]
"""What each layer may choose."""


@dataclass(frozen=True)
class Offer:
    """What some layers may choose from.

    Attributes:
        candidates: distinct widths.
        sizes: `[L][B]`, bits that each layer takes at each of them.
        costs: `[L, B]`, what it costs; finite and >= 0.
    """

    candidates: Sequence[int]
    sizes: Sequence[Sequence[int]]
    costs: npt.ArrayLike

    def menus(self) -> list[_Menu]:
        """Those of the layers; ValueError for a cost that is none."""
        table = np.asarray(self.costs, dtype=np.float64)
        if not (np.isfinite(table).all() and (table >= 0).all()):
            raise ValueError("costs must be finite and >= 0")
        rows = zip(table, self.sizes, strict=True)
        return [_menu(costs, sizes, self.candidates) for costs, sizes in rows]


class _Step(NamedTuple):
    """A step from option `start` of a layer's menu to `stop`: more bits by `size`, less loss by
    `gain`.
    """

    significance: float
    layer: int
    start: int
    stop: int
    size: int
    gain: float


def layer_bits(size: int, bits: int) -> int:
    """Bits on the wire of a layer of `size` weights: byte-aligned codes and one scale, or plain
    float32 at 32 bits; at 0 bits it is left out.
    """
    if not bits:
        # a scale, and the number of codes
        return 64
    return 32 * size if bits == 32 else 8 * math.ceil(size * bits / 8) + 32


def allocate(
    costs: npt.ArrayLike,
    sizes: Sequence[int],
    candidates: Sequence[int],
    budget_bits: float,
    *,
    solver: Solver = "dp",
) -> Allocation:
    """Chooses a bit-width per layer so that the payload fits the budget and the expected loss is
    small.

    A layer never gets bits that do not lower its cost: where all costs are zero (an unused layer)
    it gets the fewest. No solver does worse than the best uniform width that fits.

    Args:
        costs: `[L, B]`, `C_l(b)` for each layer and each of `candidates`; finite and >= 0.
        sizes: number of weights of each layer, at least 1.
        candidates: distinct widths, 0..16 or 32. Leave out what the client cannot do.
        budget_bits: what the layers may take, above 0. The caller has taken off side-band, headers
            and the table of bits. `math.inf`: no limit, every layer gets the largest width.
        solver: see the module.

    Raises:
        ValueError: a cost is not finite, or negative.
    """
    offer = Offer(candidates, wire_sizes(sizes, candidates), costs)
    # no layer is spared bits that gain it nothing: with 32 among them this has to be FedAvg
    if budget_bits == math.inf:
        offer.menus()
        return Allocation((max(candidates),) * len(sizes), feasible=True)
    return allocate_all([offer], budget_bits, solver=solver)


def wire_sizes(sizes: Sequence[int], candidates: Sequence[int]) -> list[list[int]]:
    """`[L][B]`: bits on the wire of layers of `sizes` weights, at each width."""
    return [list(map(partial(layer_bits, size), candidates)) for size in sizes]


def allocate_all(
    offers: Sequence[Offer], budget_bits: float, *, solver: Solver = "dp"
) -> Allocation:
    """Chooses as `allocate` does, for all layers of several offers under one budget.

    Args:
        offers: What layers may choose.
        budget_bits: What they may take together, finite and above 0.
        solver: See the module.

    Returns:
        The widths, those of one offer after those of the other.

    Raises:
        ValueError: a cost is not finite, or negative.
    """
    menus: list[_Menu] = []
    for offer in offers:
        menus += offer.menus()
    candidates = dict.fromkeys(chain.from_iterable(offer.candidates for offer in offers))
    smallest = [0] * len(menus)
    if _size(menus, smallest) > budget_bits:
        return _allocation(menus, smallest, feasible=False)
    # more than all at their most changes nothing, and might not fit the solvers' int64
    budget = math.floor(min(budget_bits, sum(int(menu.sizes[-1]) for menu in menus)))
    steps = _steps(menus)
    climb = _descend if solver == "greedy_down" else _ascend
    found = climb(menus, steps, budget)
    # steps are whole: one that does not fit may leave a greedy choice behind a uniform width
    uniform = _uniform(menus, candidates, budget)
    if _cost(menus, uniform) < _cost(menus, found):
        found = uniform
    if solver == "dp":
        found = _exact(menus, steps, budget, incumbent=found)
    return _allocation(menus, found, feasible=True)


def _menu(costs: FloatArray, sizes: Sequence[int], candidates: Sequence[int]) -> _Menu:
    # in whole bytes a small layer has several widths of one size: the cheapest of them comes first
    options = sorted(
        (size, float(cost), bits) for bits, size, cost in zip(candidates, sizes, costs, strict=True)
    )
    kept = options[:1]
    for option in options[1:]:
        if option[1] < kept[-1][1]:
            kept.append(option)
    menu_sizes, menu_costs, widths = map(np.array, zip(*kept, strict=True))
    return _Menu(widths, menu_sizes, menu_costs)


def _steps(menus: _Menus) -> list[_Step]:
    """All steps along the lower convex hulls, most significant first."""
    steps = []
    for layer, menu in enumerate(menus):
        hull = lower_hull(menu.sizes.tolist(), menu.costs.tolist())
        for start, stop in pairwise(hull):
            size = int(menu.sizes[stop] - menu.sizes[start])
            gain = float(menu.costs[start] - menu.costs[stop])
            steps.append(_Step(gain / size, layer, start, stop, size, gain))
    return sorted(steps, key=lambda step: (-step.significance, step.layer, step.start))


def _ascend(menus: _Menus, steps: Sequence[_Step], budget: int) -> list[int]:
    choice = [0] * len(menus)
    room = budget - _size(menus, choice)
    for step in steps:
        # a step left out bars those above it, which begin where it would have ended
        if step.size <= room and choice[step.layer] == step.start:
            choice[step.layer] = step.stop
            room -= step.size
    return choice


def _descend(menus: _Menus, steps: Sequence[_Step], budget: int) -> list[int]:
    choice = [len(menu.sizes) - 1 for menu in menus]
    excess = _size(menus, choice) - budget
    for step in reversed(steps):
        if excess <= 0:
            break
        choice[step.layer] = step.start
        excess -= step.size
    return choice


def _uniform(menus: _Menus, candidates: Iterable[int], budget: int) -> list[int]:
    """The best choice that gives every layer the same width, less the bits that gain a layer
    nothing.
    """
    best = [0] * len(menus)
    rows = [menu.bits.tolist() for menu in menus]
    for width in candidates:
        one = [_last_within(bits, width) for bits in rows]
        if _size(menus, one) <= budget and _cost(menus, one) < _cost(menus, best):
            best = one
    return best


def _last_within(bits: Sequence[int], width: int) -> int:
    """The place of the last of `bits` that is at most `width`; the first where none is."""
    place = len(bits) - 1
    while place and bits[place] > width:
        place -= 1
    return place


def _exact(menus: _Menus, steps: Sequence[_Step], budget: int, incumbent: list[int]) -> list[int]:
    """Extends all partial assignments layer by layer; drops the dominated and those that cannot
    beat the incumbent.
    """
    # large layers decide most: with them first, the bound is sharp early
    order = sorted(range(len(menus)), key=lambda layer: -int(menus[layer].sizes[-1]))
    best = _cost(menus, incumbent)
    sizes = np.zeros(1, np.int64)
    costs = np.zeros(1)
    trail = []
    for position, layer in enumerate(order):
        menu = menus[layer]
        new_sizes = np.add.outer(menu.sizes, sizes).ravel()
        new_costs = np.add.outer(menu.costs, costs).ravel()
        bounds = new_costs + _relaxed(menus, steps, order[position + 1 :], budget - new_sizes)
        kept = _undominated(new_sizes, new_costs, np.flatnonzero(bounds < best))
        if len(kept) > MAX_STATES:
            # the indices are sorted, because the merge in _undominated expects states by growing
            # size
            kept = kept[np.sort(np.argpartition(bounds[kept], MAX_STATES)[:MAX_STATES])]
        if not len(kept):
            return incumbent
        # the outer sums lie option after option: the quotient is the option, the rest its parent
        trail.append(np.divmod(kept, len(sizes)))
        sizes = new_sizes[kept]
        costs = new_costs[kept]
    # back along the parents of the cheapest
    state = int(costs.argmin())
    choice = [0] * len(order)
    for (options, parents), layer in zip(reversed(trail), reversed(order), strict=True):
        choice[layer] = int(options[state])
        state = int(parents[state])
    return choice


def _relaxed(
    menus: _Menus, steps: Sequence[_Step], layers: Sequence[int], room: IntArray
) -> FloatArray:
    """Lower bound of what `layers` cost in each of `room`: steps may be taken in part; infinite
    where nothing fits.
    """
    wanted = set(layers)
    left = [step for step in steps if step.layer in wanted]
    least = sum(int(menus[layer].sizes[0]) for layer in layers)
    cheapest = sum(float(menus[layer].costs[-1]) for layer in layers)
    sizes = np.cumsum([least, *(step.size for step in left)])
    # Summed from the smallest gain up: the bound stays sharp where costs have fallen by many orders
    # of magnitude.
    costs = np.cumsum([cheapest, *(step.gain for step in reversed(left))])
    bound: FloatArray = np.interp(room, sizes, costs[::-1], left=math.inf)
    return bound


def _undominated(sizes: IntArray, costs: FloatArray, states: IntArray) -> IntArray:
    """The ones of `states` that are cheaper than all smaller ones, by growing size."""
    # a merge: each option's states are sorted already
    states = states[np.argsort(sizes[states], kind="stable")]
    cheapest = np.minimum.accumulate(costs[states])
    better = np.ones(len(states), bool)
    better[1:] = costs[states][1:] < cheapest[:-1]
    return states[better]


def _size(menus: _Menus, choice: Sequence[int]) -> int:
    return sum(int(menu.sizes[k]) for menu, k in zip(menus, choice, strict=True))


def _cost(menus: _Menus, choice: Sequence[int]) -> float:
    return math.fsum(float(menu.costs[k]) for menu, k in zip(menus, choice, strict=True))


def _allocation(menus: _Menus, choice: Sequence[int], *, feasible: bool) -> Allocation:
    bits = tuple(int(menu.bits[k]) for menu, k in zip(menus, choice, strict=True))
    return Allocation(bits, feasible)
