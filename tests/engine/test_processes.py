"""One, two and four processes compute the same, and go down together."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from bhfl.algorithms import Ditto, DPFedAvg, FedCOMGATE, FedDyn, FedLQ, Median, ProWD
from bhfl.algorithms.fedlq import Budget, Sensitivity
from bhfl.algorithms.prowd import Dequantizer, Mask
from bhfl.comm.network import SimulatedNetwork
from bhfl.downlink import Downlink
from bhfl.engine.aggregate import WeightedMean
from bhfl.engine.algorithm import Algorithm
from bhfl.engine.availability import Availability
from bhfl.engine.checkpoint import digest, load, load_last
from bhfl.engine.fleet import Fleet
from bhfl.main import main
from tests.engine.hand_made import HandMade, Module, client_rows, points
from tests.engine.test_resume import BOTH_WAYS, Remembering
from tests.federation import fit
from tests.processes import PROCESSES

# ---- what is computed: ranks that this test starts itself, as torchrun would ---------------------

MIXED = [
    {"bits": bits, "count": n}
    for bits, n in ((32, 2), (8, 2), ("ternary", 1), ("strict8", 1), ("wage2888", 1))
]


class Net(Module):
    """BatchNorm, dropout, draws from a global generator in validation, and a start that depends on
    the rank.
    """

    def __init__(self) -> None:
        super().__init__(
            nn.Sequential(
                nn.Linear(6, 7), nn.BatchNorm1d(7), nn.Dropout(0.2), nn.ReLU(), nn.Linear(7, 3)
            )
        )
        rank = int(os.environ.get("RANK", "0"))
        self.net[0].bias.data += rank
        self.register_buffer("factor", 1 + torch.rand(6) * rank, persistent=False)

    def training_step(self, batch, batch_idx):
        self.log("place", self.place())
        return super().training_step((batch[0] * self.factor, batch[1]), batch_idx)

    def place(self):
        """Where the module is told that it is, in one number."""
        own = self.trainer
        told = (self.current_epoch, self.global_step, own.num_training_batches)
        assert (own.is_global_zero, own.world_size, self.global_rank) == (True, 1, 0)
        return float(sum(value * 100**i for i, value in enumerate(told)))

    def validation_step(self, batch, batch_idx):
        super().validation_step(batch, batch_idx)
        self.log("val/place", self.place())
        self.log("val/draw", torch.rand(1).item() + random.random())

    def test_step(self, batch, batch_idx):
        self.log("test/loss", self.net(batch[0]).square().mean())

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), 0.1, momentum=0.9)
        return [optimizer], [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)]


class Lonely(WeightedMean):
    """Forgets that other processes have clients too."""

    def reduce(self, fabric):
        return self.flattener.unflatten(self.sum.value() / self.weight)


class LonelyAverage(Algorithm):
    def aggregator(self, server, clients):
        return Lonely(server.params)


class LonelyPlan(Algorithm):
    def begin_round(self, server, cohort, context):
        plan = torch.tensor(float(context.fabric.global_rank))
        return replace(server, extra={**server.extra, "plan": plan})


class Unlucky(Algorithm):
    """FedAvg of which one client raises and one sends what is no number."""

    def client_loss(self, run, batch, batch_idx):
        if (run.client.id + run.round) % 7 == 3:
            raise RuntimeError("bad luck")
        return super().client_loss(run, batch, batch_idx)

    def uplink(self, run):
        update = dict(super().uplink(run))
        if run.client.id == 1:
            update["net.0.bias"] = update["net.0.bias"] * torch.nan
        return update


class OwnParts(Algorithm):
    """FedAvg that leaves the last layer with the clients, and measures each client's own."""

    def body(self, server):
        return {
            name: tensor for name, tensor in server.params.items() if not name.startswith("net.4")
        }

    def downlink(self, server, client):
        return self.body(server)

    def expected(self, server):
        return self.body(server)

    def aggregator(self, server, clients):
        return WeightedMean(self.body(server))

    def group_params(self, server, group):
        return self.body(server)

    def uplink(self, run):
        return {
            name: value
            for name, value in super().uplink(run).items()
            if not name.startswith("net.4")
        }


CHANNEL = {"weights": 8, "activations": 8, "granularity": "channel"}
RATE = {"class_path": "SGD", "init_args": {"lr": 0.0078125}}
DEVICES = [
    {"bits": 4, "count": 1, "backend": "int8", "name": "forward", "schedule": {1: 6, 2: 8}},
    {"bits": 8, "count": 1, "backend": "int8-bfloat16", "name": "bfloat16", "local_steps": 3},
    {"bits": 8, "count": 1, "backend": "integer", "name": "both-ways"},
    {"bits": "wage2888", "count": 1, "backend": "integer", "optimizer": RATE},
    {"bits": CHANNEL, "count": 1, "backend": "bitsandbytes", "name": "bnb"},
    {"bits": 4, "count": 1, "layers": {"*": 6}, "backend": "auto-integer", "local_epochs": 2},
    {"bits": 32, "count": 2},
]
"""Groups of every kind, and every backend."""


