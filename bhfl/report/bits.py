"""The bits that FedLQ gave each layer in each round, as a picture: ``python -m bhfl.report.bits RUN [RUN ...]``.

Read from ``rounds.jsonl`` of finished or running runs, whose tags ``fedlq/bits_<parameter>`` hold the mean bits over
the round's clients. One panel a run: layers from the input down, rounds to the right.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bhfl.engine.folder import RoundsFile
from bhfl.report.drawing import labels, pyplot

PREFIX = "fedlq/bits_"
_TICKS = (2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 32.0)


def read(run: Path) -> tuple[list[str], list[int], npt.NDArray[np.float64]]:
    """Layers in the model's order, rounds, and mean bits ``[layers, rounds]``, nan where a round has none.

    Raises:
        ValueError: The folder holds none.
    """
    rows = RoundsFile(run / "rounds.jsonl").read()
    layers = list(dict.fromkeys(tag.removeprefix(PREFIX) for row in rows for tag in row if tag.startswith(PREFIX)))
    if not layers:
        why = f"{len(rows)} rounds without a tag {PREFIX}<parameter>" if rows else "no rounds.jsonl with a round in it"
        raise ValueError(f"{run}: {why}; they are written by runs of FedLQ")
    rounds = range(min(row["round"] for row in rows), max(row["round"] for row in rows) + 1)
    found = np.full((len(layers), len(rounds)), np.nan)
    for row in rows:
        for i, layer in enumerate(layers):
            found[i, row["round"] - rounds[0]] = row.get(PREFIX + layer) or np.nan
    if np.isnan(found).all():
        raise ValueError(f"{run}: no round of it has bits: no client sent anything")
    return layers, list(rounds), found


def draw(runs: list[Path], out: Path) -> None:
    """Draw one panel a run, with the same colours for the same bits, and save the picture.

    Raises:
        ValueError: A run has no such tags.
        ImportError: matplotlib is not installed; the message says what to install.
    """
    found = [read(run) for run in runs]
    plt = pyplot()
    from matplotlib.colors import LogNorm

    every = np.concatenate([bits.ravel() for _, _, bits in found])
    low, high = float(np.nanmin(every)), float(np.nanmax(every))
    high = high if high > low else low + 1
    colours = LogNorm(low, high)
    tallest = max(len(layers) for layers, _, _ in found)
    size = (1.2 + 4.6 * len(runs), 1.6 + 0.24 * max(tallest, 8))
    figure, panels = plt.subplots(1, len(runs), figsize=size, squeeze=False, layout="constrained")
    image: Any = None
    for panel, run, (layers, rounds, bits) in zip(panels[0], runs, found, strict=True):
        extent = (rounds[0] - 0.5, rounds[-1] + 0.5, len(layers) - 0.5, -0.5)
        image = panel.imshow(bits, norm=colours, cmap="viridis", aspect="auto", interpolation="nearest", extent=extent)
        panel.set_yticks(range(len(layers)), labels(layers), fontsize=8)
        panel.xaxis.get_major_locator().set_params(integer=True)
        panel.set_title(f"{run.parent.name}\n{run.name}", fontsize=9)
        panel.set_xlabel("round")
    bar = figure.colorbar(image, ax=panels[0], label="mean bits of the round's clients", pad=0.02)
    ticks = [tick for tick in _TICKS if low <= tick <= high] or [low]
    bar.set_ticks(ticks, labels=[f"{tick:g}" for tick in ticks])
    bar.minorticks_off()
    figure.savefig(out, dpi=150)
    plt.close(figure)


def main(args: list[str] | None = None) -> None:
    """Parse the command line and draw."""
    parser = argparse.ArgumentParser(prog="python -m bhfl.report.bits", description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path, help="run folders")
    parser.add_argument("--out", type=Path, default=Path("bits.png"))
    options = parser.parse_args(args)
    try:
        draw(options.runs, options.out)
    except (ValueError, ImportError, OSError) as error:
        parser.exit(2, f"error: {error}\n")
    print(options.out)


if __name__ == "__main__":
    main()
