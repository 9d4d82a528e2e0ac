"""Tensors as int8 codes, the operands of integer products.

Legend: x input, w weight, g error (the gradient of the output); all codes int8, float value = (code
- zero) * scale.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from bhfl.quant.functional import activation_range
from bhfl.quant.ranges import weight_scale
from bhfl.quant.rounding import grid_codes, levels, matching_blocks

ERROR_BITS = 8
"""Bits of the error in the integer backward pass."""


@dataclass(frozen=True)
class Codes:
    """An operand of an integer product.

    Attributes:
        values: int8, any shape.
        scale: float32, 0-dim, or [C] for one scale per slice of dimension 0.
        zero: int32, 0-dim: the code of 0.0; None for symmetric codes, whose zero is 0.
    """

    values: Tensor
    scale: Tensor
    zero: Tensor | None = None

    def whole(self, dtype: torch.dtype) -> Tensor:
        """``code - zero``, in [-255, 255], which bfloat16 holds exactly."""
        values = self.values.to(dtype)
        return values if self.zero is None else values.sub_(self.zero.to(dtype))


def input_codes(x: Tensor, bits: int) -> Codes:
    """The codes of :func:`bhfl.quant.fake_quantize_activations`: its result is ``whole() * scale``
    to the bit.

    Args:
        x: Floating, not empty, [M, K] contiguous or [B, C, H, W] channels_last; the codes are so
            too.
        bits: 2..8.
    """
    low, scale = activation_range(x, (1 << bits) - 1)
    inverse = scale.reciprocal()
    shift = -128 - (low * inverse).round_()  # the code of the lowest value is the first, -128
    values = torch.empty_like(x, dtype=torch.int8)
    for block, target in matching_blocks(x, values):
        target.copy_((block.float() * inverse).round_().add_(shift))
    return Codes(values, scale, shift.to(torch.int32))


def error_codes(g: Tensor, generator: torch.Generator) -> Codes:
    """Symmetric codes of an error with the range of this very tensor, rounded stochastically:
    unbiased.

    An error that is on such a grid already (``BitSpec.errors == 8``) keeps its values.
    """
    scale, limit = weight_scale(g, ERROR_BITS), levels(ERROR_BITS)
    codes = grid_codes(_in_memory_order(g).float(), scale, limit, torch.int8, generator)
    return Codes(codes.permute(0, 3, 1, 2) if g.dim() == 4 else codes, scale)


def _in_memory_order(x: Tensor) -> Tensor:
    """Matrices as they are, images [B, C, H, W] in channels_last as contiguous [B, H, W, C]."""
    return x.permute(0, 2, 3, 1) if x.dim() == 4 else x
