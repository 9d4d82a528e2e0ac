"""Quantisation of tensors and layers at any width; needs torch only, and knows nothing of federated
learning.

* Layers: :func:`quantize_` swaps them in place, :func:`set_spec_` moves them to other bits,
  :func:`dequantize_` gives plain ones back, :func:`quantized_state` the integers. A
  :class:`BitSpec` says which numbers they compute with.
* Speed: :func:`set_backend_` says how they compute, never with what codes; :func:`backend_choices`
  what really runs, :func:`tune` measures this machine.
* Tensors: :func:`quantize` (symmetric), :func:`quantize_affine`, :func:`fake_quantize` (with a
  straight-through gradient), :func:`pack`; a :class:`Quantizer` is a range rule of one's own.
* Accuracy: ``make accuracy`` trains at float32, 8 bits in integers, 4 bits and ternary, on
  CIFAR-10; its table has mean and standard deviation over three seeds, and how far below float32
  each is beside how far it may be.
* Speed beside others: ``python -m benchmarks rivals`` runs torchao, brevitas, bitsandbytes and
  torch.ao in turns.
"""

from bhfl.quant.affine import AffineTensor, fake_quantize_affine, quantize_affine
from bhfl.quant.backends import BackendWarning
from bhfl.quant.backends.tuning import tune
from bhfl.quant.codes import QuantizedTensor
from bhfl.quant.convert import (
    backend_choices,
    begin_round_,
    dequantize_,
    layer_weights,
    quant_layers,
    quantize_,
    quantized_state,
    seed_,
    set_backend_,
    set_spec_,
    store_,
)
from bhfl.quant.functional import (
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
    QuantMultiheadAttention,
)
from bhfl.quant.norms import reestimate_batchnorm_
from bhfl.quant.packing import pack, packed_bytes, unpack
from bhfl.quant.quantizers import Quantizer, register_quantizer
from bhfl.quant.ranges import wage_alpha, weight_scale
from bhfl.quant.saving import save_in_int8
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
    "layer_weights",
    "pack",
    "packed_bytes",
    "quant_layers",
    "quantize",
    "quantize_",
    "quantize_affine",
    "quantize_backward",
    "quantized_state",
    "reestimate_batchnorm_",
    "register_quantizer",
    "save_in_int8",
    "seed_",
    "set_backend_",
    "set_spec_",
    "store_",
    "tune",
    "unpack",
    "wage_alpha",
    "weight_scale",
]
