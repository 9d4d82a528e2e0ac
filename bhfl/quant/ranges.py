"""Range rules: the scale (step of the grid) with which a tensor is quantised.

Shapes: a scale is float32, 0-dim with granularity "tensor" and [C] with "channel", C the size of
dimension 0. n is the largest code, ``2**(bits-1) - 1``.
"""

import math
from collections.abc import Iterator
from itertools import accumulate
from operator import index
from typing import get_args

import torch
from torch import Tensor

from bhfl.quant.quantizers import REGISTERED, group_scale, known_rules
from bhfl.quant.rounding import block_size, extremes, is_channels_last, levels
from bhfl.quant.spec import Granularity, RangeRule, check_choice

_SAMPLE = 1 << 13
"""About how many elements the mse rule searches on; its result is checked on all."""
_GROUP_SAMPLE = 1 << 8
"""The fewest elements of a group that are in the sample, where it has so many."""
_SURE = 1 - 1e-5
"""The error must fall below this part of that of absmax: a smaller gain may be rounding."""
_CLEAR = 0.98
"""Below this part, sums in any order and by any formula agree that it does."""
_LIKELY = 0.8
"""Below this part on the sample, it is likely to be below `_CLEAR` on all elements."""
_WIDE = 6
"""How many of the widest scales are tried first: mostly the best is one of them."""


def weight_scale(
    x: Tensor, bits: int, range_rule: RangeRule = "absmax", granularity: Granularity = "tensor"
) -> Tensor:
    """The scale of a tensor by a range rule; never zero, so that an all-zero tensor keeps its
    zeros.

    * absmax: ``max|x| / n``; nothing is clipped.
    * pow2: ``2**ceil(log2 max|x|) / n``; nothing is clipped.
    * mse: the scale with the least squared error found by a search, never worse than absmax. With 2
      bits this is close to ternary weight networks (Li et al. 2016).
    * lsq: the starting step of learned step size quantisation, ``2 mean|x| / sqrt(n)`` (Esser et
      al. 2020).
    * wage: the constant ``2**(1-bits) / wage_alpha(fan_in, bits)``, fan_in the size of a slice of
      dimension 0.

    Args:
        x: A floating tensor of any shape; at least one dimension with granularity "channel".
        bits: 2..16.
        range_rule: One of the rules above, or a registered one.
        granularity: One scale for the tensor, or one for each slice of dimension 0.

    Returns:
        A positive scalar, or with "channel" one scale for each slice, ``[x.shape[0]]``.

    Raises:
        ValueError: Bits out of range, an unknown rule or granularity, or "channel" of a tensor
            without dimensions.
    """
    limit = levels(bits)
    groups = grouped(x, granularity)
    check_choice("range_rule", range_rule, known_rules())
    if range_rule == "wage":
        return wage_scale(x, bits, bits)
    scale = _group_scale(groups, bits, limit, range_rule)
    return scale if granularity == "channel" else scale.squeeze(0)


def grouped(x: Tensor, granularity: Granularity) -> Tensor:
    """A tensor as float32 [G, ..., 1], G groups of elements that share a scale: one, or one for
    each slice of dimension 0.

    It is a view of a float32 tensor: to flatten a channels_last weight would copy it.

    Raises:
        ValueError: The granularity is neither "tensor" nor "channel", or it is "channel" and x has
            no dimensions.
    """
    check_choice("granularity", granularity, get_args(Granularity))
    if granularity == "channel" and x.dim() == 0:
        raise ValueError(
            "granularity 'channel' needs a tensor of at least one dimension, got a scalar"
        )
    values = x.detach().float().unsqueeze(-1)
    return values if granularity == "channel" else values.unsqueeze(0)


def _group_scale(x: Tensor, bits: int, limit: int, range_rule: RangeRule) -> Tensor:
    """[G, ...] -> [G], the scale of each group by any rule but wage."""
    largest = _absmax(x)
    if range_rule in REGISTERED and x.numel():
        scale = group_scale(range_rule, x.flatten(1), bits)
    elif range_rule == "lsq":
        mean = _sum_groups(x.abs(), 1) / max(x[:1].numel(), 1)
        scale = mean * (2 / math.sqrt(limit))
    elif range_rule == "pow2":
        mantissa, exponent = torch.frexp(largest)
        # the mantissa is in [1/2, 1): of a power of two, which is its own ceiling, it is 1/2
        scale = _power_of_two(exponent - (mantissa == 0.5).int()) / limit
    else:
        scale = largest / limit
    scale = bounded_scale(scale, limit)
    if range_rule == "mse" and x.numel():
        scale = _least_squares_scale(x, scale, limit)
    # adds 0, or NaN where a group is not finite, so that a diverged tensor shows
    return scale + (largest - largest)


