"""Histograms of the global float32 weights over rounds, as a picture: ``python -m
bhfl.report.weights RUN [RUN ...]``.

Under naive averaging they collapse onto the levels of the low-bit clients; what was written to
TensorBoard while a run went on (`bhfl.callbacks.WeightHistograms`) is read back and drawn, one
panel a run.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bhfl.report.drawing import plain, pyplot
from bhfl.report.reading import path_argument, with_runs_below

Histograms = dict[int, tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]]
"""Round to (edges [B + 1], counts [B])."""


def read(run: Path) -> dict[str, Histograms]:
    """Histograms by weight tensor of a run folder.

    Raises:
        ValueError: There is no such folder, or it holds none.
    """
    if not run.is_dir():
        raise ValueError(f"{run}: no such folder")
    for file in run.glob("*tfevents*"):
        if not file.is_file():
            raise ValueError(f"{file} is no file")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

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


def density(
    edges: npt.NDArray[np.float64], counts: npt.NDArray[np.float64], x: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """The histogram's density at `x`, with area one."""
    widths = np.diff(edges)
    heights = np.divide(counts, widths, out=np.zeros_like(counts), where=widths > 0)
    heights /= max(counts.sum(), 1)
    bins = np.searchsorted(edges, x, side="right") - 1
    inside = (bins >= 0) & (bins < len(counts))
    return np.where(inside, heights[np.clip(bins, 0, len(counts) - 1)], 0.0)


def draw(runs: list[Path], out: Path, layer: str | None = None, num_rounds: int = 8) -> None:
    """Draw `num_rounds` rounds of one weight tensor of each run, the largest by default, and save
    the picture.

    Raises:
        ValueError: A run has no histograms, or not of `layer`.
        ImportError: matplotlib is not installed; the message says what to install.
    """
    found = [chosen(run, layer) for run in runs]
    plt = pyplot()
    figure, panels = plt.subplots(
        1, len(runs), figsize=(4.2 * len(runs), 4.6), squeeze=False, sharex=True, layout="tight"
    )
    for panel, run, (name, histograms) in zip(panels[0], runs, found, strict=True):
        ridges(panel, histograms, num_rounds)
        of_run = "/".join(run.absolute().parts[-3:-1])
        panel.set_title(f"{plain(of_run)}\n{plain(name)}", fontsize=9)
    figure.savefig(out, dpi=150)
    plt.close(figure)


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


def ridges(panel: Any, histograms: Histograms, num_rounds: int = 8) -> None:
    """Draw some of a tensor's rounds above each other, the first at the bottom."""
    rounds = sorted(histograms)
    shown = [rounds[i] for i in np.unique(np.linspace(0, len(rounds) - 1, num_rounds).astype(int))]
    reach = max(_reach(edges, counts) for edges, counts in histograms.values())
    x = np.linspace(-reach, reach, 400)
    for height, round in enumerate(shown):
        y = np.sqrt(density(*histograms[round], x))  # the root shows the flanks beside the peaks
        y = height + 1.6 * y / max(y.max(), 1e-12)
        colour = pyplot().get_cmap("viridis")(height / max(len(shown) - 1, 1))
        style = {"color": colour, "alpha": 0.8, "zorder": len(shown) - height, "linewidth": 0.6}
        # as paths they would be most of a report
        panel.fill_between(x, height, y, rasterized=True, **style)
    panel.set_yticks(range(len(shown)), [f"round {round}" for round in shown], fontsize=8)
    panel.set_xlabel("weight")
    panel.spines[["top", "right", "left"]].set_visible(False)


def _reach(edges: npt.NDArray[np.float64], counts: npt.NDArray[np.float64]) -> float:
    """The largest magnitude among the bins that hold all but the last 0.2 % of the weights."""
    middles = 0.5 * (edges[1:] + edges[:-1])
    inside = np.cumsum(counts) <= 0.998 * counts.sum()
    return float(np.abs(middles[inside]).max(initial=1e-12))


def main(args: list[str] | None = None) -> None:
    """Parse the command line and draw."""
    parser = argparse.ArgumentParser(prog="python -m bhfl.report.weights", description=__doc__)
    parser.add_argument(
        "runs", nargs="+", type=path_argument, help="run folders, or folders that hold some"
    )
    parser.add_argument("--out", type=path_argument, default=Path("weights.png"))
    parser.add_argument("--layer", help="name of a weight tensor; the largest by default")
    options = parser.parse_args(args)
    try:
        draw(with_runs_below(options.runs), options.out, options.layer)
    except (ValueError, ImportError, OSError) as error:
        parser.exit(2, f"error: {error}\n")
    print(options.out)


if __name__ == "__main__":
    main()
