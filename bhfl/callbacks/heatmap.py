"""A table of numbers as a picture, for TensorBoard: a darker cell is a larger number."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

CELL = (64, 34)
"""Width and height of a cell, in pixels."""
GAP = 12
_LETTERS = 20
"""Height of a line of text, in pixels."""
_LIGHT, _DARK = np.array([247, 251, 255]), np.array([8, 48, 107])
_MISSING = (225, 225, 225)

Pixels = npt.NDArray[np.uint8]


def heatmap(
    values: npt.NDArray[np.float64], rows: Sequence[str], columns: Sequence[str], title: str
) -> Pixels:
    """Draw a table; nan is a grey cell.

    Args:
        values: The numbers ``[rows, columns]``.
        rows: A name for each row.
        columns: A name for each column.
        title: What the numbers are, with their unit.

    Returns:
        The picture ``[height, width, 3]``.
    """
    font = ImageFont.load_default(_LETTERS)
    ruler = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    width, height = CELL
    left = round(max(ruler.textlength(name, font) for name in rows)) + 2 * GAP
    top = 2 * height + GAP
    size = (
        max(left + width * len(columns), round(ruler.textlength(title, font))) + 2 * GAP,
        top + height * len(rows) + GAP,
    )
    image = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(image)
    draw.text((GAP, GAP), title, "black", font)
    for j, name in enumerate(columns):
        draw.text((left + width * (j + 0.5), top - GAP), name, "black", font, anchor="ms")
    for i, name in enumerate(rows):
        draw.text((left - GAP, top + height * (i + 0.5)), name, "black", font, anchor="rm")
        for j, value in enumerate(values[i]):
            corner = (left + width * j, top + height * i)
            fill, ink = _colours(value, values)
            box = (*corner, corner[0] + width - 2, corner[1] + height - 2)
            draw.rectangle(box, fill)
            if not np.isnan(value):
                middle = (corner[0] + width / 2 - 1, corner[1] + height / 2 - 1)
                draw.text(middle, f"{value:.3g}", ink, font, anchor="mm")
    return np.asarray(image)


def _colours(value: float, values: npt.NDArray[np.float64]) -> tuple[tuple[int, ...], str]:
    """The colours of a cell and of its number."""
    if np.isnan(value):
        return _MISSING, "black"
    low = min(0.0, float(np.nanmin(values)))
    high = float(np.nanmax(values))
    share = (value - low) / (high - low) if high > low else 0.0
    return tuple(map(int, _LIGHT + share * (_DARK - _LIGHT))), "white" if share > 0.5 else "black"