def _absmax(x: Tensor) -> Tensor:
    """The largest magnitude of each group, [G, ...] -> [G]."""
    if x.numel() == 0:
        return x.new_zeros(len(x))
    if len(x) == 1:
        low, high = extremes(x)
        return torch.maximum(high, -low).view(1)
    dims = tuple(range(1, x.dim()))
    return torch.maximum(x.amax(dims), x.amin(dims).neg_())


def _sum_groups(x: Tensor, first: int) -> Tensor:
    """The sum over dimension ``first`` and those after it."""
    return x.sum(tuple(range(first, x.dim())))


def bounded_scale(scale: Tensor, limit: int) -> Tensor:
    """A scale clamped so that its reciprocal and its largest grid value are finite, for subnormal
    and near-maximal tensors too.
    """
    info = torch.finfo(torch.float32)
    return scale.clamp(info.tiny, info.max * (1 - info.eps) / limit)


def _least_squares_scale(x: Tensor, widest: Tensor, limit: int) -> Tensor:
    """[G, ...], the absmax scale [G] -> the scale [G] with the least squared error that is found.

    A geometric grid of scales is tried on a strided sample, then a finer one about the best of it,
    whose best is polished by alternating between the codes and their least-squares scale. The
    result stands where it beats absmax on all elements, and the scale half way to absmax where that
    beats both: a sample may lack the largest elements.
    """
    # a compiled graph breaks where values are looked at, and on meta there are none: without short
    # cuts the scale is the same
    compiling = torch.compiler.is_compiling() or x.is_meta
    # a power of two is exact, and keeps squares from overflow and underflow
    unit = _power_of_two(-torch.frexp(widest)[1])
    start = widest * unit
    sample = _strided_sample(x) * unit.unsqueeze(1)
    # from the widest scale down to 0.006 of it
    factors = torch.exp2(torch.arange(16, device=x.device) / -2)
    candidates = start * factors.view(-1, 1)
    errors = _squared_error(sample, candidates[:_WIDE], limit)
    least = errors.amin(0)
    # what these clip, all narrower ones clip too, and more of it
    clipped = (sample.abs() - limit * candidates[_WIDE].unsqueeze(1)).relu_().square_().sum(1)
    if compiling or not (least < clipped * _CLEAR).all():
        errors = _squared_error(sample, candidates, limit)
        least = errors.amin(0)
    scale = _least(errors, candidates)
    # two bits are left out: their codes change so much from step to step that the polish suffices
    if limit > 1:
        near = scale * torch.exp2(torch.arange(-4, 5, device=x.device) / 16).view(-1, 1)
        scale = _least(_squared_error(sample, near, limit), near)
    for _ in range(4):
        codes = (sample / scale.unsqueeze(1)).round_().clamp_(-limit, limit)
        fitted = (sample * codes).sum(1) / codes.square().sum(1)
        # where all codes are 0 the quotient is 0/0
        scale = torch.where(fitted > 0, fitted, scale)
    found = bounded_scale(scale / unit, limit)
    # the sample tells where all elements are likely to leave no doubt
    if (
        not compiling
        and len(x) == 1
        and x.device.type == "cpu"
        and least < errors[0] * _LIKELY
        and torch.equal(found, scale / unit)
        and _clearly_better(x, float(found), float(widest), limit)
    ):
        return found
    tried = torch.stack([start, (start * scale).sqrt(), scale])
    errors = _blockwise_squared_error(x, tried, limit, unit)
    errors[0] *= _SURE
    return _least(errors, bounded_scale(tried / unit, limit))


def _least(errors: Tensor, scales: Tensor) -> Tensor:
    """The scale of least error of each group, the first of equals: [K, G], [K, G] -> [G]."""
    return scales.gather(0, errors.argmin(0, keepdim=True)).squeeze(0)


