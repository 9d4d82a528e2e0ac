"""The selective mask of ProWD: which entries of a low-bit client's move are averaged (Yoon et al.,
ICML 2022).

For the moves `l` (low-bit client) and `h` (high-bit clients) and a cap `k` on the number of
entries, choose the set

    argmax_S  cos(S) = A(S) / (sqrt(B(S)) ||h||),   A(S) = sum_S l_i h_i,   B(S) = sum_S l_i**2,
    |S| <= k.

**How it is solved.** `A**2 / B = max_t t (2A - tB)` over t >= 0, reached at `t = A/B` (complete the
square; A >= 0), so

    max_S A**2 / B = max_t t phi(t),   phi(t) = max_{|S| <= k} 2A(S) - t B(S) = the sum of the k
                                              largest positive values among 2 l_i h_i - t l_i**2.

`t phi(t)` has many local maxima, on which the alternation `S <- top k at t, t <- A(S)/B(S)` gets
stuck, with a cap or without. But `phi` is a maximum of lines in t: it is **convex**, so between two
points where it is known it lies below its chord, and `t` times a chord is a parabola with a maximum
in closed form. That bounds everything between two points; the interval with the largest bound is
split until no bound exceeds the best set found. The bound over [s, u] is at most `(s + u)**2 / (4 s
u)` times the larger of `s phi(s)` and `u phi(u)` (Kantorovich's inequality), so that an interval of
ratio `u / s = (1 + delta) / (1 - delta)` always satisfies `cos**2 >= (1 - delta**2) * optimum`: the
search ends.

The terms fall with t. Hence an entry above the k-th largest term of the left end of the interval
that is still open when it has come to its right end is certainly selected, and one below that of
the right end at the left end is not. Only the entries between remain, a few in a hundred, and the
search goes on among them at little cost, until its bound meets the best set (exact) or its steps
are spent.
"""

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bhfl.checks import is_integer

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

_GUARANTEE = 0.05**2
"""Gap between bound and set that is allowed, and at which the decided entries are taken out."""
_EXACT = 1e-12
"""Gap that float64 sums cannot tell from zero."""
_REFINEMENTS = 64
"""Splits spent on closing the gap beyond the guarantee; a dozen or two close it as a rule."""


@dataclass(frozen=True)
class Selection:
    """A mask and how good it is.

    Attributes:
        mask: Bool, the shape of the moves; True where the entry is averaged.
        cosine: `cos(S)` of the mask, in [0, 1]; 0 for an empty mask.
        bound: No mask under this cap has a larger cosine.
    """

    mask: Tensor
    cosine: float
    bound: float


def certified_select(low: Tensor, high: Tensor, *, cap: float = 0.5) -> Selection:
    """The mask of one index set (a layer, or a whole model) under a cap, with a bound on what any
    mask can reach.

    Entries of equal worth are taken in the order of their index. An entry without a move, or whose
    signs disagree, is never taken. Invariant to positive factors on either move, up to rounding.

    Args:
        low: Move of the low-bit client (reconstructed minus broadcast weights), any shape.
        high: Mean move of the high-bit clients, the shape of `low`.
        cap: Largest mask: a float in (0, 1] is a fraction of the entries (at least one), an int a
            count. 1.0: no cap.

    Returns:
        The mask. ``cosine**2 >= (1 - 0.05**2) * optimum`` is guaranteed; what is reached is nearly
        always the optimum.

    Raises:
        ValueError: A move has NaN or infinity.
    """
    limit = mask_limit(cap, low.numel())
    low_move = _flat(low)
    high_move = _flat(high)
    norm = float(np.square(high_move).sum())
    if not math.isfinite(norm + float(low_move.sum())):
        raise ValueError(
            "low and high must be finite, got NaN or infinity: has the client diverged?"
        )
    chosen, value, bound = _solve(low_move, high_move, limit)
    mask = torch.zeros(low.numel(), dtype=torch.bool)
    mask[torch.from_numpy(chosen)] = True
    return Selection(
        mask=mask.view(low.shape).to(low.device),
        cosine=_cosine(value, norm),
        bound=_cosine(bound, norm),
    )


def _cosine(value: float, norm: float) -> float:
    """The cosine that belongs to `A**2 / B`, given `||h||**2`."""
    # rounding may leave the quotient a little above 1
    return min(1.0, math.sqrt(value / norm)) if norm > 0 else 0.0


