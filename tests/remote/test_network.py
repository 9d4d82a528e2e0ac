"""A run over a real network of Flower's processes comes to the same bits as `fit` in one process.

One SuperLink with its front, and one process a client, serve all runs of this file.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

pytest.importorskip("flwr")

from bhfl.algorithms import SCAFFOLD, FedAvg, FedCOMGATE, FedLQ, FedPer, ProWD
from bhfl.algorithms.fedlq import Budget
from bhfl.algorithms.prowd import Dequantizer
from bhfl.comm import decode, encode, float_tensors
from bhfl.comm.network import Profile, SimulatedNetwork
from bhfl.data import Digits
from bhfl.downlink import Downlink
from bhfl.engine.callback import Callback
from bhfl.engine.checkpoint import digest
from bhfl.engine.exchange import Reply, Task
from bhfl.engine.resume import find_checkpoint
from bhfl.engine.trainer import FederatedTrainer
from bhfl.models import Classifier
from bhfl.remote import serve as serving
from bhfl.remote.app.frames import put, take
from bhfl.remote.attendance import Terms
from bhfl.remote.messages import Facts, pack, split, unpack
from bhfl.remote.relay import listening_at
from bhfl.remote.sealed import Sealed
from bhfl.remote.serve import Place, serve
from tests.processes import PROCESSES
from tests.remote.cluster import Cluster, until

pytestmark = pytest.mark.network

GROUPS = ["int8", "ternary", "float32"]
SECONDS = 400.0
"""What clients have for an answer, on a machine that is busy."""


def prowd() -> ProWD:
    learning = Dequantizer(warmup_rounds=1, period=1, first_steps=3, steps=2, buffer_size=64)
    return ProWD(dequantizer=learning)


def network() -> SimulatedNetwork:
    profile = Profile(uplink_bps=1e6, downlink_bps=4e6, compute_flops=1e9, spread=0.5)
    return SimulatedNetwork("slow", {"slow": profile})


CASES: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "FedAvg": (FedAvg, {}),
    "ProWD": (prowd, {}),
    "FedCOMGATE": (lambda: FedCOMGATE(allow_inexact=True), {}),
    "FedLQ": (lambda: FedLQ(budget=Budget("quantile", 3)), {"network": network}),
    "SCAFFOLD": (SCAFFOLD, {}),
    "differences": (FedAvg, {"downlink": lambda: Downlink(8, "differences")}),
    "FedPer": (lambda: FedPer(["net.head.4"]), {"evaluate_clients": lambda: "after"}),
}


def made(folder: Path, case: str, name: str, **more: Any) -> tuple[FederatedTrainer, Any, Any]:
    algorithm, options = CASES[case]
    L.seed_everything(0, verbose=False)
    data = Digits(batch_size=32, holdout=64)
    model = Classifier(
        "cnn",
        num_classes=data.num_classes,
        input_shape=data.input_shape,
        optimizer=partial(torch.optim.SGD, lr=0.05),
    )
    trainer = FederatedTrainer(
        {"int8": 1, "ternary": 1, "float32": 1},
        algorithm(),
        **{"max_rounds": 2, **{key: make() for key, make in options.items()}, **more},
        logger=False,
        accelerator="cpu",
        devices=1,
        enable_progress_bar=False,
        default_root_dir=str(folder),
        name=name,
    )
    return trainer, model, data


def outcome(trainer: FederatedTrainer) -> dict[str, Any]:
    """What must not depend on where clients are: all but what a clock says."""
    run = trainer.run
    assert run is not None
    rows = [{k: v for k, v in row.items() if k != "time/round_s"} for row in run.history]
    return {"rows": rows, "ledger": run.ledger.by_group, "server": digest(vars(trainer.server))}


def joined(folder: Path, keys: Path, port: int) -> None:
    """One client, as `bhfl join` runs it."""
    from bhfl.main import main

    os.chdir(folder)
    main(["join", "--server", f"127.0.0.1:{port}", "--key", str(keys), "--folder", keys.name])


class Clients:
    """The processes of the clients."""

    def __init__(self, folder: Path, cluster: Cluster) -> None:
        self.folder = folder
        self.cluster = cluster
        self.processes: dict[int, Any] = {}
        for client in range(len(GROUPS)):
            self.start(client)

    def start(self, client: int) -> None:
        keys = self.cluster.made / "clients" / f"client-{client}"
        process = PROCESSES.Process(
            target=joined, args=(self.folder, keys, self.cluster.front.port)
        )
        process.start()
        self.processes[client] = process

    def end(self) -> None:
        for process in self.processes.values():
            process.terminate()
        for process in self.processes.values():
            process.join(30)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    found = Cluster.begin(tmp_path_factory.mktemp("cluster"), GROUPS)
    yield found
    found.end()


@pytest.fixture(scope="module")
def clients(tmp_path_factory: pytest.TempPathFactory, cluster: Cluster) -> Iterator[Clients]:
    found = Clients(tmp_path_factory.mktemp("clients"), cluster)
    yield found
    found.end()


def over_the_network(
    cluster: Cluster, folder: Path, case: str, terms: Terms | None = None, **more: Any
) -> FederatedTrainer:
    place = Place(keys=cluster.made, superlink=cluster.superlink.address)
    trainer, model, data = made(folder, case, "network", **more)
    serve(trainer, model, data, place, terms or Terms(round_seconds=SECONDS, wait_seconds=SECONDS))
    return trainer


@pytest.mark.parametrize("case", CASES)
def test_a_run_over_the_network_comes_to_the_same_bits(tmp_path, cluster, clients, case):
    there = over_the_network(cluster, tmp_path, case)
    here, model, data = made(tmp_path, case, "fit")
    here.fit(model, data)
    found = outcome(there)
    assert found == outcome(here)
    assert all(row["clients/ok"] == 3 for row in found["rows"])
    assert (there.run.folder / "wire.csv").read_text().count("\n") == 1 + 2 * 3


def test_fedlq_without_a_simulated_network_plans_by_links_as_they_are(tmp_path, cluster, clients):
    def more_bits(trainer):
        return [row["fedlq/bits"] for row in trainer.run.history]

    with pytest.warns(UserWarning, match=r"quantile follows links as they are measured: the run"):
        there = over_the_network(cluster, tmp_path, "FedLQ", network=None)
    assert all(row["clients/ok"] == 3 for row in there.run.history)
    links = there.session.context.timing
    assert all(links.link(2, client, 3).link.uplink_bps > 0 for client in there.session.fleet)
    # nobody was measured before the first round; then the slowest sets a deadline of three bits
    first, second = more_bits(there)
    assert first <= 3 < second


@pytest.mark.filterwarnings("ignore:round .. client 2 (failed|late)")
def test_a_client_that_is_killed_fails_its_round_and_is_back_later(tmp_path, cluster, clients):
    """The run goes on without it, and with it when it has joined again."""

    def kill() -> None:
        # in the first round: when its task is being trained, or about to be
        while not list(tmp_path.rglob("network.json")):
            time.sleep(0.2)
        clients.processes[2].kill()
        clients.processes[2].join()
        clients.start(2)

    killer = threading.Thread(target=kill)
    killer.start()
    terms = Terms(round_seconds=SECONDS, wait_seconds=SECONDS, wait_for=3)
    there = over_the_network(cluster, tmp_path, "FedAvg", terms, max_rounds=4)
    killer.join()
    rows = there.run.history
    assert rows[-1]["clients/ok"] == 3
    assert all(row["clients/ok"] >= 2 for row in rows)


class FreezeInFirstRound(Callback):
    """A process that stands still from before the first round until after it."""

    def __init__(self, pid: int) -> None:
        self.pid = pid

    def on_fit_start(self, trainer: FederatedTrainer) -> None:
        os.kill(self.pid, signal.SIGSTOP)

    def on_round_end(self, trainer: FederatedTrainer, metrics: dict[str, Any]) -> None:
        os.kill(self.pid, signal.SIGCONT)


@pytest.mark.filterwarnings("ignore:round .. client 2 late")
def test_a_client_that_never_answers_is_late_and_what_it_says_afterwards_is_passed_over(
    tmp_path, cluster, clients
):
    """It has greeted, and Flower hears of it: its resident process alone stands still."""
    freeze = FreezeInFirstRound(clients.processes[2].pid)
    terms = Terms(round_seconds=40, wait_seconds=SECONDS, wait_for=3)
    try:
        there = over_the_network(
            cluster, tmp_path, "FedAvg", terms, max_rounds=4, callbacks=[freeze]
        )
    finally:
        os.kill(freeze.pid, signal.SIGCONT)
    first, *_, last = there.run.history
    assert (first["clients/ok"], first["clients/late"]) == (2, 1), first
    assert first["problems"] == ["client 2 late: no reply came within 40 s"]
    assert last["clients/ok"] == 3


CONFIG = """
clients: {int8: 1, ternary: 1, float32: 1}
algorithm: {class_path: FedCOMGATE, init_args: {allow_inexact: true}}
model: {class_path: Classifier, init_args: {net: cnn}}
data: {class_path: Digits, init_args: {batch_size: 32}}
trainer: {max_rounds: 3, logger: false, accelerator: cpu, enable_progress_bar: false}
"""


def command(folder: Path, *words: str) -> subprocess.Popen[bytes]:
    """A command of bhfl's, as a process of its own."""
    log = (folder / "log.txt").open("ab")
    given = [sys.executable, "-m", "bhfl", words[0], "--config", "net.yaml", *words[1:]]
    return subprocess.Popen(given, cwd=folder, stdout=log, stderr=log)