def _clearly_better(x: Tensor, narrow: float, widest: float, limit: int) -> bool:
    """Whether a scale has a smaller squared error than the absmax scale by so much that no rounding
    of sums can change it: found in less than half the time of two errors.

    All blocks are summed for the narrow scale, and for the wide one as many as are needed.
    """
    x = x.squeeze(-1).squeeze(0)
    flat = (x.permute(0, 2, 3, 1) if is_channels_last(x) else x).reshape(-1)
    # three of them fit where one of those of other passes does
    blocks = torch.split(flat, max(1, block_size(x) // 4))
    steps, codes = torch.empty_like(blocks[0]), torch.empty_like(blocks[0])

    def errors(scale: float) -> Iterator[float]:
        for block in blocks:
            step, code = steps[: len(block)], codes[: len(block)]
            torch.mul(block, 1 / scale, out=step)
            torch.round(step, out=code)
            step.sub_(code.clamp_(-limit, limit))
            # in units of the step, so that squares keep from overflow and underflow
            yield float(torch.dot(step, step)) * (scale / widest) ** 2

    enough = sum(errors(narrow)) / _CLEAR
    return any(so_far > enough for so_far in accumulate(errors(widest)))


def _strided_sample(x: Tensor) -> Tensor:
    """[G, ...] -> [G, M] in the order of the indices, whatever the memory layout.

    The stride shares no factor with the size of a group, so that all taps of a kernel and all
    columns of a matrix are seen.
    """
    size = x[0].numel()
    stride = min(math.ceil(x.numel() / _SAMPLE), max(size // _GROUP_SAMPLE, 1))
    # a compiled graph of symbolic sizes knows no gcd: index() makes it one of this size
    while math.gcd(index(stride), index(size)) > 1:
        stride += 1
    first = torch.arange(len(x), device=x.device).view(-1, 1) * size
    return x.take(first + torch.arange(0, size, stride, device=x.device))


def _blockwise_squared_error(x: Tensor, scale: Tensor, limit: int, unit: Tensor) -> Tensor:
    """The errors of K candidate scales [K, G] on ``x * unit``, x [G, ...] and unit [G] -> [K, G];
    in blocks that a cache holds.
    """
    size = block_size(x) // len(scale)
    unit = unit.view(-1, *[1] * (x.dim() - 1))
    # one group cannot be cut between groups, so it is cut along its own first dimension
    if len(x) == 1:
        rows = torch.split(x, max(1, size // max(x[0, :1].numel(), 1)), dim=1)
        return torch.stack([_squared_error(part * unit, scale, limit) for part in rows]).sum(0)
    num_groups = max(1, size // x[0].numel())
    parts = zip(
        torch.split(x, num_groups),
        torch.split(unit, num_groups),
        torch.split(scale, num_groups, dim=1),
        strict=True,
    )
    errors = [_squared_error(part * units, steps, limit) for part, units, steps in parts]
    return torch.cat(errors, dim=1)


def _squared_error(x: Tensor, scale: Tensor, limit: int) -> Tensor:
    """The sums of squared rounding errors: x [G, ...], K scales [K, G] -> [K, G]."""
    step = scale.view(*scale.shape, *[1] * (x.dim() - 1))
    error = (x * step.reciprocal()).round_().clamp_(-limit, limit).mul_(step).sub_(x)
    return _sum_groups(error.square_(), 2)


def wage_alpha(num_inputs: int, bits: int) -> float:
    """The layer factor of WAGE, ``max(2**round(log2(W_min / L)), 1)`` with ``W_min = 1.5 *
    2**(1-bits)`` and ``L = sqrt(6 / num_inputs)``.

    Source: Wu et al. 2018, "Training and inference with integers in deep neural networks",
    equations 8 and 9.

    Args:
        num_inputs: The fan-in: the number of weights of one output channel.
        bits: Bits of the weights.

    Returns:
        A power of two, at least 1.
    """
    widest = 1.5 * 2.0 ** (1 - bits) / math.sqrt(6 / max(num_inputs, 1))
    return float(max(2.0 ** round(math.log2(widest)), 1.0))


def wage_scale(weight: Tensor, bits: int, weight_bits: int) -> Tensor:
    """The grid of WAGE in units of what the layer multiplies with, ``2**(1-bits) / alpha``: 0-dim.

    WAGE keeps weights in [-1, 1] and divides them by alpha in the layer; here the weight is the
    quotient itself, so that clients of any width hold weights of one meaning.

    Args:
        weight: [C, ...].
        bits: Bits of this grid: of the forward weights, or of the stored ones.
        weight_bits: Bits of the forward weights, on which alone alpha depends.
    """
    scale = 2.0 ** (1 - bits) / wage_alpha(fan_in(weight), weight_bits)
    return torch.full((), scale, device=weight.device)


def fan_in(weight: Tensor) -> int:
    """The number of weights in a slice of dimension 0, which is an output channel but in transposed
    convolutions.
    """
    return math.prod(weight.shape[1:])


def wage_shift(x: Tensor) -> Tensor:
    """``2**round(log2 max|x|)``, 0-dim (Wu et al. 2018, equation 5), at least 2**-100; 1/2 if x is
    zero or empty.
    """
    largest = _absmax(grouped(x, "tensor")).squeeze(0)
    mantissa, exponent = torch.frexp(largest)
    # the mantissa tells exactly to which side log2 rounds; a float32 log2 may err there
    shift = _power_of_two(exponent - (mantissa < math.sqrt(0.5)).int()).clamp_(min=2.0**-100)
    # a tensor that diverged has no power of two near it, and must show
    return torch.where(largest.isfinite(), shift, largest)


def _power_of_two(exponent: Tensor) -> Tensor:
    """``2.0**exponent`` in float32, exactly."""
    return torch.ldexp(torch.ones_like(exponent, dtype=torch.float32), exponent)
