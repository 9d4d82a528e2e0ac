"""MOON against a recursion of a two-layer linear model written apart, in NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from bhfl.algorithms import MOON, FedAvg
from bhfl.quant import BitSpec, quantize_
from tests.algorithms import test_personal as linear
from tests.algorithms.test_options import Forward
from tests.federation import Net, fit, same

LR, ROUNDS, STEPS = linear.LR, linear.ROUNDS, linear.STEPS
MIXED = {"ternary": 1, 32: 2}


class Module(linear.Module):
    """The two-layer model, which can be called."""

    def forward(self, inputs):
        return self.head(self.norm(self.body(inputs)))


class Tied(Module):
    """Its body has two names, and one tensor."""

    def __init__(self):
        super().__init__()
        self.again = nn.Linear(6, 4, bias=False)
        self.again.weight = self.body.weight


class Mapped(linear.Data):
    """Batches by name."""

    def client_batches(self, client_id, rng, epoch):
        return [{"x": self.x[client_id], "y": self.y[client_id]}] * STEPS


class Whole(Module):
    """Takes batches by name, in its forward pass too."""

    def forward(self, batch):
        return super().forward(batch["x"])

    def training_step(self, batch, batch_idx):
        return super().training_step((batch["x"], batch["y"]), batch_idx)

    def test_step(self, batch, batch_idx):
        pass


class Apart(Whole):
    """Takes inputs alone in its forward pass."""

    forward = Module.forward


class Manual(Module):
    """Steps by itself."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False


def cosine(z, other):
    """The cosine of each row, and its gradient in `z`."""
    lengths = [np.linalg.norm(one, axis=1, keepdims=True) for one in (z, other)]
    cos = (z * other).sum(1, keepdims=True) / lengths[0] / lengths[1]
    return cos, other / lengths[0] / lengths[1] - cos * z / lengths[0] ** 2


def contrast(body, received, last, x, mu, temperature):
    """The gradient of the term in the body."""
    z = x @ body.T
    alike, of_alike = cosine(z, x @ received.T)
    unlike, of_unlike = cosine(z, x @ last.T)
    share = 1 / (1 + np.exp((alike - unlike) / temperature))
    of_z = mu / temperature / len(x) * share * (of_unlike - of_alike)
    return of_z.T @ x


def test_moon(tmp_path):
    mu, temperature = 2.0, 0.4
    run = linear.trained(tmp_path, MOON("body", mu, temperature), Module)
    data = linear.Data()
    x, y = data.x.double().numpy(), data.y.double().numpy()
    body, head = linear.first()
    last = [None, None, None]
    pulled = 0.0
    for _ in range(ROUNDS):
        ends = []
        for i in range(3):
            w, v = body, head
            for _ in range(STEPS):
                of_body, of_head = linear.gradients(w, v, x[i], y[i])
                if last[i] is not None:
                    term = contrast(w, body, last[i], x[i], mu, temperature)
                    pulled = max(pulled, np.abs(term).max() / np.abs(of_body).max())
                    of_body = of_body + term
                w, v = w - LR * of_body, v - LR * of_head
            ends.append((w, v))
            last[i] = w
        body, head = (np.mean(part, 0) for part in zip(*ends, strict=True))
    assert pulled > 0.1
    for name, expected in (("body.weight", body), ("head.weight", head)):
        found = run.server.params[name].double().numpy()
        assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


def test_without_weight_and_in_the_first_round_it_is_fedavg(tmp_path):
    plain = fit(tmp_path, FedAvg(), MIXED, Forward, max_rounds=2)
    runs = [fit(tmp_path, MOON("net.3", mu), MIXED, Forward, max_rounds=2) for mu in (0.0, 1.0)]
    assert same(runs[0].server.params, plain.server.params)
    assert not same(runs[1].server.params, plain.server.params)
    losses = [run.run.history[0]["val/loss"] for run in (*runs, plain)]
    assert len(set(losses)) == 1
    assert not (runs[0].run.folder / "clients").exists()