class FarOff(Algorithm):
    """FedAvg of which one client, and so one process, sends what is far larger than the model."""

    def uplink(self, run):
        update = dict(super().uplink(run))
        if run.client.id == 1:
            update["net.0.bias"] = update["net.0.bias"] + 1e6
        return update


class Zeros(Net):
    """A model of zeros, of which only biases leave it at first."""

    def __init__(self) -> None:
        super().__init__()
        for parameter in self.parameters():
            parameter.data.zero_()


class Tuned(Net):
    """A model whose first layer is frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.net[0].requires_grad_(False)


CASES: dict[str, dict[str, Any]] = {
    "stateful": {"algorithm": Remembering},
    "local": {
        "algorithm": Remembering,
        "norm": "local",
        "evaluate_clients": "both",
        "clients_per_round": 4,
    },
    "unlucky": {"algorithm": Unlucky, "norm": "average"},
    "one client": {"clients": {8: 1}},
    "far off": {"algorithm": FarOff, "norm": "group"},
    "zeros": {"module": Zeros},
    "gate": {
        "algorithm": partial(FedCOMGATE, allow_inexact=True),
        "norm": "average",
        "clients_per_round": 5,
    },
    "prowd": {
        "algorithm": partial(
            ProWD,
            dequantizer=Dequantizer(
                warmup_rounds=1, period=1, first_steps=3, steps=2, distill_weight=0.0
            ),
        )
    },
    "prowd by group": {
        "algorithm": partial(ProWD, Mask(per="group", coarse=1.0), None, payload="delta")
    },
    "fedlq": {
        "algorithm": partial(
            FedLQ,
            "delta",
            budget=Budget("quantile", average_bits=3),
            sensitivity=Sensitivity("clients", refresh=2),
        ),
        "network": SimulatedNetwork("phone-4g", seed=1),
    },
    "fedlq both ways": {
        "algorithm": partial(deepcopy, BOTH_WAYS[0]),
        **BOTH_WAYS[1],
    },
    "planned": {
        "algorithm": partial(FedLQ, plan="server", sensitivity=Sensitivity(shrinkage=0.0)),
        "norm": "local",
    },
    "own parts": {
        "algorithm": OwnParts,
        "finetune_epochs": 1,
        "norm": "local",
        "evaluate_clients": "after",
        "validate_first": True,
        "clients_per_round": 4,
    },
    "frozen": {
        "clients": [{"bits": 4, "count": 3, "frozen": "quantize"}, {"bits": 8, "count": 3}],
        "algorithm": Unlucky,
        "module": Tuned,
        "clients_per_round": 4,
    },
    "own models": {
        "algorithm": Ditto,
        "availability": Availability(dropout=0.2, loss=0.2, stragglers=0.5, retries=1),
    },
    "median": {"algorithm": partial(Median, FedDyn())},
    "devices": {
        "clients": DEVICES,
        "algorithm": partial(ProWD, Mask(per="group"), None),
        "downlink": Downlink("client", "differences"),
        "norm": "group",
        "evaluate_clients": "after",
    },
    "private": {
        "algorithm": partial(DPFedAvg, 0.1, quantile=0.5),
        "norm": "local",
        "sampling": "poisson",
        "weights": "uniform",
        "clients_per_round": 2,
    },
    "skipped rounds": {
        "algorithm": Unlucky,
        "min_clients": 6,
        "norm": "local",
        "downlink": Downlink(4, "differences"),
    },
}


def rank_of(
    folder: Path, rank: int, world: int, port: int, case: str, options: dict[str, Any]
) -> None:
    """One process of a run."""
    if world > 1:
        names = {
            "RANK": rank,
            "LOCAL_RANK": rank,
            "GROUP_RANK": 0,
            "WORLD_SIZE": world,
            "LOCAL_WORLD_SIZE": world,
        }
        names |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": 1}
        os.environ |= {name: str(value) for name, value in names.items()}
    settings = {"clients": MIXED, "module": Net, **CASES[case], **options}
    settings["algorithm"] = settings["algorithm"]() if "algorithm" in settings else None
    clients = sum(Fleet(settings["clients"]).counts())
    data = HandMade(
        [points(6 + 4 * i, i) for i in range(clients)],
        held_out=points(9, 99),
        shuffle=True,
        own=[points(3, 50 + i) for i in range(clients)],
    )
    # what a rank draws for itself must not matter; `fit` seeds the initial weights
    torch.manual_seed(rank)
    fit(folder, data=data, devices=world, accelerator="cpu", timeout_seconds=60, **settings)


def in_processes(
    rank_of: Callable[..., None], folder: Path, world: int, case: str, options: dict[str, Any]
) -> None:
    """All ranks of a run, to their end."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ranks = [
        PROCESSES.Process(target=rank_of, args=(folder, r, world, port, case, options))
        for r in range(world)
    ]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(120)
    assert [rank.exitcode for rank in ranks] == [0] * world


