"""Rounding floats to integer codes, ``clamp(round(x / scale), -n, n)``, to nearest or
stochastically.

Shapes: x is any shape; a scale is 0-dim, or [C] for one scale per slice of dimension 0. n is the
largest code, ``2**(bits-1) - 1``.
"""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

_CPU_BLOCK = 1 << 18
"""Elements worked on at a time on a CPU: the temporaries of a block stay in its cache."""
_DRAWN_WORDS = 1 << 14
"""Random words drawn for a tensor, at most: drawing is most of the time of stochastic rounding."""
_NOISE_STEP = 2.0**-16 - 2.0**-30
"""The unit of 16-bit noise, in steps of the grid: the noise stays by 2**-15 below half a step."""
_NARROW = 127
"""The largest code up to which the rounding error of ``x / scale`` is less than these 2**-15."""


def levels(bits: int) -> int:
    """The largest code of a symmetric grid, ``n = 2**(bits-1) - 1``.

    Raises:
        ValueError: bits is not 2..16.
    """
    if type(bits) is not int or not 2 <= bits <= 16:
        raise ValueError(f"bits must be 2..16, got {bits!r}")
    return (1 << (bits - 1)) - 1


def per_slice(scale: Tensor, ndim: int) -> Tensor:
    """A scale shaped to broadcast over the trailing dimensions of a tensor of ``ndim``
    dimensions.
    """
    return scale if scale.dim() == 0 else scale.view(-1, *[1] * (ndim - 1))


def grid_codes(
    x: Tensor,
    scale: Tensor,
    limit: int,
    dtype: torch.dtype,
    generator: torch.Generator | None = None,
) -> Tensor:
    """The codes of a tensor: nearest (ties to even), or stochastic where a generator is given.

    Stochastic rounding is unbiased to 2**-14 of a step and reproduces values of the grid. Its codes
    depend on the generator and on values, never on the memory layout of ``x``; the nearest ones are
    laid out as ``x``.

    Args:
        x: Float32, any shape.
        scale: Float32, 0-dim or [C].
        limit: The largest code.
        dtype: The dtype of the codes; the caller sees to it that it holds them.
        generator: The source of stochastic rounding.

    Returns:
        Whole numbers in ``[-limit, limit]``, the shape of x.
    """
    if generator is None and is_channels_last(x):
        # blocks are cut from contiguous memory: in channels_last, from [B, H, W, C]
        return grid_codes(x.permute(0, 2, 3, 1), scale, limit, dtype).permute(0, 3, 1, 2)
    out = torch.empty(x.shape, dtype=dtype, device=x.device)
    if x.numel() == 0:
        return out
    blocks = list(_blocks(x, scale, out))
    if generator is None:
        for block, step, target in blocks:
            target.copy_(nearest(block, step, limit))
        return out
    noises = _noises([block.numel() for block, _, _ in blocks], generator)
    for (block, step, target), noise in zip(blocks, noises, strict=True):
        target.copy_(_stochastic(block, step, limit, noise))
    return out


def is_channels_last(x: Tensor) -> bool:
    """Whether an image or a weight lies in this order and not in the usual one."""
    return (
        x.dim() == 4
        and x.is_contiguous(memory_format=torch.channels_last)
        and not x.is_contiguous()
    )


def extremes(x: Tensor) -> tuple[Tensor, Tensor]:
    """The least and the largest value of a tensor that is not empty, 0-dim; NaN where it has any.

    It takes one pass over the memory of a dense tensor, a float32 one in two thirds of the time of
    amin and amax, and a bfloat16 one in a quarter.
    """
    if is_channels_last(x):
        x = x.permute(0, 2, 3, 1)
    if x.is_contiguous():
        low, high = torch.aminmax(x)
        return low, high
    # aminmax would copy it
    return x.amin(), x.amax()


def matching_blocks(x: Tensor, out: Tensor) -> Iterable[tuple[Tensor, Tensor]]:
    """The same parts of two tensors, in the order of their memory, each small enough for the cache
    of a CPU; both tensors are contiguous, or both channels_last.
    """
    if is_channels_last(x):
        x, out = x.permute(0, 2, 3, 1), out.permute(0, 2, 3, 1)
    return zip(
        torch.split(x.view(-1), block_size(x)),
        torch.split(out.view(-1), block_size(x)),
        strict=True,
    )


def nearest(x: Tensor, scale: Tensor, limit: int) -> Tensor:
    """``clamp(round(x / scale), -limit, limit)`` in floats; the scale broadcasts."""
    # times the reciprocal, as everywhere: a quotient may round to another code
    return (x * scale.reciprocal()).round_().clamp_(-limit, limit)


def block_size(x: Tensor) -> int:
    """How many elements of x to work on at a time."""
    return _CPU_BLOCK if x.device.type == "cpu" else max(1, x.numel())


def _blocks(x: Tensor, scale: Tensor, out: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Matching blocks of x (not empty), its scale and its result, the largest first, each small
    enough for the cache of a CPU.
    """
    if scale.dim() == 0:
        for block, target in matching_blocks(x.reshape(-1), out.view(-1)):
            yield block, scale, target
        return
    matrices = [tensor.reshape(len(x), -1) for tensor in (x, scale, out)]
    rows = max(1, block_size(x) // matrices[0].shape[1])
    yield from zip(*(torch.split(matrix, rows) for matrix in matrices), strict=True)


def _stochastic(x: Tensor, scale: Tensor, limit: int, noise: Tensor) -> Tensor:
    """Float codes, rounded up with the probability of the fraction: ``E[code * scale] == x`` inside
    the range.
    """
    inverse = scale.reciprocal()
    noise = noise.view(x.shape).to(x.device, torch.float32)
    if limit <= _NARROW:
        return (x * inverse).add_(noise, alpha=_NOISE_STEP).round_().clamp_(-limit, limit)
    # The remainder of wide codes is exactly 0 for a value of the grid, which is so reproduced
    # whatever the noise; x / scale + noise would move it now and then, by its rounding error.
    codes = nearest(x, scale, limit)
    remainder = (x - codes * scale).mul_(inverse)
    return remainder.add_(noise, alpha=_NOISE_STEP).round_().add_(codes).clamp_(-limit, limit)


def _noises(sizes: list[int], generator: torch.Generator) -> Iterator[Tensor]:
    """Uniform int16 noise for each block, of which the first is the largest.

    Few random words of 32 bits are drawn, and each gives two values. Each block multiplies them by
    odd keys of its own, which spreads each bit over the higher ones, and combines each half with
    its neighbour: a tenth of the time of drawing, without a pattern.
    """
    # the last half needs a neighbour too
    needed = sizes[0] // 2 + 1
    words = _words(min(needed, _DRAWN_WORDS), generator)
    num_keys = -(-needed // len(words))
    keys = _words(len(sizes) * num_keys, generator).bitwise_or_(1).view(len(sizes), num_keys, 1)
    for size, block_keys in zip(sizes, keys, strict=True):
        halves = (words * block_keys).view(-1).view(torch.int16)
        yield halves[:size] ^ halves[1 : size + 1]


def _words(count: int, generator: torch.Generator) -> Tensor:
    """Random int32 words, on the device of the generator."""
    # in pairs, as int64: a full range of int32 takes twice as long to draw
    words = torch.empty(-(-count // 2), dtype=torch.int64, device=generator.device)
    return words.random_(-(1 << 63), None, generator=generator).view(torch.int32)[:count]
