"""What a quantised tensor is: codes and the step between them."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from bhfl.quant.rounding import per_slice


@dataclass(frozen=True)
class QuantizedTensor:
    """Integers and the step between them: ``x ≈ codes * scale``.

    Attributes:
        codes: int8 (up to 8 bits) or int16, the shape of x, in [-n, n]; of 1 bit, -1 or 1.
        scale: float32, 0-dim, or [C] for one scale per output channel, C == codes.shape[0].
        bits: 2..16; 1 for signs, which are only ever sent (`bhfl.quant.signs`).
        sparse: Whether a payload holds those codes alone that are not 0, and where they are.
    """

    codes: Tensor
    scale: Tensor
    bits: int
    sparse: bool = False

    def dequantize(self) -> Tensor:
        """The float32 values, in the shape of the codes."""
        return self.codes.to(torch.float32).mul_(per_slice(self.scale, self.codes.dim()))


def float_tensors(tensors: Mapping[str, Tensor | QuantizedTensor]) -> dict[str, Tensor]:
    """Quantised tensors as the float32 values that they stand for, and all others as they are."""
    return {
        name: value.dequantize() if isinstance(value, QuantizedTensor) else value
        for name, value in tensors.items()
    }


def largest_code(bits: int) -> int:
    """n, the largest code of so many bits."""
    return 1 if bits == 1 else (1 << (bits - 1)) - 1


def code_dtype(bits: int) -> torch.dtype:
    """The integer type that holds codes of this many bits."""
    return torch.int8 if bits <= 8 else torch.int16
