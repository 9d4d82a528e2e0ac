"""What a layer asks of an integer product, and the way from its shapes to those of the product and
back.

A linear layer becomes matrices [M, K] and [N, K], a convolution images [B, C, H, W] with padding by
zeros.
"""

import torch
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


def kernel_shape(layer: nn.Module) -> tuple[int, ...]:
    """The shape of the kernel, from the geometry of the layer: a parametrized weight would be
    computed for it.
    """
    if isinstance(layer, nn.MultiheadAttention):
        return 3 * layer.embed_dim, layer.embed_dim
    if isinstance(layer, nn.Linear):
        return layer.out_features, layer.in_features
    assert isinstance(layer, nn.Conv1d | nn.Conv2d)
    return layer.out_channels, layer.in_channels // layer.groups, *_pair(layer.kernel_size, 1)


def device_of(layer: nn.Module) -> torch.device:
    """Where the layer computes."""
    return next(layer.parameters()).device


def takes(layer: nn.Module, x: Tensor) -> bool:
    """Whether the parent of a layer computes such an input and there is anything to compute; it
    says itself why not.
    """
    if not x.is_floating_point() or x.numel() == 0:
        return False
    if isinstance(layer, nn.Linear | nn.MultiheadAttention):
        return x.dim() > 0 and x.shape[-1] == kernel_shape(layer)[1]
    assert isinstance(layer, nn.Conv1d | nn.Conv2d)
    num_dims = len(layer.kernel_size)
    if x.dim() not in (num_dims + 1, num_dims + 2) or x.shape[-num_dims - 1] != layer.in_channels:
        return False
    border = layer._reversed_padding_repeated_twice
    padded = (
        n + sum(border[2 * i : 2 * i + 2]) for i, n in enumerate(reversed(x.shape[-num_dims:]))
    )
    reach = (
        d * (k - 1)
        for d, k in zip(reversed(layer.dilation), reversed(layer.kernel_size), strict=True)
    )
    return all(n > r for n, r in zip(padded, reach, strict=True))


def kernel(layer: nn.Module, weight: Tensor) -> Tensor:
    """The weight of a layer, or its codes, for its product."""
    return weight.unsqueeze(2) if isinstance(layer, nn.Conv1d) else weight


def lower(layer: nn.Module, x: Tensor) -> Tensor:
    """The input of a layer for its product; a border that it pads has the range of what is inside,
    and zero.
    """
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