def mask_limit(tau: float, numel: int) -> int:
    """The largest number of entries that a cap allows: `tau` itself, or that fraction of `numel`
    but at least one.

    >>> mask_limit(0.5, 9), mask_limit(3, 9)
    (4, 3)
    """
    if isinstance(tau, float):
        # 0.29 * 100 is 28.999999999999996
        return max(1, math.floor(tau * numel + 1e-9))
    return tau


def share_or_count(value: Any) -> str:
    """What is wrong with a share in (0, 1], which is a float, or a count from 1 on, an integer."""
    if (isinstance(value, float) and 0 < value <= 1) or (is_integer(value) and value > 0):
        return ""
    return f"must be in (0, 1] (a fraction) or a positive integer (a count), got {value!r}"


def _flat(move: Tensor) -> FloatArray:
    return move.detach().reshape(-1).to("cpu", torch.float64).numpy()


def _solve(low: FloatArray, high: FloatArray, limit: int) -> tuple[IntArray, float, float]:
    """Indices of the mask, its `A**2 / B`, and the bound on that of any mask."""
    gain = low * high
    cost = np.square(low)
    # a square that underflows to 0 would make A**2 / B infinite
    useful = np.flatnonzero((gain > 0) & (cost > 0))
    if not len(useful):
        return useful, 0.0, 0.0
    terms = _Terms(gain[useful], cost[useful], limit)
    search = _Search.over_all(terms, np.square(high[useful]))
    search.run(_GUARANTEE)
    if search.bound > search.best.value * (1 + _EXACT):
        search = search.among_undecided()
        # the gap is closed as far as a few steps go, and the guarantee kept whatever it takes
        search.run(_EXACT, max_splits=_REFINEMENTS)
        search.run(_GUARANTEE)
    best = search.best.value
    return useful[terms.top(search.best.t)], best, max(best, search.bound)


class _Point(NamedTuple):
    """phi at one t: the value, the k-th largest term (or 0), and the sums A and B over the set that
    reaches it.
    """

    t: float
    phi: float
    threshold: float
    gain: float
    cost: float

    @property
    def value(self) -> float:
        return self.gain**2 / self.cost if self.cost > 0 else 0.0


@dataclass
class _Terms:
    """The terms `2 gain_i - t cost_i` of the undecided entries, beside the sums over those already
    decided.
    """

    gain: FloatArray
    cost: FloatArray
    limit: int
    decided_gain: float = 0.0
    decided_cost: float = 0.0

    def __post_init__(self) -> None:
        self._double_gain = 2 * self.gain
        # reused: page faults cost more than sums
        self._terms = np.empty_like(self.gain)
        self._scratch = np.empty_like(self.gain)

    def evaluate(self, t: float) -> _Point:
        """O(d): one partition and a few passes."""
        threshold = self._fill_and_threshold(t)
        if threshold > 0:
            phi = float(self._scratch[len(self.gain) - self.limit :].sum())
        else:
            phi = float(np.maximum(self._terms, 0, out=self._scratch).sum())
        ties = float(self.cost[self._ties(threshold)].sum())
        cost = self.decided_cost + self.sum_above(self.cost, threshold) + ties
        phi += 2 * self.decided_gain - t * self.decided_cost
        # phi is 2A - tB, so that A follows from it without a pass of its own
        return _Point(t, phi, threshold, (phi + t * cost) / 2, cost)

    def top(self, t: float) -> IntArray:
        """Indices of the at most `limit` largest positive terms; of equal terms the first ones."""
        threshold = self._fill_and_threshold(t)
        chosen = self._terms > threshold
        chosen[self._ties(threshold)] = True
        return np.flatnonzero(chosen)

    def between(self, left: _Point, right: _Point) -> "_Terms":
        """The same problem for t in [left.t, right.t], with what is decided there taken out."""
        self._fill(right.t)
        sure = self._terms > left.threshold
        gain = self.decided_gain + self.sum_above(self.gain, left.threshold)
        cost = self.decided_cost + self.sum_above(self.cost, left.threshold)
        self._fill(left.t)
        undecided = np.flatnonzero((self._terms >= right.threshold) & ~sure)
        return _Terms(
            self.gain[undecided],
            self.cost[undecided],
            self.limit - int(np.count_nonzero(sure)),
            gain,
            cost,
        )

    def sum_above(self, values: FloatArray, threshold: float = 0.0) -> float:
        """The sum of one value for each entry, over those whose term is above a threshold."""
        # not a product of vectors, whose rounding would depend on the number of threads
        above = np.greater(self._terms, threshold, out=self._scratch)
        return float(np.multiply(values, above, out=self._scratch).sum())

    def _fill(self, t: float) -> None:
        np.multiply(self.cost, -t, out=self._terms)
        self._terms += self._double_gain

    def _fill_and_threshold(self, t: float) -> float:
        """The k-th largest term, or 0; where the cap may bind, the scratch holds the terms, the k
        largest last.
        """
        self._fill(t)
        position = len(self.gain) - self.limit
        if position <= 0:
            return 0.0
        np.copyto(self._scratch, self._terms)
        self._scratch.partition(position)
        return max(0.0, float(self._scratch[position]))

    def _ties(self, threshold: float) -> IntArray:
        if threshold == 0:
            return np.empty(0, np.int64)
        room = self.limit - int(np.count_nonzero(self._terms > threshold))
        return np.flatnonzero(self._terms == threshold)[:room]


