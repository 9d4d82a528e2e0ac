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
    for right in range(1, len(sizes)):
        while len(hull) > 1:
            left, middle = hull[-2:]
            gain_to = costs[left] - costs[middle]
            gain_from = costs[middle] - costs[right]
            size_to = sizes[middle] - sizes[left]
            if gain_to * (sizes[right] - sizes[middle]) > gain_from * size_to:
                break
            # it lies on or above the line from its left to its right
            hull.pop()
        hull.append(right)
    return hull
