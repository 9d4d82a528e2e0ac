"""FedLQ: its rounds, how long the allocation of one client takes, and the analysis of ResNet-18."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

import numpy as np

from benchmarks.contest import contest, line, ratio
from benchmarks.engine import engine, rounds_of, session_of

WIDTHS = (2, 3, 4, 6, 8, 16, 32)


def allocation() -> None:
    """Time the bits of sixty layers of seven widths: the slowest of thirty budgets."""
    from bhfl.algorithms.fedlq.allocation import allocate, layer_bits

    rng = np.random.default_rng(0)
    sizes = np.exp(rng.uniform(4, 15, 60)).astype(int).tolist()
    curvature = np.exp(rng.normal(0, 2, 60))
    costs = []
    for harm, size in zip(curvature, sizes, strict=True):
        costs.append([0.0 if b == 32 else harm * size * 4.0**-b for b in WIDTHS])
    least = sum(layer_bits(size, 2) for size in sizes)
    most = sum(layer_bits(size, 16) for size in sizes)
    for solver in ("dp", "greedy"):
        seconds = []
        for budget in np.linspace(least, most, 30):
            start = time.perf_counter()
            allocate(costs, sizes, WIDTHS, float(budget), solver=solver)
            seconds.append(time.perf_counter() - start)
        what = f"bits of 60 layers, {solver}, the slowest of 30 budgets"
        line(what, 1e3 * max(seconds), 50, " ms")


def fedlq(refresh: int) -> Callable[[], None]:
    """Rounds of FedLQ with ten clients of 1,000 images.

    Args:
        refresh: Rounds between probes, of nine passes over 1,000 images of the server's.
    """
    from bhfl.algorithms import FedLQ
    from bhfl.algorithms.fedlq import Sensitivity

    algorithm = FedLQ(sensitivity=Sensitivity(refresh=refresh))
    return rounds_of(session_of(10, tempfile.mkdtemp(), holdout=1000, algorithm=algorithm))


def rounds() -> None:
    """Measure what a round costs more than FedAvg's, without a probe and with one."""
    entries = {"fedavg": (engine, (10,)), "fedlq": (fedlq, (10,)), "probing": (fedlq, (1,))}
    seconds = contest(entries, 3)
    what = "round of 10 clients x 1,000 images: FedLQ"
    ratio(f"{what} / FedAvg, without a probe", seconds["fedlq"], seconds["fedavg"], 1.10)
    ratio(f"{what} / FedAvg, with a probe", seconds["probing"], seconds["fedavg"], None)


def analysis() -> None:
    """Time ``bhfl analyze`` of ResNet-18 on 1,000 images with two threads, start-up included."""
    options = "--model.net=resnet18 --data=FakeImages --data.num_train=1300 --data.num_test=10"
    command = [sys.executable, "-m", "bhfl", "analyze", *options.split(), "--clients={32: 2}"]
    command += ["--data.shape=[3, 32, 32]", "--data.holdout=1000", "--threads=2"]
    command += ["--out", tempfile.mkdtemp()]
    start = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    line("bhfl analyze, ResNet-18, 1,000 images", time.perf_counter() - start, 180, " s")


def run() -> None:
    """Measure all of it."""
    rounds()
    allocation()
    analysis()
