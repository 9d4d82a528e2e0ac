"""A run that was stopped, killed or damaged goes on to where it would have come, to the bit."""

from __future__ import annotations

import csv
import json
import os
import random
import shutil
import signal
import time
import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import bhfl.engine.checkpoint
import bhfl.engine.client.store
import bhfl.files.writing
from bhfl.algorithms import (
    AdaQuantFL,
    FedAvg,
    FedCOMGATE,
    FedLQ,
    FedPAQ,
    FedProx,
    GroupedAvgAsymmetric,
    Local,
    ProWD,
)
from bhfl.algorithms.fedlq import Budget, Sensitivity
from bhfl.algorithms.prowd import Dequantizer
from bhfl.comm.network import SimulatedNetwork
from bhfl.data import FromDatasets
from bhfl.downlink import Downlink
from bhfl.engine.algorithm import Algorithm
from bhfl.engine.callback import Callback
from bhfl.engine.checkpoint import CheckpointError, digest, load, prune, round_path
from bhfl.engine.history import unpack
from bhfl.engine.trainer import FederatedTrainer
from tests.engine.hand_made import HandMade, Module, client_rows, points
from tests.federation import Client, fit
from tests.processes import PROCESSES

ROUNDS = 6
CLIENTS = [{"bits": bits, "count": 1} for bits in (32, 8, "ternary", "strict8")]


class Remembering(Algorithm):
    """Keeps state in every place where an algorithm may keep any."""

    def __init__(self, weight: float = 0.1) -> None:
        self.weight = weight

    def init_server(self, params, clients):
        return {
            "count": 0,
            "drift": {name: torch.zeros_like(tensor) for name, tensor in params.items()},
        }

    def server_update(self, server, aggregate, rng):
        drift = {
            name: 0.5 * old + 0.01 * torch.randn(old.shape, generator=rng.torch("server", i))
            for i, (name, old) in enumerate(server.extra["drift"].items())
        }
        params = {name: aggregate[name] + drift[name] for name in aggregate}
        return replace(
            server, params=params, extra={"count": server.extra["count"] + 1, "drift": drift}
        )

    def init_client(self, client, received):
        return {"memory": torch.zeros_like(received["net.0.weight"]), "rounds": torch.tensor(0)}

    def client_gradients_(self, run):
        run.module.net[0].weight.grad.add_(run.state["memory"], alpha=self.weight)

    def uplink(self, run):
        run.state["memory"] = run.received["net.0.weight"] - run.module.net[0].weight.detach()
        run.state["rounds"] = run.state["rounds"] + 1
        return super().uplink(run)

    def closing(self, server):
        return {"net.0.weight": server.params["net.0.weight"]}

    def client_close(self, client, state, closing):
        return {**state, "memory": state["memory"] + 0.01 * closing["net.0.weight"]}


def net() -> Module:
    layers = [nn.Linear(6, 7), nn.BatchNorm1d(7), nn.Dropout(0.2), nn.ReLU(), nn.Linear(7, 3)]
    return Module(nn.Sequential(*layers))


def data(seed: int = 0) -> HandMade:
    clients = [points(6 + 4 * i, seed + i) for i in range(4)]
    own = [points(3, 50 + i) for i in range(4)]
    return HandMade(clients, held_out=points(9, 99), shuffle=True, own=own)


def go(folder: Path, max_rounds: int = ROUNDS, **options: Any) -> FederatedTrainer:
    """The run of these tests, as far as `max_rounds`."""
    settings = {
        "algorithm": Remembering(), "clients": CLIENTS, "module": net, "data": data(),
        "clients_per_round": 3, "norm": "local", "evaluate_clients": "after",
    }  # fmt: skip
    return fit(folder, max_rounds=max_rounds, **{**settings, **options})


