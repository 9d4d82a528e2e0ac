"""Histograms of the global float32 weights over rounds, as a picture.

``python -m bhfl.report.weights RUN [RUN ...]`` reads what `bhfl.callbacks.WeightHistograms` wrote
to TensorBoard while a run went on, and draws one panel a run. Under naive averaging the weights
collapse onto the levels of the low-bit clients.
"""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bhfl.report.arguments import errors_told, picture_parser
from bhfl.report.drawing import plain, pyplot, save, side_by_side
from bhfl.report.reading import with_runs_below

_NUM_ROUNDS = 8
"""The rounds that are drawn at most."""

Array = npt.NDArray[np.float64]
Histograms = dict[int, tuple[Array, Array]]
"""The histogram of each round: the edges ``[bins + 1]`` and the counts ``[bins]``."""


def read(run: Path) -> dict[str, Histograms]:
    """The histograms of a run folder, by weight tensor.

    Raises:
        ValueError: There is no such folder, or no histograms are in it.
    """
    if not run.is_dir():
        raise ValueError(f"{run}: no such folder")
    for file in run.glob("*tfevents*"):
        # TensorBoard would wait for a pipe for ever
        if not file.is_file():
            raise ValueError(f"{file} must be a file of TensorBoard, and is not a file")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    # 0 keeps all of them, where the default keeps one
    events = EventAccumulator(str(run), size_guidance={"histograms": 0})
    events.Reload()
    found: dict[str, Histograms] = {}
    for tag in events.Tags()["histograms"]:
        for event in events.Histograms(tag):
            value = event.histogram_value
            edges = np.array([value.min, *value.bucket_limit])
            of_layer = found.setdefault(tag.removeprefix("weights/"), {})
            of_layer[event.step] = (edges, np.array(value.bucket))
    if not found:
        raise ValueError(
            f"{run}: no weight histograms; they are written by the callback WeightHistograms"
        )
    return found


def density(edges: Array, counts: Array, x: Array) -> Array:
    """The density of a histogram: its area is one.

    Args:
        edges: The edges of its bins, rising, ``[bins + 1]``.
        counts: What is in its bins, ``[bins]``.
        x: Where the density is wanted, of any shape.

    Returns:
        The density at each of `x`; zero outside of all bins.
    """
    # a bin at the edge may have no width, which nothing can be divided by
    widths = np.diff(edges)
    heights = np.divide(counts, widths, out=np.zeros_like(counts), where=widths > 0)
    heights /= max(counts.sum(), 1)
    bins = np.searchsorted(edges, x, side="right") - 1
    inside = (bins >= 0) & (bins < len(counts))
    return np.where(inside, heights[np.clip(bins, 0, len(counts) - 1)], 0.0)


def draw(runs: list[Path], out: Path, layer: str | None = None) -> None:
    """Draw some rounds of one weight tensor of each run, the largest by default, and save the
    picture.

    Raises:
        ValueError: A run has no histograms, or not of `layer`.
        ImportError: matplotlib is not installed; the message says what to install.
    """
    found = [chosen(run, layer) for run in runs]
    size = (4.2 * len(runs), 4.6)
    figure, panels = side_by_side(runs, size, layout="tight", sharex=True)
    for panel, (name, histograms) in zip(panels, found, strict=True):
        ridges(panel, histograms)
        panel.set_title(f"{panel.get_title()}\n{plain(name)}", fontsize=9)
    save(figure, out)


def chosen(run: Path, layer: str | None = None) -> tuple[str, Histograms]:
    """The name and histograms of `layer`, or of the run's largest weight tensor.

    Raises:
        ValueError: The run has no histograms, or not of `layer`.
    """
    found = read(run)
    name = layer or max(found, key=lambda tag: next(iter(found[tag].values()))[1].sum())
    if name not in found:
        raise ValueError(f"{run}: no histograms of {name!r}; there are {', '.join(found)}")
    return name, found[name]


def ridges(panel: Any, histograms: Histograms) -> None:
    """Draw some of a tensor's rounds above each other, the first at the bottom."""
    rounds = sorted(histograms)
    places = np.linspace(0, len(rounds) - 1, _NUM_ROUNDS).astype(int)
    shown = [rounds[i] for i in np.unique(places)]
    reach = max(_reach(edges, counts) for edges, counts in histograms.values())
    x = np.linspace(-reach, reach, 400)
    for height, round in enumerate(shown):
        # the root shows the flanks beside the peaks
        y = np.sqrt(density(*histograms[round], x))
        y = height + 1.6 * y / max(y.max(), 1e-12)
        colour = pyplot().get_cmap("viridis")(height / max(len(shown) - 1, 1))
        style = {"color": colour, "alpha": 0.8, "zorder": len(shown) - height, "linewidth": 0.6}
        # as paths the ridges would be most of the bytes of a report
        panel.fill_between(x, height, y, rasterized=True, **style)
    panel.set_yticks(range(len(shown)), [f"round {round}" for round in shown], fontsize=8)
    panel.set_xlabel("weight")
    panel.spines[["top", "right", "left"]].set_visible(False)


def _reach(edges: Array, counts: Array) -> float:
    """The largest magnitude among the bins that hold all but the last 0.2 % of the weights."""
    middles = 0.5 * (edges[1:] + edges[:-1])
    inside = np.cumsum(counts) <= 0.998 * counts.sum()
    return float(np.abs(middles[inside]).max(initial=1e-12))


def main(args: list[str] | None = None) -> None:
    """Parse the command line and draw."""
    parser = picture_parser("weights", __doc__)
    parser.add_argument("--layer", help="name of a weight tensor; the largest by default")
    options = parser.parse_args(args)
    with errors_told(parser):
        draw(with_runs_below(options.runs), options.out, options.layer)
    print(options.out)


if __name__ == "__main__":
    main()
