"""The client half of a round in another process, behind a pipe: bytes are all that crosses."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import bhfl.algorithms
from bhfl.algorithms import (
    MOON,
    SCAFFOLD,
    Ditto,
    DPFedAvg,
    FedBN,
    FedCOMGATE,
    FedLQ,
    FedPer,
    FedRep,
    Krum,
    Local,
    Median,
    ProWD,
)
from bhfl.algorithms.fedlq import Budget, Sensitivity
from bhfl.algorithms.prowd import Dequantizer
from bhfl.comm import encode
from bhfl.comm.network import Profile, SimulatedNetwork
from bhfl.downlink import Downlink
from bhfl.engine.aggregate import WeightedMean
from bhfl.engine.algorithm import Algorithm
from bhfl.engine.availability import Availability
from bhfl.engine.checkpoint import digest, load
from bhfl.engine.client.local import LocalClients
from bhfl.engine.client.store import ClientStore
from bhfl.engine.exchange import Clients, Measured, Reply, Task, Verdict
from bhfl.engine.session import Session
from bhfl.engine.trainer import FederatedTrainer
from bhfl.remote.messages import pack, unpack
from tests.engine.hand_made import HandMade, Module, points
from tests.processes import PROCESSES

pytestmark = pytest.mark.filterwarnings("ignore:round .* client . (failed|rejected|late)")

# ---- bytes ---------------------------------------------------------------------------------------


class Piped:
    """Clients at the other end of a pipe."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    def train(self, tasks: Iterator[Task]) -> Iterator[Reply]:
        return map(self._answer, tasks)

    def evaluate(self, tasks: Iterator[Task]) -> Iterator[Measured]:
        return map(self._answer, tasks)

    def _answer(self, task: Task) -> Any:
        self.connection.send_bytes(pack(task))
        return unpack(self.connection.recv_bytes(), Reply, Measured)

    def close(self, round: int, verdicts: Mapping[int, Verdict]) -> None:
        head = {"round": round, "clients": list(verdicts)}
        self.connection.send_bytes(b"close" + json.dumps(head).encode())
        for verdict in verdicts.values():
            self.connection.send_bytes(pack(verdict))
        assert self.connection.recv_bytes() == b"closed"


class Forgetful:
    """Clients of which one has nothing of what it kept, in one round."""

    def __init__(self, clients: Clients, client: int, round: int) -> None:
        self.clients = clients
        self.place = (client, round)
        self.close = clients.close
        self.evaluate = clients.evaluate

    def train(self, tasks: Iterator[Task]) -> Iterator[Reply]:
        return self.clients.train(map(self._wiped, tasks))

    def _wiped(self, task: Task) -> Task:
        return replace(task, version=0) if (task.client, task.round) == self.place else task


def serve(connection: Connection, folder: Path, case: str) -> None:
    """The clients of a case, in a process of their own, until the pipe is closed."""
    trainer = make_trainer(folder, case)
    torch.manual_seed(0)
    with Session.opened(trainer, net(case), data(), "fit") as session:
        algorithm = CASES[case][0]()  # which knows nothing of the server's half
        algorithm.prepare(session.module, session.fleet)
        clients = LocalClients(
            session.worker,
            algorithm,
            session.fleet,
            session.data,
            session.own,
            ClientStore(folder / "clients"),
        )
        while message := connection.recv_bytes():
            if message.startswith(b"close"):
                close(clients, connection, json.loads(message[5:]))
                connection.send_bytes(b"closed")
                continue
            task = unpack(message, Task)
            act = clients.train if task.stage == "train" else clients.evaluate
            for answer in act(iter([task])):
                connection.send_bytes(pack(answer))


def close(clients: Clients, connection: Connection, head: dict[str, Any]) -> None:
    verdicts = {client: unpack(connection.recv_bytes(), Verdict) for client in head["clients"]}
    clients.close(head["round"], verdicts)


# ---- federations ---------------------------------------------------------------------------------