def outcome(folder: Path) -> dict[str, Any]:
    """All that must not depend on how often a run was stopped."""
    run = folder / "bhfl" / "version_0"
    rows = [json.loads(line) for line in (run / "rounds.jsonl").read_text().splitlines()]
    state = load(round_path(run / "checkpoints", ROUNDS))
    history = [
        {k: v for k, v in row.items() if not k.startswith("time/")}
        for row in unpack(state["run"]["history"])
    ]
    newest = {path.name.split("-")[0]: path for path in sorted((run / "clients").rglob("client=*"))}
    summary = json.loads((run / "summary.json").read_text())
    return {
        "rows": [{k: v for k, v in row.items() if not k.startswith("time/")} for row in rows],
        "server": digest(state["server"]),
        "references": digest(state["references"]),
        "history": history,
        "ledger": state["run"]["ledger"],
        "numbers": client_rows(run),
        "clients": {client: (path.name, digest(load(path))) for client, path in newest.items()},
        "summary": {key: value for key, value in summary.items() if key != "seconds"},
        "best": digest(load(run / "checkpoints" / "best.ckpt")["server"]),
    }


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("uninterrupted")
    go(folder)
    found = outcome(folder)
    assert [row["round"] for row in found["rows"]] == list(range(1, ROUNDS + 1))
    return found


# ---- stopped -------------------------------------------------------------------------------------


def test_a_resumed_run_is_the_uninterrupted_one(tmp_path, uninterrupted):
    go(tmp_path, 3)
    trainer = go(tmp_path, ckpt_path="last")
    assert outcome(tmp_path) == uninterrupted
    assert [row["round"] for row in trainer.run.history] == list(range(1, ROUNDS + 1))


@pytest.fixture(scope="module")
def stopped(tmp_path_factory) -> Path:
    """The folder of a run that was stopped three times in a row, after five rounds at last."""
    folder = tmp_path_factory.mktemp("stopped")
    for rounds in (2, 4, 5):
        go(folder, rounds, ckpt_path="last" if rounds > 2 else None, keep_checkpoints=9)
    return folder


@pytest.mark.parametrize(
    "path", ["last", "{run}", "{run}/checkpoints/round=00002.ckpt", "{run}/checkpoints/best.ckpt"]
)
def test_every_way_to_say_where_to_go_on(tmp_path, uninterrupted, stopped, path):
    shutil.copytree(stopped, tmp_path, dirs_exist_ok=True)
    path = path.format(run=tmp_path / "bhfl" / "version_0")
    go(tmp_path, ckpt_path=path, keep_checkpoints=9)
    found = outcome(tmp_path)
    for key in ("rows", "server", "ledger", "summary"):
        assert found[key] == uninterrupted[key]


def test_an_older_checkpoint_takes_the_place_of_the_newer_ones(tmp_path, uninterrupted):
    go(tmp_path, 5, keep_checkpoints=5)
    checkpoints = tmp_path / "bhfl" / "version_0" / "checkpoints"
    go(tmp_path, 3, ckpt_path=round_path(checkpoints, 2))
    assert sorted(p.name for p in checkpoints.glob("round*")) == [
        "round=00002.ckpt",
        "round=00003.ckpt",
    ]
    go(tmp_path, ckpt_path="last")
    assert outcome(tmp_path)["server"] == uninterrupted["server"]


def test_a_finished_run_has_nothing_left_to_do(tmp_path, uninterrupted):
    go(tmp_path)
    go(tmp_path, ckpt_path="last")
    assert outcome(tmp_path) == uninterrupted


def test_a_checkpoint_file_alone_is_enough_for_stateless_clients(tmp_path):
    options = {"algorithm": None, "norm": "average"}
    first = go(tmp_path / "a", **options)
    go(tmp_path / "b", 3, **options)
    alone = tmp_path / "alone.ckpt"
    alone.write_bytes(
        round_path(tmp_path / "b" / "bhfl" / "version_0" / "checkpoints", 3).read_bytes()
    )
    trainer = go(tmp_path / "c", ckpt_path=alone, **options)
    assert digest(trainer.server.params) == digest(first.server.params)
    assert trainer.run.folder == tmp_path / "c" / "bhfl" / "version_0"