def reached(folder: Path) -> dict[str, Any]:
    """What a run of a command came to."""
    _, state = find_checkpoint(folder, folder)
    rows = [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]
    for row in rows:
        row.pop("time/round_s", None)
    ledger = json.loads((folder / "summary.json").read_text())["bytes"]
    return {"rows": rows, "server": digest(state["server"]), "ledger": ledger}


def test_a_server_that_is_killed_goes_on_as_if_it_had_not_been(tmp_path, cluster, clients):
    """By the commands; of its clients one is killed too, and its state is on its disk."""
    (tmp_path / "net.yaml").write_text(CONFIG)
    away = ["--keys", str(cluster.made), "--superlink", cluster.superlink.address]
    killed = command(tmp_path, "serve", *away, "--trainer.name", "net")
    run = tmp_path / "runs/net/version_0"
    until(lambda: (run / "checkpoints/round=00001.ckpt").exists(), SECONDS)
    killed.kill()
    killed.wait()
    clients.processes[1].kill()
    clients.processes[1].join()
    clients.start(1)
    resumed = command(tmp_path, "serve", *away, "--trainer.name", "net", "--ckpt_path", str(run))
    assert resumed.wait(2 * SECONDS) == 0, (tmp_path / "log.txt").read_text()
    assert command(tmp_path, "fit", "--trainer.name", "here").wait(SECONDS) == 0
    assert reached(run) == reached(tmp_path / "runs/here/version_0")


