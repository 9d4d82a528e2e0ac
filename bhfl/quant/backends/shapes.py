"""The integer product of a layer, and the way from the layer's shapes to those of the product and
back.

A linear layer becomes a product of matrices [M, K] and [N, K]; a convolution of one dimension or
two becomes one of images [B, C, H, W], with H == 1 where it has one. Padding other than zeros is
done before the product.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bhfl.quant.backends.conv import Conv, Pair
from bhfl.quant.backends.linear import Linear


def product_of(layer: nn.Module) -> Linear | Conv | None:
    """The integer product of a layer; None if it has none."""
    if isinstance(layer, nn.Linear | nn.MultiheadAttention):
        return Linear()
    if isinstance(layer, nn.Conv1d | nn.Conv2d):
        # what is padded before the product needs no padding in it
        padding = (0, 0) if _pads_first(layer) else _pair(layer.padding, 0)
        return Conv(_pair(layer.stride, 1), padding, _pair(layer.dilation, 1), layer.groups)
    return None


def _pair(values: Any, missing: int) -> Pair:
    """The geometry of a convolution of one dimension or two as one of two, `missing` for H."""
    return (missing, *values) if len(values) == 1 else (values[0], values[1])


def _pads_first(layer: nn.Conv1d | nn.Conv2d) -> bool:
    """Whether the border is other than zeros, or may differ between both ends ("same")."""
    return layer.padding_mode != "zeros" or isinstance(layer.padding, str)


def kernel_shape(layer: Any) -> tuple[int, ...]:
    """The shape of the weight for the product: [N, K], or [O, C/G, R, S]."""
    # from the sizes of the layer, because a parametrized weight is computed anew at each access
    if isinstance(layer, nn.MultiheadAttention):
        return 3 * layer.embed_dim, layer.embed_dim
    if isinstance(layer, nn.Linear):
        return layer.out_features, layer.in_features
    return layer.out_channels, layer.in_channels // layer.groups, *_pair(layer.kernel_size, 1)


def device_of(layer: nn.Module) -> torch.device:
    """The device that the layer computes on."""
    return next(layer.parameters()).device


def takes(layer: Any, x: Tensor) -> bool:
    """Whether an integer product takes an input: not an empty one, nor one that torch refuses."""
    if not x.is_floating_point() or x.numel() == 0:
        return False
    if isinstance(layer, nn.Linear | nn.MultiheadAttention):
        return x.dim() > 0 and x.shape[-1] == kernel_shape(layer)[1]
    num_dims = len(layer.kernel_size)
    if x.dim() not in (num_dims + 1, num_dims + 2) or x.shape[-num_dims - 1] != layer.in_channels:
        return False
    # the border of the last dimension comes first, both its ends
    border = layer._reversed_padding_repeated_twice
    for i in range(num_dims):
        size = x.shape[-1 - i] + border[2 * i] + border[2 * i + 1]
        if size <= layer.dilation[-1 - i] * (layer.kernel_size[-1 - i] - 1):
            # the kernel is larger than the padded image, which torch refuses
            return False
    return True


def kernel(layer: nn.Module, weight: Tensor) -> Tensor:
    """The weight of a layer, or codes of it, in the shape that its product takes."""
    return weight.unsqueeze(2) if isinstance(layer, nn.Conv1d) else weight


def lower(layer: Any, x: Tensor) -> Tensor:
    """The input of a layer in the shape that its product takes, [M, K] or [B, C, H, W]."""
    if isinstance(layer, nn.Linear | nn.MultiheadAttention):
        return x.reshape(-1, x.shape[-1])
    num_dims = len(layer.kernel_size)
    if x.dim() == num_dims + 1:
        x = x.unsqueeze(0)
    if _pads_first(layer):
        # before the input is quantised: a border holds only values of the input, or zeros, and so
        # leaves its range as it is
        mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
        x = F.pad(x, layer._reversed_padding_repeated_twice, mode)
    return x.unsqueeze(2) if num_dims == 1 else x


def restore(layer: nn.Module, y: Tensor, x: Tensor) -> Tensor:
    """The product y of ``lower(layer, x)`` as the output of the layer for x."""
    if isinstance(layer, nn.Linear | nn.MultiheadAttention):
        return y.view(*x.shape[:-1], y.shape[-1])
    if isinstance(layer, nn.Conv1d):
        y = y.squeeze(2)
    return y.squeeze(0) if y.dim() > x.dim() else y
