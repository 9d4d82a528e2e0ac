"""Convolutions that must not see channels_last images: oneDNN writes past its workspace for them,
or dies.

Known of its kernels for CPUs with AVX2 and no AVX-512, in the gradient of the weight: kernel 1x1,
any stride but 1, and fewer than 8 input channels. Either operand in channels_last is enough, and
the gradient follows the forward pass.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

_LANES = 8
"""Floats that AVX2 writes at a time."""


def needs_contiguous(weight: Sequence[int], stride: Sequence[int]) -> bool:
    """Whether a convolution with a weight of shape [O, C/G, R, S] and such strides must not see
    channels_last.
    """
    return (
        len(weight) == 4 and tuple(weight[2:]) == (1, 1) and weight[1] < _LANES and max(stride) > 1
    )


def layer_needs_contiguous(layer: nn.Module) -> bool:
    """:func:`needs_contiguous` of a layer, of a subclass of ``nn.Conv2d`` too."""
    if not isinstance(layer, nn.Conv2d):
        return False
    shape = (layer.out_channels, layer.in_channels // layer.groups, *layer.kernel_size)
    return needs_contiguous(shape, layer.stride)


def has_usual_strides(x: Tensor) -> bool:
    """Whether x [..., C, H, W] lies in the usual order; where a size is 1, torch goes by the
    strides alone.
    """
    height, width = x.shape[-2:]
    return x.is_contiguous() and x.stride()[-3:] == (height * width, width, 1)


def contiguous(x: Tensor) -> Tensor:
    """Return x [..., C, H, W] with the usual strides, a copy only where it has others."""
    return x if has_usual_strides(x) else x.clone(memory_format=torch.contiguous_format)