class Net(Module):
    """BatchNorm, dropout, a schedule over the rounds and one on what the server measured."""

    def __init__(self) -> None:
        layers = [nn.Linear(6, 7), nn.BatchNorm1d(7), nn.Dropout(0.2), nn.ReLU(), nn.Linear(7, 3)]
        super().__init__(nn.Sequential(*layers))

    def forward(self, inputs):
        return self.net(inputs)

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), 0.1)
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0)
        decay = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
        return [optimizer], [
            {"scheduler": plateau, "monitor": "train/loss"},
            {"scheduler": decay, "interval": "step"},
        ]


class Unlucky(Algorithm):
    """FedAvg in whose second round one client raises, and another sends what is no number."""

    def client_loss(self, run, batch, batch_idx):
        if (run.round, run.client.id) == (1, 2):
            raise RuntimeError("bad luck")
        return super().client_loss(run, batch, batch_idx)

    def uplink(self, run):
        update = dict(super().uplink(run))
        if (run.round, run.client.id) == (1, 3):
            update["net.0.bias"] = update["net.0.bias"] * torch.nan
        return update


class OwnHead(Algorithm):
    """FedAvg that leaves the last layer with the clients, and measures each client's own."""

    def body(self, server):
        return {name: t for name, t in server.params.items() if not name.startswith("net.4")}

    def downlink(self, server, client):
        return self.body(server)

    def expected(self, server):
        return self.body(server)

    def aggregator(self, server, clients):
        return WeightedMean(self.body(server))

    def group_params(self, server, group):
        return self.body(server)

    def uplink(self, run):
        update = super().uplink(run)
        return {name: value for name, value in update.items() if not name.startswith("net.4")}


def slow(deadline: float | None = None) -> SimulatedNetwork:
    """Links that carry a model in about a second, some of them in less."""
    profile = Profile(uplink_bps=8e3, downlink_bps=3.2e4, compute_flops=1e6, spread=0.5)
    return SimulatedNetwork("slow", {"slow": profile}, deadline_seconds=deadline)


ABSENT = Availability(dropout=0.2, loss=0.2, stragglers=0.5, retries=2)
LEARNING = Dequantizer(warmup_rounds=1, period=1, first_steps=3, steps=2, distill_weight=0.0)
CASES: dict[str, tuple[Callable[[], Algorithm], dict[str, Any]]] = {
    "ProWD": (partial(ProWD, dequantizer=LEARNING), {}),
    "FedCOMGATE": (partial(FedCOMGATE, 4, allow_inexact=True), {"clients_per_round": 3}),
    "FedLQ": (
        partial(
            FedLQ,
            "delta",
            budget=Budget("quantile", average_bits=3),
            sensitivity=Sensitivity("clients"),
        ),
        {"network": slow()},
    ),
    "FedLQ signs": (
        partial(
            FedLQ,
            "delta",
            (0, 1, 2, 4),
            Budget("quantile", average_bits=1.5),
            Sensitivity("clients"),
            error_feedback=True,
        ),
        {"network": slow()},
    ),
    "FedLQ both ways": (
        partial(
            FedLQ,
            "delta",
            (0, 1, 2, 4),
            Budget("quantile", average_bits=1.5),
            Sensitivity("clients"),
            infeasible="carry",
            error_feedback=True,
            both_ways=True,
            side_bits=8,
        ),
        {"network": slow(), "downlink": Downlink(8, "differences")},
    ),
    "FedLQ planned": (
        partial(
            FedLQ,
            plan="server",
            sensitivity=Sensitivity(shrinkage=0.0),
            budget=Budget("deadline"),
            infeasible="skip",
        ),
        {"network": slow(1.0)},
    ),
    "Local": (Local, {"evaluate_clients": "after", "norm": "local"}),
    "FedPer": (partial(FedPer, ["net.4"]), {"evaluate_clients": "both"}),
    "FedRep": (partial(FedRep, ["net.4"], 1), {}),
    "FedBN": (FedBN, {"norm": "local"}),
    "MOON": (partial(MOON, "net.1"), {}),
    "Median of SCAFFOLD": (partial(Median, SCAFFOLD()), {}),
    "DPFedAvg": (
        DPFedAvg,
        {"norm": "local", "sampling": "poisson", "weights": "uniform", "lr_schedule": "restart"},
    ),
    "Krum": (Krum, {"min_clients": 5}),
    "norm local": (
        Algorithm,
        {"evaluate_clients": "after", "norm": "local", "clients_per_round": 3},
    ),
    "schedule": (
        partial(ProWD, dequantizer=LEARNING),
        {
            "clients": [
                {"bits": "ternary", "count": 3, "name": "grow", "schedule": {1: 4, 2: 8}},
                {"bits": 32, "count": 2},
            ],
            "norm": "group",
            "evaluate_clients": "after",
        },
    ),
    "own head": (OwnHead, {"evaluate_clients": "after"}),
    "frozen": (Algorithm, {"clients_per_round": 3}),
    "frozen and own models": (Ditto, {"clients_per_round": 3}),
    "unlucky": (Unlucky, {}),
    "late": (Algorithm, {"network": slow(1.0)}),
    "skipped": (Unlucky, {"min_clients": 4, "norm": "local"}),
    "SCAFFOLD absent": (
        SCAFFOLD,
        {"availability": ABSENT, "downlink": Downlink(4, "differences", keep=1)},
    ),
    "FedLQ absent": (
        partial(FedLQ, sensitivity=Sensitivity("clients"), budget=Budget("deadline")),
        {"network": slow(9.0), "availability": ABSENT},
    ),
    "differences": (
        Unlucky,
        {"downlink": Downlink(4, "differences", keep=1), "clients_per_round": 4},
    ),
}
for name in bhfl.algorithms.__all__:
    CASES.setdefault(name, (getattr(bhfl.algorithms, name), {}))


