"""Affine quantisation: unsigned codes with a zero point, for tensors whose range is not symmetric.

``x ≈ (codes - zero_point) * scale``. Zero is a value of every grid: that of the zero point.

Shapes: x is any shape; scale and zero point are 0-dim, or [C] with C == x.shape[0].
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from bhfl.quant.functional import affine_scale, check_finite, check_floating
from bhfl.quant.ranges import grouped
from bhfl.quant.rounding import grid_codes, levels, per_slice
from bhfl.quant.spec import FLOAT_BITS, Granularity

_MAX = torch.finfo(torch.float32).max
_HUGE = 2.0**111
"""Below this scale, one step beyond either end of a range is still finite."""


@dataclass(frozen=True)
class AffineTensor:
    """``x ≈ (codes - zero_point) * scale``.

    Attributes:
        codes: uint8 (up to 8 bits) or int32, the shape of x, in ``[0, 2**bits - 1]``.
        scale: float32, 0-dim or [C].
        zero_point: int32, the shape of the scale: the code of 0.0.
        bits: 2..16.
    """

    codes: Tensor
    scale: Tensor
    zero_point: Tensor
    bits: int

    def dequantize(self) -> Tensor:
        """The float32 values, in the shape of the codes; the grid ends with the largest finite
        one.
        """
        ndim = self.codes.dim()
        steps = self.codes.to(torch.int32) - per_slice(self.zero_point, ndim)
        return (steps * per_slice(self.scale, ndim)).clamp_(-_MAX, _MAX)


@torch.no_grad()
def quantize_affine(
    x: Tensor,
    bits: int,
    *,
    granularity: Granularity = "tensor",
    generator: torch.Generator | None = None,
) -> AffineTensor:
    """Affine quantisation with the dynamic range of the tensor, widened to include zero; nothing is
    clipped.

    Args:
        x: A finite floating tensor.
        bits: 2..16.
        granularity: One range for the tensor, or one for each slice of dimension 0.
        generator: The source of stochastic rounding, which is unbiased and whose grid has one step
            less. Without one, codes are the nearest, and with granularity "tensor" their values
            are those of :func:`bhfl.quant.fake_quantize_activations`.

    Returns:
        The codes, of x's shape, and the scale and zero point of each range.

    Raises:
        ValueError: Bits out of range, x is not floating or has NaN or infinity, or "channel" of a
            scalar.
    """
    # for its error alone, where bits are out of range
    levels(bits)
    check_floating(x)
    check_finite(x)
    last = (1 << bits) - 1
    low, scale = _range(x, last if generator is None else last - 1, granularity)
    # computed for values that are smaller by a power of two, which changes no code
    if (scale > _HUGE).any():
        part = quantize_affine(
            x.float() * 2**-20, bits, granularity=granularity, generator=generator
        )
        return replace(part, scale=(part.scale * 2**20).clamp_(max=_MAX))
    exact = low * scale.reciprocal()
    # by floor, the lowest value lies between the codes 0 and 1: it may be rounded to either
    zero_point = -(exact.round() if generator is None else exact.floor()).to(torch.int32)
    # this limit is beyond every code: what is clamped are the codes, not the steps from zero
    steps = grid_codes(x.float(), scale, 1 << bits, torch.int32, generator)
    codes = steps.add_(per_slice(zero_point, x.dim())).clamp_(0, last)
    return AffineTensor(codes.to(torch.uint8) if bits <= 8 else codes, scale, zero_point, bits)


def fake_quantize_affine(
    x: Tensor,
    bits: int,
    *,
    granularity: Granularity = "tensor",
    generator: torch.Generator | None = None,
) -> Tensor:
    """``quantize_affine(...).dequantize()`` in the dtype of x, with the identity as its gradient.

    Args:
        x: See :func:`quantize_affine`.
        bits: 2..16, or 32 to return x itself.
        granularity: See :func:`quantize_affine`.
        generator: See :func:`quantize_affine`.

    Returns:
        A tensor of x's shape and dtype.

    Raises:
        ValueError: See :func:`quantize_affine`.
    """
    if bits == FLOAT_BITS:
        return x
    return _FakeQuantizeAffine.apply(x, bits, granularity, generator)  # type: ignore[no-any-return]


class _FakeQuantizeAffine(torch.autograd.Function):
    """The values of the codes, and a gradient that passes unchanged."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, bits: int, granularity: Granularity, generator: torch.Generator | None
    ) -> Tensor:
        quantized = quantize_affine(x, bits, granularity=granularity, generator=generator)
        return quantized.dequantize().to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return grad, None, None, None


def _range(x: Tensor, steps: int, granularity: Granularity) -> tuple[Tensor, Tensor]:
    """The lowest value, at most 0, and the scale of ``steps + 1`` codes: both 0-dim, or [C]."""
    groups = grouped(x, granularity)
    low = high = groups.new_zeros(len(groups))
    if x.numel():
        dims = tuple(range(1, groups.dim()))
        low = groups.amin(dims).clamp_(max=0)
        high = groups.amax(dims).clamp_(min=0)
    scale = affine_scale(low, high, steps)
    return (low, scale) if granularity == "channel" else (low.squeeze(0), scale.squeeze(0))
