"""`make effect`: what naive averaging does to float32 clients, and what grouping and ProWD make of it.

CIFAR-10, ten clients with 1,000 images each, half of them ternary: every method and ProWD's ablation, over seeds. Runs
that are finished are not repeated; one that was cut off goes on from its last checkpoint.
"""

from __future__ import annotations

from tests.bench.runs import Experiment, Method, markdown, spread, summary

METHODS: dict[str, Method] = {
    "FedAvg": ("fedavg", []),
    "Local": ("local", []),
    "GroupedAvg": ("grouped", []),
    "GroupedAvg-Asymmetric": ("grouped_asymmetric", []),
    "ProWD, dequantizer only": ("prowd", ["--algorithm.mask", "false"]),
    "ProWD, mask only": ("prowd", ["--algorithm.dequantizer", "false"]),
    "ProWD": ("prowd", []),
}
GROUPS = ("float32", "ternary", "avg")


def table(experiment: Experiment) -> str:
    """Test accuracy by group in per cent, and megabytes, as Markdown."""
    rows = [["method", "float32", "ternary", "average", "up MB", "down MB"]]
    for method in experiment.methods:
        found = [summary(run) for run in experiment.finished(method)]
        if found:
            cells = [spread([100 * one["metrics"][f"test/acc_{group}"] for one in found]) for group in GROUPS]
            for key in ("uplink_bytes", "downlink_bytes"):
                cells.append(f"{sum(group[key] for group in found[0]['bytes'].values()) / 1e6:.0f}")
            rows.append([method + experiment.note(method), *cells])
    return markdown(rows)


def main() -> None:
    """Train what is missing, then print the table."""
    common = ["--trainer.check_val_every_n_rounds", "5"]
    experiment, jobs = Experiment.parsed(METHODS, common, "runs/effect", __doc__ or "")
    experiment.train_all(jobs)
    print(table(experiment))


if __name__ == "__main__":
    main()
