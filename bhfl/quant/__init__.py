"""Quantisation of tensors and layers at any width; knows nothing of federated learning."""

from bhfl.quant.affine import AffineTensor, fake_quantize_affine, quantize_affine
from bhfl.quant.attention import QuantMultiheadAttention
from bhfl.quant.backends import BackendWarning
from bhfl.quant.backends.tuning import tune
from bhfl.quant.convert import (
    backend_choices,
    begin_round_,
    dequantize_,
    quantize_,
    quantized_state,
    seed_,
    set_backend_,
    set_spec_,
    store_,
)
from bhfl.quant.functional import (
    QuantizedTensor,
    fake_quantize,
    fake_quantize_activations,
    quantize,
    quantize_backward,
)
from bhfl.quant.layers import (
    QuantConv1d,
    QuantConv2d,
    QuantConvTranspose2d,
    QuantEmbedding,
    QuantLayer,
    QuantLinear,
)
from bhfl.quant.norms import reestimate_batchnorm_
from bhfl.quant.packing import pack, packed_bytes, unpack
from bhfl.quant.quantizers import Quantizer, register_quantizer
from bhfl.quant.ranges import wage_alpha, weight_scale
from bhfl.quant.spec import PRESETS, BitSpec

__all__ = [
    "PRESETS",
    "AffineTensor",
    "BackendWarning",
    "BitSpec",
    "QuantConv1d",
    "QuantConv2d",
    "QuantConvTranspose2d",
    "QuantEmbedding",
    "QuantLayer",
    "QuantLinear",
    "QuantMultiheadAttention",
    "QuantizedTensor",
    "Quantizer",
    "backend_choices",
    "begin_round_",
    "dequantize_",
    "fake_quantize",
    "fake_quantize_activations",
    "fake_quantize_affine",
    "pack",
    "packed_bytes",
    "quantize",
    "quantize_",
    "quantize_affine",
    "quantize_backward",
    "quantized_state",
    "reestimate_batchnorm_",
    "register_quantizer",
    "seed_",
    "set_backend_",
    "set_spec_",
    "store_",
    "tune",
    "unpack",
    "wage_alpha",
    "weight_scale",
]
