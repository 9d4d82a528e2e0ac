"""FedLQ: a client's allocation, and the analysis of ResNet-18."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time

import numpy as np

from benchmarks.contest import line

WIDTHS = (2, 3, 4, 6, 8, 16, 32)


def allocation() -> None:
    """Sixty layers of seven widths, the slowest of thirty budgets."""
    from bhfl.algorithms.fedlq import allocate, layer_bits

    rng = np.random.default_rng(0)
    sizes = np.exp(rng.uniform(4, 15, 60)).astype(int).tolist()
    curvature = np.exp(rng.normal(0, 2, 60))
    costs = [
        [0.0 if b == 32 else h * n * 4.0**-b for b in WIDTHS]
        for h, n in zip(curvature, sizes, strict=True)
    ]
    least, most = (sum(layer_bits(n, b) for n in sizes) for b in (2, 16))
    for solver in ("dp", "greedy"):
        seconds = []
        for budget in np.linspace(least, most, 30):
            start = time.perf_counter()
            allocate(costs, sizes, WIDTHS, float(budget), solver=solver)
            seconds.append(time.perf_counter() - start)
        line(
            f"bits of 60 layers, {solver}, the slowest of 30 budgets", 1e3 * max(seconds), 50, " ms"
        )


def analysis() -> None:
    """`bhfl analyze` of ResNet-18 on 1,000 images, two threads, from its start to its end."""
    command = [
        sys.executable,
        "-m",
        "bhfl",
        "analyze",
        "--clients",
        "{32: 2}",
        "--model.net",
        "resnet18",
    ]
    command += ["--data", "FakeImages", "--data.shape", "[3, 32, 32]", "--data.num_train", "1300"]
    command += [
        "--data.num_test",
        "10",
        "--data.holdout",
        "1000",
        "--threads",
        "2",
        "--out",
        tempfile.mkdtemp(),
    ]
    start = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    line("bhfl analyze, ResNet-18, 1,000 images", time.perf_counter() - start, 180, " s")


def run() -> None:
    """Both."""
    allocation()
    analysis()
