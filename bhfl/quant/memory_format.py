"""A workaround for convolutions whose gradient oneDNN gets wrong in channels_last: it writes past
its workspace, or dies.

The fault is in its kernels for CPUs with AVX2 and without AVX-512, in the gradient of the weight,
for a kernel of 1x1, any stride but 1, and fewer than 8 input channels. One operand in channels_last
is enough, and the gradient has the memory format of the forward pass. Such a convolution gets
contiguous operands.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

_LANES = 8
"""Floats in a register of AVX2, which the kernel writes at a time."""


def needs_contiguous(weight: Sequence[int], stride: Sequence[int]) -> bool:
    """Whether a convolution must not see channels_last.

    Args:
        weight: The shape of its weight, [O, C/G, R, S].
        stride: Its strides, one for each of R and S.
    """
    return (
        len(weight) == 4 and tuple(weight[2:]) == (1, 1) and weight[1] < _LANES and max(stride) > 1
    )


def layer_needs_contiguous(layer: nn.Module) -> bool:
    """:func:`needs_contiguous` of any layer; False for those that are not ``nn.Conv2d``."""
    if not isinstance(layer, nn.Conv2d):
        return False
    shape = (layer.out_channels, layer.in_channels // layer.groups, *layer.kernel_size)
    return needs_contiguous(shape, layer.stride)


def has_usual_strides(x: Tensor) -> bool:
    """Whether x [..., C, H, W] has the strides of its shape in the usual order."""
    height, width = x.shape[-2:]
    # is_contiguous ignores the stride of a size of 1, by which torch still chooses the format
    return x.is_contiguous() and x.stride()[-3:] == (height * width, width, 1)


def contiguous(x: Tensor) -> Tensor:
    """Return x [..., C, H, W] with the usual strides, a copy only where it has others."""
    return x if has_usual_strides(x) else x.clone(memory_format=torch.contiguous_format)