class Hostile:
    """A client that has a key, and answers what it likes: the socket of a resident, without one."""

    def __init__(self, folder: Path, num_examples: int) -> None:
        self.path = folder / "hostile.sock"
        self.num_examples = num_examples
        self.door = listening_at(self.path)
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            sock, _ = self.door.accept()
            with sock:
                parts = split(take(sock))
                task = unpack(parts[2], Task) if len(parts) > 1 else None
                put(sock, self._greeting() if task is None else self._answer(task))

    def _greeting(self) -> bytes:
        facts = Facts(client=2, group="float32", num_examples=self.num_examples, facts={})
        return pack(facts)

    def _answer(self, task: Task) -> bytes:
        reply = {"client": 2, "round": task.round}
        weights = float_tensors(decode(task.downlink))
        name = "net.head.4.bias"
        answers = [
            random.Random(0).randbytes(10**6),
            pack(Reply(**{**reply, "round": 7}, payload=task.downlink)),
            pack(Reply(**reply, payload=encode({**weights, name: weights[name] * torch.nan}))),
            pack(Reply(**reply, payload=bytes(30 * 10**6))),
            pack(Reply(**reply, payload=random.Random(0).randbytes(100 * 10**6))),
        ]
        return answers[task.round]


def memory(pid: int, name: str) -> float:
    """MiB of a process's memory, now or at most."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    (line,) = [line for line in lines if line.startswith(f"{name}:")]
    return int(line.split()[1]) / 1024


@pytest.mark.filterwarnings(
    "ignore:round .. client 2 (rejected|failed)", "ignore:client 2 may not come"
)
def test_a_client_that_answers_what_it_likes_is_refused_and_the_run_goes_on(
    tmp_path, cluster, clients, monkeypatch
):
    """However long its answer is, Flower's processes hold no more than the front lets in."""
    allowance = cluster.front.allowance
    # the front is the cluster's here
    monkeypatch.setattr(serving, "Sealed", lambda grid, keyed, _: Sealed(grid, keyed, allowance))
    here, model, data = made(tmp_path, "FedAvg", "fit", max_rounds=1)
    here.fit(model, data)
    clients.processes[2].terminate()
    clients.processes[2].join(30)
    # a short path, as that of a socket must be
    with tempfile.TemporaryDirectory(prefix="bhfl-") as place:
        hostile = Hostile(Path(place), here.clients[2].num_examples)
        node = cluster.node(2, node_config={"bhfl-socket": str(hostile.path)}, seconds=SECONDS)
        link = cluster.superlink.process.pid
        before = memory(link, "VmRSS")
        try:
            there = over_the_network(cluster, tmp_path, "FedAvg", max_rounds=5)
        finally:
            node.stop()
            clients.start(2)
    *rows, last = there.run.history
    for row in rows:
        assert (row["clients/ok"], row["clients/rejected"]) == (2, 1), row["problems"]
    assert "net.head.4.bias holds a value that is not finite" in rows[2]["problems"][0]
    assert last["problems"] == ["client 2 failed: it sent more bytes than an answer may have"]
    # it holds the pieces that it was let have, some of them more than once
    assert memory(link, "VmHWM") - before < 400


@pytest.mark.filterwarnings("ignore:Flower's SuperLink was lost")
def test_a_superlink_that_is_killed_costs_time_and_nothing_else(tmp_path, cluster, clients):
    def kill() -> None:
        while not list(tmp_path.rglob("wire.csv")):
            time.sleep(0.2)
        pid = cluster.superlink.process.pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    there = over_the_network(cluster, tmp_path, "FedAvg")
    killer.join()
    here, model, data = made(tmp_path, "FedAvg", "fit")
    here.fit(model, data)
    assert outcome(there) == outcome(here)