def train(folder: Path, world: int, case: str, **options: Any) -> dict[str, Any]:
    """A run on `world` processes, one of which is this one, and what came of it."""
    if world == 1:
        rank_of(folder, 0, 1, 0, case, options)
    else:
        in_processes(rank_of, folder, world, case, options)
    return outcome(folder / "bhfl" / "version_0")


def outcome(run: Path) -> dict[str, Any]:
    """All of a run folder that must not depend on the number of processes."""
    rows = [json.loads(line) for line in (run / "rounds.jsonl").read_text().splitlines()]
    newest = {path.name.split("-")[0]: path for path in sorted((run / "clients").rglob("client=*"))}
    state = load_last(run / "checkpoints")
    return {
        "rows": [
            {tag: value for tag, value in row.items() if tag != "time/round_s"} for row in rows
        ],
        "server": digest(state["server"]),
        "references": digest(state["references"]),
        "ledger": state["run"]["ledger"],
        "numbers": client_rows(run),
        "clients": {client: (path.name, digest(load(path))) for client, path in newest.items()},
    }


FOUR = (
    "private", "gate", "prowd", "prowd by group", "fedlq", "own parts", "devices", "frozen",
    "fedlq both ways", "far off",
)  # fmt: skip
"""What also runs on four processes, among the slow tests."""


LONG = ("planned", "prowd by group", "local", "fedlq", "median", "own models")
"""What is shown by another one of the quick tests too."""


def numbers() -> list[Any]:
    """Cases with the numbers of processes that are compared with one."""
    # seven clients, and one, on four processes
    both = ("stateful", "one client")
    quick = []
    for case in CASES:
        marks = pytest.mark.slow if case in LONG else ()
        quick.append(pytest.param(case, (2, 4) if case in both else (2,), id=case, marks=marks))
    slow = [pytest.param(case, (4,), id=f"{case}-4", marks=pytest.mark.slow) for case in FOUR]
    return [*quick, *slow]


@pytest.mark.parametrize(("case", "worlds"), numbers())
def test_the_number_of_processes_does_not_matter(tmp_path, case, worlds):
    one = train(tmp_path / "1", 1, case)
    assert len(one["rows"]) == 3 + CASES[case].get("validate_first", False)
    tested = [row["client"] for row in one["numbers"] if row["stage"] == "test"]
    assert len({*tested}) == len(tested) == sum(Fleet(CASES[case].get("clients", MIXED)).counts())
    for world in worlds:
        assert train(tmp_path / str(world), world, case) == one


def refused(*args: Any) -> None:
    with pytest.raises(
        ValueError,
        match=r"Lonely\.reduce must return the same in each of 2 processes, got different val",
    ):
        rank_of(*args)


def test_an_aggregator_that_keeps_to_its_own_clients_is_refused(tmp_path):
    in_processes(refused, tmp_path, 2, "stateful", {"algorithm": LonelyAverage})


def refused_plan(*args: Any) -> None:
    with pytest.raises(
        ValueError, match=r"LonelyPlan\.begin_round must return the same in each of"
    ):
        rank_of(*args)


def test_a_plan_that_each_process_makes_for_itself_is_refused(tmp_path):
    in_processes(refused_plan, tmp_path, 2, "stateful", {"algorithm": LonelyPlan})


def test_a_run_goes_on_with_another_number_of_processes(tmp_path):
    whole = train(tmp_path / "whole", 1, "local", max_rounds=3)
    train(tmp_path / "parts", 2, "local", max_rounds=1)
    train(tmp_path / "parts", 1, "local", max_rounds=2, ckpt_path="last")
    assert train(tmp_path / "parts", 2, "local", max_rounds=3, ckpt_path="last") == whole


# ---- how it ends: processes that the command starts ----------------------------------------------

TAKES_SECONDS = 180
"""Bound on the start of a command, on a busy machine."""


