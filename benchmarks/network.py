"""What a federation over a network takes, with real processes on this machine's loopback: seconds
of a round beyond training, bytes on the wire beside payloads, and a hundred clients.

``python -m benchmarks.network`` measures all of it, ``python -m benchmarks.network 3 wire`` a part.
"""

from __future__ import annotations

import csv
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import lightning as L

from benchmarks.contest import line
from bhfl.algorithms import FedAvg
from bhfl.data import Digits
from bhfl.engine.session import Session
from bhfl.engine.trainer import FederatedTrainer
from bhfl.models import Classifier
from bhfl.remote.flower import free_port
from bhfl.remote.keys import client_keys
from tests.remote.cluster import below
from tests.remote.speaker import Speaker, speaking

CONFIG = """
clients: {clients}
algorithm: {{class_path: FedAvg}}
model: {{class_path: Classifier, init_args: {{{net}}}}}
data: {{class_path: Digits, init_args: {{batch_size: 32}}}}
trainer: {{max_rounds: {rounds}, logger: false, accelerator: cpu, threads: 1, name: net,
  enable_progress_bar: false}}
"""
TWO_MB = "net: mlp, net_kwargs: {hidden: [690, 690]}"
FLOWERS = {"flower-superlink", "flwr-serverapp"}
HUNDRED = 100
REAL = 3


class Federation:
    """A server, and clients by `bhfl join`, in a folder."""

    def __init__(self, folder: Path, clients: Mapping[str, int], rounds: int, net: str) -> None:
        self.folder = folder
        self.address = f"127.0.0.1:{free_port(0, 'port')}"
        told = "{" + ", ".join(f"{bits}: {count}" for bits, count in clients.items()) + "}"
        config = CONFIG.format(clients=told, rounds=rounds, net=net)
        (folder / "net.yaml").write_text(config)
        self.bhfl("serve", "--config", "net.yaml", "--make_keys", "keys").wait()
        self.run = folder / "runs/net/version_0"

    def bhfl(self, *words: str) -> subprocess.Popen[bytes]:
        """A command, as a process of its own."""
        log = (self.folder / f"{words[0]}.log").open("ab")
        command = [sys.executable, "-m", "bhfl", *words]
        return subprocess.Popen(command, cwd=self.folder, stdout=log, stderr=log)

    @contextmanager
    def joined(self, clients: int) -> Iterator[None]:
        """The first clients as processes, for the block."""
        started = []
        for client in range(clients):
            words = ["--server", self.address, "--key", f"keys/clients/client-{client}"]
            started.append(self.bhfl("join", *words, "--folder", f"client-{client}"))
        try:
            yield
        finally:
            for process in started:
                process.terminate()
            for process in started:
                process.wait()

    @contextmanager
    def served(self, *more: str) -> Iterator[subprocess.Popen[bytes]]:
        """The server, for the block."""
        host, port = self.address.split(":")
        words = ["--config", "net.yaml", "--listen", host, "--port", port, *more]
        server = self.bhfl("serve", *words)
        try:
            yield server
        finally:
            server.terminate()
            server.wait()

    def run_all(self, clients: int) -> None:
        """All rounds, with so many clients."""
        with self.joined(clients), self.served() as server:
            self.ended(server)

    def ended(self, server: subprocess.Popen[bytes]) -> None:
        """Wait for a server's end, which is to be a good one."""
        if code := server.wait():
            told = (self.folder / "serve.log").read_text()[-2000:]
            raise RuntimeError(f"the server ended with {code}: {told}")

    def rounds(self) -> list[dict[str, Any]]:
        """The rows of the rounds so far."""
        path = self.run / "rounds.jsonl"
        found = [json.loads(one) for one in path.read_text().splitlines()] if path.exists() else []
        return [row for row in found if row["round"]]

    def training(self) -> dict[int, float]:
        """The longest training of any client, in seconds, by round."""
        longest: dict[int, float] = {}
        with open(self.run / "wire.csv", newline="") as file:
            for row in csv.DictReader(file):
                round = int(row["round"])
                seconds = float(row["training_seconds"])
                longest[round] = max(seconds, longest.get(round, 0.0))
        return longest


def overhead(clients: int, bound: float) -> None:
    """Seconds of a round beyond its longest training; the first one, in which clients set
    themselves up, is told apart.
    """
    with tempfile.TemporaryDirectory(prefix="bhfl-") as folder:
        low = clients // 3
        fleet = {"int8": low, "ternary": low, "float32": clients - 2 * low}
        made = Federation(Path(folder), fleet, 5, "net: cnn")
        made.run_all(clients)
        training = made.training()
        beyond = [row["time/round_s"] - training[row["round"]] for row in made.rounds()]
    middle = statistics.median(beyond[1:])
    told = f"first round {beyond[0]:.1f}, least {min(beyond):.1f}, {busy()}"
    line(f"round beyond training, {clients} clients", middle, bound, " s", told)


