"""Quantisers as functions: a tensor becomes codes and a scale, or the float values that these mean.

Shapes: x is any shape; a scale is float32, 0-dim or [C] with C == x.shape[0]. n is the largest
code, ``2**(bits-1) - 1``.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from bhfl.quant.codes import QuantizedTensor, code_dtype
from bhfl.quant.quantizers import clips
from bhfl.quant.ranges import wage_shift, weight_scale
from bhfl.quant.rounding import extremes, grid_codes, levels, nearest, per_slice
from bhfl.quant.spec import FLOAT_BITS, Granularity, RangeRule


@torch.no_grad()
def quantize(
    x: Tensor,
    bits: int,
    *,
    range_rule: RangeRule = "absmax",
    granularity: Granularity = "tensor",
    scale: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> QuantizedTensor:
    """Symmetric uniform quantisation, ``codes = clamp(round(x / scale), -n, n)``.

    Args:
        x: A finite floating tensor.
        bits: 2..16.
        range_rule: How the scale is found, see :func:`weight_scale`; unused where a scale is given.
        granularity: One scale for the tensor, or one for each slice of dimension 0; unused where a
            scale is given.
        scale: A positive scale, 0-dim or [C], used as it is; values beyond n * scale are clipped.
        generator: The source of stochastic rounding, which is unbiased to 2**-14 of a step:
            ``E[dequantize()] == x`` where nothing is clipped, and values of the grid are reproduced
            exactly. Without one, codes are the nearest, ties to even.

    Returns:
        Codes and scale, both without a gradient; :func:`fake_quantize` has one.

    Raises:
        ValueError: Bits out of range, x is not floating or has NaN or infinity, or the scale has
            another shape or is not positive.
    """
    limit = levels(bits)
    check_floating(x)
    found = scale is None and range_rule != "wage"
    scale = _scale_of(x, bits, range_rule, granularity, scale)
    # a scale that was found in x is finite only where x is, and smaller to check
    check_finite(scale if found else x)
    # what is 0, negative, NaN or infinite has none, and neither has what x could not be divided by
    if not found and not scale.reciprocal().log().isfinite().all():
        raise ValueError(
            f"scale must be positive and finite, as must be its reciprocal, got {scale}"
        )
    codes = grid_codes(x.float(), scale, limit, code_dtype(bits), generator)
    return QuantizedTensor(codes, scale.detach(), bits)


def check_floating(x: Tensor) -> None:
    """ValueError for a tensor that is not floating."""
    if not x.is_floating_point():
        raise ValueError(f"quantize needs a floating tensor, got {x.dtype}")


def check_finite(x: Tensor) -> None:
    """ValueError for a tensor that has NaN or infinity."""
    # they pass NaN on, and so tell of all values
    if x.numel() and not torch.isfinite(torch.stack(extremes(x))).all():
        raise ValueError(
            "quantize needs finite values, got NaN or infinity: has the training diverged?"
        )


def _scale_of(
    x: Tensor, bits: int, range_rule: RangeRule, granularity: Granularity, scale: Tensor | None
) -> Tensor:
    """The scale that was given, which must have a shape for x, or else that of the rule."""
    if scale is None:
        scale = weight_scale(x, bits, range_rule, granularity)
    elif scale.dim() and scale.shape != x.shape[:1]:
        raise ValueError(f"scale must be 0-dim or {list(x.shape[:1])}, got {list(scale.shape)}")
    return scale.to(x.device, torch.float32)


def fake_quantize(
    x: Tensor,
    bits: int,
    *,
    range_rule: RangeRule = "absmax",
    granularity: Granularity = "tensor",
    scale: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """``quantize(...).dequantize()`` to the bit, with a straight-through gradient.

    The gradient of x is the identity; where the rule clips (mse, lsq, a registered one, a given
    scale) it is 0 for clipped values. A scale that requires a gradient gets that of learned step
    size quantisation (Esser et al. 2020, equations 3 and 5), times ``1 / sqrt(N n)``, N the number
    of values that share it (their section 2.2). wage passes every gradient, as Wu et al. 2018 do:
    with them, the storage clips.

    Args:
        x: Any floating tensor. NaN and infinity are not refused here but give NaN, so that no
            device has to wait.
        bits: 2..16, or 32 to return x itself.
        range_rule: See :func:`quantize`.
        granularity: See :func:`quantize`.
        scale: See :func:`quantize`.
        generator: See :func:`quantize`.

    Returns:
        A tensor of the shape and dtype of x; computed in float32.

    Raises:
        ValueError: Bits out of range, x is not floating, or the scale has another shape.
    """
    if bits == FLOAT_BITS:
        return x
    limit = levels(bits)
    check_floating(x)
    clipped = _clips(range_rule, scale)
    scale = _scale_of(x, bits, range_rule, granularity, scale)
    return _FakeQuantize.apply(x, scale, limit, clipped, generator)  # type: ignore[no-any-return]


def quantize_with_gradient(
    x: Tensor, bits: int, *, range_rule: RangeRule, granularity: Granularity, scale: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """The codes of :func:`fake_quantize` for integer products, and a path for the gradient.

    Args:
        x: See :func:`fake_quantize`.
        bits: 2..8.
        range_rule: See :func:`quantize`.
        granularity: See :func:`quantize`.
        scale: See :func:`quantize`.

    Returns:
        A stand-in of the shape of x that has zeros and no memory of its own: give it the gradient
        of the quantised values, and it passes that on to x and to the scale as
        :func:`fake_quantize` does; int8 codes in the shape of x; the scale, float32, 0-dim or [C].

    Raises:
        ValueError: Bits out of range, or the scale has another shape.
    """
    clipped = _clips(range_rule, scale)
    scale = _scale_of(x, bits, range_rule, granularity, scale)
    if (clipped or range_rule == "wage") and x.numel():
        # no integer is NaN: a scale that was not found in x has to show it
        scale = torch.where(extremes(x.detach())[0].isnan(), math.nan, scale)
    stand_in, codes = _QuantizeWithGradient.apply(x, scale, levels(bits), clipped)
    return stand_in, codes, scale.detach()


def _clips(range_rule: RangeRule, scale: Tensor | None) -> bool:
    """Whether values beyond the largest code are clipped and have no gradient."""
    return clips(range_rule) or (scale is not None and range_rule != "wage")


class _FakeQuantize(torch.autograd.Function):
    """The values of the codes; nothing is saved for backward where nothing can be clipped."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        scale: Tensor,
        limit: int,
        clips: bool,
        generator: torch.Generator | None,
    ) -> Tensor:
        ctx.limit, ctx.clips = limit, clips
        if clips:
            ctx.save_for_backward(x, scale)
        step = per_slice(scale, x.dim())
        if generator is None:
            codes = nearest(x.float(), step, limit)
        else:
            codes = grid_codes(x.float(), scale, limit, torch.float32, generator)
        values = codes.mul_(step)
        # Adding 0 turns -0 into 0: integer codes have no negative zero. When compiled, it must give
        # a new tensor: torch 2.11 loses the gradient of a forward whose result was returned by an
        # operation in place, or by a cast that changes nothing.
        values = values.add(0.0) if torch.compiler.is_compiling() else values.add_(0.0)
        return values if values.dtype == x.dtype else values.to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if not ctx.clips:
            return grad, None, None, None, None
        x, scale = ctx.saved_tensors
        exact = x.float() * per_slice(scale, x.dim()).reciprocal()
        if not ctx.needs_input_grad[1]:
            # What rounds to n is not clipped, as in torch.fake_quantize. n + 0.5 rounds to n + 1,
            # which is even, and so is clipped.
            return exact.abs_().lt_(ctx.limit + 0.5).mul_(grad).to(x.dtype), None, None, None, None
        inside = exact.abs() < ctx.limit  # equation 5 of Esser et al. 2020
        # equation 3: round(x / scale) - x / scale inside, and n or -n outside
        slope = exact.round().clamp_(-ctx.limit, ctx.limit).sub_(exact.mul_(inside)).mul_(grad)
        grad_scale = slope.sum() if scale.dim() == 0 else slope.reshape(len(scale), -1).sum(1)
        values_per_step = max(slope.numel() // max(scale.numel(), 1), 1)
        return grad * inside, grad_scale / math.sqrt(values_per_step * ctx.limit), None, None, None


class _QuantizeWithGradient(_FakeQuantize):
    """The codes themselves, and the stand-in of :func:`quantize_with_gradient`."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, x: Tensor, scale: Tensor, limit: int, clips: bool
    ) -> tuple[Tensor, Tensor]:
        ctx.limit, ctx.clips = limit, clips
        if clips:
            ctx.save_for_backward(x, scale)
        codes = grid_codes(x.float(), scale, limit, torch.int8)
        ctx.mark_non_differentiable(codes)
        return x.new_zeros(()).expand(x.shape), codes

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        result: tuple[Tensor | None, ...] = _FakeQuantize.backward(ctx, grad)
        return result[:4]


def fake_quantize_activations(x: Tensor, bits: int) -> Tensor:
    """Unsigned affine quantisation with the dynamic range of the tensor, and the identity as its
    gradient.

    ``codes = round(x / scale) + zero_point`` lie in ``[0, 2**bits - 1]``, ``scale = (max - min) /
    (2**bits - 1)``. The range includes zero, which is therefore exact (a padded border stays a
    border). The zero point cancels in the float value and is never formed. The scale is wider by
    2**-20 (see `affine_scale`), so that nothing has to be clipped or saved. Within half a
    step of the largest value of its dtype that grid ends in infinity.

    Args:
        x: Any floating tensor; empty and constant ones too.
        bits: 2..16, or 32 to return x itself.

    Returns:
        A tensor of the shape and dtype of x; computed in float32.

    Raises:
        ValueError: Bits out of range.
    """
    if bits == FLOAT_BITS or x.numel() == 0:
        return x
    levels(bits)
    return _FakeQuantizeActivations.apply(x, (1 << bits) - 1)  # type: ignore[no-any-return]


def activation_range(x: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """The lowest value, at most 0, and the scale of :func:`fake_quantize_activations`: both 0-dim.

    Args:
        x: A floating tensor, not empty.
        steps: One less than the number of codes.
    """
    low, high = extremes(x)
    low, high = low.float().clamp(max=0), high.float().clamp(min=0)
    return low, affine_scale(low, high, steps)


def affine_scale(low: Tensor, high: Tensor, steps: int) -> Tensor:
    """The scale of ``steps + 1`` codes from low <= 0 to high >= 0; never 0.

    It is wider by 2**-20: the range is not a whole number of steps from zero to either end, and
    rounding both ends outwards must not need one code more.
    """
    # each end by itself: their difference may be more than the largest float
    widened = (1 + 2**-20) / steps
    return (high * widened).sub_(low * widened).clamp_(min=torch.finfo(torch.float32).tiny)


class _FakeQuantizeActivations(torch.autograd.Function):
    """The values of the codes, and a gradient that passes unchanged."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, steps: int) -> Tensor:
        _, scale = activation_range(x, steps)
        codes = (x.float() * scale.reciprocal()).round_()
        # not in place when compiled, see _FakeQuantize
        values = codes.mul(scale) if torch.compiler.is_compiling() else codes.mul_(scale)
        return values if values.dtype == x.dtype else values.to(x.dtype)

    @staticmethod
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


@torch.no_grad()
def quantize_backward(
    grad: Tensor, bits: int, generator: torch.Generator, *, range_rule: RangeRule = "absmax"
) -> Tensor:
    """A gradient on a grid of its own range, rounded stochastically: to nearest, small gradients
    would all be lost.

    The largest value of the grid is ``max|grad|``; with range rule wage the step is ``2**(1-bits) *
    wage_shift(grad)`` (Wu et al. 2018, section 3.3.3).

    Args:
        grad: Any floating tensor.
        bits: 2..16, or 32 to return grad itself.
        generator: The source of stochastic rounding.
        range_rule: "wage"; any other rule means absmax.

    Returns:
        A tensor of the shape and dtype of grad; computed in float32.

    Raises:
        ValueError: Bits out of range, or grad is not floating.
    """
    scale = wage_shift(grad) * 2.0 ** (1 - bits) if range_rule == "wage" else None
    return fake_quantize(grad, bits, scale=scale, generator=generator)
