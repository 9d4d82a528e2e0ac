"""Draw README's picture from the table of `make table`: ``python docs/_ext/first_picture.py``."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from bhfl.report.drawing import PALETTE, bare, pyplot, svg  # noqa: E402

TABLE = ROOT / "configs/cifar10/README.md"
PICTURE = ROOT / "docs/_static/accuracy-by-bytes.svg"
FLEET = "5 ternary, 5 float32:"


class Row(NamedTuple):
    """A method: mean and standard deviation of each group's accuracy in per cent, megabytes up."""

    method: str
    ternary: tuple[float, float]
    float32: tuple[float, float]
    average: tuple[float, float]
    up: float


def rows() -> list[Row]:
    """The rows of the fleet's table, the best average last, so that it is drawn at the top."""
    text = TABLE.read_text().partition(FLEET)[2]
    found = []
    for line in re.findall(r"^\| (.*) \|$", text.split("\n\n")[1], re.M)[1:]:
        method, *accuracies, up, _ = [cell.strip(" *") for cell in line.split("|")]
        pairs = [tuple(map(float, cell.split(" ± "))) for cell in accuracies]
        found.append(Row(method, *pairs, float(up)))  # type: ignore[arg-type]
    return sorted(found, key=lambda row: row.average[0])


def draw() -> bytes:
    """The picture as SVG, on a white ground, so that it is read on dark pages too."""
    plt = pyplot()
    methods = rows()
    with plt.rc_context({"svg.fonttype": "none", "font.family": "sans-serif", "font.size": 10}):
        figure, axis = plt.subplots(figsize=(8, 4.2), layout="constrained")
        for place, row in enumerate(methods):
            ends = (row.ternary[0], row.float32[0])
            axis.plot(ends, (place, place), color="#bbbbbb", linewidth=3, zorder=1)
        for group, color, marker in (("ternary", PALETTE[1], "v"), ("float32", PALETTE[0], "o")):
            values = [getattr(row, group) for row in methods]
            axis.errorbar(
                [mean for mean, _ in values],
                range(len(values)),
                xerr=[deviation for _, deviation in values],
                fmt=marker,
                color=color,
                elinewidth=0.8,
                label=f"{group} clients",
            )
        axis.set_yticks(range(len(methods)), [row.method for row in methods])
        axis.set_xlabel("test accuracy in %")
        beside = axis.secondary_yaxis("right")
        beside.set_yticks(range(len(methods)), [f"{row.up:.0f} MB" for row in methods])
        beside.set_ylabel("sent up in a run")
        beside.spines["right"].set_visible(False)
        beside.tick_params(length=0)
        bare(axis)
        axis.legend(loc="lower right", frameon=False)
        return svg(figure)


if __name__ == "__main__":
    PICTURE.write_bytes(draw())
