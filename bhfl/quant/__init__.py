"""Quantisation of tensors and layers at any width; knows nothing of federated learning."""

from bhfl.quant.convert import begin_round_, dequantize_, quantize_, quantized_state, seed_, set_spec_, store_
from bhfl.quant.functional import (
    QuantizedTensor,
    fake_quantize,
    fake_quantize_activations,
    quantize,
    quantize_backward,
)
from bhfl.quant.layers import QuantConv1d, QuantConv2d, QuantEmbedding, QuantLayer, QuantLinear
from bhfl.quant.packing import pack, packed_bytes, unpack
from bhfl.quant.ranges import wage_alpha, weight_scale
from bhfl.quant.spec import PRESETS, BitSpec

__all__ = [
    "PRESETS",
    "BitSpec",
    "QuantConv1d",
    "QuantConv2d",
    "QuantEmbedding",
    "QuantLayer",
    "QuantLinear",
    "QuantizedTensor",
    "begin_round_",
    "dequantize_",
    "fake_quantize",
    "fake_quantize_activations",
    "pack",
    "packed_bytes",
    "quantize",
    "quantize_",
    "quantize_backward",
    "quantized_state",
    "seed_",
    "set_spec_",
    "store_",
    "unpack",
    "wage_alpha",
    "weight_scale",
]
