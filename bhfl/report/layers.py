"""What ``bhfl analyze`` found, layer by layer: console tables, CSV and picture. A picture is drawn
again from a CSV by ``python -m bhfl.report.layers layers.csv``.

The columns are those of `bhfl.analysis.layers`; ``name_<bits>`` is one column for each
width.
"""

import argparse
import csv
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bhfl.checks import aligned
from bhfl.files import durable
from bhfl.report.drawing import labels, pyplot
from bhfl.report.reading import path_argument

Row = Mapping[str, Any]

_PANELS = (
    ("saved_bytes", 1e-6, "memory saved against float32 [MB]"),
    ("loss_increase", 1.0, "loss increase, this layer alone quantised"),
    ("accuracy_drop", 100.0, "accuracy drop [points], likewise"),
)
"""Column, factor and title of the panels of bars; a panel without its columns is left out."""


def widths(rows: Sequence[Row], column: str) -> list[int]:
    """The bit-widths for which there is a column of that name."""
    return [int(match[1]) for key in rows[0] if (match := re.fullmatch(rf"{column}_(\d+)", key))]


# ---- text ----------------------------------------------------------------------------------------


def table(rows: Sequence[Row]) -> str:
    """Two tables: what quantising each layer costs, then what it saves and its variance at every
    width.
    """
    names = labels([row["layer"] for row in rows])
    probed = widths(rows, "loss_increase")
    bits = widths(rows, "saved_bytes")
    share = widths(rows, "bound_share")[0]
    has_accuracy = bool(widths(rows, "accuracy_drop"))
    head = ["layer", "parameters", *(f"loss +@{b}" for b in probed)]
    head += [f"acc -@{b}" for b in probed] if has_accuracy else []
    harm = [[*head, "significance", "curvature", f"bound@{share}"]]
    cost = [["layer", *(f"kB@{b}" for b in bits), *(f"V@{b}" for b in bits)]]
    for name, row in zip(names, rows, strict=True):
        cells = [name, f"{row['parameters']:,}"]
        cells += [f"{row[f'loss_increase_{b}']:+.4f}" for b in probed]
        cells += [f"{100 * row[f'accuracy_drop_{b}']:+.1f}" for b in probed] if has_accuracy else []
        cells += [f"{row['significance']:.3g}", f"{row['curvature']:.3g}"]
        harm.append([*cells, f"{100 * row[f'bound_share_{share}']:.1f} %"])
        saved = [f"{row[f'saved_bytes_{b}'] / 1e3:,.1f}" for b in bits]
        cost.append([name, *saved, *(f"{row[f'variance_{b}']:.1e}" for b in bits)])
    accuracy = ", acc -@b: accuracy lost in points" if has_accuracy else ""
    legend = (
        f"loss +@b: loss gained with this layer alone at b bits{accuracy}\n"
        f"significance: share of the harm by share of the memory; bound@{share}: share of the "
        f"bound's quantisation term with all layers at {share} bits\nkB@b: bytes saved at b bits "
        "against float32, in 1,000; V@b: variance of stochastic rounding to b bits"
    )
    return "\n\n".join([_ruled(harm), _ruled(cost), legend])


def _ruled(rows: Sequence[Sequence[str]]) -> str:
    """A table of cells with a rule below its head."""
    head, *lines = aligned(rows)
    return "\n".join([head, "-" * len(head), *lines])


