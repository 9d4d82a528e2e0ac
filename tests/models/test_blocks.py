import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from bhfl.models.blocks import conv2d, conv_unit, fully_connected, init_he_, norm2d, num_groups


@given(st.integers(1, 2048))
def test_groups_divide_the_channels(channels):
    groups = num_groups(channels)
    assert channels % groups == 0
    assert 1 <= groups <= 32
    assert groups == 1 or channels // groups >= 8


@pytest.mark.parametrize(
    ("channels", "groups"), [(6, 1), (16, 2), (24, 3), (64, 8), (128, 16), (256, 32), (512, 32)]
)
def test_groups_of_the_usual_widths(channels, groups):
    assert num_groups(channels) == groups


@pytest.mark.parametrize(
    ("norm", "kind"), [("group", nn.GroupNorm), ("batch", nn.BatchNorm2d), ("none", nn.Identity)]
)
def test_norm_by_name(norm, kind):
    assert isinstance(norm2d(norm, 16), kind)


def test_unknown_norm():
    with pytest.raises(ValueError, match="norm must be 'group', 'batch' or 'none', got 'layer'"):
        norm2d("layer", 16)


@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_convolution_keeps_the_size(kernel):
    assert conv2d(2, 4, kernel, "none")(torch.zeros(1, 2, 7, 9)).shape == (1, 4, 7, 9)


@pytest.mark.parametrize(("norm", "bias"), [("group", False), ("batch", False), ("none", True)])
def test_bias_only_without_a_norm(norm, bias):
    assert (conv_unit(2, 8, 3, norm)[0].bias is not None) is bias


def test_dropout_does_not_change_keys():
    some, none = (fully_connected((2, 3, 4), dropout) for dropout in (0.5, 0.0))
    assert isinstance(some[3], nn.Dropout)
    assert isinstance(none[3], nn.Identity)
    assert some.state_dict().keys() == none.state_dict().keys()


def test_initial_weights_have_the_variance_they_should():
    network = nn.Sequential(nn.Conv2d(64, 128, 3), nn.Linear(1000, 500), nn.Linear(400, 300))
    torch.manual_seed(0)
    init_he_(network)
    conv, hidden, last = network
    assert conv.weight.var().item() == pytest.approx(2 / (64 * 9), rel=0.05)
    assert hidden.weight.var().item() == pytest.approx(1 / 1000, rel=0.05)
    assert last.weight.var().item() == pytest.approx(1 / (3 * 400), rel=0.05)
    assert not conv.bias.any()
    assert not hidden.bias.any()
