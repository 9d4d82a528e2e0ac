"""What a client is not sent is its own: what it kept, else the first model's, whatever client came
before it.
"""

from __future__ import annotations

import warnings
from collections import defaultdict
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from bhfl.algorithms import FedPAQ
from bhfl.engine.aggregate import WeightedMean
from bhfl.engine.algorithm import Algorithm
from bhfl.engine.checkpoint import digest
from bhfl.engine.client.local import LocalClients
from bhfl.engine.exchange import Fault
from tests.engine.hand_made import HandMade, Module, points
from tests.federation import fit, same

HEAD = ("net.2.weight", "net.2.bias", "shift")


class Personal(Module):
    """A head and a float buffer that clients are not sent, and a counter."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("shift", torch.zeros(3))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def training_step(self, batch, batch_idx):
        self.shift += batch[0].mean()
        self.steps += 1
        logits = self.net(batch[0]) + self.shift
        return nn.functional.cross_entropy(logits, batch[1])


def body(params: dict[str, Any]) -> dict[str, Any]:
    return {name: tensor for name, tensor in params.items() if name not in HEAD}


class FedPer(Algorithm):
    """The body is averaged, the head is never sent; what clients begin and end with is taken
    down.
    """

    def __init__(self) -> None:
        self._begun: dict[int, dict[int, Any]] = defaultdict(dict)
        self._ended: dict[int, dict[int, Any]] = defaultdict(dict)

    def downlink(self, server, client):
        return body(server.params)

    def expected(self, server):
        return body(server.params)

    def aggregator(self, server, clients):
        return WeightedMean(body(server.params))

    def uplink(self, run):
        self._begun[run.client.id][run.round] = {name: run.received[name].clone() for name in HEAD}
        self._ended[run.client.id][run.round] = {
            name: run.module.state_dict()[name].clone() for name in HEAD
        }
        return {name: value for name, value in super().uplink(run).items() if name not in HEAD}


def run(folder, algorithm: Algorithm | None = None, **options: Any):
    data = HandMade([points(8, i) for i in range(4)], held_out=points(9, 99))
    settings = {"clients": {8: 2, 32: 2}, "module": Personal, "data": data, **options}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".* is not sent to clients")
        return fit(folder, algorithm or FedPer(), **settings)


def first_head() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    state = Personal().state_dict()
    return {name: state[name] for name in HEAD}


def test_a_client_goes_on_with_its_own_head_and_begins_with_the_first_models(tmp_path):
    algorithm = FedPer()
    trainer = run(tmp_path, algorithm, max_rounds=6, clients_per_round=2, sampling="uniform")
    later = [client for client, rounds in algorithm._begun.items() if min(rounds)]
    assert later, "no client trained for the first time in a later round"
    for client, rounds in algorithm._begun.items():
        before = first_head()
        for round, begun in sorted(rounds.items()):
            assert same(begun, before)
            before = algorithm._ended[client][round]
            assert not same(begun, before)
    assert same({name: trainer.server.params[name] for name in HEAD}, first_head())
    assert int(trainer.server.buffers["counters"]["steps"]) == 2 * 6


def test_a_head_that_is_sent_up_alone_is_the_clients_own_too(tmp_path):
    class OnlyDown(FedPer):
        expected, aggregator = Algorithm.expected, Algorithm.aggregator

        def uplink(self, run):
            super().uplink(run)
            return Algorithm.uplink(self, run)

    algorithm = OnlyDown()
    trainer = run(tmp_path, algorithm, max_rounds=6, clients_per_round=2, sampling="uniform")
    assert any(min(rounds) for rounds in algorithm._begun.values())
    for rounds in algorithm._begun.values():
        assert same(rounds[min(rounds)], first_head())  # the server's mean of heads never came down
    assert not same({name: trainer.server.params[name] for name in HEAD}, first_head())


def test_what_was_left_out_once_stays_the_clients_own_through_rounds_in_which_it_is_sent(tmp_path):
    class NowAndThen(FedPer):
        expected, aggregator = Algorithm.expected, Algorithm.aggregator

        def downlink(self, server, client):
            return server.params if server.round % 2 else body(server.params)

        def uplink(self, run):
            super().uplink(run)
            return Algorithm.uplink(self, run)

    algorithm = NowAndThen()
    run(tmp_path, algorithm, max_rounds=4)
    for client, rounds in algorithm._begun.items():
        assert same(rounds[0], first_head())
        assert same(rounds[2], algorithm._ended[client][1])


def test_clients_can_lack_different_tensors(tmp_path):
    class Uneven(FedPer):
        expected, aggregator = Algorithm.expected, Algorithm.aggregator

        def downlink(self, server, client):
            return body(server.params) if client.id % 2 else server.params

        def uplink(self, run):
            super().uplink(run)
            return Algorithm.uplink(self, run)

    algorithm = Uneven()
    run(tmp_path, algorithm)
    for client in (1, 3):
        assert same(algorithm._begun[client][2], algorithm._ended[client][1])
    assert same(algorithm._begun[0][2], algorithm._begun[2][2])


@pytest.mark.parametrize("module", [Personal, lambda: Shaken()])
def test_a_resumed_run_is_the_undisturbed_one_whatever_model_it_is_given(tmp_path, module):
    options = {"clients_per_round": 2, "sampling": "uniform", "max_rounds": 6}
    whole = run(tmp_path / "a", **options)
    run(tmp_path / "b", **{**options, "max_rounds": 1})
    resumed = run(tmp_path / "b", **options, module=module, ckpt_path="last")
    assert digest(vars(resumed.server)) == digest(vars(whole.server))


class Shaken(Personal):
    """Starts elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        for parameter in self.parameters():
            parameter.data += 1


