"""FedCOMGATE: what it takes that each client keeps a state between rounds, beside its training.

The model is that of `benchmarks.engine`, with ten clients of 50 images, on which their states do
not depend; the time is that of loading, of putting by what a client came to, and of closing the
round, in which the state is changed and kept.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.contest import line, now, since

CLIENTS = 10
ROUNDS = 4


class Meter:
    """What calls of some functions take: CPU seconds, wall seconds, bytes written."""

    def __init__(self) -> None:
        self.totals = [0.0, 0.0, 0.0]
        self._within = False

    def watch(self, owner: Any, name: str) -> None:
        """Count what a method takes from now on."""
        method = getattr(owner, name)

        def watched(*args: Any, **kwargs: Any) -> Any:
            # one of them calls the others, which are not to be counted twice
            if self._within:
                return method(*args, **kwargs)
            self._within = True
            start, before = now(), _written()
            result = method(*args, **kwargs)
            self._within = False
            taken = (*since(start), _written() - before)
            self.totals = [total + more for total, more in zip(self.totals, taken, strict=True)]
            return result

        setattr(owner, name, watched)


def _written() -> int:
    """The bytes that this process has written so far."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(dict(line.split(": ") for line in lines)["wchar"])


def measure() -> None:
    """Print, for each round but the first, the CPU seconds, wall seconds and bytes of a client."""
    from benchmarks.engine import session_of
    from bhfl.algorithms import FedCOMGATE
    from bhfl.engine.rounds import run_round

    with tempfile.TemporaryDirectory() as folder:
        session = session_of(CLIENTS, folder, 50 * CLIENTS, algorithm=FedCOMGATE(8))
        meter = Meter()
        meter.watch(session.store, "load")
        meter.watch(session.store, "put")
        meter.watch(session.clients, "close")
        for round in range(ROUNDS):
            meter.totals = [0.0, 0.0, 0.0]
            session.server, _ = run_round(session, session.server, [])
            if round:
                print(json.dumps([total / CLIENTS for total in meter.totals]))


def run() -> None:
    """Measure it in a process of its own."""
    if not Path("/proc/self/io").exists():
        print("what FedCOMGATE's clients keep: skipped, no /proc/self/io")
        return
    command = [sys.executable, "-c", "from benchmarks.kept import measure; measure()"]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    rounds = [json.loads(row) for row in out.splitlines()]
    cpu, wall, size = map(statistics.median, zip(*rounds, strict=True))
    what = "FedCOMGATE's state, a client and round"
    line(f"{what}: CPU", 1e3 * cpu, 15, " ms", told=f"wall {1e3 * wall:.1f} ms")
    line(f"{what}: bytes written", size / 1e6, 4.4, " MB")
