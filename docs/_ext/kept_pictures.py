"""Draw pictures from the results that are kept in configs/cifar10/results:
``python docs/_ext/kept_pictures.py``.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from bhfl.report.drawing import PALETTE, bare, logarithmic, pyplot, svg  # noqa: E402

RESULTS = ROOT / "configs/cifar10/results"
FRONTIER = ROOT / "docs/_static/frontier.svg"
TARGET = 34
"""Per cent, which the rows of sweeps/fedlq.yaml are compared at."""
WINDOW = 3
"""Validations whose median is drawn, as it is what reaches the target."""
LINKS = {
    "FedAvg": "FedAvg, float32",
    "Uniform-2": "2 bits up, 8 down",
    "Uniform-2-down-4": "2 bits up, 4 down",
    "FedLQ-both": "FedLQ, both ways",
    "FedLQ-skip": "FedLQ, weights",
    "Weights-2": "2 bits, weights",
}
"""Rows of sweeps/fedlq.yaml, and what the picture calls them."""
LOOKS = {
    "svg.fonttype": "none",
    "svg.hashsalt": "bhfl",  # without it the same picture is another file each time
    "font.family": "sans-serif",
    "font.size": 10,
}
FAMILIES = (
    "FedAvg", "FedProx", "FedPAQ", "ProWD", "GroupedAvg", "FedCOMGATE", "FedLQ", "AdaQuantFL",
)  # fmt: skip
"""What the names of rows of sweeps/frontier.yaml begin with, by the colours of the palette."""
SHAPES = "osDv^"
"""A row's mark, by its place among those of its family."""


class Point(NamedTuple):
    """A row of sweeps/frontier.yaml: means over seeds, and the deviation of the accuracy."""

    name: str
    accuracy: float
    deviation: float
    megabytes: float
    seconds: float


def frontier_runs(setting: str) -> dict[str, list[dict[str, Any]]]:
    """The summaries of each row's runs. Only seeds that every row has count: a seed makes a
    difference of two points, so that rows of unlike seeds could not be compared.
    """
    rows = sorted(RESULTS.glob(f"frontier/{setting}/*/"))
    seeds = set.intersection(*({path.name for path in row.glob("seed*")} for row in rows))
    runs = {}
    for row in rows:
        paths = [row / seed / "summary.json" for seed in sorted(seeds)]
        runs[row.name] = [json.loads(path.read_text()) for path in paths]
    return runs


def points(setting: str) -> list[Point]:
    """The rows of a setting that send anything, the best first: per cent of the mean of both groups
    of clients, megabytes up and down, simulated seconds.
    """
    found = []
    for name, runs in frontier_runs(setting).items():
        accuracies = [100 * run["metrics"]["test/acc_avg"] for run in runs]
        sent = []
        for run in runs:
            both = [of["uplink_bytes"] + of["downlink_bytes"] for of in run["bytes"].values()]
            sent.append(sum(both) / 1e6)
        deviation = stdev(accuracies) if len(accuracies) > 1 else 0.0
        seconds = fmean(run["simulated_seconds"] for run in runs)
        found.append(Point(name, fmean(accuracies), deviation, fmean(sent), seconds))
    return sorted((row for row in found if row.megabytes), key=lambda row: -row.accuracy)


def alone(setting: str) -> float:
    """The accuracy of clients that send nothing, in per cent."""
    runs = frontier_runs(setting)["Local"]
    return 100 * fmean(run["metrics"]["test/acc_avg"] for run in runs)


def rounds(folder: Path) -> list[dict[str, Any]]:
    """The rounds of a kept run; what came before training is left out."""
    rows = [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]
    return [row for row in rows if row["round"] > 0]


def curve(folders: Iterable[Path]) -> tuple[list[float], list[float], list[float]]:
    """By round, the mean over seeds of the simulated seconds and of the median of the last
    validations in per cent, and the deviation of the latter.
    """
    runs = [rounds(folder) for folder in sorted(folders)]
    seconds, means, deviations = [], [], []
    for end in range(WINDOW, len(runs[0]) + 1):
        medians = [
            100 * median(row["val/acc_avg"] for row in run[end - WINDOW : end]) for run in runs
        ]
        seconds.append(fmean(run[end - 1]["time/simulated_s"] for run in runs))
        means.append(fmean(medians))
        deviations.append(stdev(medians))
    return seconds, means, deviations


def links() -> bytes:
    """Accuracy over simulated seconds, of bits on slow uplinks."""
    plt = pyplot()
    with plt.rc_context(LOOKS):
        figure, axis = plt.subplots(figsize=(8, 4.2), layout="constrained")
        for colour, (name, words) in zip(PALETTE, LINKS.items(), strict=False):
            x, y, deviation = curve((RESULTS / "fedlq" / name).glob("seed*"))
            axis.plot(x, y, color=colour, label=words)
            low = [mean - by for mean, by in zip(y, deviation, strict=True)]
            high = [mean + by for mean, by in zip(y, deviation, strict=True)]
            axis.fill_between(x, low, high, color=colour, alpha=0.12, linewidth=0)
        axis.axhline(TARGET, color="#999999", linewidth=1, linestyle=":")
        logarithmic(axis)
        axis.set_xlabel("simulated seconds")
        axis.set_ylabel("validation accuracy in %")
        bare(axis)
        axis.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
        return svg(figure)


def style(rows: list[Point]) -> dict[str, tuple[str, str]]:
    """Colour and mark of each row: a colour for each family, a mark for each of its rows."""
    found = {}
    for colour, family in zip(PALETTE, FAMILIES, strict=False):
        names = sorted(row.name for row in rows if row.name.startswith(family))
        found |= {name: (colour, mark) for name, mark in zip(names, SHAPES, strict=False)}
    return found


def frontier(setting: str) -> bytes:
    """Accuracy of all methods by bytes, and by simulated seconds."""
    plt = pyplot()
    rows = points(setting)
    styles = style(rows)
    with plt.rc_context(LOOKS):
        figure, panels = plt.subplots(1, 2, figsize=(10, 4.4), sharey=True, layout="constrained")
        costs = {"megabytes": "MB sent, up and down", "seconds": "simulated seconds"}
        for axis, (cost, words) in zip(panels, costs.items(), strict=True):
            for row in rows:
                colour, mark = styles[row.name]
                at = getattr(row, cost)
                axis.errorbar(
                    at, row.accuracy, row.deviation, fmt=mark, color=colour, elinewidth=0.8,
                    label=row.name,
                )  # fmt: skip
            axis.axhline(alone(setting), color="#999999", linewidth=1, linestyle=":")
            logarithmic(axis)
            axis.set_xlabel(words)
            bare(axis)
        panels[0].set_ylabel("test accuracy in %")
        panels[1].legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, fontsize=8.5)
        return svg(figure)


if __name__ == "__main__":
    (ROOT / "configs/cifar10/fedlq.svg").write_bytes(links())
    FRONTIER.write_bytes(frontier("iid"))
