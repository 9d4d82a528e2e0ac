"""ONNX graphs with QuantizeLinear and DequantizeLinear nodes (QDQ), of models of up to 8 bits.

Weights are int8 initializers behind a DequantizeLinear, the codes that forward computes with: the
file is a quarter of the float32 one. Where the ranges of activations are fixed by samples, see
:mod:`bhfl.export.static`; otherwise activations are quantised to uint8 with the dynamic range of
the tensor, as the layers do in torch. The range is not a constant from a calibration set but the
result of a few scalar nodes, by the same float operations in the same order, so that the same input
gives the same codes to the bit. QuantizeLinear divides where torch multiplies by the reciprocal:
therefore the product is a node of its own, and QuantizeLinear has the scale 1. As in torch, the
range is that of all that is computed at once, so that an image may get other codes in another
batch.

onnxruntime adds the terms of products and norms in another order than torch. Outputs agree within
1e-5 all the same, unless that moves the last bit of a value that lies right between two codes: then
the next layer gets the other code. Of 200 images each, none met such a value in an MLP, a CNN and a
ResNet-8 with BatchNorm, and 3 did in one with GroupNorm.
"""

import copy
import inspect
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from bhfl.export.extras import EXTRAS, needed
from bhfl.export.static import quantize_file
from bhfl.files import replacing, user_path
from bhfl.quant import QuantLayer, dequantize_, quant_layers
from bhfl.quant.functional import affine_scale
from bhfl.quant.spec import FLOAT_BITS

WIDEST = 8
"""The bits of the int8 and uint8 of a graph, which hold narrower codes too."""


def export_onnx(
    model: nn.Module, example: Any, path: str | Path, *, calibration: Iterable[Any] | None = None
) -> int:
    """Write a model with Quant* layers, as it computes in evaluation, as one ONNX file.

    Args:
        model: Not changed. Its layers must have weights and activations of at most 8 bits, or of 32
            bits, which stay float.
        example: What ``forward`` is called with: a tensor, or a tuple of all its positional
            arguments, which may be containers of tensors too. Only shapes and dtypes count. The
            first dimension of the first tensor may be of any size in the graph, and so may that of
            all others of the same length.
        path: Written whole or not at all.
        calibration: Batches in the form of `example`, on which the ranges of activations are
            found, to be constants of the graph. By default each input has a range of its own.

    Returns:
        Bytes of the file.

    Raises:
        ValueError: A layer has 9 to 16 bits, or with `calibration` any number but 8; the model has
            no ``forward``, ``forward`` cannot take the example, or PyTorch cannot export it; the
            message names the cause.
        ImportError: The extra ``onnx`` is not installed, or torch is older than 2.8.
    """
    for module in EXTRAS["onnx"]:
        needed(module, "onnx")
    if not hasattr(torch.onnx, "ops"):
        raise ImportError(
            f"ONNX graphs with nodes of our choice need torch 2.8 or later, got {torch.__version__}"
        )
    _check_widths(model, fixed=calibration is not None)
    given = example if isinstance(example, tuple) else (example,)
    inputs = tree_map(partial(_example, rows=num_samples(given)), given)
    shapes = _open_batch(model, inputs)
    model = _evaluating(model)
    try:
        # if this fails, its own error says more than the exporter's
        model(*inputs)
        model = _rewritten(model) if calibration is None else dequantize_(model)
        program = _program(model, inputs, shapes)
        if calibration is not None:
            return quantize_file(program, calibration, path)
    except (ImportError, OSError):
        raise
    except Exception as error:
        why = _cause(error)
        if isinstance(error, NotImplementedError) and '"forward"' in str(error):
            why = "it has no forward, which is what the file computes: define it"
        raise ValueError(f"{type(model).__name__} cannot be exported to ONNX: {why}") from error
    with replacing(path) as temporary:
        # one file is written whole or not at all, which two would not be
        program.save(temporary, external_data=False)
    return user_path(path).stat().st_size


def _check_widths(model: nn.Module, *, fixed: bool) -> None:
    """ValueError, with its name, for a layer whose codes a graph cannot hold, or that one with
    fixed ranges would change.
    """
    for name, layer in quant_layers(model):
        for key in ("weights", "activations"):
            bits = getattr(layer.spec, key)
            if fixed and bits != WIDEST:
                raise ValueError(
                    f"fixed ranges need {WIDEST} bits for weights and activations of every layer, "
                    f"and {name!r} has {key} of {bits}"
                )
            if WIDEST < bits < FLOAT_BITS:
                raise ValueError(
                    f"layer {name!r}: {key} must have at most {WIDEST} bits, or 32, got {bits}"
                )


def num_samples(arguments: Any) -> int | None:
    """The length of the first tensor that has a dimension, in containers of any form; None if there
    is no such tensor.
    """
    for leaf in tree_leaves(arguments):
        if isinstance(leaf, Tensor) and leaf.dim():
            return len(leaf)
    return None