def test_representations_by_other_weights_are_those_of_a_model_with_them():
    """At low bits, with norms and dropout; nothing of the module changes by it."""
    torch.manual_seed(0)
    modules = [nn.Sequential(Net(batch_norm=True), nn.Dropout(), nn.Linear(4, 4)) for _ in range(2)]
    for module in modules:
        quantize_(module, BitSpec.parse("ternary"))
    here, there = modules
    there.train()(torch.randn(9, 1, 6, 6))
    inputs = torch.randn(5, 1, 6, 6)
    before = {name: value.clone() for name, value in here.state_dict().items()}
    here.train()
    here[1].eval()
    found = MOON("0.4")._of(there.state_dict(), here, inputs)
    expected = inputs
    for layer in list(there.eval()[0])[:5]:
        expected = layer(expected)
    assert torch.equal(found, expected)
    assert same(before, here.state_dict())
    assert [layer.training for layer in here] == [True, False, True]
    assert not here[0][4]._forward_hooks


@pytest.mark.parametrize("returns", [dict, None])
def test_what_a_step_returns_is_kept(tmp_path, returns):
    class Returning(Module):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            if returns is dict:
                return {"loss": loss, "more": 1}
            return None if batch_idx else loss

        def test_step(self, batch, batch_idx):
            pass

    run = linear.trained(tmp_path, MOON("body"), Returning, max_rounds=2)
    assert run.run.history[-1]["clients/ok"] == 3


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MOON(["body"]), r"MOON\.features must be the name of a module, got \['body'\]"),
        (lambda: MOON("body", mu=-1), r"MOON\.mu must be"),
        (lambda: MOON("body", temperature=0), r"MOON\.temperature must be"),
    ],
)
def test_an_argument_out_of_its_range_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("features", "module", "message"),
    [
        ("bdoy", Module, r"MOON\.features must be the name of .* 'bdoy'; did you mean 'body'"),
        ("", Module, r"MOON\.features must be the name of a module of the model, got ''"),
        (
            "body",
            Manual,
            r"MOON changes losses or gradients, which needs automatic optimization; M",
        ),
        ("body", linear.Module, r"forward\(inputs\), which Module does not define"),
    ],
)
def test_a_model_without_the_representation_is_refused(tmp_path, features, module, message):
    with pytest.raises(ValueError, match=message):
        linear.trained(tmp_path, MOON(features), module)


def test_a_tensor_of_several_names_is_one(tmp_path):
    plain, tied = (
        linear.trained(tmp_path, MOON("body"), module, max_rounds=3) for module in (Module, Tied)
    )
    assert tied.run.history[-1]["clients/ok"] == 3
    for name in ("body.weight", "head.weight"):
        assert torch.equal(plain.server.params[name], tied.server.params[name])


def test_a_batch_by_name_is_given_to_forward_whole(tmp_path):
    plain = linear.trained(tmp_path, MOON("body"), Module, max_rounds=2)
    mapped = fit(tmp_path, MOON("body"), {32: 3}, Whole, Mapped(), max_rounds=2, **linear.QUIET)
    assert same(plain.server.params, mapped.server.params)
    with pytest.raises(
        Exception, match=r"Apart\.forward .* does not take .*: let data\.inputs name"
    ):
        fit(tmp_path, MOON("body"), {32: 3}, Apart, Mapped(), max_rounds=2, **linear.QUIET)


def test_a_layer_that_is_never_called_is_named(tmp_path):
    class Sparing(Module):
        def training_step(self, batch, batch_idx):
            return self.head(nn.functional.linear(batch[0], self.body.weight)).square().mean()

    with pytest.raises(Exception, match=r"MOON\.features: the model never called its module body"):
        linear.trained(tmp_path, MOON("body"), Sparing, max_rounds=2)


class Both(nn.Module):
    """Puts out its input, and its input."""

    def forward(self, inputs):
        return inputs, inputs


def test_what_is_no_representation_ends_the_first_round(tmp_path):
    class Paired(Module):
        def __init__(self):
            super().__init__()
            self.both = Both()

        def forward(self, inputs):
            return super().forward(self.both(inputs)[0])

        def training_step(self, batch, batch_idx):
            return (self(batch[0]) - batch[1]).square().mean()

    with pytest.raises(Exception, match=r"MOON\.features: both must put out a tensor, got tuple"):
        linear.trained(tmp_path, MOON("both"), Paired, max_rounds=1)