@pytest.mark.parametrize("place", ["alone.ckpt", "run/checkpoints/round=00003.ckpt"])
def test_a_checkpoint_without_the_state_of_its_clients_is_refused(tmp_path, place):
    file = tmp_path / place
    file.parent.mkdir(parents=True, exist_ok=True)
    trainer = go(tmp_path, 3)
    file.write_bytes(round_path(trainer.run.checkpoints, 3).read_bytes())
    with pytest.raises(
        CheckpointError,
        match="clients of this run keep state of their own, which the checkpoint lack",
    ):
        go(tmp_path, ckpt_path=file)
    assert sorted(path.name for path in (tmp_path / "bhfl").iterdir()) == ["version_0"]


def test_personal_models_are_not_measured_without_their_clients(tmp_path):
    trainer = go(tmp_path, 2, algorithm=Local())
    alone = tmp_path / "alone.ckpt"
    alone.write_bytes(round_path(trainer.run.checkpoints, 2).read_bytes())
    options = {
        "norm": "local",
        "default_root_dir": str(tmp_path),
        "accelerator": "cpu",
        "devices": 1,
    }
    measured = FederatedTrainer(CLIENTS, Local(), **options)
    with pytest.raises(
        CheckpointError, match=r"keep state of their own, .*: the file lies in no run folder"
    ):
        measured.validate(net(), data(), alone)
    metrics = measured.validate(net(), data(), round_path(trainer.run.checkpoints, 2))
    assert metrics["val/acc_avg"] == trainer.run.history[-1]["val/acc_avg"]