def write_csv(rows: Sequence[Row], path: Path) -> None:
    """One line a layer, numbers in full."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    with durable(path) as file:
        file.write(text.getvalue().encode())


def read_csv(path: Path) -> list[dict[str, Any]]:
    """The rows that `write_csv` wrote.

    Raises:
        ValueError: They are not of that kind.
    """
    with open(path, encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    rows = []
    try:
        for line in lines:
            numbers = {key: float(value) for key, value in line.items() if key != "layer"}
            rows.append({**line, **numbers})
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{path}: every column but the layer must hold numbers: {error}"
        ) from error
    if not rows or not {"layer", "parameters", "significance"} <= rows[0].keys():
        raise ValueError(f"{path}: no table of layers; they are written by bhfl analyze")
    return rows


# ---- picture -------------------------------------------------------------------------------------


def draw(rows: Sequence[Row], out: Path, title: str = "") -> None:
    """Memory saved and loss and accuracy lost by layer, significance, and the bound's quantisation
    term against bits.

    Raises:
        ImportError: matplotlib is not installed; the message says what to install.
    """
    plt = pyplot()
    panels = [panel for panel in _PANELS if widths(rows, panel[0])]
    height = 1.3 + 0.27 * len(rows)
    figure = plt.figure(figsize=(2.2 + 3.3 * (len(panels) + 1), height + 3.6), layout="constrained")
    grid = figure.add_gridspec(2, len(panels) + 1, height_ratios=[height, 3.1])
    first = figure.add_subplot(grid[0, 0])
    axes = [first]
    for i in range(1, len(panels) + 1):
        axes.append(figure.add_subplot(grid[0, i], sharey=first))
    for axis, (column, factor, caption) in zip(axes, panels, strict=False):
        _bars(axis, rows, column, factor)
        axis.set_title(caption, fontsize=9)
    _significance(axes[-1], rows)
    first.set_yticks(range(len(rows)), labels([row["layer"] for row in rows]), fontsize=8)
    first.set_ylim(len(rows) - 0.4, -0.6)
    first.legend(fontsize=8, loc="upper right")  # the last layers are mostly the largest
    for axis in axes:
        axis.grid(axis="x", linewidth=0.3)
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(axis="y", length=0, labelleft=axis is first)
    _bound(figure, figure.add_subplot(grid[1, :]), rows)
    figure.suptitle(title, fontsize=10)
    with durable(out) as file:
        figure.savefig(file, dpi=150, format="png")
    plt.close(figure)


def _bars(axis: Any, rows: Sequence[Row], column: str, factor: float) -> None:
    """Draw one bar a layer and probed width, the fewest bits on top."""
    bits = widths(rows, "loss_increase")
    bits = [b for b in bits if f"{column}_{b}" in rows[0]] or widths(rows, column)[:1]
    for i, b in enumerate(bits):
        places = [row - 0.4 + 0.8 * (i + 0.5) / len(bits) for row in range(len(rows))]
        values = [factor * row[f"{column}_{b}"] for row in rows]
        axis.barh(places, values, 0.8 / len(bits), color=f"C{i}", label=f"{b} bits")
    axis.axvline(0, color="black", linewidth=0.6)


def _significance(axis: Any, rows: Sequence[Row]) -> None:
    """Draw it on a logarithmic axis around 1; layers that did no harm are named at the edge."""
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
    axis.set_xscale("log")
    axis.set_xlim(low, high)
    axis.set_title("significance: squeeze < 1 < protect", fontsize=9)


def _bound(figure: Any, axis: Any, rows: Sequence[Row]) -> None:
    """Draw lines by layer, coloured by depth, and their sum."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    bits = widths(rows, "variance")
    for depth, row in enumerate(rows):
        values = [row[f"variance_{b}"] or float("nan") for b in bits]
        axis.plot(
            bits, values, color=_colour(depth, len(rows)), linewidth=0.9, marker=".", markersize=3
        )
    total = []
    for b in bits:
        total.append(sum(row[f"variance_{b}"] for row in rows) or float("nan"))
    axis.plot(bits, total, color="black", linewidth=2, marker="o", markersize=4, label="all layers")
    axis.set_yscale("log")
    axis.set_xticks(bits)
    axis.set_xlabel("bits of every layer")
    axis.set_ylabel(r"in units of $2L\,\Sigma_i p_i^2 \,/\, (\eta K)$", fontsize=8)
    axis.set_title(
        "quantisation term of the convergence bound, weights sent, by layer and in all", fontsize=9
    )
    axis.grid(linewidth=0.3)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(fontsize=8, frameon=False)
    bar = figure.colorbar(
        ScalarMappable(Normalize(0, 1), "viridis"), ax=axis, pad=0.01, ticks=[0, 1]
    )
    bar.ax.set_yticklabels(["first layer", "last layer"], fontsize=7)


def _colour(index: int, count: int) -> Any:
    return pyplot().get_cmap("viridis")(0.9 * index / max(count - 1, 1))


def main(args: list[str] | None = None) -> None:
    """Parse the command line and draw."""
    parser = argparse.ArgumentParser(prog="python -m bhfl.report.layers", description=__doc__)
    parser.add_argument("table", type=path_argument, help="layers.csv of bhfl analyze")
    parser.add_argument(
        "--out", type=path_argument, help="the picture; next to the table by default"
    )
    options = parser.parse_args(args)
    out = options.out or options.table.with_suffix(".png")
    try:
        draw(read_csv(options.table), out)
    except (ValueError, ImportError, OSError) as error:
        parser.exit(2, f"error: {error}\n")
    print(out)


if __name__ == "__main__":
    main()
