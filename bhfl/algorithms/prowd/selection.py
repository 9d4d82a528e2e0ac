"""The selective mask of ProWD: which entries of a low-bit client's move are averaged (Yoon et al., ICML 2022).

For the moves `l` (low-bit client) and `h` (high-bit clients) and a cap `k` on the number of entries, choose the set

    argmax_S  cos(S) = A(S) / (sqrt(B(S)) ||h||),   A(S) = sum_S l_i h_i,   B(S) = sum_S l_i**2,   |S| <= k.

**How it is solved.** `A**2 / B = max_t t (2A - tB)` over t >= 0, reached at `t = A/B` (complete the square; A >= 0), so

    max_S A**2 / B = max_t t phi(t),   phi(t) = max_{|S| <= k} 2A(S) - t B(S)
                                              = the sum of the k largest positive values among 2 l_i h_i - t l_i**2.

`t phi(t)` has many local maxima, on which the alternation `S <- top k at t, t <- A(S)/B(S)` gets stuck, with a cap or
without. But `phi` is a maximum of lines in t: it is **convex**, so between two points where it is known it lies below
its chord, and `t` times a chord is a parabola with a maximum in closed form. That bounds everything between two points;
the interval with the largest bound is split until no bound exceeds the best set found. A chord over [s, u] is at most
`(s + u)**2 / (4 s u)` above the larger end (Kantorovich), so intervals of ratio `(1 + delta) / (1 - delta)` always
satisfy `cos**2 >= (1 - delta**2) * optimum`: the search ends, whatever the data.

The terms fall with t. Hence an entry above the k-th largest term of the left end of the interval that is still open
when it has come to its right end is certainly selected, and one below that of the right end at the left end is not.
Only the entries between remain, a few in a hundred, and the search goes on among them at little cost, until its bound
meets the best set (exact) or its steps are spent.
"""

import heapq
import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

FloatArray = npt.NDArray[np.float64]

_COARSE = 0.05**2
"""Gap between bound and set at which the decided entries are taken out."""
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


def select(low: Tensor, high: Tensor, *, cap: float = 0.5, delta: float = 0.05) -> Tensor:
    """The mask of :func:`certified_select` alone."""
    return certified_select(low, high, cap=cap, delta=delta).mask


def certified_select(low: Tensor, high: Tensor, *, cap: float = 0.5, delta: float = 0.05) -> Selection:
    """The mask of one index set (a layer, or a whole model) under a cap, with a bound on what any mask can reach.

    Entries of equal worth are taken in the order of their index. An entry without a move, or whose signs disagree, is
    never taken. Invariant to positive factors on either move, up to rounding.

    Args:
        low: Move of the low-bit client (reconstructed minus broadcast weights), any shape.
        high: Mean move of the high-bit clients, the shape of `low`.
        cap: Largest mask: a float in (0, 1] is a fraction of the entries (at least one), an int a count. 1.0: no cap.
        delta: `cosine**2 >= (1 - delta**2) * optimum` is guaranteed; what is reached is nearly always the optimum.
            0 demands it, whatever the time.

    Raises:
        ValueError: The shapes differ, cap or delta is out of range, or a move has NaN or infinity.
    """
    limit = mask_limit(cap, low.numel())
    if low.shape != high.shape:
        raise ValueError(f"low and high must have the same shape, got {list(low.shape)} and {list(high.shape)}")
    if not 0 <= delta < 1:
        raise ValueError(f"delta must be in [0, 1), got {delta}")
    low_move, high_move = _flat(low), _flat(high)
    norm = float(high_move @ high_move)
    if not math.isfinite(norm + float(low_move @ low_move)):
        raise ValueError("low and high must be finite, got NaN or infinity: has the client diverged?")
    chosen, value, bound = _solve(low_move, high_move, limit, delta)
    mask = torch.zeros(low.numel(), dtype=torch.bool)
    mask[torch.from_numpy(chosen)] = True
    cosine, largest = (min(1.0, math.sqrt(x / norm)) if norm > 0 else 0.0 for x in (value, bound))
    return Selection(mask.view(low.shape).to(low.device), cosine, largest)


