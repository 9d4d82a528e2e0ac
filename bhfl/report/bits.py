"""The bits that FedLQ gave each layer in each round, as a picture: ``python -m bhfl.report.bits RUN
[RUN ...]``.

They are read from ``rounds.jsonl`` of finished or running runs, whose tags
``fedlq/bits_<parameter>`` hold the mean bits over the round's clients. Each run has a panel: layers
from the input down, rounds to the right.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bhfl.report.drawing import labels, plain, pyplot
from bhfl.report.reading import Run, path_argument, read_run, with_runs_below

PREFIX = "fedlq/bits_"
_MAX_CELLS = 10**7
_TICKS = (2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 32.0)

Bits = tuple[list[str], list[int], npt.NDArray[np.float64]]
"""Layers in the model's order, rounds, and mean bits ``[layers, rounds]``, nan where a round has
none.
"""


def read(run: Run) -> Bits:
    """The bits that a run tells of.

    Raises:
        ValueError: There are none.
    """
    tags = [tag for tag in run.tags if tag.startswith(PREFIX)]
    if not tags:
        why = "no rounds.jsonl with a round in it"
        if run.rounds:
            why = f"{len(run.rounds)} rounds without a tag {PREFIX}<parameter>"
        raise ValueError(f"{run.folder}: {why}; they are written by runs of FedLQ")
    rounds = range(run.rounds[0]["round"], run.num_rounds + 1)
    if len(tags) * len(rounds) > _MAX_CELLS:
        raise ValueError(
            f"{run.folder}: {len(rounds)} rounds of {len(tags)} layers are too many for a picture"
        )
    found = np.full((len(tags), len(rounds)), np.nan)
    for i, tag in enumerate(tags):
        for round, bits in run.series(tag).items():
            found[i, round - rounds[0]] = bits or np.nan
    if np.isnan(found).all():
        raise ValueError(f"{run.folder}: no round of it has bits: no client sent anything")
    return [tag.removeprefix(PREFIX) for tag in tags], list(rounds), found


def draw(runs: list[Path], out: Path) -> None:
    """Draw one panel a run, with the same colours for the same bits, and save the picture.

    Raises:
        ValueError: A run has no such tags.
        ImportError: matplotlib is not installed; the message says what to install.
    """
    found = [read(read_run(run)) for run in runs]
    plt = pyplot()
    tallest = max(len(layers) for layers, _, _ in found)
    size = (1.2 + 4.6 * len(runs), 1.6 + 0.24 * max(tallest, 8))
    figure, panels = plt.subplots(1, len(runs), figsize=size, squeeze=False, layout="constrained")
    heat(panels[0], found)
    for panel, run in zip(panels[0], runs, strict=True):
        panel.set_title(plain("/".join(run.absolute().parts[-3:-1])), fontsize=9)
    figure.savefig(out, dpi=150)
    plt.close(figure)


def heat(panels: Sequence[Any], found: Sequence[Bits]) -> None:
    """Fill a panel a run, and put the scale that they share beside them."""
    from matplotlib.colors import LogNorm

    every = np.concatenate([bits.ravel() for _, _, bits in found])
    low = float(np.nanmin(every))
    high = float(np.nanmax(every))
    colours = LogNorm(low, high if high > low else low + 1)
    image: Any = None
    for panel, (layers, rounds, bits) in zip(panels, found, strict=True):
        extent = (rounds[0] - 0.5, rounds[-1] + 0.5, len(layers) - 0.5, -0.5)
        image = panel.imshow(
            bits,
            norm=colours,
            cmap="viridis",
            aspect="auto",
            interpolation="nearest",
            extent=extent,
        )
        panel.set_yticks(range(len(layers)), map(plain, labels(layers)), fontsize=8)
        panel.xaxis.get_major_locator().set_params(integer=True)
        panel.set_xlabel("round")
    bar = panels[0].figure.colorbar(
        image, ax=panels, label="mean bits of the round's clients", pad=0.02
    )
    ticks = [tick for tick in _TICKS if low <= tick <= high]
    ticks = ticks if len(ticks) > 1 else sorted({low, high})
    bar.set_ticks(ticks, labels=[f"{tick:.3g}" for tick in ticks])
    bar.minorticks_off()


def main(args: list[str] | None = None) -> None:
    """Parse the command line and draw."""
    parser = argparse.ArgumentParser(prog="python -m bhfl.report.bits", description=__doc__)
    parser.add_argument(
        "runs", nargs="+", type=path_argument, help="run folders, or folders that hold some"
    )
    parser.add_argument("--out", type=path_argument, default=Path("bits.png"))
    options = parser.parse_args(args)
    try:
        draw(with_runs_below(options.runs), options.out)
    except (ValueError, ImportError, OSError) as error:
        parser.exit(2, f"error: {error}\n")
    print(options.out)


if __name__ == "__main__":
    main()