def test_validation_samples_that_were_trained_on_are_told(tmp_path):
    def split(seed: int) -> FromDatasets:
        x, y = torch.randn(60, 6), torch.arange(60) % 3
        return FromDatasets(
            TensorDataset(x, y), TensorDataset(x, y), batch_size=8, val_fraction=0.5
        )

    options = {
        "default_root_dir": str(tmp_path),
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
    }
    FederatedTrainer({8: 2}, max_rounds=1, **options).fit(Client(nn.Linear(6, 3)), split(0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        FederatedTrainer({8: 2}, **options).validate(Client(nn.Linear(6, 3)), split(0), "last")
        FederatedTrainer({8: 2}, seed=1, **options).test(Client(nn.Linear(6, 3)), split(0), "last")
    with pytest.warns(
        UserWarning,
        match=r"\d+ of 30 validation samples were trained on in .*version_0, if its data are",
    ):
        FederatedTrainer({8: 2}, seed=1, **options).validate(
            Client(nn.Linear(6, 3)), split(0), "last"
        )


def test_a_best_model_of_rounds_that_are_undone_is_gone(tmp_path):
    class Better(Module):
        def validation_step(self, batch, batch_idx):
            self.log("val/acc", trainers[-1].server.round if trainers else 0.0)

    class Watch(Callback):
        def on_fit_start(self, trainer):
            trainers.append(trainer)

    trainers: list = []
    options = {"module": lambda: Better(net().net), "monitor": "val/acc_avg", "keep_checkpoints": 5}
    trainer = go(tmp_path, 3, callbacks=[Watch()], **options)
    best = trainer.run.checkpoints / "best.ckpt"
    assert load(best)["server"]["round"] == 3
    go(
        tmp_path,
        2,
        ckpt_path=round_path(trainer.run.checkpoints, 2),
        callbacks=[Watch()],
        **options,
    )
    assert not best.exists()


def test_server_optimisers_go_on(tmp_path):
    options = {"algorithm": None, "server_optimizer": lambda p: torch.optim.Adam(p, lr=0.01)}
    whole = go(tmp_path / "a", **options)
    go(tmp_path / "b", 3, **options)
    assert digest(go(tmp_path / "b", ckpt_path="last", **options).server.params) == digest(
        whole.server.params
    )


def test_the_best_model_still_has_its_clients(tmp_path):
    class Worse(Module):
        def validation_step(self, batch, batch_idx):
            self.log("val/acc", -trainers[0].server.round if trainers else 0.0)

    class Watch(Callback):
        def on_fit_start(self, trainer):
            trainers.append(trainer)

    trainers: list = []
    trainer = go(
        tmp_path, module=lambda: Worse(net().net), clients_per_round=None, callbacks=[Watch()],
        monitor="val/acc_avg", keep_checkpoints=1,
    )  # fmt: skip
    assert trainer.run.best_round == 1
    versions = sorted(path.name for path in (trainer.run.folder / "clients").rglob("client=0-*"))
    assert versions == ["client=0-round=00001.pt", "client=0-round=00006.pt"]


# ---- killed --------------------------------------------------------------------------------------


def resume_or_begin(folder: Path, kill_at: str = "", count: int = 0, **options: Any) -> None:
    """In a process of its own: go on from the last checkpoint if there is one; at the `count`-th
    `kill_at`, die.
    """
    if kill_at:
        module, name = kill_at.rsplit(".", 1)
        owner = {"files": bhfl.files.writing, "checkpoint": bhfl.engine.checkpoint, "os": os}
        owner |= {
            "RoundsFile": bhfl.files.writing.RoundsFile,
            "ClientStore": bhfl.engine.client.store.ClientStore,
        }
        die_at(owner[module], name.removesuffix("+"), count, after=name.endswith("+"))
    checkpoints = folder / "bhfl" / "version_0" / "checkpoints"
    begun = checkpoints.is_dir() and any(checkpoints.glob("round=*.ckpt"))
    if checkpoints.is_dir() and not begun:
        (folder / "bhfl").rename(folder / f"given_up_{time.time_ns()}")
    go(folder, ckpt_path="last" if begun else None, **options)


def die_at(owner: Any, name: str, count: int, after: bool) -> None:
    """Make the `count`-th call of ``owner.name`` the last thing that this process does."""
    function, calls = getattr(owner, name, open), iter(range(1, 10**6))

    def deadly(*args: Any, **kwargs: Any) -> Any:
        last = next(calls) == count
        result = function(*args, **kwargs) if after or not last else None
        if last:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, name, deadly)


def in_process(folder: Path, seconds: float | None = None, **arguments: Any) -> int:
    """Run `resume_or_begin` in a process, killed after so many seconds; its exit code."""
    process = PROCESSES.Process(target=resume_or_begin, args=(folder,), kwargs=arguments)
    process.start()
    process.join(seconds)
    if process.is_alive():
        process.kill()
        process.join()
    return process.exitcode


DEADLY = [
    "files.open", "os.fsync", "os.replace", "os.replace+", "checkpoint.digest", "checkpoint.prune",
    "RoundsFile.append", "RoundsFile.append+", "ClientStore.put", "ClientStore.put+",
    "ClientStore.commit", "ClientStore.commit+", "ClientStore.prune+", "RoundsFile.rewrite+",
]  # fmt: skip


def deadly() -> list[Any]:
    """All moments; those after a step whose beginning is there too among the slow tests."""
    found = []
    for moment in DEADLY:
        twice = moment.endswith("+") and moment.removesuffix("+") in DEADLY
        found.append(pytest.param(moment, marks=pytest.mark.slow if twice else ()))
    return found


@pytest.mark.parametrize("kill_at", deadly())
def test_killed_in_the_middle_of_writing(tmp_path, uninterrupted, kill_at):
    rng = random.Random(kill_at)
    count = (
        1
        if "rewrite" in kill_at
        else rng.randrange(4, 7)
        if "prune" in kill_at or "commit" in kill_at
        else rng.randrange(5, 30)
    )
    if kill_at.startswith("RoundsFile.append"):
        count = rng.randrange(2, ROUNDS)
    assert in_process(tmp_path, kill_at=kill_at, count=count) == -signal.SIGKILL
    assert in_process(tmp_path) == 0
    assert outcome(tmp_path) == uninterrupted
    assert not list(tmp_path.glob("bhfl/**/.*.tmp"))


def test_what_a_kill_left_of_earlier_rounds_is_dropped(
    tmp_path: Path, uninterrupted: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "bhfl" / "version_0"

    def stopped(folder: Path, keep: int) -> list[int]:
        if round_path(folder, ROUNDS).exists():
            raise KeyboardInterrupt
        return prune(folder, keep)

    monkeypatch.setattr("bhfl.engine.checkpoint.prune", stopped)
    with pytest.raises(KeyboardInterrupt):
        go(tmp_path)
    monkeypatch.undo()
    assert len(list(folder.glob("checkpoints/round=*"))) == 3
    before = len(list(folder.glob("clients/*/*")))
    go(tmp_path, ckpt_path="last")
    assert outcome(tmp_path) == uninterrupted
    assert len(list(folder.glob("checkpoints/round=*"))) == 2
    assert len(list(folder.glob("clients/*/*"))) < before


class Counting(Algorithm):
    """Its clients keep what they came to as it is; no message changes it."""

    def init_client(self, client, received):
        return {"rounds": torch.tensor(0)}

    def uplink(self, run):
        run.state["rounds"] = run.state["rounds"] + 1
        return super().uplink(run)


@pytest.mark.parametrize(
    ("count", "options"),
    [
        pytest.param(5, {"algorithm": Counting()}, marks=pytest.mark.slow),
        (5, {"algorithm": Remembering()}),
        # of a round, what clients keep is there by then, and what they were sent is not
        (6, {"algorithm": Remembering(), "downlink": Downlink(4, "differences", keep=2)}),
    ],
    ids=["kept", "changed", "sent"],
)
def test_killed_between_what_clients_came_to_and_its_verdict(tmp_path, count, options):
    killed = tmp_path / "killed"
    code = in_process(killed, kill_at="ClientStore.commit", count=count, **options)
    assert code == -signal.SIGKILL
    left = list(killed.glob("bhfl/version_0/*/*/.*.tmp"))
    assert left, "nothing was waiting for its verdict"
    assert in_process(killed, **options) == 0
    go(tmp_path / "whole", **options)
    assert outcome(killed) == outcome(tmp_path / "whole")
    assert not list(killed.glob("bhfl/**/.*.tmp"))


@pytest.mark.parametrize(
    "seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2, 3))]
)
def test_killed_at_any_moment(tmp_path, uninterrupted, seed):
    rng, kills = random.Random(seed), 0
    while in_process(tmp_path, seconds=rng.uniform(0.2, 0.9) if kills < 6 else None):
        kills += 1
        assert kills < 8
    assert outcome(tmp_path) == uninterrupted


BOTH_WAYS = (
    FedLQ(
        "delta",
        (0, 1, 2, 4),
        Budget("quantile", average_bits=1.5),
        Sensitivity("clients", refresh=2),
        infeasible="carry",
        error_feedback=True,
        both_ways=True,
        side_bits=8,
    ),
    {"network": SimulatedNetwork("iot", seed=1), "downlink": Downlink(8, "differences")},
)
STATEFUL = [
    (
        ProWD(
            dequantizer=Dequantizer(
                warmup_rounds=2, period=2, first_steps=3, steps=2, distill_weight=0.0
            )
        ),
        {},
    ),
    (FedCOMGATE(4, allow_inexact=True), {}),
    (GroupedAvgAsymmetric(), {}),
    (Local(), {}),
    (
        FedLQ("delta", plan="server", sensitivity=Sensitivity("clients", refresh=2)),
        {"network": SimulatedNetwork("phone-4g")},
    ),
    (AdaQuantFL(), {}),
    (FedAvg(), {"server_optimizer": partial(torch.optim.Adam, lr=0.01)}),
    (FedPAQ(), {"downlink": Downlink(4, "differences", keep=2)}),
    BOTH_WAYS,
]


LONG = (AdaQuantFL, GroupedAvgAsymmetric, Local)
"""Methods that keep what others among the quick tests keep too."""


def stateful() -> list[Any]:
    found = []
    for row in STATEFUL:
        kind = type(row[0])
        marks = [pytest.mark.slow] if kind in LONG else []
        found.append(pytest.param(*row, id=kind.__name__, marks=marks))
    return found


@pytest.mark.parametrize(("algorithm", "options"), stateful())
def test_every_method_that_keeps_anything_survives_a_kill(tmp_path, algorithm, options):
    options = {"algorithm": algorithm, "monitor": "val/acc_float32", **options}
    assert (
        in_process(tmp_path / "killed", kill_at="RoundsFile.append", count=4, **options)
        == -signal.SIGKILL
    )
    assert in_process(tmp_path / "killed", **options) == 0
    go(tmp_path / "whole", **options)
    assert outcome(tmp_path / "killed") == outcome(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("algorithm", "options"),
    [
        BOTH_WAYS,
        (FedPAQ(8, top_k=0.3, error_feedback=True), {"downlink": "client"}),
        (
            ProWD(dequantizer=None, payload="delta", error_feedback=True),
            {"downlink": Downlink("client", "differences", keep=1)},
        ),
    ],
    ids=["layers", "sparse", "coarse"],
)
def test_bits_on_both_paths_survive_kills_at_any_moment(tmp_path, algorithm, options):
    options = {"algorithm": algorithm, "monitor": "val/acc_float32", **options}
    rng, kills = random.Random(0), 0
    while kills < 8 and in_process(tmp_path / "killed", rng.uniform(0.1, 0.5), **options):
        kills += 1
    assert kills
    assert in_process(tmp_path / "killed", **options) == 0
    go(tmp_path / "whole", **options)
    assert outcome(tmp_path / "killed") == outcome(tmp_path / "whole")


CHANNEL = {"weights": 8, "activations": 8, "granularity": "channel"}


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["fake", "int8", "int8-bfloat16", "integer", "bitsandbytes"])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_run_with_each_backend_survives_a_kill(tmp_path, backend):
    low = {"bits": CHANNEL, "count": 2, "name": "low", "backend": backend}
    options = {"clients": [low, {"bits": 32, "count": 2}], "monitor": "val/acc_low"}
    killed = in_process(tmp_path / "killed", kill_at="RoundsFile.append", count=3, **options)
    assert killed == -signal.SIGKILL
    assert in_process(tmp_path / "killed", **options) == 0
    trainer = go(tmp_path / "whole", **options)
    used = {*trainer.clients[0].devices.backends.values()} or {"fake"}
    assert used == {backend}
    assert outcome(tmp_path / "killed") == outcome(tmp_path / "whole")


# ---- damaged -------------------------------------------------------------------------------------


def test_a_damaged_checkpoint_costs_a_round_and_a_warning(tmp_path, uninterrupted):
    go(tmp_path, 4)
    path = round_path(tmp_path / "bhfl" / "version_0" / "checkpoints", 4)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.warns(
        UserWarning, match=r"round=00004\.ckpt.*falling back to the checkpoint before it"
    ):
        go(tmp_path, ckpt_path="last")
    assert outcome(tmp_path) == uninterrupted


def test_a_damaged_checkpoint_that_was_named_is_an_error(tmp_path):
    go(tmp_path, 2)
    path = round_path(tmp_path / "bhfl" / "version_0" / "checkpoints", 2)
    path.write_bytes(b"no checkpoint")
    with pytest.raises(CheckpointError, match=r"round=00002\.ckpt: not a readable checkpoint"):
        go(tmp_path, ckpt_path=path)


def test_rows_of_a_file_cut_off_in_the_middle(tmp_path, uninterrupted):
    go(tmp_path, 3)
    rows = tmp_path / "bhfl" / "version_0" / "rounds.jsonl"
    rows.write_text(rows.read_text() + '{"round": 4, "clients/o')
    go(tmp_path, ckpt_path="last")
    assert outcome(tmp_path) == uninterrupted


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("last", "no run with a checkpoint under"),
        ("nothing.ckpt", "no such checkpoint file"),
        ("https://example.com/a.ckpt", "must be a local path"),
    ],
)
def test_nothing_to_go_on_from(tmp_path, path, message):
    with pytest.raises(CheckpointError, match=message):
        go(tmp_path, ckpt_path=path)


