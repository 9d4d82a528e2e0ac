"""What ``bhfl analyze`` found, layer by layer: console tables, CSV and picture.

A picture is drawn again from a CSV by ``python -m bhfl.report.layers layers.csv``. The columns are
those of `bhfl.analysis.layers`; ``name_<bits>`` is one column for each width.
"""

import csv
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bhfl.files import write_text
from bhfl.report.arguments import Parser, errors_told, path_argument
from bhfl.report.drawing import bare, labels, name_rows, pyplot, save
from bhfl.report.forms import csv_text, ruled

Row = Mapping[str, Any]
"""One layer: its name and its figures, by column."""

_WORDS = ("layer", "kind")
"""The columns that hold no numbers."""
_PANELS = {
    "saved_bytes": (1e-6, "memory saved against float32 [MB]"),
    "loss_increase": (1.0, "loss increase, this layer alone quantised"),
    "accuracy_drop": (100.0, "accuracy drop [points], likewise"),
}
"""Factor and title of the panels of bars, by column; a panel without its columns is left out."""


def widths(rows: Sequence[Row], column: str) -> list[int]:
    """The bit-widths for which there is a column ``<column>_<bits>``."""
    return [int(match[1]) for key in rows[0] if (match := re.fullmatch(rf"{column}_(\d+)", key))]


# ---- text ----------------------------------------------------------------------------------------


def table(rows: Sequence[Row]) -> str:
    """Two tables: what quantising each layer does to the model, then what it saves and its variance
    at every width.
    """
    share = widths(rows, "bound_share")[0]
    # whole paths, which `layers` of a group in a configuration match
    harm = {"layer": [row["layer"].removesuffix(".weight") for row in rows]}
    harm["kind"] = [row["kind"] for row in rows]
    cost = {**harm}
    harm["parameters"] = [f"{row['parameters']:,}" for row in rows]
    for b in widths(rows, "loss_increase"):
        harm[f"loss +@{b}"] = [f"{row[f'loss_increase_{b}']:+.4f}" for row in rows]
    accuracy = ""
    for b in widths(rows, "accuracy_drop"):
        harm[f"acc -@{b}"] = [f"{100 * row[f'accuracy_drop_{b}']:+.1f}" for row in rows]
        accuracy = ", acc -@b: accuracy lost in points"
    harm["significance"] = [f"{row['significance']:.3g}" for row in rows]
    harm["curvature"] = [f"{row['curvature']:.3g}" for row in rows]
    harm[f"bound@{share}"] = [f"{100 * row[f'bound_share_{share}']:.1f} %" for row in rows]
    for b in widths(rows, "saved_bytes"):
        cost[f"kB@{b}"] = [f"{row[f'saved_bytes_{b}'] / 1e3:,.1f}" for row in rows]
    for b in widths(rows, "variance"):
        cost[f"V@{b}"] = [f"{row[f'variance_{b}']:.1e}" for row in rows]
    legend = (
        f"loss +@b: loss gained with this layer alone at b bits{accuracy}\n"
        f"significance: share of the harm by share of the memory; bound@{share}: share of the "
        f"bound's quantisation term with all layers at {share} bits\nkB@b: bytes saved at b bits "
        "against float32, in 1,000; V@b: variance of stochastic rounding to b bits"
    )
    return "\n\n".join([_ruled(harm), _ruled(cost), legend])


def _ruled(columns: Mapping[str, Sequence[str]]) -> str:
    """Columns as a table with a rule below its head."""
    return ruled([list(columns), *zip(*columns.values(), strict=True)])


def write_csv(rows: Sequence[Row], path: Path) -> None:
    """Write one line a layer, its numbers in full.

    Raises:
        OSError: `path` cannot be written.
    """
    write_text(path, csv_text(rows))


def read_csv(path: Path) -> list[dict[str, Any]]:
    """The rows that `write_csv` wrote.

    Raises:
        ValueError: The file holds another table.
        OSError: It cannot be read.
    """
    with open(path, encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    rows = []
    try:
        for line in lines:
            numbers = {key: float(value) for key, value in line.items() if key not in _WORDS}
            rows.append({**line, **numbers})
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{path}: every column but layer and kind must hold numbers: {error}"
        ) from error
    if not rows or not {"layer", "parameters", "significance"} <= rows[0].keys():
        raise ValueError(f"{path}: no table of layers; they are written by bhfl analyze")
    return rows


# ---- picture -------------------------------------------------------------------------------------


