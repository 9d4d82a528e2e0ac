"""The bits that FedLQ gave each layer in each round, as a picture.

``python -m bhfl.report.bits RUN [RUN ...]`` reads ``rounds.jsonl`` of finished or running runs,
whose tags ``fedlq/bits_<parameter>`` hold the mean bits over the round's clients. Each run has a
panel: layers from the input down, rounds to the right.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bhfl.report.arguments import errors_told, picture_parser
from bhfl.report.drawing import labels, plain, save, side_by_side
from bhfl.report.reading import Run, read_run, with_runs_below

_PREFIX = "fedlq/bits_"
_MAX_CELLS = 10**7
_TICKS = (2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 32.0)

Bits = tuple[list[str], list[int], npt.NDArray[np.float64]]
"""Layers in the model's order, rounds, and mean bits ``[layers, rounds]``; nan where no client sent
the layer.
"""


def read(run: Run) -> Bits:
    """The bits that the rows of a run hold.

    Raises:
        ValueError: The run has no rows, its rows have no bits, or more than a picture can show.
    """
    tags = [tag for tag in run.tags if tag.startswith(_PREFIX)]
    if not tags:
        why = "no rounds.jsonl with a round in it"
        if run.rounds:
            why = f"{len(run.rounds)} rounds without a tag {_PREFIX}<parameter>"
        raise ValueError(f"{run.folder}: {why}; they are written by runs of FedLQ")
    rounds = range(run.rounds[0]["round"], run.num_rounds + 1)
    # a damaged file may name any round: nothing of that size is made for it
    if len(tags) * len(rounds) > _MAX_CELLS:
        raise ValueError(
            f"{run.folder}: {len(rounds)} rounds of {len(tags)} layers are too many for a picture"
        )
    found = np.full((len(tags), len(rounds)), np.nan)
    for i, tag in enumerate(tags):
        for round, bits in run.series(tag).items():
            # zero bits: no client sent the layer
            found[i, round - rounds[0]] = bits or np.nan
    if np.isnan(found).all():
        raise ValueError(f"{run.folder}: no round of it has bits: no client sent anything")
    return [tag.removeprefix(_PREFIX) for tag in tags], list(rounds), found


def draw(runs: list[Path], out: Path) -> None:
    """Draw one panel a run, with the same colours for the same bits, and save the picture.

    Raises:
        ValueError: A run has no bits; see `read`.
        ImportError: matplotlib is not installed; the message says what to install.
    """
    found = [read(read_run(run)) for run in runs]
    tallest = max(len(layers) for layers, _, _ in found)
    size = (1.2 + 4.6 * len(runs), 1.6 + 0.24 * max(tallest, 8))
    figure, panels = side_by_side(runs, size, layout="constrained")
    heat(panels, found)
    save(figure, out)


def heat(panels: Sequence[Any], found: Sequence[Bits]) -> None:
    """Draw the bits of one run in each of the panels, and the scale that all share beside them."""
    from matplotlib.colors import LogNorm

    low = min(float(np.nanmin(bits)) for _, _, bits in found)
    high = max(float(np.nanmax(bits)) for _, _, bits in found)
    # a scale needs two ends, and all bits may be the same
    colours = LogNorm(low, high if high > low else low + 1)
    image = None
    for panel, (layers, rounds, bits) in zip(panels, found, strict=True):
        extent = (rounds[0] - 0.5, rounds[-1] + 0.5, len(layers) - 0.5, -0.5)
        style = {"norm": colours, "cmap": "viridis", "aspect": "auto", "interpolation": "nearest"}
        image = panel.imshow(bits, extent=extent, **style)
        panel.set_yticks(range(len(layers)), map(plain, labels(layers)), fontsize=8)
        panel.xaxis.get_major_locator().set_params(integer=True)
        panel.set_xlabel("round")
    caption = "mean bits of the round's clients"
    bar = panels[0].figure.colorbar(image, ax=panels, label=caption, pad=0.02)
    ticks = [tick for tick in _TICKS if low <= tick <= high]
    if len(ticks) < 2:
        ticks = sorted({low, high})
    bar.set_ticks(ticks, labels=[f"{tick:.3g}" for tick in ticks])
    bar.minorticks_off()


def main(args: list[str] | None = None) -> None:
    """Parse the command line and draw."""
    parser = picture_parser("bits", __doc__)
    options = parser.parse_args(args)
    with errors_told(parser):
        draw(with_runs_below(options.runs), options.out)
    print(options.out)


if __name__ == "__main__":
    main()
