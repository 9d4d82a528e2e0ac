"""`make effect`: what naive averaging does to float32 clients, and what grouping and ProWD make of it.

CIFAR-10, ten clients with 1,000 images each, half of them ternary: every method and ProWD's ablation, over seeds. Runs
that are finished are not repeated; one that was cut off goes on from its last checkpoint.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

METHODS = {
    "FedAvg": ("fedavg", []),
    "Local": ("local", []),
    "GroupedAvg": ("grouped", []),
    "GroupedAvg-Asymmetric": ("grouped_asymmetric", []),
    "ProWD, dequantizer only": ("prowd", ["--algorithm.mask", "false"]),
    "ProWD, mask only": ("prowd", ["--algorithm.dequantizer", "false"]),
    "ProWD": ("prowd", []),
}
GROUPS = ("float32", "ternary", "avg")


def folder(root: Path, method: str, seed: int) -> Path:
    """The run folder of one method and seed."""
    name = method.replace(", ", "-").replace(" ", "-").lower()
    return root / f"{name}-seed{seed}" / "version_0"


def train(root: Path, archive: str, method: str, seed: int) -> None:
    """Run one method with one seed, if it is not finished."""
    run = folder(root, method, seed)
    if (run / "summary.json").exists():
        return
    config, options = METHODS[method]
    command = [sys.executable, "-m", "bhfl", "fit", "--config", f"configs/cifar10/{config}.yaml", *options]
    command += ["--data.archive", archive, "--seed_everything", str(seed), "--trainer.check_val_every_n_rounds", "5"]
    command += ["--trainer.default_root_dir", str(root), "--trainer.name", run.parent.name]
    if list(run.glob("checkpoints/*.ckpt")):
        command += ["--ckpt_path", "last"]
    print(f"{method}, seed {seed}", flush=True)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def table(root: Path, seeds: list[int]) -> str:
    """Mean and standard deviation over the seeds, in per cent, as Markdown."""
    lines = ["| method | float32 | ternary | average | up MB | down MB |", "|---|---|---|---|---|---|"]
    for method in METHODS:
        paths = [folder(root, method, seed) / "summary.json" for seed in seeds]
        summaries = [json.loads(path.read_text()) for path in paths if path.exists()]
        if not summaries:
            continue
        cells = []
        for group in GROUPS:
            values = [100 * summary["metrics"][f"test/acc_{group}"] for summary in summaries]
            spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.1f}{spread}")
        sent = [sum(g[key] for g in summaries[0]["bytes"].values()) / 1e6 for key in ("uplink_bytes", "downlink_bytes")]
        seeds_note = "" if len(summaries) == len(seeds) else f" ({len(summaries)} of {len(seeds)} seeds)"
        lines.append(f"| {method}{seeds_note} | {' | '.join(cells)} | {sent[0]:.0f} | {sent[1]:.0f} |")
    return "\n".join(lines)


def main() -> None:
    """Train what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--archive", default="../shared/data/cifar10-jpg.tar.gz", help="pictures of CIFAR-10")
    parser.add_argument("--root", type=Path, default=Path("runs/effect"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, of one thread each")
    options = parser.parse_args()
    jobs = [(method, seed) for seed in options.seeds for method in METHODS]
    with ThreadPoolExecutor(options.jobs) as pool:
        list(pool.map(lambda job: train(options.root, options.archive, *job), jobs))
    print(table(options.root, options.seeds))


if __name__ == "__main__":
    main()
