"""One step of the ladder: a residual map from weights at one width to an estimate of them at the
next.

A block sees the rows of a weight tensor (a row is what feeds one output unit), normalised by the
range `A` of the width at which the tensor came in: `z = w / A`, so that codes `-n..n` of that width
lie in [-1, 1]. It returns the residual `rho`, and `z + rho` is the estimate. A new block returns
exactly zero. Rows never mix.

Shapes: R rows, L elements a row (the fan-in), H hidden channels.
"""

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bhfl.quant.rounding import levels

Arch = Literal["conv1d", "pointwise", "mlp_chunk"]
Bound = Literal["auto", "half_step", "none"]

CHUNK = 64
"""Elements that the `mlp_chunk` architecture sees together."""
_HIDDEN = 16
"""Channels of the convolutions, and units of the perceptrons."""
_KERNEL = 9
"""Length of both convolutions, odd."""
_FINEST = 1e-6
"""Below any root mean square that a row of codes can have, other than zero."""
_NUM_STATISTICS = 3


class Block(nn.Module):
    """`rho(z)` of one step from `bits` upwards, in units of the range.

    With bound `half_step`, `|rho|` stays below half a step of this width: what rounds to a code
    stays with that code, so the truth is within reach, unless it was clipped, and no error grows by
    more than half a step. `none` leaves the residual free, in steps. `auto` takes `none` for 2
    bits, where low-bit training moves weights far from the rounding of float ones, and `half_step`
    above.

    Args:
        bits: Width of the input, 2..16.
        arch: `conv1d`: two convolutions along the row. `mlp_chunk`: a small perceptron on chunks of
            64 elements. `pointwise`: a table with one residual for each code; under an L1 loss it
            learns the conditional median.
        bound: See above.
    """

    def __init__(self, bits: int, *, arch: Arch = "conv1d", bound: Bound = "auto") -> None:
        super().__init__()
        self.step = 1 / levels(bits)
        bounded = bound == "half_step" or (bound == "auto" and bits > 2)
        # just below half a step, by as much as float32 may err when it rounds the result again
        half = 0.5 - max(1e-3, levels(bits) * 2.0**-21)
        self.reach = half if bounded else math.inf
        self.body = _body(bits, arch)

    def forward(self, z: Tensor) -> Tensor:
        """Normalised rows [R, L] to their residual [R, L]."""
        # under autocast a bfloat16 0.499 would be half a step
        residual: Tensor = self.body(z).to(z.dtype)
        if math.isfinite(self.reach):
            residual = residual.tanh() * self.reach
        return residual * self.step

    @torch.no_grad()
    def reset_(self, generator: torch.Generator) -> None:
        """Back to a residual of exactly zero, with new hidden weights from a generator of the
        CPU.
        """
        layers = (nn.Linear, nn.Conv1d, _Table)
        *hidden, last = (layer for layer in self.body.modules() if isinstance(layer, layers))
        for parameter in last.parameters():
            parameter.zero_()
        for layer in hidden:
            # the bound of torch's own draws, which these layers skip: they use the global generator
            width = 1 / math.sqrt(layer.weight[0].numel())
            for parameter in layer.parameters():
                drawn = torch.empty(parameter.shape).uniform_(-width, width, generator=generator)
                parameter.copy_(drawn)


def _body(bits: int, arch: Arch) -> nn.Module:
    if arch == "conv1d":
        return _Convolutions()
    return _Chunks() if arch == "mlp_chunk" else _Table(levels(bits))


def _row_statistics(z: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of unit root mean square [R, L], and what that hides: mean, log10 size, log10 fan-in [R,
    3].
    """
    size = z.square().mean(1, keepdim=True).sqrt().clamp_min(_FINEST)
    unit = z / size
    fan_in = torch.full_like(size, math.log10(z.shape[1]))
    return unit, torch.cat([unit.mean(1, keepdim=True), size.log10(), fan_in], 1)


def _linear(inputs: int, outputs: int) -> nn.Linear:
    """Uninitialised: reset_ draws, from its own generator."""
    return nn.Linear(inputs, outputs, device="meta").to_empty(device="cpu")


def _conv(inputs: int, outputs: int, kernel: int) -> nn.Conv1d:
    return nn.Conv1d(inputs, outputs, kernel, padding=kernel // 2, device="meta").to_empty(
        device="cpu"
    )


class _Convolutions(nn.Module):
    """Two convolutions along the row, where neighbours are kernel positions and input channels."""

    def __init__(self) -> None:
        super().__init__()
        self.statistics = _linear(_NUM_STATISTICS, _HIDDEN)
        self.first = _conv(1, _HIDDEN, _KERNEL)
        self.second = _conv(_HIDDEN, _HIDDEN, _KERNEL)
        self.last = _conv(_HIDDEN, 1, 1)

    def forward(self, z: Tensor) -> Tensor:
        unit, statistics = _row_statistics(z)
        # [R, L, H], so that all channels of an element lie together, which is faster than [R, H, L]
        windows = F.pad(unit, (_KERNEL // 2, _KERNEL // 2)).unfold(1, _KERNEL, 1)
        hidden = F.linear(windows, self.first.weight.squeeze(1), self.first.bias)
        hidden = F.silu(hidden + self.statistics(statistics).unsqueeze(1))
        hidden = F.silu(_along_rows(hidden, self.second))
        # one channel is left of each element
        out: Tensor = F.linear(hidden, self.last.weight.squeeze(2), self.last.bias).squeeze(2)
        return out


def _along_rows(x: Tensor, layer: nn.Conv1d) -> Tensor:
    """A convolution of [R, L, H] along the rows."""
    kernel = layer.weight.unsqueeze(2).contiguous(memory_format=torch.channels_last)
    # as an image of one line, whose channels may lie last
    image = x.unsqueeze(1).permute(0, 3, 1, 2)
    out = F.conv2d(image, kernel, layer.bias, padding=(0, *layer.padding))
    return out.permute(0, 2, 3, 1).squeeze(1)


class _Chunks(nn.Module):
    """A perceptron on chunks of the row; a second half of its input says which elements of the last
    chunk exist.
    """

    def __init__(self) -> None:
        super().__init__()
        self.statistics = _linear(_NUM_STATISTICS, _HIDDEN)
        self.first = _linear(2 * CHUNK, _HIDDEN)
        self.last = _linear(_HIDDEN, CHUNK)

    def forward(self, z: Tensor) -> Tensor:
        rows, length = z.shape
        unit, statistics = _row_statistics(z)
        both = torch.stack([unit, torch.ones_like(unit)])
        chunks, valid = F.pad(both, (0, -length % CHUNK)).view(2, rows, -1, CHUNK)
        hidden = self.first(torch.cat([chunks, valid], 2))
        hidden = hidden + self.statistics(statistics).unsqueeze(1)
        out: Tensor = self.last(F.silu(hidden))
        return out.view(rows, -1)[:, :length]


class _Table(nn.Module):
    """One residual for each code; between the codes, where the block below may leave its output,
    the nearest one's.
    """

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.limit = limit
        self.weight = nn.Parameter(torch.empty(2 * limit + 1))

    def forward(self, z: Tensor) -> Tensor:
        codes = (z * self.limit).round().clamp(-self.limit, self.limit)
        return self.weight[codes.long() + self.limit]