class _Search:
    """Best-first search over intervals of t; `bound` and `best` close in on the optimum from both
    sides.
    """

    def __init__(self, terms: _Terms, points: Sequence[_Point], best: _Point) -> None:
        self.terms = terms
        self.best = max(best, *points, key=_value)
        self._open = [_interval(left, right) for left, right in pairwise(points)]
        heapq.heapify(self._open)

    @classmethod
    def over_all(cls, terms: _Terms, squares: FloatArray) -> "_Search":
        """A search over all t at which the best set can have its `A/B`, given `h_i**2`.

        Below: the set of t = 0, the k largest gains, has the largest A there is, and `A0**2 / B0 <=
        V* = A* t*`, hence `t* >= A0 / B0`. Above: a term is at most `h_i**2` (complete the square)
        and falls with t, so that no t does better than a value already reached once the `h_i**2` of
        the positive terms sum to less.
        """
        largest = terms.evaluate(0.0)
        first = terms.evaluate(largest.gain / largest.cost)
        points = [first, terms.evaluate(2 * first.t)]
        # the terms are those at the point that was evaluated last
        while terms.sum_above(squares) > max(map(_value, points)):
            points.append(terms.evaluate(2 * points[-1].t))
        return cls(terms, points, best=largest)

    @property
    def bound(self) -> float:
        """A number that is at least `A**2 / B` of any set."""
        return -self._open[0][0]

    def run(self, gap: float, *, max_splits: float = math.inf) -> None:
        """Split the most promising interval until nothing in it can beat the best set by more than
        `gap`.
        """
        while self.bound * (1 - gap) > self.best.value and max_splits > 0:
            _, left, right = self._open[0]
            # the guarantee rests on the ratio of the ends, which the geometric mean splits evenly
            t = math.sqrt(left.t * right.t)
            # float64 has no number between the ends: the bound cannot get closer
            if not left.t < t < right.t:
                return
            middle = self.terms.evaluate(t)
            self.best = max(self.best, middle, key=_value)
            heapq.heapreplace(self._open, _interval(left, middle))
            heapq.heappush(self._open, _interval(middle, right))
            max_splits -= 1

    def among_undecided(self) -> "_Search":
        """The search goes on where it may still gain, among the entries that are open there."""
        live = [interval for interval in self._open if -interval[0] > self.best.value]
        left = min(interval[1] for interval in live)
        right = max(interval[2] for interval in live)
        terms = self.terms.between(left, right)
        return _Search(terms, [terms.evaluate(left.t), terms.evaluate(right.t)], best=self.best)


def _value(point: _Point) -> float:
    return point.value


def _interval(left: _Point, right: _Point) -> tuple[float, _Point, _Point]:
    """An entry of the heap: minus the largest value of `t * chord(t)` between two points, and the
    points.
    """
    slope = (right.phi - left.phi) / (right.t - left.t)
    t = min(max((left.t - left.phi / slope) / 2, left.t), right.t) if slope < 0 else right.t
    return -t * (left.phi + slope * (t - left.t)), left, right
