"""What each layer saves and costs: against plain evaluation, one change at a time; nothing is left
behind.
"""

import math

import pytest
import torch
from torch import nn

from bhfl.algorithms.fedlq.significance import probe, significance, variance_table
from bhfl.analysis.layers import CANDIDATES, layer_harm, layer_rows
from bhfl.analysis.reuse import reusing
from bhfl.quant import layer_weights

X = torch.randn(96, 3, 8, 8, generator=torch.Generator().manual_seed(1))
Y = torch.randint(4, (96,), generator=torch.Generator().manual_seed(2))
CHUNKS = [(len(rows), rows) for rows in torch.arange(96).split(40)]


class Block(nn.Module):
    """All that keeping outputs must bear: a layer used twice, writing in place, a sum, a tied
    weight.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.relu = nn.ReLU(inplace=True)
        self.twice, self.tied = (nn.Conv2d(6, 6, 3, padding=1, bias=False) for _ in range(2))
        self.tied.weight = self.twice.weight
        self.drop, self.head = nn.Dropout(0.5), nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.relu(self.norm(self.stem(x)))
        x = self.twice(x) + self.twice(x.flip(3)) + self.tied(x)
        return self.head(self.drop(nn.functional.relu_(x)).mean((2, 3)))


def block() -> Block:
    torch.manual_seed(0)
    return Block()


def measure(model: nn.Module, rows: torch.Tensor) -> tuple[float, float]:
    output = model(X[rows]).detach()
    return float(nn.functional.cross_entropy(output, Y[rows])), float(
        (output.argmax(1) == Y[rows]).float().mean()
    )


def test_harm_is_that_of_plain_probing_and_the_model_is_left_as_it_was() -> None:
    model = block()
    model.drop.eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    layers = layer_weights(model)
    seen: list[int] = []
    harm = layer_harm(
        model,
        (2, 4),
        lambda rows: measure(model, rows),
        CHUNKS,
        seed=3,
        progress=seen.append,
    )
    plain = block()
    wanted = [
        probe(
            plain,
            layers,
            (2, 4),
            lambda m, r=rows: measure(m, r),
            generator=torch.Generator().manual_seed(3),
        )
        for _, rows in CHUNKS
    ]
    assert sum(seen) == 96 * 7
    torch.testing.assert_close(harm.probe.distortion, wanted[0].distortion, rtol=0, atol=0)
    positive = harm.loss_increase > 0
    assert positive.any()
    assert torch.equal(harm.probe.harm, harm.loss_increase.clamp(min=0))
    losses = torch.tensor([measure(block().eval(), rows) for _, rows in CHUNKS]).double()
    sizes = torch.tensor([[size] for size, _ in CHUNKS]) / 96
    assert (harm.loss, harm.accuracy) == pytest.approx(tuple((losses * sizes).sum(0).tolist()))
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert model.norm.training
    assert not model.drop.training
    assert not any("forward" in vars(module) for module in model.modules())


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[nn.Module]:
    """The convolutions that have computed, in their order."""
    layers: list[nn.Module] = []
    forward = nn.Conv2d.forward

    def noted(layer: nn.Conv2d, x: torch.Tensor) -> torch.Tensor:
        layers.append(layer)
        return forward(layer, x)

    monkeypatch.setattr(nn.Conv2d, "forward", noted)
    return layers


def test_kept_outputs_change_no_bit(computed: list[nn.Module]) -> None:
    model, inputs = block().eval(), X[:16]
    with torch.no_grad(), reusing(model) as reuse:
        assert torch.equal(model(inputs), block().eval()(inputs))
        reuse.records = False
        for name in layer_weights(model):
            weight = model.get_parameter(name)
            original = weight.clone()
            weight.mul_(1.5)
            other = block().eval()
            other.get_parameter(name).mul_(1.5)
            wanted = other(inputs)
            computed.clear()
            assert torch.equal(model(inputs), wanted), name
            weight.copy_(original)
            assert (model.stem in computed) == (name == "stem.weight")
        assert torch.equal(model(X[16:32]), block().eval()(X[16:32]))  # other inputs
        model.norm.running_mean.add_(1)
        assert not torch.equal(model(inputs), block().eval()(inputs))


def test_nothing_is_kept_while_training_or_with_gradients(computed: list[nn.Module]) -> None:
    model = block()
    with reusing(model) as reuse:
        model(X[:8])
        reuse.records = False
        first = len(computed)
        model(X[:8]).sum().backward()
    assert len(computed) == 2 * first == 8
    assert model.head.weight.grad is not None


def test_rows_hold_what_their_columns_say() -> None:
    model = block()
    harm = layer_harm(model, (3,), lambda rows: measure(model, rows), CHUNKS)
    rows = layer_rows(model, harm, uniform_bits=6)
    assert [row["layer"] for row in rows] == ["stem.weight", "twice.weight", "head.weight"]
    assert [row["kind"] for row in rows] == [
        type(getattr(model, name)).__name__.removeprefix("Quant")
        for name in ("stem", "twice", "head")
    ]
    stem = rows[0]
    assert stem["parameters"] == 162
    assert stem["saved_bytes_3"] == 162 * 4 - math.ceil(162 * 3 / 8) - 4
    variances = variance_table([model.stem.weight], CANDIDATES)[0].tolist()
    assert [stem[f"variance_{bits}"] for bits in CANDIDATES] == variances
    assert [row["significance"] for row in rows] == pytest.approx(significance(harm.probe).tolist())
    weights = [model.get_parameter(str(row["layer"])) for row in rows]
    variances = variance_table(weights, [6])[:, 0].tolist()
    assert [row["bound_share_6"] for row in rows] == pytest.approx(
        [v / sum(variances) for v in variances]
    )
    assert stem["accuracy_drop_3"] == float(harm.accuracy_drop[0, 0])


def test_a_model_without_accuracy_and_weights_of_zero() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
    harm = layer_harm(
        model,
        (2,),
        lambda x: (float(model(x).square().mean()), math.nan),
        [(4, X[:4, :, 0, 0])],
    )
    rows = layer_rows(model, harm)
    assert not any(key.startswith("accuracy") for key in rows[0])
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    assert [row["bound_share_4"] for row in layer_rows(model, harm)] == [0, 0]
