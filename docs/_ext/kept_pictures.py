"""Draw pictures from the results that are kept in configs/cifar10/results:
``python docs/_ext/kept_pictures.py``.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from bhfl.report.drawing import PALETTE, bare, logarithmic, pyplot, svg  # noqa: E402

RESULTS = ROOT / "configs/cifar10/results"
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
    with plt.rc_context({"svg.fonttype": "none", "font.family": "sans-serif", "font.size": 10}):
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


if __name__ == "__main__":
    (ROOT / "configs/cifar10/fedlq.svg").write_bytes(links())
