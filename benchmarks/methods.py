"""What methods cost beside FedAvg on the work of `benchmarks.engine` with ten clients; every
client's numbers on disk; and a median of many clients.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from benchmarks.contest import contest, line, now, ratio, since

CLIENTS = 10
BOUNDS = {"SCAFFOLD": 1.25, "Ditto": 2.1}
"""CPU time of a round at most, by that of FedAvg."""
MANY = 1000
"""Clients of which each has a row of ``clients.csv`` in a round."""
VOTERS = 100
"""Clients of the median."""


def turns(method: str) -> Callable[[], None]:
    """Rounds of a method, without a test, which is of every client's model with some."""
    from benchmarks.engine import session_of
    from bhfl import algorithms
    from bhfl.engine.rounds import run_round

    algorithm = getattr(algorithms, method)()
    session = session_of(CLIENTS, tempfile.mkdtemp(), algorithm=algorithm)

    def turn() -> None:
        session.server, _ = run_round(session, session.server, [])

    return turn


def rows() -> None:
    """Print the CPU seconds of a round of many clients, and those of its rows."""
    from benchmarks.engine import session_of
    from bhfl.engine.per_client import COLUMNS, training_rows
    from bhfl.engine.rounds import run_round
    from bhfl.files import TableFile

    with tempfile.TemporaryDirectory() as folder:
        session = session_of(MANY, folder)
        run_round(session, session.server, [])
        start = now()
        _, records = run_round(session, session.server, [])
        whole = since(start)
        file = TableFile(Path(folder) / "clients.csv", COLUMNS)
        file.cut(lambda row: True)
        start = now()
        file.append(list(training_rows(1, records, session.fleet)))
        print(json.dumps([whole.cpu, since(start).cpu]))


def median() -> None:
    """Print the CPU seconds of the median of float32 updates, and MB above the model."""
    import torch

    from benchmarks.engine import session_of
    from bhfl.algorithms import Median
    from bhfl.comm import decode, encode
    from bhfl.engine.types import Update

    session = session_of(VOTERS, tempfile.mkdtemp(), num_train=VOTERS, algorithm=Median())
    server, fleet = session.server, session.fleet
    aggregator = session.algorithm.aggregator(server, fleet)
    generator = torch.Generator().manual_seed(0)
    before = _megabytes("VmRSS")
    # the peak of setting up counts for nothing
    Path("/proc/self/clear_refs").write_text("5")
    taken = 0.0
    for client in fleet:
        noise = {n: torch.randn(t.shape, generator=generator) for n, t in server.params.items()}
        payload = encode(noise)
        update = Update(decode(payload), payload)
        start = now()
        aggregator.add(update, client)
        taken += since(start).cpu
    # what clients have is on other machines
    del noise, payload, update
    start = now()
    aggregator.reduce(session.fabric)
    taken += since(start).cpu
    print(json.dumps([taken, _megabytes("VmHWM") - before]))


def _megabytes(key: str) -> float:
    """The memory of this process: ``VmRSS`` now, ``VmHWM`` at most."""
    found = re.search(rf"{key}:\s+(\d+)", Path("/proc/self/status").read_text())
    return int(found[1]) * 1024 / 1e6 if found else float("nan")


def _alone(name: str) -> list[float]:
    """What a function of this file prints, in a process of its own."""
    script = f"from benchmarks.methods import {name}; {name}()"
    command = [sys.executable, "-c", script]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found: list[float] = json.loads(out.splitlines()[-1])
    return found


def run() -> None:
    """Measure all of it."""
    names = ("FedAvg", *BOUNDS)
    found = contest({name: (turns, (name,)) for name in names}, 3)
    for name, bound in BOUNDS.items():
        ratio(
            f"{name} round / FedAvg round, {CLIENTS} clients", found[name], found["FedAvg"], bound
        )
    whole, written = _alone("rows")
    what = f"clients.csv of {MANY} clients / their round"
    line(what, 100 * written / whole, 1, " %", told="CPU time")
    seconds, memory = _alone("median")
    line(f"median of {VOTERS} clients in float32", seconds, 3, " s", told="CPU time")
    line("    memory above the model", memory, 300, " MB")
