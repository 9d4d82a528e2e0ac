"""How long it takes to decode an archive of pictures, and to read samples of any dataset."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from benchmarks.contest import line, now, since

ARCHIVE = Path(__file__).parents[2] / "shared/data/cifar10-jpg.tar.gz"


def decode() -> None:
    """Decode the archive into an empty cache, and print the seconds."""
    import time

    from bhfl.data import CIFAR10

    start = time.perf_counter()
    data = CIFAR10(archive=str(ARCHIVE))
    data.setup("fit")
    print(time.perf_counter() - start)


class Pairs:
    """A dataset that is no pair of tensors, and draws nothing."""

    def __init__(self) -> None:
        self.x = torch.randn(2000, 1, 8, 8)
        self.targets = torch.randint(0, 10, (2000,))

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, place: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.x[place], self.targets[place]


def samples() -> None:
    """Time a sample of `FromDatasets` by its general path, in batches of 50."""
    from bhfl.data.source import LoaderSource

    source = LoaderSource(Pairs())
    found = []
    for _ in range(7):
        start = now()
        for _ in source.batches(torch.arange(2000), 50, torch.Generator()):
            pass
        found.append(since(start).cpu / 2000)
    line("a sample of any dataset, without random transforms", 1e6 * min(found), 15, " us")


def run() -> None:
    """Read samples, and decode all 60,000 pictures of CIFAR-10, if they are at hand."""
    samples()
    if not ARCHIVE.exists():
        print(f"decoding CIFAR-10: skipped, no {ARCHIVE.name}")
        return
    # a process of its own reads where the cache is from its environment
    with tempfile.TemporaryDirectory() as cache:
        script = "from benchmarks.data import decode; decode()"
        environment = {**os.environ, "XDG_CACHE_HOME": cache}
        out = subprocess.run(
            [sys.executable, "-c", script],
            capture_output=True,
            text=True,
            check=True,
            env=environment,
        )
        line("decode 60,000 JPEGs of CIFAR-10", float(out.stdout.split()[-1]), 20, " s")
