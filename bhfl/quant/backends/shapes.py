"""What a layer asks of an integer product, and the way from its shapes to those of the product and back.

A linear layer becomes matrices [M, K] and [N, K], a convolution images [B, C, H, W] with padding by zeros.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from bhfl.quant.backends.conv import Conv, Pair
from bhfl.quant.backends.linear import Linear


def product_of(layer: nn.Module) -> Linear | Conv | None:
    """The integer product of a layer; None if there is none."""
    if isinstance(layer, nn.Linear | nn.MultiheadAttention):
        return Linear()
    if isinstance(layer, nn.Conv1d | nn.Conv2d):
        padding = (0, 0) if _pads_first(layer) else _pair(layer.padding, 0)
        return Conv(_pair(layer.stride, 1), padding, _pair(layer.dilation, 1), layer.groups)
    return None


def _pair(values: object, missing: int) -> Pair:
    """The two dimensions of a geometry of one or two."""
    assert isinstance(values, tuple)
    return (missing, *values) if len(values) == 1 else (values[0], values[1])


def _pads_first(layer: nn.Conv1d | nn.Conv2d) -> bool:
    """Whether the border is no zeros, or not the same at both ends."""
    return layer.padding_mode != "zeros" or isinstance(layer.padding, str)


def kernel(layer: nn.Module, weight: Tensor) -> Tensor:
    """The weight of a layer, or its codes, for its product."""
    return weight.unsqueeze(2) if isinstance(layer, nn.Conv1d) else weight


def lower(layer: nn.Module, x: Tensor) -> Tensor:
    """The input of a layer for its product; a border that it pads has the range of what is inside, and zero."""
    if isinstance(layer, nn.Linear | nn.MultiheadAttention):
        return x.reshape(-1, x.shape[-1])
    assert isinstance(layer, nn.Conv1d | nn.Conv2d)
    num_dims = 1 if isinstance(layer, nn.Conv1d) else 2
    x = x.unsqueeze(0) if x.dim() == num_dims + 1 else x
    if _pads_first(layer):
        mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
        x = F.pad(x, layer._reversed_padding_repeated_twice, mode)
    return x.unsqueeze(2) if num_dims == 1 else x


def restore(layer: nn.Module, y: Tensor, x: Tensor) -> Tensor:
    """The result of the product of ``lower(layer, x)`` as the output of the layer."""
    if isinstance(layer, nn.Linear | nn.MultiheadAttention):
        return y.view(*x.shape[:-1], y.shape[-1])
    num_dims = 1 if isinstance(layer, nn.Conv1d) else 2
    y = y.squeeze(2) if num_dims == 1 else y
    return y.squeeze(0) if x.dim() == num_dims + 1 else y