def draw(rows: Sequence[Row], out: Path, title: str = "") -> None:
    """Draw memory saved, loss and accuracy lost, and significance by layer, and the quantisation
    term of the bound against bits.

    Args:
        rows: One for each layer, from the input down.
        out: The picture, a PNG file.
        title: What stands above it.

    Raises:
        OSError: `out` cannot be written.
        ImportError: matplotlib is not installed; the message says what to install.
    """
    bars = [column for column in _PANELS if widths(rows, column)]
    top = [*bars, "significance"]
    height = 1.3 + 0.27 * len(rows)
    figure, axes = pyplot().subplot_mosaic(
        [top, ["bound"] * len(top)],
        height_ratios=[height, 3.1],
        figsize=(2.2 + 3.3 * len(top), height + 3.6),
        layout="constrained",
    )
    for column in bars:
        _bars(axes[column], rows, column)
    # the first layers are mostly the smallest, so that their bars leave room
    axes[top[0]].legend(fontsize=8, loc="upper right")
    _significance(axes["significance"], rows)
    names = labels([row["layer"] for row in rows])
    for column in top:
        name_rows(axes[column], names, shown=column == top[0])
    _bound(figure, axes["bound"], rows)
    figure.suptitle(title, fontsize=10)
    save(figure, out)


def _bars(axis: Any, rows: Sequence[Row], column: str) -> None:
    """Draw one bar a layer and probed width, the fewest bits on top."""
    factor, caption = _PANELS[column]
    axis.set_title(caption, fontsize=9)
    probed = widths(rows, "loss_increase")
    bits = [b for b in probed if f"{column}_{b}" in rows[0]] or widths(rows, column)[:1]
    for i, b in enumerate(bits):
        places = [row - 0.4 + 0.8 * (i + 0.5) / len(bits) for row in range(len(rows))]
        values = [factor * row[f"{column}_{b}"] for row in rows]
        axis.barh(places, values, 0.8 / len(bits), color=f"C{i}", label=f"{b} bits")
    axis.axvline(0, color="black", linewidth=0.6)


def _significance(axis: Any, rows: Sequence[Row]) -> None:
    """Draw the significance of each layer on a logarithmic axis around 1. Layers that did no harm
    have no place on it: they are named at the edge.
    """
    values = [row["significance"] for row in rows]
    positive = [value for value in values if value > 0]
    low = min([*positive, 0.5]) / 2
    high = max([*positive, 2.0]) * 2
    for place, value in enumerate(values):
        colour = "tab:red" if value > 1 else "tab:green"
        if value > 0:
            axis.plot([1, value], [place, place], color=colour, linewidth=2)
            axis.plot(value, place, "o", color=colour, markersize=5)
        else:
            axis.text(low * 1.1, place, "no harm", fontsize=7, color=colour, va="center")
    axis.axvline(1, color="black", linewidth=0.6)
    axis.set(xscale="log", xlim=(low, high))
    axis.set_title("significance: squeeze < 1 < protect", fontsize=9)


def _bound(figure: Any, axis: Any, rows: Sequence[Row]) -> None:
    """Draw a line for each layer, coloured by depth, and one for their sum."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    bits = widths(rows, "variance")
    viridis = pyplot().get_cmap("viridis")
    for depth, row in enumerate(rows):
        # a logarithmic axis has no zero: nan leaves a gap
        values = [row[f"variance_{b}"] or math.nan for b in bits]
        # up to 0.9: the end of the colours is too pale for a thin line
        colour = viridis(0.9 * depth / max(len(rows) - 1, 1))
        axis.plot(bits, values, color=colour, linewidth=0.9, marker=".", markersize=3)
    total = []
    for b in bits:
        total.append(sum(row[f"variance_{b}"] for row in rows) or math.nan)
    axis.plot(bits, total, color="black", linewidth=2, marker="o", markersize=4, label="all layers")
    axis.set(yscale="log", xticks=bits, xlabel="bits of every layer")
    axis.set_ylabel(r"in units of $2L\,\Sigma_i p_i^2 \,/\, (\eta K)$", fontsize=8)
    axis.set_title(
        "quantisation term of the convergence bound, weights sent, by layer and in all", fontsize=9
    )
    bare(axis)
    axis.legend(fontsize=8, frameon=False)
    depths = ScalarMappable(Normalize(0, 1), viridis)
    bar = figure.colorbar(depths, ax=axis, pad=0.01, ticks=[0, 1])
    bar.ax.set_yticklabels(["first layer", "last layer"], fontsize=7)


def main(args: list[str] | None = None) -> None:
    """Parse the command line and draw."""
    parser = Parser(prog="python -m bhfl.report.layers", description=__doc__)
    parser.add_argument("table", type=path_argument, help="layers.csv of bhfl analyze")
    about = "the picture; next to the table by default"
    parser.add_argument("--out", type=path_argument, help=about)
    options = parser.parse_args(args)
    out = options.out or options.table.with_suffix(".png")
    with errors_told(parser):
        draw(read_csv(options.table), out)
    print(out)


if __name__ == "__main__":
    main()
