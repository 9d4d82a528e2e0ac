"""Signs and a scale: one bit a weight, for differences whose sender carries what is left out.

The scale is the mean magnitude, with which the error ``|x|^2 - |x|_1^2 / n`` of signs is the least;
it is below ``|x|^2`` whatever x is, so that error feedback loses nothing for good. Bernstein et
al., ICML 2018, https://arxiv.org/abs/1802.04434; Karimireddy et al., ICML 2019,
https://arxiv.org/abs/1901.09847.
"""

from typing import Literal

import torch
from torch import Tensor

from bhfl.quant.codes import QuantizedTensor

_SMALLEST_SCALE = torch.finfo(torch.float32).tiny
"""What zeros get: a scale of 0 has no reciprocal."""


def signs(x: Tensor, granularity: Literal["tensor", "channel"] = "tensor") -> QuantizedTensor:
    """The signs of a tensor, of which zeros have that of 1, and their scale.

    Args:
        x: Float tensor, any shape.
        granularity: One scale, or one for each output channel (dimension 0).

    Returns:
        int8 codes of 1 bit, -1 or 1, in the shape of x, and their positive scale, 0-dim or [C].
    """
    count = x.shape[0] if granularity == "channel" else 1
    length = x.numel() // max(1, count)
    rows = x.float().abs().reshape(count, length)
    # of no entries the mean is no number
    scale = rows.sum(1).div_(max(1, length)).clamp_min_(_SMALLEST_SCALE)
    codes = 1 - 2 * (x < 0).to(torch.int8)
    return QuantizedTensor(codes, scale if granularity == "channel" else scale[0], bits=1)
