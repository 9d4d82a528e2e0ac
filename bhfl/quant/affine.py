"""Affine quantisation: unsigned codes with a zero point, for tensors whose range is not symmetric.

Shapes: x is any shape; scale and zero point are 0-dim, or [C] with C == x.shape[0]. Zero is a value
of every grid.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bhfl.quant.functional import affine_scale, check_finite, check_floating
from bhfl.quant.ranges import check_granularity
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
        values = (self.codes.to(torch.int32) - per_slice(self.zero_point, ndim)) * per_slice(
            self.scale, ndim
        )
        return values.clamp_(-_MAX, _MAX)


@torch.no_grad()
def quantize_affine(
    x: Tensor,
    bits: int,
    *,
    granularity: Granularity = "tensor",
    generator: torch.Generator | None = None,
) -> AffineTensor:
    """Affine quantisation with the range of this very tensor, widened to include zero; nothing is
    clipped.

    Args:
        x: A finite floating tensor.
        bits: 2..16.
        granularity: One range for the tensor, or one for each slice of dimension 0.
        generator: Stochastic rounding, unbiased, on a grid of one step less; without one: nearest,
            the values of :func:`bhfl.quant.fake_quantize_activations` for granularity "tensor".

    Raises:
        ValueError: Bits out of range, x is not floating or has NaN or infinity, or "channel" of a
            scalar.
    """
    levels(bits)
    check_floating(x)
    check_finite(x)
    lowest, scale = _range(x, (1 << bits) - (1 if generator is None else 2), granularity)
    if (scale > _HUGE).any():
        part = quantize_affine(
            x.float() * 2**-20, bits, granularity=granularity, generator=generator
        )
        return AffineTensor(
            part.codes, (part.scale * 2**20).clamp_(max=_MAX), part.zero_point, bits
        )
    exact = lowest * scale.reciprocal()
    zero_point = -(exact.round() if generator is None else exact.floor()).to(torch.int32)
    codes = grid_codes(x.float(), scale, 1 << bits, torch.int32, generator).add_(
        per_slice(zero_point, x.dim())
    )
    codes = codes.clamp_(0, (1 << bits) - 1)
    return AffineTensor(codes.to(torch.uint8) if bits <= 8 else codes, scale, zero_point, bits)


def fake_quantize_affine(
    x: Tensor,
    bits: int,
    *,
    granularity: Granularity = "tensor",
    generator: torch.Generator | None = None,
) -> Tensor:
    """``quantize_affine(...).dequantize()`` in the dtype of x, with the identity as its gradient; x
    itself at 32 bits.

    Args:
        x: See :func:`quantize_affine`.
        bits: 2..16, or 32.
        granularity: See :func:`quantize_affine`.
        generator: See :func:`quantize_affine`.
    """
    if bits == FLOAT_BITS:
        return x
    return _FakeQuantizeAffine.apply(x, bits, granularity, generator)  # type: ignore[no-any-return]


class _FakeQuantizeAffine(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, bits: int, granularity: Granularity, generator: torch.Generator | None
    ) -> Tensor:
        return (
            quantize_affine(x, bits, granularity=granularity, generator=generator)
            .dequantize()
            .to(x.dtype)
        )

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return grad, None, None, None


def _range(x: Tensor, steps: int, granularity: Granularity) -> tuple[Tensor, Tensor]:
    """The lowest value and the scale."""
    check_granularity(granularity)
    if granularity == "channel" and x.dim() == 0:
        raise ValueError(
            "granularity 'channel' needs a tensor of at least one dimension, got a scalar"
        )
    groups = (x if granularity == "channel" else x.unsqueeze(0)).detach().float().unsqueeze(-1)
    zeros = groups.new_zeros(len(groups))
    dims = tuple(range(1, groups.dim()))
    low = groups.amin(dims).clamp_(max=0) if x.numel() else zeros
    high = groups.amax(dims).clamp_(min=0) if x.numel() else zeros
    scale = affine_scale(low, high, steps)
    return (low, scale) if granularity == "channel" else (low.squeeze(0), scale.squeeze(0))