def mask_limit(tau: float, numel: int) -> int:
    """The largest number of entries that a cap allows: `tau` itself, or that fraction of `numel` but at least one.

    >>> mask_limit(0.5, 9), mask_limit(3, 9)
    (4, 3)

    Raises:
        ValueError: tau is neither a fraction in (0, 1] nor a positive count.
    """
    if isinstance(tau, float) and 0 < tau <= 1:
        return max(1, math.floor(tau * numel + 1e-9))  # 0.29 * 100 is 28.999999999999996
    if type(tau) is int and tau > 0:
        return tau
    raise ValueError(f"tau must be in (0, 1] (a fraction) or a positive integer (a count), got {tau!r}")


def _flat(move: Tensor) -> FloatArray:
    return move.detach().reshape(-1).to("cpu", torch.float64).numpy()


def _solve(low: FloatArray, high: FloatArray, limit: int, delta: float) -> tuple[npt.NDArray[np.int64], float, float]:
    """Indices of the mask, its `A**2 / B`, and the bound on that of any mask."""
    gain, cost = low * high, np.square(low)
    useful = np.flatnonzero((gain > 0) & (cost > 0))
    if not len(useful):
        return useful, 0.0, 0.0
    gain, cost = gain[useful], cost[useful]
    terms = _Terms(gain, cost, limit)
    search = _Search(terms, *_range_of_optimum(gain, cost, limit))
    search.run(max(delta**2, _COARSE))
    if search.bound > search.best.value * (1 + _EXACT):
        search = search.among_undecided()
        search.run(_EXACT, max_splits=_REFINEMENTS)
        search.run(max(delta**2, _EXACT))
    chosen = terms.top(search.best.t)
    value = float(gain[chosen].sum()) ** 2 / float(cost[chosen].sum())
    return useful[chosen], value, max(value, search.bound)


def _range_of_optimum(gain: FloatArray, cost: FloatArray, limit: int) -> tuple[float, float]:
    """Between which values of t the best set has its `A/B`.

    Below: `S0`, the k largest gains, has the largest A there is, and its value `A0**2 / B0 <= A*  t* <= A0 t*`.
    Above: a term is at most `h_i**2` (complete the square) and positive only where `2 h_i / l_i > t`, so that no t with
    `sum of h_i**2 where 2 h_i / l_i > t` below a value already reached can do better.
    """
    ranked = np.argpartition(gain, -limit)[-limit:] if limit < len(gain) else slice(None)
    total_gain, total_cost = float(gain[ranked].sum()), float(cost[ranked].sum())
    lowest, value = total_gain / total_cost, total_gain**2 / total_cost
    vanishing = 2 * gain / cost  # the t at which a term reaches zero
    largest_terms, reached = gain * vanishing / 2, np.empty_like(gain)
    highest, steepest = 2 * lowest, float(vanishing.max())
    while highest < steepest and float(largest_terms @ np.greater(vanishing, highest, out=reached)) > value:
        highest *= 2
    return lowest, min(highest, steepest)


class _Point(NamedTuple):
    """phi at one t: the value, the k-th largest term (or 0), and the sums A and B over the set that reaches it."""

    t: float
    phi: float
    threshold: float
    gain: float
    cost: float

    @property
    def value(self) -> float:
        return self.gain**2 / self.cost if self.cost > 0 else 0.0


