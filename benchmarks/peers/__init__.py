"""``make bench PEERS=1``: the same rounds by other packages, each in an environment of its own.

Results are compared by the norm of the weights after as many rounds: who computes something else
is no peer.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.contest import Seconds, ratio

PEERS = {"pfl": "pfl[pytorch]==0.6.0", "flower": "flwr[simulation]==1.42.0"}
"""What is installed for each peer, beside this very torch."""
TURNS = 3
CLIENTS = (10, 100, 1000)
TOLERANCE = 1e-4
"""Relative difference of norms. Sums in another order move a few maxima of the pooling."""
ROOT = Path(__file__).parents[2]


def environment(peer: str) -> Path:
    """The Python of a peer's environment, which is made once."""
    import torch

    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = cache / "bhfl" / "peers" / peer
    python = folder / "bin" / "python"
    installed = folder / "installed"
    wanted = f"{PEERS[peer]} torch=={torch.__version__.partition('+')[0]}"
    if not installed.is_file() or installed.read_text() != wanted:
        print(f"installing {wanted} in {folder}", flush=True)
        venv.create(folder, clear=True, with_pip=True)
        pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, *wanted.split()], check=True)
        installed.write_text(wanted)
    return python


class Contestant:
    """A process that makes a round when it is told to.

    Args:
        python: Who runs it.
        name: Its file beside this one, `with_NAME.py`.
        clients: The clients of a round.
    """

    def __init__(self, python: Path, name: str, clients: int) -> None:
        self.name = name
        self.found: list[Seconds] = []
        self.norm = 0.0
        self._process = subprocess.Popen(
            [python, "-m", f"benchmarks.peers.with_{name}", str(clients)],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self._told("ready")

    def _told(self, key: str) -> dict[str, Any]:
        """What it says next that has a key; peers print on progress between."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{") and key in (told := json.loads(line)):
                return told
        raise RuntimeError(f"{self.name} ended with exit code {self._process.wait()}")

    def turn(self) -> None:
        """A round, which is timed."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        told = self._told("norm")
        self.found.append(Seconds(told["cpu"], told["wall"]))
        self.norm = told["norm"]

    def seconds(self) -> Seconds:
        """The median of its turns."""
        cpu, wall = zip(*self.found, strict=True)
        return Seconds(median(cpu), median(wall))

    def close(self) -> None:
        """End it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(60)


def rounds(clients: int) -> None:
    """Compare rounds of so many clients.

    Raises:
        RuntimeError: Somebody came to other weights.
    """
    here = Path(sys.executable)
    contestants = [Contestant(here, "bhfl", clients), Contestant(here, "bare", clients)]
    contestants += [Contestant(environment(peer), peer, clients) for peer in PEERS]
    for _ in range(TURNS):
        for contestant in contestants:
            contestant.turn()
    for contestant in contestants:
        contestant.close()
    ours, bare, *peers = contestants
    for other in (bare, *peers):
        if abs(other.norm - ours.norm) > TOLERANCE * ours.norm:
            raise RuntimeError(f"{other.name} came to weights of {other.norm}, not {ours.norm}")
    what = f"round of {clients:,} clients x {10_000 // clients:,} images"
    ratio(f"{what}: bhfl / stock bare loop", ours.seconds(), bare.seconds(), None)
    for peer in peers:
        ratio(f"{what}: {peer.name} / stock bare loop", peer.seconds(), bare.seconds(), None)
        ratio(f"{what}: bhfl / {peer.name}", ours.seconds(), peer.seconds(), 1.0)


def run() -> None:
    """Measure all sizes."""
    for clients in CLIENTS:
        rounds(clients)
