"""One client's well-formed update neither ends a run nor spoils it: it is refused, or folded in."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from bhfl.algorithms import (
    AdaQuantFL,
    FedAvg,
    FedCOM,
    FedCOMGATE,
    FedLQ,
    FedPAQ,
    FedProx,
    GroupedAvg,
    GroupedAvgAsymmetric,
    ProWD,
)
from bhfl.algorithms.adaquantfl import LOSS
from bhfl.algorithms.fedlq import Sensitivity
from bhfl.algorithms.fedlq.sensitivity import HARM
from bhfl.algorithms.prowd import Dequantizer, Mask
from bhfl.algorithms.prowd.moves import count
from bhfl.engine.aggregate import WeightedMean
from bhfl.engine.algorithm import Algorithm
from bhfl.engine.random import RandomKeys
from bhfl.engine.types import ServerState
from bhfl.quant import QuantizedTensor
from tests.engine.hand_made import HandMade, Module, points
from tests.federation import fit, same

Update = dict[str, Any]
NO_CODES = QuantizedTensor(torch.zeros(7, dtype=torch.int8), torch.ones(()), 8)


def each_code(change: Callable[[QuantizedTensor], QuantizedTensor]) -> Callable[[Update], Update]:
    def changed(update: Update) -> Update:
        return {n: change(v) if isinstance(v, QuantizedTensor) else v for n, v in update.items()}

    return changed


def with_(name: str, value: Any) -> Callable[[Update], Update]:
    return lambda update: {**update, name: value}


LIES: dict[str, tuple[Callable[[Update], Update], str]] = {
    "scale 0": (
        each_code(lambda v: QuantizedTensor(v.codes, v.scale * 0, v.bits)),
        "must have scales of at least",
    ),
    "subnormal scale": (
        each_code(lambda v: QuantizedTensor(v.codes, v.scale * 0 + 1e-40, v.bits)),
        "must have scales of at least 1.175e-38, got 1e-40",
    ),
    "other bits": (
        each_code(lambda v: QuantizedTensor(v.codes.clamp(-1, 1).to(torch.int8), v.scale, 5)),
        "must come as codes of .* bits, got 5 bits",
    ),
    "codes of a bias": (
        with_("net.0.bias", NO_CODES),
        r"net\.0\.bias must come as values, got codes of 8 bits",
    ),
    "negative variances": (
        with_("net.1.running_var", -torch.ones(7)),
        r"must hold variances, .* at least 0, got -1",
    ),
    "codes of variances": (with_("net.1.running_var", NO_CODES), r"net\.1\.running_var must "),
    "a count without end": (
        with_("net.1.num_batches_tracked", torch.tensor(2**63 - 1)),
        "num_batches_tracked must have grown by at most 1048576 in a round, "
        r"got 9223372036854775807 after \d",
    ),
    "doubles": (
        with_("net.0.bias", torch.zeros(7, dtype=torch.float64)),
        r"must be torch\.float32, got torch\.float64",
    ),
}
HONEST: dict[str, Callable[[Update], Update]] = {
    "nothing but zeros": lambda update: {
        name: QuantizedTensor(v.codes * 0, v.scale * 0 + torch.finfo(torch.float32).tiny, v.bits)
        if isinstance(v, QuantizedTensor)
        else v * 0
        for name, v in update.items()
    },
    "plain values": lambda update: {
        name: v.dequantize() if isinstance(v, QuantizedTensor) else v for name, v in update.items()
    },
}
SOON = Dequantizer(warmup_rounds=1, first_steps=2, distill_weight=0)
METHODS: dict[str, tuple[type[Algorithm], dict[str, Any]]] = {
    "FedAvg": (FedAvg, {}),
    "FedProx": (FedProx, {}),
    "FedPAQ": (FedPAQ, {"bits": 4}),
    "FedCOM": (FedCOM, {"bits": 4, "bucket_size": 8}),
    "FedCOMGATE": (FedCOMGATE, {"bits": 4, "allow_inexact": True}),
    "GroupedAvg": (GroupedAvg, {}),
    "GroupedAvgAsymmetric": (GroupedAvgAsymmetric, {}),
    "AdaQuantFL": (AdaQuantFL, {"max_bits": 4}),
    "FedLQ": (
        FedLQ,
        {
            "payload": "delta",
            "candidates": [2, 4, 8],
            "sensitivity": Sensitivity("clients", refresh=1),
        },
    ),
    "FedLQ planned": (
        FedLQ,
        {"candidates": [2, 4, 8], "plan": "server", "sensitivity": Sensitivity(shrinkage=0.0)},
    ),
    "ProWD": (
        ProWD,
        {"dequantizer": replace(SOON, period=1, steps=2)},
    ),
    "ProWD by group": (
        ProWD,
        {"dequantizer": replace(SOON, warmup_rounds=2), "mask": Mask(per="group")},
    ),
    "ProWD delta": (ProWD, {"dequantizer": None, "payload": "delta"}),
    "ProWD paper": (
        ProWD,
        {"mask": Mask(None, fill="literal"), "dequantizer": None, "delta_ref": "broadcast"},
    ),
}


def net() -> Module:
    return Module(nn.Sequential(nn.Linear(6, 7), nn.BatchNorm1d(7), nn.ReLU(), nn.Linear(7, 3)))


def run(folder, algorithm: Algorithm, clients: Any = None, **options: Any):
    data = HandMade([points(8, i) for i in range(4)], held_out=points(9, 99))
    settings = {"max_rounds": 2, **options}
    return fit(folder, algorithm, clients or {8: 2, 32: 2}, net, data, **settings)


def lying(cls: type[Algorithm], change: Callable[[Update], Update], **options: Any) -> Algorithm:
    """A method of which client 1 sends something else."""

    class Lying(cls):  # type: ignore[misc, valid-type]
        def uplink(self, run):
            update = super().uplink(run)
            return change(dict(update)) if run.client.id == 1 and update is not None else update

    algorithm: Algorithm = Lying(**options)
    return algorithm


LONG = [pytest.param(name, marks=pytest.mark.slow) for name in ("FedLQ planned", "ProWD by group")]
"""They refuse by what the methods beside them do."""
ALL = [name for name in METHODS if name not in ("FedLQ planned", "ProWD by group")] + LONG


@pytest.mark.parametrize("lie", LIES)
@pytest.mark.parametrize("method", ["FedAvg", "FedLQ", "AdaQuantFL", "ProWD", *LONG])
def test_a_lie_is_refused_and_the_run_goes_on(tmp_path, method, lie):
    cls, options = METHODS[method]
    change, reason = LIES[lie]
    trainer = run(tmp_path, lying(cls, change, **options))
    assert [row["clients/rejected"] for row in trainer.run.history] == [1, 1]
    (problem,) = trainer.run.history[0]["problems"]
    assert problem.startswith("client 1 rejected: ")
    assert re.search(reason, problem)
    assert all(bool(tensor.isfinite().all()) for tensor in trainer.server.params.values())


@pytest.mark.parametrize("method", ALL)
def test_every_method_refuses_scales_bits_and_codes_that_were_not_asked_for(tmp_path, method):
    cls, options = METHODS[method]
    for lie in ("scale 0", "other bits", "codes of a bias"):
        trainer = run(tmp_path / lie, lying(cls, LIES[lie][0], **options), max_rounds=1)
        assert trainer.run.history[0]["clients/rejected"] == 1, lie


@pytest.mark.parametrize("form", HONEST)
@pytest.mark.parametrize("method", ALL)
def test_unusual_but_honest_updates_are_taken(tmp_path, method, form):
    cls, options = METHODS[method]
    trainer = run(tmp_path, lying(cls, HONEST[form], **options))
    assert [row["clients/ok"] for row in trainer.run.history] == [4, 4]
    assert all(bool(tensor.isfinite().all()) for tensor in trainer.server.params.values())


def test_a_lying_client_leaves_no_trace_in_the_model(tmp_path, monkeypatch):
    lied = run(tmp_path / "a", lying(FedAvg, LIES["negative variances"][0]))
    monkeypatch.setattr(
        "bhfl.engine.session.cohort_of", lambda clients, *_: [c for c in clients if c.id != 1]
    )
    without = run(tmp_path / "b", FedAvg())
    assert same(lied.server.params, without.server.params)
    assert same(lied.server.buffers["counters"], without.server.buffers["counters"])


def test_a_move_of_a_grid_that_is_all_zero_counts_wholly():
    assert count(float("inf"), 0.1) == 1.0
    assert count(0.1, 0.1) == 0.5


@pytest.mark.parametrize("loss", [1e-45, -1e8, 0.0, 1e8])
def test_no_reported_loss_ends_adaquantfl(tmp_path, loss):
    trainer = run(tmp_path, lying(AdaQuantFL, with_(LOSS, torch.tensor(loss))), {32: 4})
    assert [row["clients/ok"] for row in trainer.run.history] == [4, 4]


def test_no_mean_loss_asks_for_more_than_the_most_bits():
    for loss in (1e-45, 0.0, -1.0):
        server = ServerState({}, extra={"bits": 2, "first_loss": 1.0})
        following = AdaQuantFL(max_bits=9).server_update(
            server, {LOSS: torch.tensor(loss)}, RandomKeys(0, 0)
        )
        assert following.extra["bits"] == 9


def test_no_reported_harm_ends_fedlq(tmp_path):
    cls, options = METHODS["FedLQ"]
    negative = run(
        tmp_path / "a", lying(cls, lambda u: {**u, HARM: -torch.ones_like(u[HARM])}, **options)
    )
    assert "client 1 rejected: " in negative.run.history[0]["problems"][0]
    assert f"{HARM} must be at least 0" in negative.run.history[0]["problems"][0]
    huge = run(
        tmp_path / "b", lying(cls, lambda u: {**u, HARM: 1e8 * torch.ones_like(u[HARM])}, **options)
    )
    assert [row["clients/ok"] for row in huge.run.history] == [4, 4]


def test_no_reported_number_ends_fedlqs_bound(tmp_path):
    class Boasting(FedLQ):
        def uplink(self, run):
            update = super().uplink(run)
            if run.client.id == 1:
                run.metrics[f"fedlq/variance_{self.layers[0]}"] = -1e9
            return update

    trainer = run(tmp_path, Boasting(sensitivity=Sensitivity(shrinkage=0.0)))
    assert [row["clients/ok"] for row in trainer.run.history] == [4, 4]
    assert "fedlq/bound" not in trainer.run.history[0]


@pytest.mark.parametrize("place", ["reconstruct", "add"])
def test_whatever_is_raised_by_one_clients_update_rejects_it_alone(tmp_path, place):
    class Picky(WeightedMean):
        def add(self, update, client):
            if place == "add" and client.id == 1:
                raise KeyError("no such thing")
            super().add(update, client)

    class Mine(Algorithm):
        def reconstruct(self, update, client, server):
            if place == "reconstruct" and client.id == 1:
                raise ZeroDivisionError("by this client")
            return super().reconstruct(update, client, server)

        def aggregator(self, server, clients):
            return Picky(server.params)

    trainer = run(tmp_path, Mine())
    assert [row["clients/rejected"] for row in trainer.run.history] == [1, 1]
    hook = {
        "reconstruct": "Mine.reconstruct raised ZeroDivisionError",
        "add": "Picky.add raised KeyError",
    }[place]
    assert hook in trainer.run.history[0]["problems"][0]


def test_an_update_that_outweighs_all_others_is_told(tmp_path):
    def huge(update: Update) -> Update:
        return {
            n: v * 1e7 if isinstance(v, torch.Tensor) and v.is_floating_point() else v
            for n, v in update.items()
        }

    with pytest.warns(
        UserWarning, match=r"round 1: client 1 sent values up to .*: the mean is its own \(1 of 4 "
    ):
        run(tmp_path, lying(FedAvg, huge), max_rounds=1)
