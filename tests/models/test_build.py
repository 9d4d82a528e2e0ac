import copy
import io
import sys
import warnings
from itertools import product
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from bhfl.models import CNN, MLP, NETWORKS, VGG7, ResNet18, build

CONVOLUTIONAL = [name for name in NETWORKS if name != "mlp"]


def build_small(name, input_shape, norm=None):
    """Build a network at a size that a test can afford."""
    return build(name, 10, input_shape, norm, **({"width": 8} if name == "vgg7" else {}))


def count(network, min_dim=0):
    return sum(
        parameter.numel() for parameter in network.parameters() if parameter.dim() >= min_dim
    )


@pytest.mark.parametrize(
    ("name", "input_shape", "expected"),
    [
        ("mlp", (1, 28, 28), 199_210),
        ("lenet", (1, 28, 28), 107_786),
        ("cnn", (3, 32, 32), 545_098),
        ("cnn", (1, 8, 8), 53_002),
        ("resnet8", (3, 32, 32), 78_042),
        ("resnet18", (3, 32, 32), 11_173_962),
        ("resnet20", (3, 32, 32), 272_474),
    ],
)
def test_parameter_counts(name, input_shape, expected):
    with torch.device("meta"):
        assert count(build(name, 10, input_shape)) == expected


def test_vgg7_has_the_published_number_of_weights():
    with torch.device("meta"):
        assert count(build("vgg7", 10, (3, 32, 32)), min_dim=2) == 12_973_440


@pytest.mark.parametrize("input_shape", [(1, 8, 8), (3, 9, 13), (2, 17, 8)])
@pytest.mark.parametrize("name", NETWORKS)
def test_any_size_of_image(name, input_shape):
    assert build_small(name, input_shape)(torch.zeros(2, *input_shape)).shape == (2, 10)


@pytest.mark.parametrize("name", ["resnet8", "resnet20", "mlp"])
def test_one_pixel_is_enough_where_nothing_pools(name):
    assert build(name, 3, (1, 1, 1))(torch.zeros(2, 1, 1, 1)).shape == (2, 3)


@pytest.mark.parametrize(("name", "min_side"), [("lenet", 4), ("cnn", 4), ("vgg7", 8)])
def test_smallest_image(name, min_side):
    assert build_small(name, (1, min_side, min_side))(
        torch.zeros(1, 1, min_side, min_side)
    ).shape == (1, 10)
    with pytest.raises(
        ValueError,
        match=rf"input_shape must be at least {min_side}x{min_side} pixels here, got \(1,",
    ):
        build_small(name, (1, min_side, min_side - 1))


@pytest.mark.parametrize("norm", ["group", "batch", "none"])
@pytest.mark.parametrize("name", CONVOLUTIONAL)
def test_norm_is_the_one_asked_for(name, norm):
    found = {type(module) for module in build_small(name, (1, 8, 8), norm).modules()}
    assert (nn.GroupNorm in found) is (norm == "group")
    assert (nn.BatchNorm2d in found) is (norm == "batch")


@pytest.mark.parametrize(
    ("name", "normed"), [("lenet", False), ("cnn", False), ("resnet8", True), ("vgg7", True)]
)
def test_default_norm(name, normed):
    found = {type(module) for module in build_small(name, (1, 8, 8)).modules()}
    assert (nn.GroupNorm in found) is normed
    assert nn.BatchNorm2d not in found


def normed() -> list[Any]:
    """Every network with every norm; the largest has but its own in the default suite."""
    found = []
    for name, norm in product(NETWORKS, ["group", "batch", "none"]):
        is_slow = name == "resnet18" and norm != "group"
        found.append(pytest.param(name, norm, marks=pytest.mark.slow if is_slow else ()))
    return found


@pytest.mark.parametrize(("name", "norm"), normed())
def test_learns_a_fixed_batch(name, norm):
    torch.manual_seed(0)
    network = build_small(name, (1, 8, 8), None if name == "mlp" else norm)
    images, labels = torch.randn(16, 1, 8, 8), torch.arange(16) % 10
    optimizer = torch.optim.SGD(network.parameters(), lr=0.02, momentum=0.9)
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        loss = F.cross_entropy(network(images), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] < 4
    assert losses[-1] < 0.95 * losses[0]