def net(case: str) -> Net:
    """The model of a case, of which a part may be frozen."""
    module = Net()
    module.net[0].requires_grad_("frozen" not in case)
    return module


def data() -> HandMade:
    clients = [points(6 + 4 * i, i) for i in range(5)]
    return HandMade(clients, held_out=points(9, 99), shuffle=True)


def make_trainer(folder: Path, case: str, **more: Any) -> FederatedTrainer:
    algorithm, options = CASES[case]
    options = {"max_rounds": 3, "logger": False, "devices": 1, "accelerator": "cpu", **options}
    options |= more
    clients = options.pop("clients", {8: 2, 32: 2, "ternary": 1})
    folder.mkdir(exist_ok=True)
    return FederatedTrainer(clients, algorithm(), default_root_dir=str(folder), **options)


def outcome(trainer: FederatedTrainer, kept: Path) -> dict[str, Any]:
    """All of a run that must not depend on where its clients are."""
    newest = {path.name.split("-")[0]: path for path in sorted(kept.rglob("client=*"))}
    rows = trainer.run.history
    return {
        "rows": [{k: v for k, v in row.items() if k != "time/round_s"} for row in rows],
        "server": digest(vars(trainer.server)),
        "ledger": trainer.run.ledger.by_group,
        "test": json.loads((trainer.run.folder / "summary.json").read_text())["metrics"],
        "clients": {client: (path.name, digest(load(path))) for client, path in newest.items()},
    }


def run(
    folder: Path, case: str, clients: Clients | None = None, ckpt_path: Any = None, **options: Any
) -> FederatedTrainer:
    trainer = make_trainer(folder, case, **options)
    if clients:
        trainer.connect = lambda session: clients
    torch.manual_seed(0)
    trainer.fit(net(case), data(), ckpt_path)
    return trainer


@contextmanager
def away(folder: Path, case: str) -> Iterator[Clients]:
    """The clients of a case in a process of their own, whose state lies in `folder`."""
    ours, theirs = PROCESSES.Pipe()
    process = PROCESSES.Process(target=serve, args=(theirs, folder, case))
    process.start()
    theirs.close()
    try:
        yield Piped(ours)
        ours.send_bytes(b"")
    finally:
        ours.close()
        process.join(60)
    assert process.exitcode == 0