def wire() -> None:
    """Bytes of all requests and answers beside those of payloads of 2 MB."""
    with tempfile.TemporaryDirectory(prefix="bhfl-") as folder:
        made = Federation(Path(folder), {"float32": REAL}, 6, TWO_MB)
        made.run_all(REAL)
        seen = json.loads((made.run / "network.json").read_text())["wire_bytes"]
        summary = json.loads((made.run / "summary.json").read_text())
    ledger = summary["bytes"]["float32"]
    payload = ledger["uplink_bytes"] / (6 * REAL)
    for way in ("up", "down"):
        ratio = sum(seen[way].values()) / ledger[f"{way}link_bytes"]
        line(f"bytes on the wire / payloads of {payload / 1e6:.2f} MB, {way}", ratio, 1.05, "")


def hundred() -> None:
    """A hundred clients that speak the Fleet API from one process beside three real ones: seconds
    of a round, and the memory of the server's processes over ten rounds.
    """

    fleet = {"int8": 1, "ternary": 1, "float32": HUNDRED + REAL - 2}
    with tempfile.TemporaryDirectory(prefix="bhfl-") as place, ExitStack() as stack:
        folder = Path(place)
        made = Federation(folder, fleet, 10, "net: cnn")
        sizes = _sizes(folder, fleet)
        keys = [client_keys(folder / f"keys/clients/client-{one}") for one in range(len(sizes))]
        speakers = [
            Speaker(made.address, keys[one], one, "float32", sizes[one])
            for one in range(REAL, len(sizes))
        ]
        # Flower brings a message once: one whose client did not wait for it is lost
        terms = ["--wait_for", str(HUNDRED - 5), "--round_seconds", "120"]
        server = stack.enter_context(made.served(*terms))
        until(lambda: "clients join at" in (folder / "serve.log").read_text(), server)
        stack.enter_context(made.joined(REAL))
        stack.enter_context(speaking(speakers))
        memory: dict[int, dict[str, float]] = {}
        while server.poll() is None:
            done = len(made.rounds())
            if done and done not in memory:
                memory[done] = processes(server.pid)
            time.sleep(0.2)
        made.ended(server)
        rows = made.rounds()
    ok = min(row["clients/ok"] for row in rows)
    seconds = [row["time/round_s"] for row in rows]
    middle = statistics.median(seconds)
    told = f"least of {ok:.0f} updates, {min(seconds):.1f} to {max(seconds):.1f} s, {busy()}"
    line(f"round, {len(sizes)} clients", middle, 60.0, " s", told)
    first, *_, last = (one for at, one in sorted(memory.items()) if at > 1)
    for name, mib in last.items():
        told = f"{first.get(name, 0.0):.0f} to {mib:.0f} MiB"
        grown = mib / first.get(name, mib)
        line(f"memory after the last round / after the second, {name}", grown, 1.1, "", told)


def _sizes(folder: Path, fleet: Mapping[str, int]) -> list[int]:
    """The number of samples of each client."""
    L.seed_everything(0, verbose=False)
    data = Digits(batch_size=32)
    shape = {"num_classes": data.num_classes, "input_shape": data.input_shape}
    options = {"logger": False, "accelerator": "cpu", "default_root_dir": str(folder / "sizes")}
    trainer = FederatedTrainer(dict(fleet), FedAvg(), max_rounds=1, devices=1, **options)
    with Session.opened(trainer, Classifier("cnn", **shape), data, "fit", "test") as session:
        return [client.num_examples for client in session.fleet]


def until(true: Any, server: subprocess.Popen[bytes]) -> None:
    """Wait until something is so, as long as the server is there."""
    while not true() and server.poll() is None:
        time.sleep(0.2)


def processes(pid: int) -> dict[str, float]:
    """MiB that a server and the processes below it have in memory, by what they are."""
    found = {"bhfl serve": _mib(pid)}
    for child in below(pid):
        with suppress(OSError):
            words = Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")
            for name in {os.path.basename(word.decode()) for word in words[:3]} & FLOWERS:
                found[name] = _mib(child)
    return found


def _mib(pid: int) -> float:
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0.0
    return int(text.partition("VmRSS:")[2].split()[0]) / 1024


def busy() -> str:
    """How many processes wanted a core here."""
    return f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"


PARTS = {
    "3": lambda: overhead(3, 15.0),
    "10": lambda: overhead(10, 40.0),
    "wire": wire,
    "hundred": hundred,
}

if __name__ == "__main__":
    # what was started ends with this process, however it is stopped
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))
    for name in sys.argv[1:] or PARTS:
        PARTS[name]()
