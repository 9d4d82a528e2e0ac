"""What a federation computes, held against loops by hand; bit for bit wherever the promise is
exact.
"""

from __future__ import annotations

import json
import math
import random
import re
import warnings
from collections import defaultdict
from typing import ClassVar

import lightning as L
import numpy as np
import pytest
import torch
from torch import nn

import bhfl.engine.client.local
import bhfl.engine.client.messages
import bhfl.engine.outgoing
import bhfl.engine.sampling
from bhfl.algorithms import FedAvg, FedProx, GroupedAvg, Local
from bhfl.comm import decode, encode
from bhfl.engine import TooFewClientsError, checkpoint
from bhfl.engine.algorithm import Algorithm
from bhfl.engine.callback import Callback
from bhfl.engine.random import RandomKeys
from bhfl.engine.trainer import FederatedTrainer
from bhfl.quant import BitSpec, QuantizedTensor
from tests.engine.hand_made import HandMade, Module, float_state, points
from tests.federation import Client, Net, code_bytes, fake, fit, same

pytestmark = pytest.mark.filterwarnings("ignore:round .* client .* (failed|rejected)")
MIXED = [{"bits": bits, "count": 1} for bits in (32, 8, "ternary", "strict8", "wage2888")]


def run(folder, clients, data, module=Module, **options) -> FederatedTrainer:
    options = {"monitor": "train/loss", "mode": "min", **options}
    return fit(folder, options.pop("algorithm", None), clients, module, data, **options)


def unequal(count: int, held_out: bool = False) -> HandMade:
    """Clients of 6, 10, 14, ... samples: BatchNorm cannot train on a last batch of one."""
    return HandMade(
        [points(6 + 4 * i, i) for i in range(count)],
        held_out=points(9, 99) if held_out else None,
        shuffle=True,
    )


# ---- FedAvg by hand ------------------------------------------------------------------------------


def locally(module: nn.Module, data: HandMade, client: int, round: int, epochs: int = 1) -> None:
    """What a client of `FedAvg` does: fresh optimiser, its own order."""
    optimizer = module.configure_optimizers()
    for epoch in range(epochs):
        for x, y in data.client_batches(client, RandomKeys(0, round, client), epoch):
            optimizer.zero_grad()
            nn.functional.cross_entropy(module.net(x), y).backward()
            optimizer.step()


def initial() -> Module:
    """The module that `tests.federation.fit` makes."""
    torch.manual_seed(0)
    return Module()


def test_one_client_is_centralised_training(tmp_path):
    data = HandMade([points(22)], shuffle=True)
    trainer = run(tmp_path, {32: 1}, data, local_epochs=2, threads=torch.get_num_threads())
    module = initial()
    for round in range(3):
        locally(module, data, 0, round, epochs=2)
    assert same(trainer.server.params, float_state(module))


@pytest.mark.parametrize("weights", ["samples", "uniform"])
def test_fedavg_is_the_mean_of_its_clients(tmp_path, weights):
    data = unequal(4)
    trainer = run(tmp_path, {32: 4}, data, weights=weights, threads=torch.get_num_threads())
    module = initial()
    for round in range(3):
        start, ends = float_state(module), []
        for client in range(4):
            module.load_state_dict(start)
            locally(module, data, client, round)
            ends.append(float_state(module))
        factors = data.federate(4, 0) if weights == "samples" else [1] * 4
        for name, target in module.state_dict().items():
            columns = zip(
                *(
                    end[name].double().mul(n).flatten().tolist()
                    for end, n in zip(ends, factors, strict=True)
                ),
                strict=True,
            )
            target.copy_(
                torch.tensor([math.fsum(column) / sum(factors) for column in columns]).view(
                    target.shape
                )
            )
    assert same(trainer.server.params, float_state(module))


def test_identical_clients_are_one_client(tmp_path):
    one, two = (run(tmp_path / str(n), {8: n}, HandMade([points(13)] * n)) for n in (1, 2))
    assert same(one.server.params, two.server.params)


def test_the_order_of_clients_does_not_matter(tmp_path, monkeypatch):
    first = run(
        tmp_path / "a", MIXED, unequal(5, True), lambda: Client(Flat()), monitor="val/acc_avg"
    )
    sample = bhfl.engine.sampling.sample_cohort
    for seed in range(3):
        monkeypatch.setattr(
            bhfl.engine.sampling,
            "sample_cohort",
            lambda *a, seed=seed: random.Random(seed).sample(sample(*a), 5),
        )
        other = run(
            tmp_path / str(seed),
            MIXED,
            unequal(5, True),
            lambda: Client(Flat()),
            monitor="val/acc_avg",
        )
        assert same(first.server.params, other.server.params)
        assert checkpoint.digest(first.server.buffers) == checkpoint.digest(other.server.buffers)
        assert [timeless(row) for row in first.run.history] == [
            timeless(row) for row in other.run.history
        ]


