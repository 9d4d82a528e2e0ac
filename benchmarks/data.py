"""How long it takes to decode an archive of pictures."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.contest import line

ARCHIVE = Path(__file__).parents[2] / "shared/data/cifar10-jpg.tar.gz"


def decode() -> None:
    """Decode the archive into an empty cache, and print the seconds."""
    import time

    from bhfl.data import CIFAR10

    start = time.perf_counter()
    data = CIFAR10(archive=str(ARCHIVE))
    data.setup("fit")
    print(time.perf_counter() - start)


def run() -> None:
    """Decode all 60,000 pictures of CIFAR-10, if they are at hand."""
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