@pytest.mark.parametrize("name", CONVOLUTIONAL)
def test_channels_last_gives_the_same_logits(name):
    torch.manual_seed(0)
    network = build_small(name, (3, 16, 16), "group")
    images = torch.randn(4, 3, 16, 16)
    expected = network(images)
    logits = network.to(memory_format=torch.channels_last)(
        images.to(memory_format=torch.channels_last)
    )
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    logits.sum().backward()


@pytest.mark.parametrize("name", NETWORKS)
def test_deep_copy_is_equal_and_apart(name):
    network = build_small(name, (1, 8, 8))
    twin = copy.deepcopy(network)
    images = torch.randn(2, 1, 8, 8)
    assert torch.equal(network(images), twin(images))
    with torch.no_grad():
        next(twin.parameters()).zero_()
    assert not torch.equal(network(images), twin(images))


@pytest.mark.parametrize("name", NETWORKS)
def test_weights_come_from_the_global_seed(name):
    states = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        states.append(build_small(name, (1, 8, 8)).state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert any(not torch.equal(states[0][key], states[2][key]) for key in states[0])


@pytest.mark.parametrize("name", ["mlp", "cnn", "vgg7"])
def test_dropout_only_when_asked_for(name):
    plain, dropping = build(name, 10, (1, 8, 8)), build(name, 10, (1, 8, 8), dropout=0.5)
    assert not any(isinstance(module, nn.Dropout) for module in plain.modules())
    assert any(isinstance(module, nn.Dropout) for module in dropping.modules())
    assert plain.state_dict().keys() == dropping.state_dict().keys()


def test_options_reach_the_network():
    assert count(build("mlp", 10, (1, 8, 8), hidden=[])) == 64 * 10 + 10
    assert build("vgg7", 10, (1, 8, 8), width=24).features[0].out_channels == 24


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("mlp", {"hidden": 200}, r"net_kwargs: mlp refuses \{'hidden': 200\}"),
        ("mlp", {"hidden": [2.5]}, r"net_kwargs: mlp refuses \{'hidden': \[2.5\]\}"),
        ("cnn", {"dropout": "no"}, r"net_kwargs: cnn refuses \{'dropout': 'no'\}"),
        ("vgg7", {"width": 2.5}, "net_kwargs.width of vgg7 must be an integer, got 2.5"),
        (None, {}, "net must be the name of a network, got None"),
    ],
)
def test_options_of_the_wrong_type(name, options, message):
    with pytest.raises(ValueError, match=message):
        build(name, 10, (1, 8, 8), **options)


def test_names_ignore_case():
    assert isinstance(build("CNN", 10, (1, 8, 8)), CNN)
    assert isinstance(build("ResNet18", 10, (1, 8, 8)), ResNet18)


@pytest.mark.parametrize("name", ["resnet19", "torchvision/resnet19"])
def test_unknown_name_suggests_the_nearest(name):
    with pytest.raises(
        ValueError, match=rf"net must be one of mlp, .* got '{name}'; did you mean .*resnet1"
    ):
        build(name, 10, (3, 32, 32))


def test_colours_that_come_last_are_spoken_of() -> None:
    with pytest.warns(UserWarning, match=r"\(8, 8, 3\) is taken for channels, rows and columns"):
        build("resnet8", 10, (8, 8, 3))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        build("resnet8", 10, (3, 8, 8))