def test_what_group_params_leave_out_is_measured_with_each_clients_own(tmp_path):
    class Measured(FedPer):
        def group_params(self, server, group):
            return body(server.params)

    algorithm = Measured()
    trainer = run(tmp_path, algorithm, max_rounds=2)
    model = Personal()
    inputs, labels = points(9, 99)
    hits = []
    for client in (2, 3):
        state = {**trainer.server.params, **algorithm._ended[client][1], "steps": torch.tensor(0)}
        model.load_state_dict(state)
        hits.append(float((model.net(inputs).argmax(1) == labels).float().mean()))
    assert trainer.run.history[-1]["val/acc_float32"] == pytest.approx(sum(hits) / 2)


def test_a_head_that_is_measured_as_the_server_has_it_is_told(tmp_path):
    data = HandMade([points(8, i) for i in range(2)], held_out=points(9, 99))
    with pytest.warns(
        UserWarning, match=r"is not sent to clients.*FedPer\.group_params leaves it out too"
    ) as told:
        fit(tmp_path, FedPer(), {32: 2}, Personal, data)
    assert sum("is not sent to clients" in str(warning.message) for warning in told) == 1


def test_differences_of_a_body_alone(tmp_path):
    class Differences(FedPAQ):
        def downlink(self, server, client):
            return body(server.params)

        def expected(self, server):
            return body(super().expected(server))

        def aggregator(self, server, clients):
            return WeightedMean(body(server.params))

        def uplink(self, run):
            return body(super().uplink(run))

    trainer = run(tmp_path, Differences(8))
    assert [row["clients/ok"] for row in trainer.run.history] == [4, 4, 4]
    assert same({name: trainer.server.params[name] for name in HEAD}, first_head())


def test_a_server_optimiser_steps_on_the_body_alone(tmp_path):
    trainer = run(tmp_path, server_optimizer=lambda params: torch.optim.Adam(params, lr=0.01))
    now = {name: trainer.server.params[name] for name in HEAD}
    assert same(now, first_head())
    assert not torch.equal(
        trainer.server.params["net.0.weight"], Personal().state_dict()["net.0.weight"]
    )


# ---- what else the module could carry from client to client --------------------------------------


class Restless(Module):
    """Changes in its first client what no state dict brings back."""

    def __init__(self, change: str) -> None:
        super().__init__()
        self.change = change
        self.register_buffer("window", torch.zeros(2))
        self.register_buffer("cache", None, persistent=False)
        self.register_buffer("mask", torch.ones(2), persistent=False)
        self.seen: list[Any] = []

    def on_train_epoch_start(self) -> None:
        first = not self.seen
        extra = hasattr(self, "extra")
        state = [
            self.window.shape,
            self.cache,
            self.mask.tolist(),
            extra,
            self.net[0].weight.requires_grad,
        ]
        self.seen.append(state)
        if not first:
            return
        if self.change == "resize":
            self.window = torch.zeros(5)
        elif self.change == "fill":
            self.cache = torch.ones(3)
        elif self.change == "register":
            self.register_buffer("extra", torch.ones(3), persistent=False)
        elif self.change == "save":
            self.register_buffer("extra", torch.ones(3))
        elif self.change == "drop":
            self.window = None
        elif self.change == "freeze":
            self.net[0].requires_grad_(False)
        elif self.change == "mask":
            self.mask = torch.zeros(7)


@pytest.mark.parametrize("change", ["resize", "fill", "register", "save", "drop", "freeze", "mask"])
def test_a_client_begins_with_the_tensors_of_the_first_whatever_the_one_before_did(
    tmp_path, change
):
    made: list[Restless] = []

    def module() -> Restless:
        made.append(Restless(change))
        return made[-1]

    data = HandMade([points(4, i) for i in range(3)])
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        trainer = fit(
            tmp_path, None, {32: 3}, module, data, max_rounds=1, monitor="train/loss", mode="min"
        )
    first, *others = made[0].seen
    assert len(others) == 2
    assert others == [first, first]
    assert trainer.run.history[0]["clients/ok"] == (
        2 if change in ("resize", "save", "drop") else 3
    )
    assert made[0].window.shape == (2,)
    taken = [
        "extra was registered while a client trained" in str(warning.message) for warning in told
    ]
    assert any(taken) == (change in ("register", "save"))


def test_nobody_plants_names_that_a_model_lacks_or_that_came_with_no_update(tmp_path, monkeypatch):
    train = LocalClients.train

    def lying(self, tasks):
        for reply in train(self, tasks):
            if reply.client == 0:
                fault = Fault("failed", "so it says")
                yield replace(reply, own=["net.0.weight"], payload=None, fault=fault)
            else:
                yield replace(reply, own=[*reply.own, "no such tensor"])

    monkeypatch.setattr(LocalClients, "train", lying)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*so it says")
        trainer = run(tmp_path, max_rounds=1)
    assert set(trainer.server.buffers["first"]) == set(HEAD)