# ---- other options -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "lines"),
    [
        ({"seed": 3}, ["trainer.seed: 0 -> 3"]),
        (
            {"local_epochs": 2, "norm": "group"},
            ["trainer.local_epochs: 1 -> 2", "trainer.norm: 'local' -> 'group'"],
        ),
        ({"clients": {32: 4}}, ["clients: ", "{'bits': 'float32', 'count': 4}"]),
        ({"algorithm": Remembering(0.2)}, ["algorithm.weight: 0.1 -> 0.2"]),
        (
            {"algorithm": FedProx(0.1)},
            [".Remembering' -> 'bhfl.algorithms.FedProx'", "algorithm.mu: 'absent' -> 0.1"],
        ),
        ({"data": data(50)}, ["partition: "]),
        (
            {"data": HandMade(data().clients, 5, points(9, 99), shuffle=True)},
            ["data.batch_size: 4 -> 5"],
        ),
        ({"server_optimizer": torch.optim.SGD}, ["trainer.server_optimizer"]),
        (
            {"monitor": "val/loss_avg", "mode": "min"},
            ["trainer.mode: 'max' -> 'min'", "trainer.monitor: "],
        ),
        (
            {"clients_per_round": 0.75, "precision": "bf16-mixed"},
            ["trainer.clients_per_round: 3 -> 0.75", "'bf16-mixed'"],
        ),
    ],
)
def test_options_that_shape_the_model_must_stay(tmp_path, change, lines):
    go(tmp_path, 1)
    with pytest.raises(
        CheckpointError, match=r"the checkpoint's run had other options \(old -> new\):\n"
    ) as error:
        go(tmp_path, ckpt_path="last", **change)
    assert all(line in str(error.value) for line in lines)


