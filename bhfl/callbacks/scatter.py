"""Points in a plane as a picture, for TensorBoard: each in the colour of its group."""

import math
from collections.abc import Mapping, Sequence
from itertools import chain

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from bhfl.callbacks.heatmap import GAP, Pixels

SIZE = (800, 480)
"""Width and height of the picture, in pixels."""
COLOURS = (
    (0, 114, 178),
    (213, 94, 0),
    (0, 158, 115),
    (204, 121, 167),
    (230, 159, 0),
    (86, 180, 233),
)
"""Colours of groups, after Okabe and Ito, which colour-blind eyes tell apart; then from the first
on again.
"""
_FINE = 2
"""The picture is drawn so many times as large: what is made smaller again has smooth edges."""
_LETTERS = 18 * _FINE
_RADIUS = 5 * _FINE
_TICKS = 6
_LINE = (225, 225, 225)

Points = Mapping[str, tuple[Sequence[float], Sequence[float]]]
"""Places to the right and up by the name of a group."""


def scatter(points: Points, title: str, right: str) -> Pixels:
    """Draw points.

    Args:
        points: Finite places of at least one point.
        title: What is drawn upwards, with its unit.
        right: What is drawn to the right.

    Returns:
        The picture ``[height, width, 3]``.
    """
    font = ImageFont.load_default(_LETTERS)
    width, height = SIZE[0] * _FINE, SIZE[1] * _FINE
    gap = GAP * _FINE
    image = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(image)
    draw.text((gap, gap), title, "black", font)
    columns, rows = zip(*points.values(), strict=True)
    across, upwards = ticks([*chain(*columns)]), ticks([*chain(*rows)])
    left = gap + round(max(draw.textlength(f"{tick:.10g}", font) for tick in upwards)) + gap
    box = (left, 4 * gap + 2 * _LETTERS, width - 3 * gap, height - 3 * gap - 2 * _LETTERS)
    for tick in across:
        x = _place(tick, across, box[0], box[2])
        draw.line((x, box[1], x, box[3]), _LINE, _FINE)
        draw.text((x, box[3] + gap), f"{tick:,.10g}", "black", font, anchor="mt")
    for tick in upwards:
        y = _place(tick, upwards, box[3], box[1])
        draw.line((box[0], y, box[2], y), _LINE, _FINE)
        draw.text((left - gap, y), f"{tick:.10g}", "black", font, anchor="rm")
    draw.text(((box[0] + box[2]) / 2, height - gap), right, "black", font, anchor="mb")
    beside = left
    for i, (name, (xs, ys)) in enumerate(points.items()):
        colour = COLOURS[i % len(COLOURS)]
        for x, y in zip(xs, ys, strict=True):
            at = _place(x, across, box[0], box[2]), _place(y, upwards, box[3], box[1])
            draw.circle(at, _RADIUS, colour, "white", _FINE)
        line = 2.5 * gap + _LETTERS
        draw.circle((beside + _RADIUS, line), _RADIUS, colour)
        draw.text((beside + 3 * _RADIUS, line), name, "black", font, anchor="lm")
        beside += 4 * _RADIUS + round(draw.textlength(name, font)) + gap
    return np.asarray(image.resize(SIZE, Image.Resampling.LANCZOS))


def ticks(values: Sequence[float]) -> list[float]:
    """Round numbers that hold all values between them, about six of them.

    >>> ticks([0.5]), ticks([87.5, 100])
    ([0.0, 0.2, 0.4, 0.6, 0.8, 1.0], [85.0, 90.0, 95.0, 100.0])
    """
    low, high = min(values), max(values)
    if low == high:
        low, high = low - (abs(low) or 1), high + (abs(high) or 1)
    coarse = 10 ** math.floor(math.log10(high - low))
    steps = [coarse * factor for factor in (0.1, 0.2, 0.5, 1, 2, 5)]
    step = next(step for step in steps if (high - low) / step < _TICKS)
    first, last = math.floor(low / step), math.ceil(high / step)
    # without the last digits of a product such as 3 * 0.1
    return [float(f"{step * number:.12g}") for number in range(first, last + 1)]


def _place(value: float, scale: Sequence[float], start: float, end: float) -> float:
    """Where a number lies between the ends of an axis."""
    return start + (value - scale[0]) / (scale[-1] - scale[0]) * (end - start)
