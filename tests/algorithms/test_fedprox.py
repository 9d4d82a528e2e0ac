"""The proximal term and the stragglers."""

import pytest
import torch

from bhfl.algorithms import FedAvg, FedProx
from tests.algorithms.quadratics import Data, Module
from tests.federation import fit, same

QUIET = {"check_val_every_n_rounds": 1000, "checkpoint_every_n_rounds": 1000}


def distance(tmp_path, mu):
    data = Data(1, steps=200)
    run = fit(
        tmp_path,
        FedProx(mu),
        {32: 1},
        lambda: Module(lr=1 / (mu + 1.5)),
        data,
        max_rounds=1,
        **QUIET,
    )
    return float(run.server.params["weight"].norm()), run.server.params["weight"], data


def test_clients_stay_nearer_in_proportion_to_mu(tmp_path):
    near = [distance(tmp_path, mu)[0] for mu in (10.0, 100.0, 1000.0)]
    assert near[0] / near[1] == pytest.approx(10, rel=0.15)
    assert near[1] / near[2] == pytest.approx(10, rel=0.02)


def test_many_steps_reach_the_proximal_optimum(tmp_path):
    mu = 2.0
    _, w, data = distance(tmp_path, mu)
    residual = data.h[0] * (w - data.t[0]) + mu * w  # the received weights are zero
    assert residual.abs().max() < 1e-5


def test_one_full_batch_step_is_a_gradient_step_on_the_mean_loss(tmp_path):
    data, lr = Data(3, steps=1), 0.05
    run = fit(tmp_path, FedAvg(), {32: 3}, lambda: Module(lr), data, max_rounds=1, **QUIET)
    step = lr * (data.h * data.t).mean(0)  # the gradient at zero is -h t
    assert torch.allclose(run.server.params["weight"], step, atol=1e-6)


def test_kept_stragglers_do_part_of_the_work(tmp_path):
    whole = fit(tmp_path, FedProx(0.0), max_rounds=1)
    part = fit(tmp_path, FedProx(0.0, straggler_fraction=1.0), max_rounds=1)
    assert part.run.history[0]["clients/ok"] == 4
    assert not same(whole.server.params, part.server.params)


def test_dropped_stragglers_are_counted_and_the_rest_is_averaged(tmp_path):
    run = fit(tmp_path, FedProx(0.0, 0.5, "drop"), {8: 4, 32: 4}, max_rounds=3)
    failed = [row["clients/failed"] for row in run.run.history]
    assert 0 < sum(failed) < 24
    assert "dropped out" in run.run.history[failed.index(max(failed))]["problems"][0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mu": -1.0}, "FedProx.mu must be finite and at least 0, got -1"),
        ({"mu": float("nan")}, "FedProx.mu must be finite and at least 0, got nan"),
        ({"straggler_fraction": 1.5}, r"FedProx.straggler_fraction must be in \[0, 1\], got 1.5"),
        ({"stragglers": "wait"}, "FedProx.stragglers must be one of keep, drop, got 'wait'"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        FedProx(**arguments)