class _Terms:
    """The terms `2 gain_i - t cost_i` of the undecided entries, beside the sums over those already decided."""

    def __init__(
        self, gain: FloatArray, cost: FloatArray, limit: int, decided_gain: float = 0.0, decided_cost: float = 0.0
    ) -> None:
        self.gain, self.cost, self.limit = gain, cost, limit
        self.decided_gain, self.decided_cost = decided_gain, decided_cost
        self._double_gain = 2 * gain
        self._terms, self._scratch = np.empty_like(gain), np.empty_like(gain)  # reused: page faults cost more than sums

    def evaluate(self, t: float) -> _Point:
        """O(d): one partition, three passes."""
        threshold = self._compute(t)
        if threshold > 0:
            phi = float(self._scratch[len(self.gain) - self.limit :].sum())
        else:
            phi = float(np.maximum(self._terms, 0, out=self._scratch).sum())
        np.greater(self._terms, threshold, out=self._scratch)
        cost = self.decided_cost + float(self.cost @ self._scratch) + float(self.cost[self._ties(threshold)].sum())
        phi += 2 * self.decided_gain - t * self.decided_cost
        return _Point(t, phi, threshold, (phi + t * cost) / 2, cost)

    def top(self, t: float) -> npt.NDArray[np.int64]:
        """Indices of the at most `limit` largest positive terms; of equal terms the first ones."""
        threshold = self._compute(t)
        chosen = self._terms > threshold
        chosen[self._ties(threshold)] = True
        return np.flatnonzero(chosen)

    def between(self, left: _Point, right: _Point) -> "_Terms":
        """The same problem for t in [left.t, right.t], with what is decided there taken out."""
        at_right, at_left = (self._double_gain - point.t * self.cost for point in (right, left))
        sure = at_right > left.threshold
        decided, undecided = np.flatnonzero(sure), np.flatnonzero(~sure & (at_left >= right.threshold))
        return _Terms(
            self.gain[undecided],
            self.cost[undecided],
            self.limit - len(decided),
            self.decided_gain + float(self.gain[decided].sum()),
            self.decided_cost + float(self.cost[decided].sum()),
        )

    def _compute(self, t: float) -> float:
        """Fill the terms, and where the cap may bind the partitioned scratch; the k-th largest term or 0."""
        np.multiply(self.cost, -t, out=self._terms)
        self._terms += self._double_gain
        position = len(self.gain) - self.limit
        if position <= 0:
            return 0.0
        np.copyto(self._scratch, self._terms)
        self._scratch.partition(position)
        return max(0.0, float(self._scratch[position]))

    def _ties(self, threshold: float) -> npt.NDArray[np.int64]:
        if threshold == 0:
            return np.empty(0, np.int64)
        room = self.limit - int(np.count_nonzero(self._terms > threshold))
        return np.flatnonzero(self._terms == threshold)[:room]


class _Search:
    """Best-first search over intervals of t; `bound` and `best` close in on the optimum from both sides."""

    def __init__(self, terms: _Terms, low: float, high: float) -> None:
        self.terms = terms
        left, right = terms.evaluate(low), terms.evaluate(high)
        self.best = max(left, right, key=_value)
        self._open = [_interval(left, right)]

    @property
    def bound(self) -> float:
        """At least `A**2 / B` of any set."""
        return -self._open[0][0]

    def run(self, gap: float, *, max_splits: float = math.inf) -> None:
        """Split the most promising interval until nothing in it can beat the best set by more than `gap`."""
        while self.bound * (1 - gap) > self.best.value and max_splits > 0:
            _, left, right = self._open[0]
            t = math.sqrt(left.t * right.t)
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
        left, right = min(interval[1] for interval in live), max(interval[2] for interval in live)
        rest = _Search(self.terms.between(left, right), left.t, right.t)
        rest.best = max(self.best, rest.best, key=_value)
        return rest


def _value(point: _Point) -> float:
    return point.value


def _interval(left: _Point, right: _Point) -> tuple[float, _Point, _Point]:
    """An entry of the heap: minus the largest value of `t * chord(t)` between two points, and the points."""
    slope = (right.phi - left.phi) / (right.t - left.t)
    t = min(max((left.t - left.phi / slope) / 2, left.t), right.t) if slope < 0 else right.t
    return -t * (left.phi + slope * (t - left.t)), left, right
