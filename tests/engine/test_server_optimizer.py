"""Torch optimisers on the pseudo-gradient, their state kept by the server."""

import pytest
import torch

from bhfl.algorithms import SCAFFOLD, AdaQuantFL, ClippedMean, FedAvg, FedLQ, Local, ProWD
from bhfl.algorithms.fedlq import Sensitivity
from bhfl.engine.server_optimizer import ServerOptimizer, Yogi
from tests.engine.hand_made import HandMade, Module, points
from tests.federation import Client, fit, same


def step(optimizer, params, mean, state=None):
    return ServerOptimizer(optimizer, {"w"}).step(
        {"w": torch.tensor(params)}, {"w": torch.tensor(mean)}, state
    )


def test_sgd_of_rate_one_goes_to_the_mean():
    params, _ = step(lambda p: torch.optim.SGD(p, lr=1.0), [1.0, 2.0], [3.0, 5.0])
    assert params["w"].tolist() == [3.0, 5.0]


def test_momentum_is_carried_from_round_to_round():
    make = lambda p: torch.optim.SGD(p, lr=0.5, momentum=0.9)  # noqa: E731
    weight = torch.nn.Parameter(torch.tensor([1.0]))
    reference = make([weight])
    params, state = {"w": torch.tensor([1.0])}, None
    for gradient in (0.5, -0.25, 1.0):
        mean = {"w": params["w"] - gradient}
        params, state = ServerOptimizer(make, {"w"}).step(params, mean, state)
        weight.grad = torch.tensor([gradient])
        reference.step()
        assert torch.allclose(params["w"], weight.detach())


@pytest.mark.parametrize(
    "algorithm",
    [
        AdaQuantFL(),
        ClippedMean(),
        FedLQ(sensitivity=Sensitivity(shrinkage=0.0)),
        ProWD(mask=None, dequantizer=None),
        SCAFFOLD(),
    ],
)
def test_every_method_carries_it_on(tmp_path, algorithm):
    options = {"max_rounds": 2, "server_optimizer": lambda p: torch.optim.Adam(p, lr=0.01)}
    server = fit(tmp_path, algorithm, module=lambda: Client(momentum=0.0), **options).server
    assert {int(one["step"]) for one in server.extra["server_optimizer"].values()} == {2}


def test_what_is_not_trained_takes_the_mean(tmp_path):
    class Frozen(Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("shift", torch.ones(3))
            self.net[0].requires_grad_(False)

    module = Frozen()
    frozen = module.net[0].weight.clone()
    options = {
        "server_optimizer": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=1.0),
        "max_rounds": 2,
    }
    options |= {"monitor": "train/loss", "mode": "min"}
    server = fit(
        tmp_path, FedAvg(), {32: 2}, lambda: module, HandMade([points(6)] * 2), **options
    ).server
    assert torch.equal(server.params["shift"], torch.ones(3))
    assert torch.equal(server.buffers["frozen"]["net.0.weight"], frozen)
    assert len(server.extra["server_optimizer"]) == 2


def test_local_clients_have_no_server_to_step(tmp_path):
    with pytest.raises(
        ValueError, match=r"server_optimizer needs a model of the server's, and Local has none"
    ):
        fit(tmp_path, Local(), server_optimizer=torch.optim.SGD)


def test_yogi_against_its_formula():
    g = [0.3, -0.2, 0.5]
    lr = 0.1
    beta = (0.9, 0.99)
    eps = 1e-3
    m = 0.0
    v = eps**2
    w = 1.0
    params, state = {"w": torch.tensor([1.0])}, None
    for gradient in g:
        m = beta[0] * m + (1 - beta[0]) * gradient
        sign = (v > gradient**2) - (v < gradient**2)
        v = v - (1 - beta[1]) * sign * gradient**2
        w -= lr * m / (v**0.5 + eps)
        mean = {"w": params["w"] - gradient}
        params, state = ServerOptimizer(lambda p: Yogi(p, lr=lr), {"w"}).step(params, mean, state)
        assert params["w"].item() == pytest.approx(w, rel=1e-4)


@pytest.mark.parametrize("bad", [{"lr": 0}, {"eps": -1}, {"betas": (1.0, 0.9)}])
def test_bad_yogi(bad):
    with pytest.raises(ValueError, match="Yogi needs"):
        Yogi([torch.nn.Parameter(torch.zeros(1))], **bad)


def test_a_run_with_fedadam_goes_on_where_it_was(tmp_path):
    options = {"server_optimizer": lambda p: torch.optim.Adam(p, lr=0.01), "name": "adam"}
    whole = fit(tmp_path / "a", FedAvg(), max_rounds=4, **options)
    fit(tmp_path / "b", FedAvg(), max_rounds=2, **options)
    resumed = fit(tmp_path / "b", FedAvg(), max_rounds=4, ckpt_path="last", **options)
    assert same(whole.server.params, resumed.server.params)
    assert whole.server.extra["server_optimizer"][0]["step"] == 4
