"""What a run of a sweep costs beyond its training: loading libraries, reading its configuration,
and writing what it came to.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.contest import Seconds, line, now, since

MATRIX = """\
base: {{trainer.max_rounds: 1, trainer.local_steps: 1, clients: {{8: 1, 32: 1}}}}
seeds: [0]
methods:
  FedAvg: {{config: {config}}}
"""
RUNS = 6
"""Runs of the longer sweep; the shorter one has a single run."""


def swept(folder: Path, num_runs: int) -> Seconds:
    """What a sweep of so many runs took, in a folder of its own."""
    seeds = ",".join(map(str, range(num_runs)))
    words = ["sweep", "m.yaml", f"--seeds={seeds}", f"--root=runs{num_runs}"]
    start = now()
    subprocess.run(
        [sys.executable, "-m", "bhfl", *words], cwd=folder, check=True, stdout=subprocess.DEVNULL
    )
    return since(start)


def run() -> None:
    """Print the figure."""
    config = Path("configs/digits/fedavg.yaml").absolute()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "m.yaml").write_text(MATRIX.format(config=config))
        one = swept(folder, 1)
        many = swept(folder, RUNS)
    cpu, wall = ((after - before) / (RUNS - 1) for before, after in zip(one, many, strict=True))
    told = f"one step of two clients is counted in; wall {wall:.2f} s"
    line("a run of a sweep beyond its training, CPU s", cpu, 2.0, " s", told)
