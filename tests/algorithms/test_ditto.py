"""Ditto against a recursion written apart, in NumPy, and the client's own model that it keeps."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bhfl.algorithms import Ditto, FedAvg
from bhfl.engine.checkpoint import digest
from tests.algorithms.quadratics import Data, Module
from tests.engine.hand_made import HandMade, points
from tests.engine.hand_made import Module as Classifier
from tests.federation import fit, same

ROUNDS = 20
LR = 0.05
MIXED = {"ternary": 1, 32: 2}


def own_models(run, clients):
    return [run.session.store.load(client, 99)["own_model"] for client in range(clients)]


def test_ditto(tmp_path):
    data = Data(4)
    lam = 0.4
    quiet = {"checkpoint_every_n_rounds": 1000, "check_val_every_n_rounds": 1000}
    run = fit(tmp_path, Ditto(lam), {32: 4}, Module, data, max_rounds=ROUNDS, **quiet)
    h, t = data.h.double().numpy(), data.t.double().numpy()
    w = np.zeros_like(t[0])
    own = np.zeros_like(t)
    for _ in range(ROUNDS):
        ends = np.stack(4 * [w])
        for _ in range(data.steps):
            ends = ends - LR * (h * (ends - t))
            own = own - LR * (h * (own - t) + lam * (own - w))
        w = ends.mean(0)
    found = run.server.params["weight"].double().numpy()
    assert np.abs(found - w).max() <= 1e-5 * np.abs(w).max()
    for model, expected in zip(own_models(run, 4), own, strict=True):
        off = np.abs(model["weight"].double().numpy() - expected).max()
        assert off <= 1e-5 * np.abs(expected).max()
    assert np.abs(own - w).max() > 0.1


def federation():
    return HandMade([points(8, i) for i in range(3)], held_out=points(20, 9), shuffle=True)


def trained(folder, algorithm, **options):
    options = {"max_rounds": 2, "monitor": "train/loss", "mode": "min", **options}
    return fit(folder, algorithm, MIXED, Measurable, federation(), **options)


class Measurable(Classifier):
    def test_step(self, batch, batch_idx):
        self.validation_step(batch, batch_idx)


def test_the_global_model_is_fedavg_s_and_each_client_s_own_is_measured(tmp_path):
    plain, run = (trained(tmp_path, algorithm) for algorithm in (FedAvg(), Ditto(0.5)))
    assert same(plain.server.params, run.server.params)
    assert plain.run.ledger.by_group == run.run.ledger.by_group
    old, new = plain.run.history[-1], run.run.history[-1]
    for tag in ("train/loss", "val/loss"):
        assert old[tag] == new[tag]
    assert new["train/loss_own"] != new["train/loss"]
    losses = []
    for model in own_models(run, 3)[1:]:
        module = Measurable()
        module.load_state_dict(model)
        losses.append(module.training_step(federation().held_out, 0).item())
    assert new["val/loss_float32"] == pytest.approx(sum(losses) / 2, rel=1e-6)
    assert abs(new["val/loss_float32"] - new["val/loss"]) > 1e-4
    assert new["val/loss_ternary"] != old["val/loss_ternary"]


def test_a_model_that_is_not_pulled_is_what_the_client_comes_to_alone(tmp_path):
    """In the first round both models of a client start alike, and see the same batches."""
    sent = {}

    class Telling(Ditto):
        def uplink(self, run):
            sent[run.client.id] = {n: t.clone() for n, t in run.module.state_dict().items()}
            return super().uplink(run)

    run = trained(tmp_path, Telling(0.0), max_rounds=1)
    for client, model in enumerate(own_models(run, 3)):
        assert same(model, sent[client])


def test_a_resumed_run_goes_on_with_the_clients_own_models(tmp_path):
    whole = trained(tmp_path / "whole", Ditto())
    trained(tmp_path / "part", Ditto(), max_rounds=1)
    part = trained(tmp_path / "part", Ditto(), ckpt_path="last")
    assert digest(own_models(part, 3)) == digest(own_models(whole, 3))
    found = part.validate(Measurable(), federation(), ckpt_path="last")
    assert found == {key: whole.run.history[-1][key] for key in found}


def test_a_client_that_was_never_there_is_measured_by_the_global_model(tmp_path):
    run = trained(tmp_path, Ditto(), max_rounds=1, clients_per_round=2)
    absent = ({0, 1, 2} - set(run.server.participants)).pop()
    assert run.session.store.load(absent, 1) is None
    row = run.run.history[-1]
    present = next(i for i in run.server.participants if i)
    module = Measurable()
    module.load_state_dict(run.session.store.load(present, 1)["own_model"])
    with torch.no_grad():
        loss = module.training_step(federation().held_out, 0).item()
    assert row["val/loss_float32"] == pytest.approx((loss + row["val/loss"]) / 2, rel=1e-6)


def test_a_negative_weight_is_refused():
    with pytest.raises(ValueError, match=r"Ditto\.lam must be .* got -1"):
        Ditto(-1)
