"""Strided 1x1 convolutions of few channels: no operand in channels_last reaches torch's, whoever
computes.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from bhfl.quant import quantize_, seed_
from bhfl.quant.memory_format import contiguous, has_usual_strides, layer_needs_contiguous


class Operands(TorchDispatchMode):
    """Takes down whether the operands of torch's convolutions, forward and backward, have the usual
    strides.
    """

    def __init__(self) -> None:
        super().__init__()
        self.usual: list[bool] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        first = {"aten::convolution": 0, "aten::convolution_backward": 1}.get(func._schema.name)
        if first is not None:
            self.usual += [has_usual_strides(x) for x in args[first : first + 2]]
        return func(*args, **(kwargs or {}))


def last(x: Tensor) -> Tensor:
    """In channels_last by its strides, which `contiguous` leaves alone where a size is 1."""
    return x.clone(memory_format=torch.channels_last)


@pytest.mark.parametrize("backend", ["fake", "int8", "int8-bfloat16", "integer"])
@pytest.mark.parametrize("bits", [8, 32])
@pytest.mark.parametrize(
    ("channels", "groups", "stride"), [(1, 1, 2), (3, 1, (1, 2)), (7, 1, 3), (8, 2, 2)]
)
def test_convolutions_that_crash_in_channels_last_never_see_it(
    backend, bits, channels, groups, stride
):
    torch.manual_seed(0)
    layer = nn.Conv2d(channels, 6, 1, stride=stride, groups=groups)
    layer.weight.data = last(layer.weight.data)
    quantize_(layer, bits, backend=backend)
    seed_(layer, torch.Generator())
    x = torch.randn(2, channels, 6, 6)
    found = []
    for image in (x, last(x)):
        with Operands() as operands:
            y = layer(image.requires_grad_())
            y.square().sum().backward()
        assert operands.usual == [True] * len(operands.usual)
        assert operands.usual or backend != "fake"
        found.append(y)
    assert torch.equal(*found)


def test_other_convolutions_keep_channels_last():
    layer = quantize_(nn.Conv2d(16, 6, 1, stride=2), 8)
    with Operands() as operands:
        y = layer(last(torch.randn(2, 16, 6, 6)))
    assert operands.usual[0] is False
    assert y.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("layer", "needed"),
    [
        (nn.Conv2d(3, 8, 1, stride=2), True),
        (nn.Conv2d(7, 8, (1, 1), stride=(1, 2)), True),
        (type("Own", (nn.Conv2d,), {})(3, 8, 1, stride=2), True),
        (nn.Conv2d(8, 8, 1, stride=2), False),
        (nn.Conv2d(3, 8, 1), False),
        (nn.Conv2d(3, 8, (1, 2), stride=2), False),
        (nn.Conv1d(3, 8, 1, stride=2), False),
        (nn.ConvTranspose2d(3, 8, 1, stride=2), False),
        (nn.Linear(3, 8), False),
    ],
)
def test_which_layers_crash(layer, needed):
    assert layer_needs_contiguous(layer) is needed


@pytest.mark.parametrize(
    "shape", [(2, 3, 4, 5), (2, 1, 4, 5), (8, 3, 1, 1), (1, 1, 1, 1), (3, 4, 5), (0, 3, 4, 5)]
)
def test_contiguous_tensors_have_the_usual_strides(shape):
    x = torch.randn(shape)
    assert contiguous(x) is x
    turned = last(x) if x.dim() == 4 else x.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    found = contiguous(turned)
    assert torch.equal(found, x)
    assert found.stride() == x.stride()