LONG = {
    "AdaQuantFL",
    "ClippedMean",
    "FedAvg",
    "FedCOM",
    "FedExP",
    "FedLQ",
    "FedLQ absent",
    "FedLQ planned",
    "FedPer",
    "FedProx",
    "FedRep",
    "GeometricMedian",
    "GroupedAvgAsymmetric",
    "Krum",
    "MOON",
    "Median",
    "SCAFFOLD",
    "TrimmedMean",
}
"""Cases whose clients send and keep what those of another one of the quick tests do."""


def cases() -> list[Any]:
    return [pytest.param(case, marks=pytest.mark.slow if case in LONG else ()) for case in CASES]


@pytest.mark.parametrize("case", cases())
def test_clients_behind_a_pipe_come_to_the_same(tmp_path, case):
    here = run(tmp_path / "here", case)
    with away(tmp_path / "away", case) as clients:
        there = run(tmp_path / "there", case, clients)
    found = outcome(here, here.run.folder / "clients")
    assert outcome(there, tmp_path / "away" / "clients") == found
    assert not (there.run.folder / "clients").exists()
    statuses = {"unlucky": ("failed", "rejected"), "late": ("late",), "FedLQ planned": ("skipped",)}
    for status in (*statuses.get(case, ()), "ok"):
        assert any(row[f"clients/{status}"] for row in found["rows"]), f"no client was {status}"
    ok = [row["clients/ok"] for row in found["rows"]]
    assert ok == [5, 3, 5] if case in ("unlucky", "skipped") else min(ok) >= 3


def test_clients_that_lost_what_they_were_sent_begin_anew(tmp_path):
    """Their disk was wiped in the middle of the run: a round is lost, and no more."""
    with away(tmp_path / "away", "FedAvg") as clients:
        rule = Downlink(4, "differences")
        options = {"downlink": rule, "validate_first": False, "max_rounds": 6}
        forgetful = Forgetful(clients, 2, 3)
        run_of = run(tmp_path / "there", "FedAvg", forgetful, **options)
    rows = run_of.run.history
    assert [row["clients/ok"] for row in rows] == [5, 5, 5, 4, 5, 5]
    assert rows[3]["problems"] == [
        "client 2 failed: it no longer has the weights that it was sent differences to"
    ]
    # all in the first round, and then the one
    whole = [row["whole_bytes"] for row in rows]
    assert whole == [whole[0], 0, 0, 0, whole[0] // 5, 0]
    assert run_of.server.accepted == dict.fromkeys(range(5), 6)


@pytest.mark.parametrize("case", ["FedCOMGATE", "Local", "own head", "frozen and own models"])
def test_clients_that_keep_their_state_elsewhere_go_on_with_it(tmp_path, case):
    """The last round of a run of three is gone with the server; its clients kept what it left."""
    whole = run(tmp_path / "here", case)
    with away(tmp_path / "away", case) as clients:
        killed = run(tmp_path / "there", case, clients)
        (killed.run.checkpoints / "round=00003.ckpt").unlink()
        resumed = run(tmp_path / "there", case, clients, killed.run.folder)
    assert outcome(resumed, tmp_path / "away" / "clients") == outcome(
        whole, whole.run.folder / "clients"
    )


def test_clients_elsewhere_that_have_lost_what_is_frozen_are_sent_it_again(tmp_path):
    """Nobody tells the server: each client says so in its reply."""
    whole = run(tmp_path / "here", "frozen")
    with away(tmp_path / "away", "frozen") as clients:
        killed = run(tmp_path / "there", "frozen", clients)
    (killed.run.checkpoints / "round=00003.ckpt").unlink()
    with away(tmp_path / "elsewhere", "frozen") as clients:
        resumed = run(tmp_path / "there", "frozen", clients, killed.run.folder)
    assert digest(vars(resumed.server)) == digest(vars(whole.server))
    more = resumed.run.ledger.total("downlink_bytes") - whole.run.ledger.total("downlink_bytes")
    # the first of them: the others of its process share its copy
    frozen = len(encode(whole.server.buffers["frozen"]))
    travelling = {**whole.server.params, **whole.session.travelling(whole.server, "int8")}
    assert more == frozen + len(encode(travelling))
    assert list((tmp_path / "elsewhere" / "clients").glob("frozen-*"))