def arguments(folder: Path, devices: int, rounds: int) -> list[str]:
    """Of the command, after its name."""
    return [
        "fit", "--clients", "{int8: 2, float32: 1}", "--data", "FakeImages",
        "--data.num_train", "64", "--data.num_test", "8", "--data.shape", "[1, 8, 8]",
        "--trainer.accelerator", "cpu", "--trainer.timeout_seconds", "60",
        "--trainer.devices", str(devices), "--trainer.max_rounds", str(rounds),
        "--trainer.default_root_dir", str(folder),
    ]  # fmt: skip


def begin(folder: Path) -> None:
    """All that ``python -m bhfl`` does with arguments, in a process group of its own."""
    os.setsid()
    output = os.open(folder / "output.txt", os.O_WRONLY | os.O_CREAT)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.argv[1:] = arguments(folder, 1, rounds=10**6)
    main()


class Forked:
    """The console command in a process that has loaded its libraries, as far as these tests need
    `subprocess.Popen`.
    """

    def __init__(self, folder: Path) -> None:
        self.process = PROCESSES.Process(target=begin, args=(folder,))
        self.process.start()
        self.pid = self.process.pid

    def poll(self) -> int | None:
        return self.process.exitcode

    def wait(self, seconds: float | None = None) -> int | None:
        self.process.join(seconds)
        return self.process.exitcode

    def send_signal(self, how: int) -> None:
        os.kill(self.pid, how)


@contextmanager
def command(folder: Path, devices: int) -> Iterator[Any]:
    """The console command, in a process group of its own, of which nothing is left at the end;
    forked where `devices` is 0, for one.
    """
    if devices == 0:
        process: Any = Forked(folder)
    else:
        with open(folder / "output.txt", "w") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "bhfl", *arguments(folder, devices, rounds=10**6)],
                stdout=output, stderr=subprocess.STDOUT, text=True, start_new_session=True,
            )  # fmt: skip
    try:
        yield process
    finally:
        if alive(process.pid):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def the_same_on_one_process(folder: Path, rounds: int) -> None:
    """The command's main function, its output thrown away."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    main(arguments(folder, 1, rounds))


def alive(group: int) -> list[int]:
    """The processes of a group that have not ended."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, of = path.read_text().rpartition(")")[2].split()[:3]
        except OSError:
            continue
        if int(of) == group and state != "Z":
            found.append(int(path.parent.name))
    return found


def wait_for_rounds(folder: Path, process: Any, rounds: int) -> Path:
    run = folder / "bhfl" / "version_0"
    deadline = time.monotonic() + TAKES_SECONDS
    while not (run / "checkpoints" / f"round={rounds:05d}.ckpt").exists():
        assert process.poll() is None, (folder / "output.txt").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return run


@pytest.mark.parametrize(
    ("how", "code", "devices"),
    [
        (signal.SIGTERM, 143, 0),
        pytest.param(signal.SIGTERM, 143, 1, marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, 143, 2, marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, 130, 2, marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, 130, 1, marks=pytest.mark.slow),
    ],
)
def test_signals_end_a_run_in_order(tmp_path, how, code, devices):
    with command(tmp_path, devices) as process:
        run = wait_for_rounds(tmp_path, process, 2)
        if how == signal.SIGINT:
            os.killpg(process.pid, how)  # as a terminal does
        else:
            process.send_signal(how)
        assert process.wait(TAKES_SECONDS) == code, (tmp_path / "output.txt").read_text()
        assert alive(process.pid) == []
    said = (tmp_path / "output.txt").read_text()
    assert "Traceback" not in said
    assert said.count("error: ") == said.count(f"--ckpt_path {run} goes on from round") == 1
    assert "distributed" not in said
    found, rounds = outcome(run), load_last(run / "checkpoints")["server"]["round"]
    # a row for the first model, and maybe one beyond the checkpoint
    assert rounds + 1 <= len(found["rows"]) <= rounds + 2
    alone = PROCESSES.Process(target=the_same_on_one_process, args=(tmp_path / "one", rounds))
    alone.start()
    alone.join(TAKES_SECONDS)
    same = outcome(tmp_path / "one" / "bhfl" / "version_0")
    assert {**found, "rows": found["rows"][: rounds + 1]} == same


@pytest.mark.slow
def test_a_dead_process_takes_the_others_with_it(tmp_path):
    with command(tmp_path, 2) as process:
        wait_for_rounds(tmp_path, process, 2)
        (other,) = [pid for pid in alive(process.pid) if pid != process.pid]
        os.kill(other, signal.SIGKILL)
        assert process.wait(TAKES_SECONDS) != 0
        deadline = time.monotonic() + TAKES_SECONDS
        while alive(process.pid) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert alive(process.pid) == []
