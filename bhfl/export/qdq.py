"""ONNX graphs with QuantizeLinear and DequantizeLinear nodes, of models of up to 8 bits.

Weights are int8 initializers behind a DequantizeLinear: a quarter of the float32 file, the codes that forward computes
with. Activations are quantised to uint8 with the range of the very tensor, as the layers do it in torch: it is no
constant from a calibration set but a few scalar nodes of the graph, by the same float operations in the same order, so
that the same input gives the same codes to the bit. QuantizeLinear divides where torch multiplies by the reciprocal;
therefore the product is a node of its own, and QuantizeLinear has the scale 1. Like in torch, the range is that of all
that is computed at once: an image may get other codes in another batch.

onnxruntime adds the terms of products and norms in another order than torch. Outputs agree within 1e-5 all the same,
but where that moves the last bit of a value right between two codes: the next layer then gets the other one. Of 200
images each, none met such a value in an MLP, a CNN and a ResNet-8 with BatchNorm, and 3 did in one with GroupNorm.
"""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bhfl.export.extras import EXTRAS, needed, replacing
from bhfl.quant import QuantLayer
from bhfl.quant.functional import affine_scale
from bhfl.quant.spec import FLOAT_BITS

WIDEST = 8
"""Bits that the int8 and uint8 of a graph hold; fewer fit too."""


def export_onnx(model: nn.Module, example: Tensor | tuple[Tensor, ...], path: str | Path) -> int:
    """Write a model with Quant* layers, as it computes in evaluation, as one ONNX file.

    Args:
        model: Not changed. Its layers must have weights and activations of at most 8 bits, or of 32; these stay float.
        example: Inputs of ``forward``. Only their shapes and kinds count, and the first dimension is left open.
        path: Written whole or not at all.

    Returns:
        Bytes of the file.

    Raises:
        ValueError: A layer has 9 to 16 bits; the message names it.
        ImportError: Without the extra ``onnx``, or with torch before 2.8.
    """
    for module in EXTRAS["onnx"]:
        needed(module, "onnx")
    if not hasattr(torch.onnx, "ops"):
        raise ImportError(f"ONNX graphs with nodes of our choice need torch 2.8 or later, got {torch.__version__}")
    _check_widths(model)
    inputs = tuple(_several(x) for x in (example if isinstance(example, tuple) else (example,)))
    program = _program(_rewritten(model), inputs)
    with replacing(path) as temporary:
        program.save(temporary, external_data=False)
    return Path(path).stat().st_size


def _check_widths(model: nn.Module) -> None:
    for name, layer in model.named_modules():
        if isinstance(layer, QuantLayer):
            for key in ("weights", "activations"):
                if WIDEST < (bits := getattr(layer.spec, key)) < FLOAT_BITS:
                    raise ValueError(f"layer {name!r}: {key} must have at most {WIDEST} bits, or 32, got {bits}")


def _several(x: Tensor) -> Tensor:
    """An example in float32 of at least two rows: the exporter takes a dimension of 1 for a constant."""
    x = x.float() if x.is_floating_point() else x
    return torch.cat([x, x]) if x.dim() and len(x) == 1 else x


def _rewritten(model: nn.Module) -> nn.Module:
    """A copy in evaluation mode, whose layers say in nodes of ONNX what they compute."""
    model = copy.deepcopy(model)
    model = nn.Sequential(model) if isinstance(model, QuantLayer) else model  # which the exporter needs around a layer
    model = model.float().cpu().eval()
    for layer in model.modules():
        if isinstance(layer, QuantLayer) and not layer.spec.is_float:
            layer.backend = "fake"
            if layer.spec.activations < FLOAT_BITS:
                layer.forward_input = partial(_input_nodes, steps=(1 << layer.spec.activations) - 1)  # type: ignore[method-assign]
            if layer.spec.weights < FLOAT_BITS:
                quantized = layer.quantized_weight()
                layer.register_buffer("weight_codes", quantized.codes.contiguous())
                layer.register_buffer("weight_scale", quantized.scale)
                layer.forward_weight = partial(_weight_nodes, layer)  # type: ignore[method-assign]
    return model


def _input_nodes(x: Tensor, steps: int) -> Tensor:
    """What :func:`bhfl.quant.fake_quantize_activations` does, with a zero point, because the codes are unsigned."""
    low, high = x.min().clamp(max=0), x.max().clamp(min=0)
    scale = affine_scale(low, high, steps)
    inverse = scale.reciprocal()
    zero = (low * inverse).round().neg().to(torch.uint8)
    codes = _node("QuantizeLinear", (x * inverse, torch.ones_like(scale), zero), torch.uint8, x)
    return _node("DequantizeLinear", (codes, scale, zero), torch.float32, x)


def _weight_nodes(layer: Any) -> Tensor:
    codes, scale = layer.weight_codes, layer.weight_scale
    return _node("DequantizeLinear", (codes, scale), torch.float32, codes, axis=0 if scale.dim() else 1)


def _node(op: str, inputs: tuple[Tensor, ...], dtype: torch.dtype, like: Tensor, axis: int = 1) -> Tensor:
    return torch.onnx.ops.symbolic(op, inputs, {"axis": axis}, dtype=dtype, shape=like.shape)


@torch.no_grad()
def _program(model: nn.Module, inputs: tuple[Tensor, ...]) -> Any:
    open_batch = tuple({0: torch.export.Dim.DYNAMIC} if x.dim() else None for x in inputs)
    program: Any = torch.onnx.export(
        model, inputs, dynamo=True, dynamic_shapes=open_batch, output_names=["output"], verbose=False
    )
    for node in program.model.graph.all_nodes():  # notes of the exporter: paths on this machine, and half of the file
        node.metadata_props.clear()
        for value in node.outputs:
            value.metadata_props.clear()
    return program
