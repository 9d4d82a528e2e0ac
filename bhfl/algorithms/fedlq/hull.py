"""The lower convex hull of what a layer may cost at each of its sizes."""

from collections.abc import Sequence


def lower_hull(sizes: Sequence[int], costs: Sequence[float]) -> list[int]:
    """The options that no mixture of two others beats.

    Args:
        sizes: What each option takes, growing.
        costs: What each option costs, falling.

    Returns:
        Their places, in order; the first and the last option are among them.
    """
    hull = [0]
    for k in range(1, len(sizes)):
        while len(hull) > 1 and _is_above(hull[-1], hull[-2], k, sizes, costs):
            hull.pop()
        hull.append(k)
    return hull


def _is_above(
    middle: int, left: int, right: int, sizes: Sequence[int], costs: Sequence[float]
) -> bool:
    """Whether option `middle` lies on or above the line from `left` to `right`."""
    gain_to = costs[left] - costs[middle]
    gain_from = costs[middle] - costs[right]
    return gain_to * (sizes[right] - sizes[middle]) <= gain_from * (sizes[middle] - sizes[left])
