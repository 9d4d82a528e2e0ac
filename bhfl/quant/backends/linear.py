"""Integer matrix products, and the linear layer made of them.

Legend: x [M, K] input, w [N, K] weight, g [M, N] error, which is the gradient of the output; codes
are int8, and sums int32 and exact.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from bhfl.quant.backends.codes import Codes

LONGEST_SUM = ((1 << 31) - 1) // (255 * 128)
"""So many products fit into 32 bits: of an input code less its zero point, at most 255, and another
code, at most 128.
"""
_SLICE = 1 << 15
"""Rows of g and x that are multiplied at a time, less than LONGEST_SUM."""


def int_mm(a: Tensor, b: Tensor) -> Tensor:
    """int8 [M, K] @ int8 [K, N] -> int32 [M, N]."""
    return torch._int_mm(_dense(a), _dense(b)) if a.device.type == "cpu" else _filled_up(a, b)


def _filled_up(a: Tensor, b: Tensor) -> Tensor:
    """The product on CUDA, where ``torch._int_mm`` takes more than 16 rows and otherwise multiples
    of 8: zeros fill them up.
    """
    (m, k), n = a.shape, b.shape[1]
    a = F.pad(a, (0, -k % 8, 0, max(17 - m, 0)))
    b = F.pad(b, (0, -n % 8, 0, -k % 8))
    return torch._int_mm(_dense(a), _dense(b))[:m, :n]


def _dense(x: Tensor) -> Tensor:
    """A matrix whose rows or columns are contiguous and do not overlap: oneDNN multiplies others
    wrongly.
    """
    # strides of a size of 1 may be anything, and is_contiguous ignores them
    if 1 in x.shape:
        return x.reshape(-1).view(x.shape)
    return x if x.is_contiguous() or x.t().is_contiguous() else x.contiguous()


@cache
def int_mm_fault(device: str) -> str:
    """Why :func:`int_mm` cannot be used on a device ("cpu", "cuda:0"); empty if it can."""
    # some processors without int8 dot products saturate sums of two products at 16 bits
    extremes = torch.full((32, 64), 127, dtype=torch.int8)
    extremes[1::2] = -128
    try:
        on_device = extremes.to(device)
        found = int_mm(on_device, on_device.t()).cpu()
    except (RuntimeError, NotImplementedError, AttributeError) as error:
        return f"torch._int_mm does not run on {device} ({str(error).splitlines()[0]})"
    exact = torch.equal(found, extremes.int() @ extremes.int().t())
    return "" if exact else f"torch._int_mm is not exact on {device}"


def row_sums(w: Tensor) -> Tensor:
    """int8 [N, K] -> int32 [N]; as a product, because sums of int8 are slow on a CPU."""
    return int_mm(torch.ones(8, w.shape[1], dtype=torch.int8, device=w.device), w.t())[0]


def scaled(sums: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Integer sums times two scales, which broadcast: float32."""
    return sums.to(torch.float32).mul_(a * b)


def weight_sums(pairs: Iterable[tuple[Tensor, Tensor]], zero: Tensor | None) -> Tensor:
    """The sum of ``g.T @ (x - zero)`` over pairs of g [M, N] and x [M, K].

    Returns:
        [N, K]: int32, or float32 where more rows than LONGEST_SUM are summed.
    """
    total = None
    num_rows = 0
    for g, x in pairs:
        for errors, values in zip(torch.split(g, _SLICE), torch.split(x, _SLICE), strict=True):
            part = int_mm(errors.t(), values)
            if zero is not None:
                part.sub_((row_sums(errors.t()) * zero).unsqueeze(1))
            num_rows += len(errors)
            if total is None:
                total = part
            else:
                total = (total if num_rows <= LONGEST_SUM else total.to(torch.float32)).add_(part)
    assert total is not None, "there is at least one pair"
    return total


def too_long(length: int) -> str:
    """Why sums of so many products cannot be computed in integers; empty if they can."""
    if length <= LONGEST_SUM:
        return ""
    return f"sums of {length} products may not fit into 32 bits ({LONGEST_SUM} do)"


@dataclass(frozen=True)
class Linear:
    """The product of a linear layer, ``y = x @ w.T + bias``."""

    def fault(self, weight: Sequence[int], device: torch.device) -> str:
        """Why it cannot be computed in integers with a weight of this shape; empty if it can."""
        # sums run over the inputs in forward and over the outputs in the gradient of the input
        return too_long(max(weight)) or int_mm_fault(str(device))

    def dense(self, x: Tensor) -> Tensor:
        """The input or error in the memory format that the products need."""
        return x.contiguous()

    def forward(self, x: Codes, w: Codes, bias: Tensor | None) -> Tensor:
        """[M, K], [N, K] -> float32 [M, N]."""
        sums = int_mm(x.values, w.values.t())
        if x.zero is not None:
            sums.sub_(row_sums(w.values) * x.zero)
        y = scaled(sums, w.scale, x.scale)
        return y if bias is None else y.add_(bias)

    def grad_input(self, g: Codes, w: Codes, shape: torch.Size) -> Tensor:
        """[M, N], [N, K] -> float32 of the shape of x, [M, K]; one scale each."""
        return scaled(int_mm(g.values, w.values), g.scale, w.scale)

    def grad_weight(self, g: Codes, x: Codes, shape: torch.Size) -> Tensor:
        """[M, N], [M, K] -> float32 of the shape of w, [N, K]."""
        return scaled(weight_sums([(g.values, x.values)], x.zero), g.scale, x.scale)

    def float_gradients(
        self, g: Tensor, x: Tensor, w: Tensor, need: tuple[bool, bool]
    ) -> tuple[Tensor | None, ...]:
        """Gradients of x and w, where needed, by products of floats of one dtype."""
        return g @ w if need[0] else None, g.t() @ x if need[1] else None
