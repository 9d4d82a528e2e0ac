"""Networks of which a part is trained."""

import warnings

import pytest
import torch
from torch import nn

from bhfl.models import Classifier, LowRank


def trained(model: nn.Module) -> list[str]:
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


def test_an_adapter_adds_a_product_that_is_zero_at_first():
    base = nn.Linear(5, 3)
    layer = LowRank(base, 2)
    inputs = torch.randn(4, 5)
    assert torch.equal(layer(inputs), base(inputs))
    assert trained(layer) == ["down.weight", "up.weight"]
    nn.init.normal_(layer.up.weight)
    whole = base.weight + layer.up.weight @ layer.down.weight
    assert torch.allclose(layer(inputs), inputs @ whole.T + base.bias, atol=1e-6)


def test_linear_layers_have_adapters_and_named_parameters_are_trained():
    model = Classifier("cnn", adapters=8, trained=["head.4.*"])
    adapted = ["net.head.1.down.weight", "net.head.1.up.weight"]
    assert trained(model) == [*adapted, "net.head.4.weight", "net.head.4.bias"]
    assert not isinstance(model.net.head[4], LowRank)
    assert trained(Classifier("cnn", adapters=1)) == [*adapted, *adapters_of("net.head.4")]


def adapters_of(layer: str) -> list[str]:
    return [f"{layer}.down.weight", f"{layer}.up.weight"]


def test_a_part_is_trained_without_adapters_and_attention_stays_whole():
    assert trained(Classifier("mlp", trained=["layers.7.bias"])) == ["net.layers.7.bias"]
    net = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = Classifier(net, adapters=2)
    assert trained(model) == [*adapters_of("net.linear1"), *adapters_of("net.linear2")]
    assert model(torch.randn(1, 3, 8)).shape == (1, 3, 8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"adapters": 0}, "adapters must be an integer from 1 to"),
        ({"trained": "head"}, "trained must be a list of names or patterns, got 'head'"),
        ({"trained": ["haed.4.bias"]}, "got 'haed.4.bias'; did you mean 'head.4.bias'"),
        ({"trained": []}, r"trained must leave something of CNN to be trained, got \[\]"),
    ],
)
def test_what_cannot_be_is_told(options, message):
    with pytest.raises(ValueError, match=message):
        Classifier("cnn", **options)


def test_adapters_need_linear_layers():
    with pytest.raises(ValueError, match="adapters need linear layers, which Conv2d does not hav"):
        Classifier(nn.Conv2d(1, 1, 1), adapters=2)


def test_a_rank_that_saves_nothing_is_told_with_its_layer() -> None:
    net = nn.Sequential(nn.Linear(9, 8), nn.Sequential(nn.Linear(8, 3)))
    with pytest.warns(UserWarning, match=r"rank 3 is as large as a side of layer '1\.0', \[3, 8\]"):
        Classifier(net, adapters=3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Classifier(nn.Sequential(nn.Linear(9, 3)), adapters=2)
