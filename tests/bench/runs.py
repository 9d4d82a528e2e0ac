"""Runs of several methods over seeds, for the experiments of `make`: what is missing is run, a few at a time."""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bhfl.engine.folder import newest_run

Method = tuple[str, list[str]]
"""A configuration of configs/cifar10, by its stem, and further options."""


@dataclass(frozen=True)
class Experiment:
    """Methods by their names in the table, over seeds.

    Args:
        methods: What to run.
        common: Options of all of them.
        root: Run folders are ``<root>/<method>-seed<seed>/version_0``.
        archive: Pictures of CIFAR-10.
        seeds: Of data split, initial weights and training.
    """

    methods: Mapping[str, Method]
    common: Sequence[str]
    root: Path
    archive: str
    seeds: Sequence[int]

    @classmethod
    def parsed(
        cls, methods: Mapping[str, Method], common: Sequence[str], root: str, about: str
    ) -> tuple[Experiment, int]:
        """From the command line, with the number of runs at a time."""
        parser = argparse.ArgumentParser(description=about)
        parser.add_argument("--archive", default="../shared/data/cifar10-jpg.tar.gz", help="pictures of CIFAR-10")
        parser.add_argument("--root", type=Path, default=Path(root))
        parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
        parser.add_argument("--jobs", type=int, default=2, help="runs at a time, of one thread each")
        options = parser.parse_args()
        return cls(methods, common, options.root, options.archive, options.seeds), options.jobs

    def folder(self, method: str, seed: int) -> Path:
        """The newest run folder of one method and seed."""
        name = method.replace(",", "").replace(" ", "-").lower()
        root = self.root / f"{name}-seed{seed}"
        return newest_run(root) or root / "version_0"

    def train(self, method: str, seed: int) -> None:
        """Run one method with one seed, if it is not finished; one that was cut off goes on."""
        run = self.folder(method, seed)
        if (run / "summary.json").exists():
            return
        config, options = self.methods[method]
        command = [sys.executable, "-m", "bhfl", "fit", "--config", f"configs/cifar10/{config}.yaml", *options]
        command += [*self.common, "--data.archive", self.archive, "--seed_everything", str(seed)]
        command += ["--trainer.default_root_dir", str(self.root), "--trainer.name", run.parent.name]
        if list(run.glob("checkpoints/*.ckpt")):
            command += ["--ckpt_path", "last"]
        print(f"{method}, seed {seed}", flush=True)
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)

    def train_all(self, jobs: int) -> None:
        """All that is missing, seed by seed."""
        missing = [(method, seed) for seed in self.seeds for method in self.methods]
        with ThreadPoolExecutor(jobs) as pool:
            list(pool.map(lambda job: self.train(*job), missing))

    def finished(self, method: str) -> list[Path]:
        """The finished run folders of a method, by seed."""
        folders = [self.folder(method, seed) for seed in self.seeds]
        return [folder for folder in folders if (folder / "summary.json").exists()]

    def note(self, method: str) -> str:
        """What the table says of missing seeds."""
        count = len(self.finished(method))
        return "" if count == len(self.seeds) else f" ({count} of {len(self.seeds)} seeds)"


def summary(run: Path) -> dict[str, Any]:
    """What a finished run came to."""
    found: dict[str, Any] = json.loads((run / "summary.json").read_text())
    return found


def rounds(run: Path) -> list[dict[str, Any]]:
    """The metrics of each round."""
    return [json.loads(line) for line in (run / "rounds.jsonl").read_text().splitlines()]


def spread(values: Sequence[float], digits: int = 1) -> str:
    """Mean and standard deviation over seeds."""
    deviation = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{deviation}"


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A table whose first row is its head."""
    head, *body = (f"| {' | '.join(row)} |" for row in rows)
    return "\n".join([head, "|" + "---|" * len(rows[0]), *body])
