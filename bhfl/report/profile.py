"""What ``bhfl profile`` measured, by group and layer: console tables, CSV and picture.

The columns are those of `bhfl.analysis.profile`.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bhfl.files import write_text
from bhfl.report.drawing import labels, name_rows, pyplot, save
from bhfl.report.forms import csv_text, filled, ruled

Row = Mapping[str, Any]
ALL = "(all)"
"""The layer of the row that is of a whole group."""
_NUMBERS: dict[str, tuple[str, Callable[[float], str]]] = {
    "parameters": ("parameters", "{:,}".format),
    "low_share": ("low bits", "{:.0%}".format),
    "flops": ("MFLOPs", lambda value: f"{value / 1e6:,.2f}"),
    "training_flops": ("to train", lambda value: f"{value / 1e6:,.2f}"),
    "kept_bytes": ("kept kB", lambda value: f"{value / 1e3:,.1f}"),
    "step_seconds": ("step ms", lambda value: f"{1e3 * value:,.2f}"),
    "step_joules": ("step J", "{:,.2f}".format),
    "uplink_bytes": ("up kB", lambda value: f"{value / 1e3:,.1f}"),
    "downlink_bytes": ("down kB", lambda value: f"{value / 1e3:,.1f}"),
    "once_bytes": ("once kB", lambda value: f"{value / 1e3:,.1f}"),
}
"""Head and form of the columns of a table; one that no row has is left out."""
_PANELS = {
    "kept_bytes": (1e-3, "kept for backward [kB a batch]"),
    "step_seconds": (1e3, "training step [ms]"),
    "uplink_bytes": (1e-3, "sent up in a round [kB]"),
    "downlink_bytes": (1e-3, "sent down in a round [kB]"),
}
"""Factor and title of the panels of bars, by column."""


def table(rows: Sequence[Row]) -> str:
    """A table of the groups, and one of each group's layers."""
    parts = [_ruled(whole(rows), "group")]
    for row in whole(rows):
        layers = [one for one in rows if name(one) == name(row) and one["layer"] != ALL]
        parts.append(f"{name(row)}, layer by layer\n{_ruled(layers, 'layer')}")
    parts.append(
        "MFLOPs: forward pass of one sample, and of a training step; kept: for the backward pass\n"
        "of a batch; step ms: a training step, of a layer its two passes alone; up, down: one\n"
        "client in a round"
    )
    return "\n\n".join(parts)


def whole(rows: Sequence[Row]) -> list[Row]:
    """The rows of whole groups."""
    return [row for row in rows if row["layer"] == ALL]


def name(row: Row) -> str:
    """What a row is of: its group, and the rounds of its bits where these change."""
    rounds = f", rounds {row['rounds']}" if "rounds" in row else ""
    return f"{row['group']}{rounds}"


def _ruled(rows: Sequence[Row], first: str) -> str:
    """Rows as a table with a rule below its head."""
    known = [key for key in _NUMBERS if _is_told(key, rows)]
    # above a table of layers stands what they are of
    dated = first == "group" and "rounds" in rows[0]
    words = [first, "rounds", "bits"] if dated else [first, "bits"]
    lines = [[*words, *(_NUMBERS[key][0] for key in known)]]
    for row in rows:
        cells = ["-" if math.isnan(row[key]) else _NUMBERS[key][1](row[key]) for key in known]
        lines.append([*(row[word] for word in words), *cells])
    return ruled(lines)


def _is_told(key: str, rows: Sequence[Row]) -> bool:
    """Whether any row has a number in a column."""
    return any(not math.isnan(row.get(key, math.nan)) for row in rows)


def write_csv(rows: Sequence[Row], path: Path) -> None:
    """Write one line a layer and group, its numbers in full; what was not measured is empty.

    Raises:
        OSError: `path` cannot be written.
    """
    write_text(path, csv_text([filled(row) for row in rows]))


def draw(rows: Sequence[Row], out: Path, title: str = "") -> None:
    """Draw what each group keeps, takes and sends in all, and below that layer by layer.

    Args:
        rows: One for each layer and group, and those of whole groups.
        out: The picture, a PNG file.
        title: What stands above it.

    Raises:
        OSError: `out` cannot be written.
        ImportError: matplotlib is not installed; the message says what to install.
    """
    groups = [name(row) for row in whole(rows)]
    layers = list(dict.fromkeys(row["layer"] for row in rows if row["layer"] != ALL))
    heights = [0.6 + 0.24 * len(groups), 0.6 + (0.14 + 0.09 * len(groups)) * len(layers)]
    figure, axes = pyplot().subplots(
        2,
        len(_PANELS),
        height_ratios=heights,
        figsize=(2.2 + 3.0 * len(_PANELS), sum(heights) + 1.0),
        layout="constrained",
        squeeze=False,
    )
    for place, (column, (factor, caption)) in enumerate(_PANELS.items()):
        axes[0, place].set_title(caption, fontsize=9)
        for i, row in enumerate(whole(rows)):
            axes[0, place].barh(i, factor * row[column], 0.7, color=f"C{i}")
        for i, group in enumerate(groups):
            values = {row["layer"]: row[column] for row in rows if name(row) == group}
            places = [at - 0.4 + 0.8 * (i + 0.5) / len(groups) for at in range(len(layers))]
            sizes = [factor * values[layer] for layer in layers]
            axes[1, place].barh(places, sizes, 0.8 / len(groups), color=f"C{i}", label=group)
    for names, line in ((groups, axes[0]), (labels(layers), axes[1])):
        for place, axis in enumerate(line):
            name_rows(axis, names, shown=place == 0)
    axes[1, 0].legend(fontsize=8, frameon=False)
    figure.suptitle(title, fontsize=10)
    save(figure, out)
