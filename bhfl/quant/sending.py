"""What a client sends of a weight: the codes that it computes with, or what it keeps."""

import torch
from torch import Tensor

from bhfl.quant.codes import QuantizedTensor
from bhfl.quant.functional import quantize
from bhfl.quant.ranges import wage_scale, weight_scale
from bhfl.quant.spec import BitSpec


def spec_scale(weight: Tensor, spec: BitSpec, bits: int) -> Tensor:
    """The scale that the range rule of a spec finds for a weight at some bits.

    Args:
        weight: [C, ...], floating.
        spec: Bits, range rule and granularity of the weight.
        bits: Those of the grid, 2..16: of the forward weights, or of the stored ones.

    Returns:
        0-dim, or [C] with granularity ``channel``.
    """
    if spec.range_rule == "wage":
        return wage_scale(weight, bits, spec.weights)
    return weight_scale(weight, bits, spec.range_rule, spec.granularity)


def sent_scale(weight: Tensor, spec: BitSpec) -> Tensor:
    """The scale of the codes that a client sends of a weight; shadow weights that are rounded to be
    sent reach to their largest magnitude.

    Args:
        weight: [C, ...], floating.
        spec: One whose ``sent_bits`` are below 32.

    Returns:
        0-dim, or [C] with granularity ``channel``.
    """
    if spec.send_bits is not None:
        return weight_scale(weight, spec.send_bits, "absmax", spec.granularity)
    return spec_scale(weight, spec, spec.sent_bits)


@torch.no_grad()
def quantize_as_sent(
    weight: Tensor, spec: BitSpec, stored_scale: Tensor | None = None
) -> QuantizedTensor:
    """The codes that a client sends of a weight, rounded to nearest.

    Args:
        weight: [C, ...], floating and finite.
        spec: One whose ``sent_bits`` are below 32.
        stored_scale: The scale of the grid that strict storage has put the weight on, if it has:
            rounding to it changes nothing.

    Raises:
        ValueError: The weight has NaN or infinity.
    """
    scale = sent_scale(weight, spec) if stored_scale is None else stored_scale
    return quantize(weight, spec.sent_bits, scale=scale)