def test_unknown_name_far_from_all():
    with pytest.raises(ValueError, match=r"got 'zzzzzz'$"):
        build("zzzzzz", 10, (3, 32, 32))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: build("mlp", 1, (1, 8, 8)), "num_classes must be at least 2, got 1"),
        (lambda: build("mlp", 10, (8, 0)), r"input_shape must be positive numbers, got \(8, 0\)"),
        (
            lambda: build("lenet", 10, (8, 8)),
            r"input_shape must be three positive numbers \(C, H, W\), got \(8, 8\)",
        ),
        (
            lambda: build("cnn", 10, (0, 8, 8)),
            r"input_shape must be three positive numbers .* got \(0, 8, 8\)",
        ),
        (
            lambda: build("mlp", 10, (1, 8, 8), norm="group"),
            "mlp has the options dropout, hidden, got norm",
        ),
        (
            lambda: build("vgg7", 10, (1, 8, 8), widht=24),
            "vgg7 has the options dropout, norm, width, got widht",
        ),
        (
            lambda: build("cnn", 10, (1, 8, 8), norm="layer"),
            "norm must be 'group', 'batch' or 'none', got 'layer'",
        ),
        (
            lambda: MLP(10, (1, 8, 8), hidden=(0,)),
            r"hidden must be positive numbers of units, got \(0,\)",
        ),
        (lambda: VGG7(10, (1, 8, 8), width=0), "width must be at least 1, got 0"),
    ],
)
def test_wrong_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_torchvision_by_both_names():
    images = torch.randn(2, 3, 32, 32)
    for name in ("squeezenet1_1", "torchvision/squeezenet1_1"):
        assert build(name, 7, (3, 32, 32))(images).shape == (2, 7)
    with torch.device("meta"):
        assert count(build("torchvision/resnet18", 1000, (3, 224, 224))) == 11_689_512


@pytest.mark.parametrize(("norm", "num_kept"), [("group", 0), ("none", 0), ("batch", 34)])
def test_torchvision_norm_replaces_batch_norm(norm, num_kept):
    network = build("mobilenet_v3_small", 10, (3, 32, 32), norm)
    assert sum(isinstance(module, nn.BatchNorm2d) for module in network.modules()) == num_kept
    assert network(torch.randn(2, 3, 32, 32)).shape == (2, 10)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("name", "side"), [("googlenet", 32), ("inception_v3", 96)])
def test_torchvision_gives_plain_logits_in_training(name, side, monkeypatch):
    # slow, and not what is tested here
    monkeypatch.setattr(nn.init, "trunc_normal_", lambda weight, **_: weight)
    network = build(name, 10, (3, side, side)).train()
    assert network(torch.zeros(2, 3, side, side)).shape == (2, 10)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "squeezenet1_1",
            {"input_shape": (1, 8, 8)},
            "input_shape must have 3 channels for torchvision/squeezenet1_1",
        ),
        ("inception_v3", {}, r"torchvision/inception_v3 cannot take input_shape \(3, 32, 32\): "),
        (
            "squeezenet1_1",
            {"norm": "group"},
            "norm must be unset for torchvision/squeezenet1_1, which has no batch",
        ),
        (
            "squeezenet1_1",
            {"widht": 2},
            r"torchvision/squeezenet1_1 refuses the options \{'widht': 2\}: ",
        ),
        (
            "resnet50",
            {"weights": "DEFAULT"},
            r"torchvision/resnet50 refuses the options \{'weights': 'DEFAULT'\}: ",
        ),
        (
            "resnet50",
            {"pretrained": True},
            r"torchvision/resnet50 refuses the options \{'pretrained': True\}: ",
        ),
    ],
)
def test_torchvision_wrong_arguments(name, options, message):
    with pytest.raises(ValueError, match=message):
        build(**{"name": name, "num_classes": 10, "input_shape": (3, 32, 32), **options})


def test_a_vision_transformer_has_the_size_of_the_input(monkeypatch):
    monkeypatch.setattr(nn.init, "trunc_normal_", lambda weight, **_: weight)
    network = build("vit_b_32", 10, (3, 64, 64))
    assert (network.image_size, network.training) == (64, True)


def test_saved_state_loads_strictly():
    network, buffer = build("resnet8", 10, (1, 8, 8)), io.BytesIO()
    torch.save(network.state_dict(), buffer)
    buffer.seek(0)
    build("resnet8", 10, (1, 8, 8)).load_state_dict(
        torch.load(buffer, weights_only=True), strict=True
    )


def test_unknown_attribute_of_the_package():
    import bhfl.models

    with pytest.raises(AttributeError, match=r"module 'bhfl\.models' has no attribute 'Clasifier'"):
        _ = bhfl.models.Clasifier


def test_where_there_is_no_torchvision_an_unknown_network_is_told_beside_those_there_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As it is on a small device."""
    monkeypatch.setitem(sys.modules, "torchvision.models", None)
    with pytest.raises(ImportError, match=r"vgg7 where torchvision cannot be imported, got 'cnnn'"):
        build("cnnn", 10, (3, 8, 8))
    assert build("mlp", 10, (3, 8, 8))
