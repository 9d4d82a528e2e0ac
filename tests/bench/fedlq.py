"""`make fedlq`: how much sooner layer-wise bits reach an accuracy than float32 and than any one width, on slow uplinks.

CIFAR-10, ten clients with 10,000 images shared out by Dirichlet(0.5), ResNet-8, uplinks ten times apart: float32,
uniform and time-adaptive bits, and FedLQ, over seeds, on the same simulated links. Runs that are finished are not
repeated; one that was cut off goes on from its last checkpoint.
"""

from __future__ import annotations

import math
import statistics
from pathlib import Path

from bhfl.report.curves import bytes_to_accuracy, time_to_accuracy
from tests.bench.runs import Experiment, Method, markdown, rounds, spread, summary

METHODS: dict[str, Method] = {
    "FedAvg, float32": ("fedlq", ["--algorithm", "FedAvg"]),
    **{
        f"FedPAQ, {bits} bits": ("fedlq", ["--algorithm", "FedPAQ", "--algorithm.bits", str(bits)])
        for bits in (2, 3, 4)
    },
    "AdaQuantFL": ("adaquantfl", []),
    "Weights, 2 bits": ("fedlq", ["--algorithm.candidates", "[2]", "--algorithm.budget", "average"]),
    "FedLQ": ("fedlq", []),
    "FedLQ-delta": ("fedlq_delta", []),
}
WINDOW = 3
"""Validations in the median that has to reach the target."""


def curve(run: Path) -> tuple[list[float], list[int], list[float]]:
    """Cumulative seconds, cumulative bytes and validation accuracy, by round."""
    rows = rounds(run)
    return (
        [row["time/simulated_s"] for row in rows],
        [round(1e6 * row["comm/uplink_MB"]) for row in rows],
        [row["val/acc"] for row in rows],
    )


def target(experiment: Experiment) -> float:
    """What every float32 run reaches: 95 % of the median of the last validations of the worst of them."""
    ends = [statistics.median(curve(run)[2][-WINDOW:]) for run in experiment.finished("FedAvg, float32")]
    return math.floor(95 * min(ends)) / 100


def table(experiment: Experiment, goal: float) -> str:
    """Time and bytes to the goal, and final test accuracy, as Markdown."""
    rows = [
        ["method", "bits", "s a round", f"s to {100 * goal:.0f} %", "sooner than float32", "MB up to it", "test acc"]
    ]
    seconds = {}
    for method in experiment.methods:
        runs = experiment.finished(method)
        if not runs:
            continue
        curves = [curve(run) for run in runs]
        seconds[method] = [time_to_accuracy(times, accs, goal, WINDOW) for times, _, accs in curves]
        sent = [bytes_to_accuracy(count, accs, goal, WINDOW) / 1e6 for _, count, accs in curves]
        ratios = [a / b for a, b in zip(seconds["FedAvg, float32"], seconds[method], strict=False)]
        accuracy = [100 * summary(run)["metrics"]["test/acc"] for run in runs]
        rows.append([
            method + experiment.note(method),
            f"{statistics.mean(_bits(run) for run in runs):.1f}",
            f"{statistics.mean(times[-1] / len(times) for times, _, _ in curves):.0f}",
            _finite(seconds[method], 0),
            _finite(ratios, 2) if all(map(math.isfinite, seconds[method])) else "-",
            _finite(sent, 1),
            spread(accuracy),
        ])  # fmt: skip
    return markdown(rows)


def _bits(run: Path) -> float:
    """Mean bits of a weight on the uplink, from the bytes that were sent."""
    rows = rounds(run)
    params = sum(row["downlink_bytes"] for row in rows) / 4
    return 8 * sum(row["uplink_bytes"] for row in rows) / params


def _finite(values: list[float], digits: int) -> str:
    reached = [value for value in values if math.isfinite(value)]
    if len(reached) < len(values):
        return f"reached in {len(reached)} of {len(values)}"
    return spread(values, digits)


def draw(experiment: Experiment, out: Path) -> None:
    """Validation accuracy over simulated seconds, seed by seed."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, panel = plt.subplots(figsize=(8, 4.6))
    for method, colour in zip(experiment.methods, plt.cm.tab10.colors, strict=False):
        for number, run in enumerate(experiment.finished(method)):
            times, _, accuracies = curve(run)
            smooth = [statistics.median(accuracies[max(0, i + 1 - WINDOW) : i + 1]) for i in range(len(accuracies))]
            panel.plot(times, smooth, color=colour, alpha=0.8, linewidth=1.2, label=method if number == 0 else None)
    panel.set(xscale="log", xlabel="simulated seconds", ylabel="validation accuracy (median of 3)")
    panel.legend(fontsize=8, frameon=False)
    panel.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(out, dpi=150)


def main() -> None:
    """Train what is missing, then print the table and draw the curves."""
    experiment, jobs = Experiment.parsed(METHODS, [], "runs/fedlq", __doc__ or "")
    experiment.train_all(jobs)
    print(table(experiment, target(experiment)))
    draw(experiment, experiment.root / "fedlq.png")
    print(experiment.root / "fedlq.png")


if __name__ == "__main__":
    main()