def holds_samples(leaf: Any, num_samples: int | None) -> bool:
    """Whether a leaf of the arguments is a tensor whose first dimension is that of samples."""
    return isinstance(leaf, Tensor) and leaf.dim() > 0 and len(leaf) == num_samples


def _example(x: Any, rows: int | None) -> Any:
    """A tensor of an example in float32 and of two samples: the exporter takes a dimension of 1 for
    a constant.
    """
    if not isinstance(x, Tensor):
        return x
    x = x.detach().cpu()
    if x.is_floating_point():
        x = x.float()
    if not holds_samples(x, rows) or len(x) > 1:
        return x
    return torch.cat([x, x]) if rows else x.new_zeros(2, *x.shape[1:])


def _open_batch(model: nn.Module, inputs: tuple[Any, ...]) -> dict[str, Any]:
    """The dimensions of any size, by argument of ``forward`` and in the form of each argument."""
    rows = num_samples(inputs)
    if rows is None:
        raise ValueError(
            f"{type(model).__name__} cannot be exported to ONNX: the example holds no tensor with "
            "a dimension of samples"
        )
    signature = inspect.signature(model.forward)
    try:
        arguments = signature.bind(*inputs).arguments
    except TypeError as error:
        raise ValueError(
            f"forward{signature} of {type(model).__name__} cannot take an example of "
            f"{len(inputs)}: {error}"
        ) from error

    def dimensions(x: Any) -> dict[int, Any] | None:
        return {0: torch.export.Dim.DYNAMIC} if holds_samples(x, rows) else None

    return {key: tree_map(dimensions, value) for key, value in arguments.items()}


def _cause(error: BaseException) -> str:
    """The first line of the innermost cause of an error, with its class."""
    while error.__cause__ is not None:
        error = error.__cause__
    first, *_ = str(error).strip().splitlines() or ["no reason given"]
    return f"{type(error).__name__}: {first}"


def _evaluating(model: nn.Module) -> nn.Module:
    """A float32 copy in evaluation mode on the CPU."""
    try:
        model = copy.deepcopy(model)
    except Exception as error:
        raise ValueError(
            f"{type(model).__name__} cannot be exported, because it cannot be copied: {error}"
        ) from error
    # the exporter needs a module around a single layer
    if isinstance(model, QuantLayer):
        model = nn.Sequential(model)
    return model.float().cpu().eval()


def _rewritten(model: nn.Module) -> nn.Module:
    """The model, changed in place: its layers compute by nodes of ONNX."""
    for _, layer in quant_layers(model):
        # of the backends, fake alone calls both methods that are replaced below
        layer.backend = "fake"
        if layer.spec.activations < FLOAT_BITS:
            layer.forward_input = partial(_input_nodes, steps=(1 << layer.spec.activations) - 1)  # type: ignore[method-assign]
        if layer.spec.weights < FLOAT_BITS:
            quantized = layer.quantized_weight()
            # buffers become initializers of the graph, and so part of the file
            layer.register_buffer("weight_codes", quantized.codes.contiguous())
            layer.register_buffer("weight_scale", quantized.scale)
            layer.forward_weight = partial(_weight_nodes, layer)  # type: ignore[method-assign]
    return model


def _input_nodes(x: Tensor, steps: int) -> Tensor:
    """What :func:`bhfl.quant.fake_quantize_activations` does, but with a zero point, because the
    codes are unsigned.
    """
    low = x.min().clamp(max=0)
    high = x.max().clamp(min=0)
    scale = affine_scale(low, high, steps)
    inverse = scale.reciprocal()
    zero = (low * inverse).round().neg().to(torch.uint8)
    codes = _node("QuantizeLinear", (x * inverse, torch.ones_like(scale), zero), torch.uint8, x)
    return _node("DequantizeLinear", (codes, scale, zero), torch.float32, x)


def _weight_nodes(layer: Any) -> Tensor:
    """The weight, from the codes and the scale that :func:`_rewritten` put into the layer."""
    codes, scale = layer.weight_codes, layer.weight_scale
    return _node(
        "DequantizeLinear", (codes, scale), torch.float32, codes, axis=0 if scale.dim() else 1
    )


def _node(
    op: str, inputs: tuple[Tensor, ...], dtype: torch.dtype, like: Tensor, axis: int = 1
) -> Tensor:
    """A node of ONNX, whose result has the shape of `like`; scales belong to dimension `axis`."""
    return torch.onnx.ops.symbolic(op, inputs, {"axis": axis}, dtype=dtype, shape=like.shape)


@torch.no_grad()
def _program(model: nn.Module, inputs: tuple[Any, ...], shapes: dict[str, Any]) -> Any:
    program: Any = torch.onnx.export(
        model,
        # a dict at the end counts as the keyword arguments, also where it is the last argument
        (*inputs, {}),
        dynamo=True,
        dynamic_shapes=shapes,
        output_names=["output"],
        verbose=False,
    )
    # the exporter's notes name paths on this machine, and are half of the file
    for node in program.model.graph.all_nodes():
        node.metadata_props.clear()
        for value in node.outputs:
            value.metadata_props.clear()
    return program