def test_options_that_shape_no_model_may_change(tmp_path, uninterrupted):
    go(tmp_path, 2)
    watch = type("Watch", (Callback,), {"on_round_end": lambda self, trainer, metrics: None})()
    trainer = go(
        tmp_path, ckpt_path="last", check_val_every_n_rounds=2, keep_checkpoints=4,
        checkpoint_every_n_rounds=3, patience=50, max_failed_rounds=1, callbacks=[watch],
        timeout_seconds=99, evaluate_clients="none",
    )  # fmt: skip
    found = outcome(tmp_path)
    assert found["clients"] == uninterrupted["clients"]
    assert found["ledger"] == uninterrupted["ledger"]
    assert sorted(p.name for p in trainer.run.checkpoints.glob("round*")) == [
        f"round={i:05d}.ckpt" for i in (1, 2, 3, 6)
    ]


def test_another_number_of_threads_is_said(tmp_path):
    go(tmp_path, 1)
    with pytest.warns(
        UserWarning,
        match=r"trainer\.threads: 1 -> 2; the last bits of its results may differ",
    ):
        go(tmp_path, 2, ckpt_path="last", threads=2)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (
            [nn.Linear(6, 9), nn.BatchNorm1d(9), nn.Linear(9, 3)],
            r"another model: net\.0\.weight is \(7, 6\) there and \(9, 6\) here",
        ),
        ([nn.Linear(6, 7)], r"is of another model: net\.1\.weight is \(7,\) there and absent here"),
    ],
)
def test_checkpoints_of_another_model(tmp_path, layers, message):
    go(tmp_path, 1)
    with pytest.raises(CheckpointError, match=message):
        go(
            tmp_path,
            ckpt_path="last",
            module=lambda: Module(nn.Sequential(*layers)),
            algorithm=Remembering(),
        )


# ---- logs ----------------------------------------------------------------------------------------


def steps_of(run: Path) -> tuple[list[int], dict[str, list[int]]]:
    """The rounds in metrics.csv, and those of each tag in TensorBoard."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with open(run / "metrics.csv", newline="") as file:
        table = [int(row["step"]) for row in csv.DictReader(file)]
    events = EventAccumulator(str(run))
    events.Reload()
    return table, {
        tag: [event.step for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]
    }


@pytest.mark.parametrize(
    ("kill_at", "count"), [("", 0), ("checkpoint.digest", 12), ("checkpoint.prune", 3)]
)
def test_logs_go_on_without_gaps_or_duplicates(tmp_path, kill_at, count):
    if kill_at:
        assert in_process(tmp_path, kill_at=kill_at, count=count, logger=True) == -signal.SIGKILL
    else:
        go(tmp_path, 3, logger=True)
    time.sleep(1)  # TensorBoard orders its files by the second
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        go(tmp_path, ckpt_path="last", logger=True)
    table, events = steps_of(tmp_path / "bhfl" / "version_0")
    expected = list(range(1, ROUNDS + 1))
    assert table == expected
    assert events["train/loss"] == expected
    assert events["val/acc_avg"] == expected
