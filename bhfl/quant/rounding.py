"""From numbers to grid codes: ``clamp(round(x / scale), -n, n)``, to nearest or stochastically.

Shapes: x is any shape; scale is 0-dim, or [C] for one scale per slice of dimension 0.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

_CPU_BLOCK = 1 << 17
"""Elements rounded at a time on a CPU: the temporaries of a block stay in cache (1.6 ns an element, else 8)."""


def levels(bits: int) -> int:
    """The largest code of a symmetric grid, ``n = 2**(bits-1) - 1``; ValueError unless bits is 2..16."""
    if type(bits) is not int or not 2 <= bits <= 16:
        raise ValueError(f"bits must be 2..16, got {bits!r}")
    return (1 << (bits - 1)) - 1


def per_slice(scale: Tensor, ndim: int) -> Tensor:
    """A scale shaped to broadcast over the trailing dimensions of a tensor of ``ndim`` dimensions."""
    return scale if scale.dim() == 0 else scale.view(-1, *[1] * (ndim - 1))


def grid_codes(
    x: Tensor, scale: Tensor, limit: int, dtype: torch.dtype, generator: torch.Generator | None = None
) -> Tensor:
    """Codes of float32 ``x`` in ``[-limit, limit]``: nearest (ties to even), or stochastic where a generator is given.

    The codes of the stochastic kind depend on the generator and on values, never on the memory layout of ``x``.
    """
    out = torch.empty(x.shape, dtype=dtype, device=x.device)
    for block, step, target in _blocks(x, scale, out):
        if generator is None:
            target.copy_((block * step.reciprocal()).round_().clamp_(-limit, limit))
        else:
            target.copy_(_stochastic(block, step, limit, generator))
    return out


def scattered_codes(x: Tensor, scale: Tensor, generator: torch.Generator) -> Tensor:
    """Stochastic int8 codes of a contiguous x with ``|x| <= 127 * scale``, 0-dim: ``grid_codes`` in half the time.

    Nothing has to be clipped, and the noise is drawn for one block: each further block turns its bits by a fresh key,
    so that the noises of any two elements are independent. Their lowest bit is 1: none is exactly half a step, which
    would move a value of the grid. Unbiased to 2**-17 of a step.
    """
    out = torch.empty(x.shape, dtype=torch.int8, device=x.device)
    blocks = torch.split(x.view(-1), block_size(x) // 2 if x.device.type == "cpu" else max(1, x.numel()))
    inverse, words = scale.reciprocal(), _words(len(blocks[0]), generator)
    keys = _words(4 * len(blocks), generator)
    for block, target, key in zip(blocks, torch.split(out.view(-1), len(blocks[0])), keys, strict=True):
        noise = words.bitwise_xor(key).bitwise_or_(0x0001_0001_0001_0001).view(torch.int16)[: len(block)]
        noisy = (block * inverse).add_(noise.to(x.device).to(torch.float32), alpha=2.0**-16)
        target.copy_(noisy.round_().to(torch.int16))  # faster than straight to int8
    return out


def block_size(x: Tensor) -> int:
    """How many elements of x to work on at a time."""
    return _CPU_BLOCK if x.device.type == "cpu" else max(1, x.numel())


def _blocks(x: Tensor, scale: Tensor, out: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Matching blocks of x, its scale and its result, each small enough for the cache of a CPU."""
    if x.numel() == 0:
        return
    size = block_size(x)
    if scale.dim() == 0:
        for block, target in zip(torch.split(x.reshape(-1), size), torch.split(out.view(-1), size), strict=True):
            yield block, scale, target
        return
    matrix, steps, result = (tensor.reshape(len(x), -1) for tensor in (x, scale, out))
    rows = max(1, size // matrix.shape[1])
    yield from zip(*(torch.split(tensor, rows) for tensor in (matrix, steps, result)), strict=True)


def _stochastic(x: Tensor, scale: Tensor, limit: int, generator: torch.Generator) -> Tensor:
    """Round up with the probability of the fraction, in float codes; E[code * scale] == x inside the range.

    The remainder ``x - nearest * scale`` is exactly zero for a value of the grid, so that such a value is reproduced
    whatever the noise; ``floor(x / scale + u)`` would move it now and then, by the rounding error of the division.
    """
    inverse = scale.reciprocal()
    nearest = (x * inverse).round_().clamp_(-limit, limit)
    remainder = (x - nearest * scale).mul_(inverse)
    rounded = remainder.add_(_noise(x, generator), alpha=2.0**-16).round_()
    return rounded.add_(nearest).clamp_(-limit, limit)


def _noise(x: Tensor, generator: torch.Generator) -> Tensor:
    """Uniform integers of 16 bits as floats in [-2**15, 2**15), shaped like x.

    Four values come from each random 64-bit word: a third of the time of ``torch.rand``.
    """
    words = _words(x.numel(), generator)
    return words.view(torch.int16)[: x.numel()].view(x.shape).to(x.device).to(torch.float32)


def _words(count: int, generator: torch.Generator) -> Tensor:
    """Random int64 words with as many parts of 16 bits, on the device of the generator."""
    words = torch.empty((count + 3) // 4, dtype=torch.int64, device=generator.device)
    return words.random_(-(1 << 63), None, generator=generator)