class Flat(nn.Sequential):
    """For hand-made points, with BatchNorm."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(6, 7), nn.BatchNorm1d(7), nn.ReLU(), nn.Linear(7, 3))


def timeless(row):
    """A row of metrics without what a clock says."""
    return {tag: value for tag, value in row.items() if not tag.startswith("time/")}


def test_a_client_that_is_never_sampled_changes_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(
        bhfl.engine.sampling, "sample_cohort", lambda clients, *_: list(clients[:3])
    )
    few, many = (run(tmp_path / str(n), {32: n}, unequal(n)) for n in (3, 6))
    assert same(few.server.params, many.server.params)


def test_how_often_is_validated_changes_nothing(tmp_path):
    often, seldom = (
        run(tmp_path / str(n), {8: 2, 32: 2}, unequal(4, True), check_val_every_n_rounds=n)
        for n in (1, 3)
    )
    assert same(often.server.params, seldom.server.params)
    assert ["val/acc" in row for row in seldom.run.history] == [False, False, True]


def test_runs_differ_by_their_seed_and_by_nothing_else(tmp_path):
    first, again, other = (
        run(tmp_path / name, {8: 2, 32: 2}, unequal(4, True), seed=seed, clients_per_round=3)
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    assert same(first.server.params, again.server.params)
    assert [timeless(row) for row in first.run.history] == [
        timeless(row) for row in again.run.history
    ]
    assert not same(first.server.params, other.server.params)


# ---- what travels --------------------------------------------------------------------------------


class Records(Callback):
    """A callback that keeps what became of every client."""

    def __init__(self) -> None:
        self.all = []

    def on_client_end(self, trainer, client, record):
        self.all.append(record)


@pytest.mark.parametrize("batch_norm", [False, True])
def test_payloads_have_the_size_of_the_formula(tmp_path, batch_norm):
    specs = [BitSpec.parse(bits) for bits in (2, 3, 4, 5, 6, 7, 8, 11, 12, 16, 32, "strict8")]
    sizes, others = (45, 80 * 13, 13 * 4), 5 + 13 + 4 + 4 * 5 * batch_norm
    records = Records()
    groups = [
        {"bits": {"weights": s.weights, "storage": s.storage, "errors": s.errors}, "count": 1}
        for s in specs
    ]
    fit(
        tmp_path,
        FedAvg(),
        groups,
        lambda: Client(Net(batch_norm)),
        fake(120),
        max_rounds=1,
        callbacks=[records],
    )
    for spec, record in zip(specs, records.all, strict=True):
        down = 4 * (sum(sizes) + others) + 8 * batch_norm
        up = down
        if spec.weights != 32:
            up = sum(code_bytes(n, spec.weights) + 4 for n in sizes) + 4 * others + 8 * batch_norm
        assert record.status == "ok"
        assert record.uplink_bytes + record.downlink_bytes - record.header_bytes == up + down
        assert 0 < record.header_bytes < 1000


def test_the_ledger_adds_up_payloads(tmp_path):
    records = Records()
    trainer = run(tmp_path, {4: 1, 32: 2}, unequal(3), callbacks=[records])
    up, down = (
        sum(getattr(r, f"{way}_bytes") for r in records.all) for way in ("uplink", "downlink")
    )
    last = trainer.run.history[-1]
    assert last["comm/uplink_MB"] == pytest.approx(up / 1e6)
    assert last["comm/total_MB"] == pytest.approx((up + down) / 1e6)
    assert trainer.run.ledger.by_group["int4"]["uplink_bytes"] == sum(
        r.uplink_bytes for r in records.all if r.client == 0
    )
    assert sum(row["uplink_bytes"] for row in trainer.run.history) == up


class Spy(Algorithm):
    """FedAvg that keeps every update as the server reads it."""

    def __init__(self) -> None:
        self.updates = []

    def reconstruct(self, update, client, server):
        self.updates.append((client, update))
        return super().reconstruct(update, client, server)


@pytest.mark.parametrize("bits", ["ternary", 4, 8, "strict8", "wage2888"])
def test_updates_hold_no_more_values_than_their_bits_allow(tmp_path, bits):
    spy = Spy()
    run(
        tmp_path,
        {bits: 1},
        HandMade([points(40)]),
        lambda: Module(nn.Linear(6, 300)),
        algorithm=spy,
    )
    for client, update in spy.updates:
        assert isinstance(update["net.weight"], QuantizedTensor)
        distinct = update["net.weight"].dequantize().unique()
        assert 2 <= len(distinct) <= 2 * (2 ** (client.spec.weights - 1) - 1) + 1
        assert update["net.bias"].dtype == torch.float32


def test_the_same_message_is_encoded_once_a_group_and_never_kept(tmp_path, monkeypatch):
    class Personal(Algorithm):
        def downlink(self, server, client):
            return {name: tensor.clone() for name, tensor in server.params.items()}

    encoded, decoded = [], []
    messages = bhfl.engine.client.messages
    monkeypatch.setattr(
        messages, "decode", lambda data, **limits: decoded.append(1) or decode(data, **limits)
    )
    for half in (bhfl.engine.outgoing, bhfl.engine.client.local):
        monkeypatch.setattr(half, "encode", lambda tensors: encoded.append(1) or encode(tensors))
    run(tmp_path / "a", {8: 3, 32: 3}, unequal(6), max_rounds=2)
    assert (len(encoded), len(decoded)) == (2 * (6 + 2), 2)
    trainer = run(tmp_path / "b", {8: 3, 32: 3}, unequal(6), max_rounds=2, algorithm=Personal())
    assert (len(encoded), len(decoded)) == (2 * (6 + 2) + 2 * (6 + 6), 2 + 2)
    held = trainer.session.clients._messages
    assert (held._payload, held._tensors) == (b"", {})


# ---- clients that fail ---------------------------------------------------------------------------


class Unlucky(Algorithm):
    """FedAvg whose clients raise in one of their steps, by chance."""

    def __init__(self, rate: float) -> None:
        self.rate = rate

    def fails(self, client: int, round: int) -> bool:
        return random.Random(f"{client} {round}").random() < self.rate

    def client_loss(self, run, batch, batch_idx):
        if batch_idx and self.fails(run.client.id, run.round):
            raise torch.OutOfMemoryError("no memory left")
        return super().client_loss(run, batch, batch_idx)


@pytest.mark.parametrize("rate", [0.01, 0.5])
def test_failing_clients_are_left_out_of_the_mean(tmp_path, monkeypatch, rate):
    clients, data = {8: 20, 32: 20}, HandMade([points(7, i) for i in range(40)])
    algorithm = Unlucky(rate)
    trainer = run(tmp_path / "a", clients, data, lambda: Module(Flat()), algorithm=algorithm)
    failed = [sum(algorithm.fails(client, round) for client in range(40)) for round in range(3)]
    assert [row["clients/failed"] for row in trainer.run.history] == failed
    assert [row["clients/ok"] for row in trainer.run.history] == [40 - count for count in failed]
    assert [len(row["problems"]) for row in trainer.run.history] == failed
    monkeypatch.setattr(
        bhfl.engine.sampling, "sample_cohort",
        lambda clients, size, seed, round, how: [
            c for c in clients if not algorithm.fails(c.id, round)
        ],
    )  # fmt: skip
    without = run(tmp_path / "b", clients, data, lambda: Module(Flat()))
    assert same(trainer.server.params, without.server.params)
    assert checkpoint.digest(trainer.server.buffers) == checkpoint.digest(without.server.buffers)


def test_a_run_whose_clients_all_fail_ends_and_says_why(tmp_path):
    with pytest.raises(TooFewClientsError) as error:
        run(
            tmp_path,
            {32: 3},
            unequal(3),
            algorithm=Unlucky(1.0),
            max_rounds=50,
            max_failed_rounds=4,
        )
    message = str(error.value)
    assert message.startswith(
        "5 rounds in a row had fewer than min_clients=1 usable updates; "
        "last, client 0 failed: OutOfMemoryError: no memory left"
    )
    assert "in client_loss" in message  # the traceback of the client's own error
    assert len((tmp_path / "bhfl" / "version_0" / "rounds.jsonl").read_text().splitlines()) == 4


def test_too_few_usable_updates_leave_the_model_alone(tmp_path):
    class SecondRound(Unlucky):
        def fails(self, client, round):
            return round == 1 and client > 0

    class Watch(Callback):
        all: ClassVar[list] = []

        def on_round_end(self, trainer, metrics):
            self.all.append((trainer.server.round, trainer.server.params))

    watch = Watch()
    trainer = run(
        tmp_path,
        {32: 3},
        unequal(3, True),
        algorithm=SecondRound(0),
        min_clients=2,
        callbacks=[watch],
    )
    (_, first), (round, second), (_, third) = watch.all
    assert round == 2
    assert same(first, second)
    assert not same(second, third)
    assert trainer.run.failed_rounds == 0
    assert [row["clients/ok"] for row in trainer.run.history] == [3, 1, 3]
    assert trainer.run.history[0]["val/loss"] == trainer.run.history[1]["val/loss"]


def nan(update):
    update["net.0.bias"][2] = torch.nan


def infinite(update):
    update["net.0.weight"][0, 0] = -torch.inf


def huge(update):
    update["net.2.weight"][0, 0] = 1e30


def reshaped(update):
    update["net.0.weight"] = update["net.0.weight"].T.clone()


def missing(update):
    del update["net.2.bias"]


def added(update):
    update["net.9.weight"] = torch.zeros(1)


def integers(update):
    update["net.0.bias"] = update["net.0.bias"].to(torch.int32)


def nan_scale(update):
    codes = torch.zeros_like(update["net.0.weight"], dtype=torch.int8)
    update["net.0.weight"] = QuantizedTensor(codes, torch.tensor(torch.nan), 8)


def huge_scale(update):
    codes = torch.ones_like(update["net.0.weight"], dtype=torch.int8)
    update["net.0.weight"] = QuantizedTensor(codes, torch.tensor(1e38), 8)


def sparse(update):
    update["net.0.bias"] = update["net.0.bias"].to_sparse()


BAD = {
    nan: r"net\.0\.bias holds a value that is not finite or too large",
    infinite: r"net\.0\.weight holds a value that is not finite or too large",
    huge: r"net\.2\.weight holds a value that is not finite or too large",
    reshaped: r"net\.0\.weight must have shape \(7, 6\), got \(6, 7\)",
    missing: r"net\.2\.bias is missing",
    added: r"net\.9\.weight was not asked for",
    integers: r"net\.0\.bias must be torch\.float32, got torch\.int32",
    nan_scale: "scale must be finite",
    huge_scale: r"net\.0\.weight holds a value that is not finite or too large",
    sparse: "must be a dense tensor",
}


class Liar(Algorithm):
    """FedAvg of which client 1 sends something else."""

    def __init__(self, lie) -> None:
        self.lie = lie

    def uplink(self, run):
        update = {name: tensor.clone() for name, tensor in run.module.state_dict().items()}
        if run.client.id == 1:
            self.lie(update)
        return update


@pytest.mark.parametrize("lie", BAD, ids=lambda lie: lie.__name__)
def test_bad_updates_are_rejected_and_change_nothing(tmp_path, monkeypatch, lie):
    trainer = run(tmp_path / "a", {32: 3}, unequal(3), algorithm=Liar(lie))
    assert [row["clients/rejected"] for row in trainer.run.history] == [1, 1, 1]
    assert [row["clients/failed"] for row in trainer.run.history] == [0, 0, 0]
    (problem,) = trainer.run.history[0]["problems"]
    assert problem.startswith("client 1 rejected: ")
    assert re.search(BAD[lie], problem)
    monkeypatch.setattr(
        bhfl.engine.sampling, "sample_cohort", lambda clients, *_: [clients[0], clients[2]]
    )
    without = run(tmp_path / "b", {32: 3}, unequal(3))
    assert same(trainer.server.params, without.server.params)
    assert all(bool(tensor.isfinite().all()) for tensor in trainer.server.params.values())


def test_diverged_clients_of_few_bits_are_left_out(tmp_path):
    class Diverging(Module):
        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 1e30)

    with pytest.raises(TooFewClientsError, match=r"net\.\d\.weight: quantize needs finite values"):
        run(tmp_path, {8: 2}, unequal(2), Diverging, max_failed_rounds=0)


def test_clients_without_examples_have_no_effect(tmp_path, monkeypatch):
    data = unequal(3)
    data.clients[1] = points(0)
    trainer = run(tmp_path / "a", {32: 3}, data)
    assert trainer.run.history[0]["problems"] == ["client 1 rejected: the client has no examples"]
    monkeypatch.setattr(
        bhfl.engine.sampling, "sample_cohort", lambda clients, *_: [clients[0], clients[2]]
    )
    assert same(trainer.server.params, run(tmp_path / "b", {32: 3}, data).server.params)


def test_weights_that_are_no_weights(tmp_path):
    data = unequal(3)
    data.federate = lambda num_clients, seed: [6, -10, 14]
    trainer = run(tmp_path, {32: 3}, data, max_rounds=1)
    assert trainer.run.history[0]["problems"] == [
        "client 1 rejected: weight must be positive and finite, got -10.0"
    ]


def test_an_update_that_cannot_be_reconstructed_enters_neither_weights_nor_buffers(
    tmp_path, monkeypatch
):
    class Refusing(Algorithm):
        def reconstruct(self, update, client, server):
            if client.id == 1:
                raise ValueError("no")
            return super().reconstruct(update, client, server)

    trainer = run(tmp_path / "a", {32: 3}, unequal(3), lambda: Module(Flat()), algorithm=Refusing())
    monkeypatch.setattr(
        bhfl.engine.sampling, "sample_cohort", lambda clients, *_: [clients[0], clients[2]]
    )
    without = run(tmp_path / "b", {32: 3}, unequal(3), lambda: Module(Flat()))
    assert same(trainer.server.params, without.server.params)
    assert checkpoint.digest(trainer.server.buffers) == checkpoint.digest(without.server.buffers)


# ---- choosing and stopping -----------------------------------------------------------------------


class Scripted(Module):
    """Validates to the next number of a list."""

    def __init__(self, values) -> None:
        super().__init__()
        self.values = iter(values)

    def validation_step(self, batch, batch_idx):
        self.log("val/score", next(self.values))


SCORES = [0.1, 0.5, 0.3, 0.4, 0.6, 0.7]


@pytest.mark.parametrize(
    ("mode", "patience", "rounds", "best"),
    [("max", None, 6, 6), ("max", 2, 4, 2), ("max", 3, 6, 6), ("min", 2, 3, 1), ("min", 5, 6, 1)],
)
def test_patience_and_the_best_model(tmp_path, mode, patience, rounds, best):
    class Watch(Callback):
        def on_round_end(self, trainer, metrics):
            models.append(trainer.server.params)

    models: list = []
    trainer = run(
        tmp_path, {32: 2}, unequal(2, True), lambda: Scripted([*SCORES, 0.0]), monitor="val/score",
        mode=mode, patience=patience, max_rounds=6, callbacks=[Watch()],
    )  # fmt: skip
    assert trainer.server.round == rounds
    assert (trainer.run.best_round, trainer.run.best) == (best, SCORES[best - 1])
    state = checkpoint.load(trainer.run.folder / "checkpoints" / "best.ckpt")
    assert state["server"]["round"] == best
    assert same(state["server"]["params"], models[best - 1])
    summary = json.loads((trainer.run.folder / "summary.json").read_text())
    assert summary["best"] == {"monitor": "val/score", "value": SCORES[best - 1], "round": best}


def test_not_a_number_is_never_the_best(tmp_path):
    scores = [math.nan, 0.5, math.nan, math.inf, 0.4]
    trainer = run(
        tmp_path, {32: 2}, unequal(2, True), lambda: Scripted([*scores, 0.0]), monitor="val/score",
        max_rounds=5, mode="max",
    )  # fmt: skip
    assert trainer.run.best == 0.5


def test_the_best_model_is_that_of_the_trainer_that_is_asked(tmp_path):
    data = unequal(2, True)
    first = initial()
    second = initial()
    trainers = []
    for module, max_rounds in ((first, 3), (second, 1)):
        trainers.append(FederatedTrainer(
            {32: 2}, max_rounds=max_rounds, default_root_dir=str(tmp_path), devices=1,
            accelerator="cpu",
        ))  # fmt: skip
        trainers[-1].fit(module, data)
    assert [trainer.run.folder.name for trainer in trainers] == ["version_0", "version_1"]
    for trainer, module in zip(trainers, (first, second), strict=True):
        best = trainer.run.history[trainer.run.best_round - 1]["val/acc_avg"]
        assert trainer.validate(module, data, "best")["val/acc_avg"] == best
        assert (
            trainer.validate(module, data, "last")["val/acc_avg"]
            == trainer.run.history[-1]["val/acc_avg"]
        )
    assert trainers[0].find_checkpoint("last")[1]["server"]["round"] == 3


@pytest.mark.parametrize("algorithm", [GroupedAvg(), Local(), FedAvg()])
def test_a_fitted_model_is_measured_as_its_run_was(tmp_path, algorithm):
    trainer = FederatedTrainer(
        {2: 2, 32: 2}, algorithm, max_rounds=2, default_root_dir=str(tmp_path), devices=1,
        accelerator="cpu",
    )  # fmt: skip
    module, data = initial(), unequal(4, True)
    trainer.fit(module, data)
    last = {tag: value for tag, value in trainer.run.history[-1].items() if tag.startswith("val/")}
    assert trainer.validate(module, data) == last
    other = Module()
    other.load_state_dict(module.state_dict())
    # of its own weights alone
    assert (trainer.validate(other, data) == last) == isinstance(algorithm, FedAvg)
    with torch.no_grad():
        module.net[0].weight.zero_()
    assert trainer.validate(module, data) != last


def test_a_run_without_a_best_model_says_so(tmp_path):
    trainer = run(tmp_path, {32: 2}, unequal(2), monitor="val/acc_avg", mode="max")
    with pytest.raises(
        checkpoint.CheckpointError,
        match="version_0 has no best model: its best round is not kept, or",
    ):
        trainer.validate(Module(), unequal(2), "best")


def test_nothing_left_to_train_is_said(tmp_path):
    run(tmp_path, {32: 2}, unequal(2), max_rounds=2)
    with pytest.warns(
        UserWarning, match="nothing is left to train: 2 rounds are done, max_rounds is 1"
    ):
        run(tmp_path, {32: 2}, unequal(2), max_rounds=1, ckpt_path="last")


def test_what_no_checkpoint_can_hold_is_refused_before_any_work(tmp_path):
    class Keeping(Algorithm):
        def __init__(self, kept):
            self._kept = kept

        def init_server(self, params, clients):
            return {"notes": [1, self._kept]}

    for kept in (object(), np.float64(1), {1, 2}, defaultdict(int)):
        with pytest.raises(
            checkpoint.CheckpointError, match=r"ServerState\['extra'\]\['notes'\]\[1\] must be "
        ):
            run(tmp_path, {32: 2}, unequal(2), algorithm=Keeping(kept))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("model", "data", "message"),
    [
        (nn.Linear(2, 2), unequal(2), "model must be a LightningModule, got Linear"),
        (
            Module(),
            [1, 2],
            r"datamodule must be FromDatasets\(\.\.\.\) or have its methods, got list",
        ),
    ],
)
def test_objects_of_other_kinds_are_refused(model, data, message):
    with pytest.raises(ValueError, match=message):
        FederatedTrainer({32: 2}, accelerator="cpu", devices=1).fit(model, data)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"algorithm": "FedAvg"},
            r"algorithm must be an Algorithm, as FedAvg\(\), got 'FedAvg'",
        ),
        (
            {"callbacks": [L.pytorch.callbacks.EarlyStopping("x")]},
            r"callbacks\[0\] must be .* got EarlyStopping",
        ),
        ({"name": "../elsewhere"}, r"name must stay inside default_root_dir, got '../elsewhere'"),
        ({"name": "/elsewhere"}, r"name must stay inside default_root_dir, got '/elsewhere'"),
    ],
)
def test_options_of_other_kinds_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        FederatedTrainer({32: 2}, **options)


def test_a_server_update_without_a_result_is_refused(tmp_path):
    class Forgetful(Algorithm):
        def server_update(self, server, aggregate, rng):
            self.apply_mean(server, aggregate)

    with pytest.raises(
        ValueError, match=r"Forgetful.server_update must return a ServerState, got NoneType"
    ):
        run(tmp_path, {32: 2}, unequal(2), algorithm=Forgetful())


def test_a_client_without_any_loss_fails(tmp_path):
    class Silent(Module):
        def training_step(self, batch, batch_idx):
            return None

    with pytest.raises(TooFewClientsError, match="training_step returned no loss for any batch"):
        run(tmp_path, {32: 2}, unequal(2), Silent)


def test_a_model_without_a_test_step_is_not_tested():
    trainer = FederatedTrainer({32: 2}, accelerator="cpu", devices=1)
    with pytest.raises(ValueError, match="Module must define test_step to be measured"):
        trainer.test(Module(), unequal(2, True))


def test_a_misspelt_monitor(tmp_path):
    with pytest.raises(
        ValueError,
        match=r"monitor must be a logged metric, got 'val/acc_agv'; logged: .*val/acc_avg, ",
    ):
        run(tmp_path, {32: 2}, unequal(2, True), monitor="val/acc_agv", mode="max")
    with pytest.raises(
        ValueError, match=r"monitor must be a logged metric, got 'train/lss'; logged: .*train/loss"
    ):
        run(tmp_path, {32: 2}, unequal(2), monitor="train/lss", mode="min")


def test_clients_cannot_be_evaluated_without_samples(tmp_path):
    with pytest.raises(
        ValueError,
        match=r"trainer\.evaluate_clients needs validation samples, and the data have none",
    ):
        run(tmp_path, {32: 2}, unequal(2), evaluate_clients="after")


def test_a_monitor_that_has_no_value_yet(tmp_path):
    class FirstRound(Unlucky):
        def fails(self, client, round):
            return round == 0

    options = {"algorithm": FirstRound(0), "evaluate_clients": "after", "max_rounds": 4}
    trainer = run(tmp_path / "a", {32: 2}, unequal(2, True), monitor="train/loss", **options)
    assert trainer.run.best_round > 1
    options["check_val_every_n_rounds"] = 3
    trainer = run(
        tmp_path / "b", {32: 2}, unequal(2, True), monitor="val/loss", mode="min", **options
    )
    assert trainer.run.best_round in (3, 4)
    assert "val/loss_local_float32" in trainer.run.history[1]


# ---- running statistics --------------------------------------------------------------------------


class Statistics(Callback):
    """A callback that keeps the running mean and the counter of every client."""

    def __init__(self) -> None:
        self.ends, self.starts = {}, {}

    def on_client_end(self, trainer, client, record):
        state = trainer.session.worker.module.state_dict()
        self.ends[client.id] = (
            state["net.1.running_mean"].double().clone(),
            int(state["net.1.num_batches_tracked"]),
        )


@pytest.mark.parametrize("norm", ["average", "group", "local"])
def test_running_statistics_by_policy(tmp_path, norm):
    watch, data = Statistics(), unequal(4, True)
    trainer = run(
        tmp_path, {8: 2, 32: 2}, data, lambda: Module(Flat()), norm=norm, callbacks=[watch],
        max_rounds=1, monitor="val/acc_avg", mode="max",
    )  # fmt: skip
    sizes = data.federate(4, 0)
    statistics = trainer.server.buffers["statistics"]
    members = {
        "average": {"all": range(4)},
        "group": {"int8": (0, 1), "float32": (2, 3)},
        "local": {},
    }[norm]
    for group, ids in members.items():
        mean = sum(sizes[i] * watch.ends[i][0] for i in ids) / sum(sizes[i] for i in ids)
        assert torch.equal(statistics[group]["net.1.running_mean"], mean.float())
    if norm == "local":
        assert torch.equal(statistics["all"]["net.1.running_mean"], torch.zeros(7))
    assert trainer.server.buffers["counters"]["net.1.num_batches_tracked"] == max(
        n for _, n in watch.ends.values()
    )


def test_a_float32_model_has_the_statistics_of_the_most_bits(tmp_path):
    options = {"norm": "group", "max_rounds": 1}
    trainer = run(tmp_path, {4: 2, 8: 2}, unequal(4, True), lambda: Module(Flat()), **options)
    evaluator = trainer.session.evaluator
    *_, measured = evaluator._passes(trainer.server, "val")
    loaded = bhfl.load_model(trainer.run.folder, "last", model=Module(Flat()))
    wanted = trainer.server.buffers["statistics"]["int8"]["net.1.running_mean"]
    for found in (measured.tensors, trainer.session.global_model(), loaded.state_dict()):
        assert torch.equal(found["net.1.running_mean"], wanted)


def test_local_statistics_never_travel_and_are_each_clients_own(tmp_path):
    class Watch(Algorithm):
        def __init__(self):
            self.received = {}

        def client_loss(self, run, batch, batch_idx):
            if not batch_idx:
                self.received[run.round, run.client.id] = run.received["net.1.running_mean"].clone()
            return super().client_loss(run, batch, batch_idx)

    local = Watch()
    grouped = Records()
    watch = Records()
    options = {
        "module": lambda: Module(Flat()),
        "max_rounds": 2,
        "monitor": "val/acc_avg",
        "mode": "max",
    }
    trainer = run(
        tmp_path / "a",
        {32: 2},
        unequal(2, True),
        norm="local",
        algorithm=local,
        callbacks=[watch],
        **options,
    )
    run(tmp_path / "b", {32: 2}, unequal(2, True), callbacks=[grouped], **options)
    assert not torch.equal(local.received[1, 0], local.received[1, 1])
    for mine, others in zip(watch.all, grouped.all, strict=True):
        saved = mine.uplink_bytes + mine.downlink_bytes - mine.header_bytes
        assert (
            saved == others.uplink_bytes + others.downlink_bytes - others.header_bytes - 2 * 4 * 14
        )
    kept = trainer.session.store.load(0, 2)["staying"]
    assert kept.keys() == {"net.1.running_mean", "net.1.running_var"}
    assert trainer.run.history[-1]["val/acc"] == trainer.run.history[-1]["val/acc_float32"]


def test_a_client_that_joins_late_begins_with_fresh_local_statistics(tmp_path, monkeypatch):
    class Watch(Algorithm):
        def client_loss(self, run, batch, batch_idx):
            if not batch_idx:
                starts.append(run.module.net[1].running_mean.clone())
            return super().client_loss(run, batch, batch_idx)

    starts: list = []
    monkeypatch.setattr(
        bhfl.engine.sampling, "sample_cohort", lambda c, size, seed, round, how: [c[round]]
    )
    run(
        tmp_path, {32: 3}, unequal(3, True), lambda: Module(Flat()), norm="local", algorithm=Watch()
    )
    assert all(torch.equal(start, torch.zeros(7)) for start in starts)


def test_a_group_without_a_client_keeps_its_statistics(tmp_path, monkeypatch):
    monkeypatch.setattr(bhfl.engine.sampling, "sample_cohort", lambda clients, *_: [clients[0]])
    trainer = run(tmp_path, {8: 1, 32: 1}, unequal(2), lambda: Module(Flat()))
    statistics = trainer.server.buffers["statistics"]
    assert torch.equal(statistics["float32"]["net.1.running_mean"], torch.zeros(7))
    assert not torch.equal(statistics["int8"]["net.1.running_mean"], torch.zeros(7))


# ---- FedProx -------------------------------------------------------------------------------------


def test_fedprox_without_a_pull_is_fedavg(tmp_path):
    runs = [
        run(tmp_path / type(a).__name__, MIXED, unequal(5), algorithm=a)
        for a in (FedAvg(), FedProx(mu=0.0))
    ]
    assert same(runs[0].server.params, runs[1].server.params)


def test_fedprox_pulls_the_harder_the_larger_mu(tmp_path):
    """With ``lr = 1 / (mu + L)`` and many steps the distance to the server's model falls like ``1 /
    mu``.
    """
    distances = []
    for mu in (1.0, 10.0, 100.0):

        class Slow(Module):
            def configure_optimizers(self):
                return torch.optim.SGD(self.parameters(), 1 / (mu + 2))  # noqa: B023

        start = initial().state_dict()
        trainer = run(
            tmp_path / str(mu), {32: 1}, HandMade([points(40)], batch_size=40), Slow,
            algorithm=FedProx(mu=mu), local_steps=300, max_rounds=1,
        )  # fmt: skip
        moved = [
            (trainer.server.params[name] - tensor).square().sum() for name, tensor in start.items()
        ]
        distances.append(float(torch.stack(moved).sum().sqrt()))
    assert 7 < distances[1] / distances[2] < 13
    assert distances[0] / distances[1] > 3


# ---- the run as a whole --------------------------------------------------------------------------


def test_callbacks_see_the_run(tmp_path):
    class Watch(Callback):
        def on_fit_start(self, trainer):
            calls.append(("start", trainer.server.round))

        def on_client_end(self, trainer, client, record):
            calls.append((client.id, record.status))

        def on_round_end(self, trainer, metrics):
            calls.append(("round", metrics["round"]))

        def on_fit_end(self, trainer, metrics):
            calls.append(("end", trainer.server.round))

        def on_measured(self, trainer, metrics, stage):
            calls.append((stage, trainer.server.round))

    calls: list = []
    trainer = run(tmp_path, {32: 2}, unequal(2, True), max_rounds=2, callbacks=[Watch()])
    rounds = [("round", 1), ("round", 2)]
    clients = [(0, "ok"), (1, "ok")]
    assert calls == [("start", 0), *clients, rounds[0], *clients, rounds[1], ("end", 2)]
    trainer.validate(Module(), unequal(2, True), ckpt_path=trainer.run.folder)
    assert calls[-1] == ("val", 2)


def test_a_full_disk_is_no_clients_failure(tmp_path, monkeypatch):
    class Stateful(Algorithm):
        def init_client(self, client, received):
            return {"x": torch.zeros(3)}

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("bhfl.engine.client.store.ClientStore.put", full)
    with pytest.raises(OSError, match="No space left"):
        run(tmp_path, {32: 2}, unequal(2), algorithm=Stateful())


def test_a_skipped_round_leaves_no_client_state(tmp_path):
    class Counting(Unlucky):
        def fails(self, client, round):
            return round == 1 and client == 0

        def init_client(self, client, received):
            return {"rounds": torch.tensor(0)}

        def uplink(self, run):
            run.state["rounds"] = run.state["rounds"] + 1
            return super().uplink(run)

    trainer = run(tmp_path, {32: 2}, unequal(2), algorithm=Counting(0), min_clients=2)
    assert [int(trainer.session.store.load(i, 3)["algorithm"]["rounds"]) for i in (0, 1)] == [2, 2]


@pytest.mark.parametrize("name", ["Adam", "SGD"])
def test_server_optimisers_step_on_the_difference(tmp_path, name):
    options = {"max_rounds": 3, "data": unequal(3), "clients": {32: 3}}
    plain = run(tmp_path / "a", **options)
    make = {
        "SGD": lambda p: torch.optim.SGD(p, lr=1.0),
        "Adam": lambda p: torch.optim.Adam(p, lr=0.01),
    }[name]
    trainer = run(tmp_path / "b", **options, server_optimizer=make)
    for key, tensor in trainer.server.params.items():
        close = torch.allclose(tensor, plain.server.params[key], atol=1e-6)
        assert close == (name == "SGD")


@pytest.mark.parametrize("first", ["validate", "test"])
def test_measuring_at_other_bits_than_those_trained_with(tmp_path, first):
    trainer = run(tmp_path, {8: 1, 32: 1}, unequal(2, True), max_rounds=1)
    other = FederatedTrainer({4: 2}, devices=1, logger=False)
    torch.manual_seed(5)
    metrics = getattr(other, first)(Scored(), unequal(2, True), ckpt_path=trainer.run.folder)
    stage = {"validate": "val", "test": "test"}[first]
    assert metrics[f"{stage}/acc"] == trainer.run.history[-1]["val/acc"]
    assert f"{stage}/acc_int4" in metrics


def test_a_checkpoint_of_another_algorithm_is_measured_with_a_warning(tmp_path):
    trainer = run(tmp_path, {8: 1, 32: 1}, unequal(2, True), algorithm=GroupedAvg(), max_rounds=1)
    folder = trainer.run.folder
    other = FederatedTrainer({8: 1, 32: 1}, devices=1, logger=False)
    with pytest.warns(UserWarning, match="its run was one of GroupedAvg, and it is used by FedAvg"):
        other.validate(Scored(), unequal(2, True), ckpt_path=folder)
    alike = FederatedTrainer({8: 1, 32: 1}, GroupedAvg(), devices=1, logger=False)
    with warnings.catch_warnings(record=True) as caught:
        alike.validate(Scored(), unequal(2, True), ckpt_path=folder)
    assert not [one for one in caught if "its run was" in str(one.message)]


class Scored(Module):
    def test_step(self, batch, batch_idx):
        self.log("test/acc", (self.net(batch[0]).argmax(1) == batch[1]).float().mean())


def test_statistics_that_a_checkpoint_does_not_have(tmp_path):
    trainer = run(tmp_path, {8: 1, 32: 1}, unequal(2, True), lambda: Module(Flat()), max_rounds=1)
    other = FederatedTrainer({4: 2}, devices=1, logger=False)
    with pytest.raises(
        checkpoint.CheckpointError, match="running statistics of int8, float32, got clients of int4"
    ):
        other.validate(Module(Flat()), unequal(2, True), ckpt_path=trainer.run.folder)


def test_two_runs_do_not_share_a_folder(tmp_path):
    folders = [run(tmp_path, {32: 1}, unequal(1), max_rounds=1).run.folder.name for _ in range(3)]
    assert folders == ["version_0", "version_1", "version_2"]


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "bhfl").write_text("in the way")
    with pytest.raises(ValueError, match=r"root_dir/trainer\.name must be .*bhfl' is none"):
        run(tmp_path, {32: 1}, unequal(1))


def test_the_data_for_the_last_test_are_there_before_the_first_round(tmp_path):
    data = unequal(1, True)
    data.stages = []
    data.setup = data.stages.append
    trainer = run(tmp_path, {32: 1}, data, Scored, max_rounds=1)
    assert data.stages == ["fit", "test"]
    assert "test/acc" in json.loads((trainer.run.folder / "summary.json").read_text())["metrics"]
