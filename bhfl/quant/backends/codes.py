"""Tensors as int8 codes, the operands of integer products: ``value = (code - zero) * scale``.

Legend: x input, w weight, g error, which is the gradient of the output; all codes are int8.
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
        zero: The zero point, int32, 0-dim; None for symmetric codes, whose zero point is 0.
    """

    values: Tensor
    scale: Tensor
    zero: Tensor | None = None

    def whole(self, dtype: torch.dtype) -> Tensor:
        """``code - zero`` in a floating dtype: whole numbers in [-255, 255], which bfloat16 holds
        exactly.
        """
        values = self.values.to(dtype)
        return values if self.zero is None else values.sub_(self.zero.to(dtype))


def input_codes(x: Tensor, bits: int) -> Codes:
    """The codes of :func:`bhfl.quant.fake_quantize_activations`: its result is ``whole() * scale``
    to the bit.

    Args:
        x: Floating, not empty, [M, K] contiguous or [B, C, H, W] channels_last; the codes have the
            same memory format.
        bits: 2..8.
    """
    low, scale = activation_range(x, (1 << bits) - 1)
    inverse = scale.reciprocal()
    # The zero point for which the code of the lowest value is the first one, -128. Of an input that
    # is not finite any will do: no integer is NaN, and the scale shows it.
    shift = -128 - (low * inverse).round_().nan_to_num_()
    values = torch.empty_like(x, dtype=torch.int8)
    for block, target in matching_blocks(x, values):
        target.copy_((block.float() * inverse).round_().add_(shift))
    return Codes(values, scale, shift.to(torch.int32))


def error_codes(g: Tensor, generator: torch.Generator) -> Codes:
    """Symmetric codes of an error with the dynamic range of the tensor, rounded stochastically and
    so without bias.

    An error that is on such a grid already (``BitSpec.errors == 8``) keeps its values.

    Args:
        g: [M, N] contiguous or [B, O, P, Q] channels_last; the codes have the same memory format.
        generator: The source of stochastic rounding.
    """
    scale = weight_scale(g, ERROR_BITS)
    # rounded in the order of the memory, which is [B, P, Q, O] for images
    errors = g.permute(0, 2, 3, 1) if g.dim() == 4 else g
    codes = grid_codes(errors.float(), scale, levels(ERROR_BITS), torch.int8, generator)
    return Codes(codes.permute(0, 3, 1, 2) if g.dim() == 4 else codes, scale)
