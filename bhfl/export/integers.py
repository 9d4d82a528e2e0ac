"""Integer checkpoints: a safetensors file of packed codes, their scales, and the rest of a model as
it is.

A quantised tensor ``name`` of n codes is ``name.codes``, uint8 [ceil(n * bits / 8)] as
:mod:`bhfl.quant.packing` lays them out, and ``name.scale``, float32, 0-dim or [C]. The metadata of
the file are ``format``, ``version`` and, as JSON, ``codes`` (name: [bits, *shape]), ``ties`` (name:
the name under which the same tensor is stored) and ``specs`` (layer: the fields of its BitSpec).
Any reader of safetensors opens such a file; none executes anything in it.
"""

import json
import math
import warnings
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from bhfl.engine.types import Tensors
from bhfl.export.extras import needed
from bhfl.files import replacing, user_path
from bhfl.quant import (
    BitSpec,
    QuantizedTensor,
    QuantLayer,
    pack,
    quantize_,
    quantized_state,
    unpack,
)
from bhfl.quant.spec import FLOAT_BITS

FORMAT, VERSION = "bhfl.integers", "1"

Model = TypeVar("Model", bound=nn.Module)


class QuantizedFileError(ValueError):
    """A file that is no integer checkpoint, or is one of another model."""


def save_quantized(model: nn.Module | Tensors, path: str | Path) -> int:
    """Write an integer checkpoint: at b bits about b/32 of the float32 file.

    Args:
        model: A model with Quant* layers, whose weights are saved as the codes that forward
            computes with, tied ones once, together with the specs of the layers; or a state as
            :func:`bhfl.quant.quantized_state` gives it.
        path: Written whole or not at all.

    Returns:
        Bytes of the file.

    Raises:
        ValueError: A weight has NaN or infinity, an entry is no tensor, or two tensors would have
            one name in the file.
        OSError: It cannot be written.
        ImportError: Without the extra ``export``.
    """
    save_file = needed("safetensors.torch", "export").save_file
    state: Tensors = quantized_state(model) if isinstance(model, nn.Module) else model
    ties = _ties(model, state) if isinstance(model, nn.Module) else {}
    stored = {name: value for name, value in state.items() if name not in ties}
    codes = {
        name: [q.bits, *q.codes.shape]
        for name, q in stored.items()
        if isinstance(q, QuantizedTensor)
    }
    notes = {
        "codes": codes,
        "ties": ties,
        "specs": _specs(model) if isinstance(model, nn.Module) else {},
    }
    metadata = {
        "format": FORMAT,
        "version": VERSION,
        **{key: json.dumps(value) for key, value in notes.items()},
    }
    with replacing(path) as temporary:
        save_file(_flat(stored), temporary, metadata)
    return user_path(path).stat().st_size


def _flat(state: Tensors) -> dict[str, Tensor]:
    """The tensors of the file; each with memory of its own, because safetensors refuses any
    other.
    """
    flat: dict[str, Tensor] = {}
    for name, value in state.items():
        parts = {name: value}
        if isinstance(value, QuantizedTensor):
            parts = {f"{name}.codes": pack(value.codes, value.bits), f"{name}.scale": value.scale}
        for part, tensor in parts.items():
            if not isinstance(tensor, Tensor):
                raise ValueError(f"{part} must be a tensor, got {type(tensor).__name__}")
            if part in flat:
                raise ValueError(
                    f"{part} is the name of two tensors: one of them must be called otherwise"
                )
            flat[part] = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
    return flat


def _ties(model: nn.Module, state: Tensors) -> dict[str, str]:
    """The later names of tensors that have several, each with the first; a tensor that is quantised
    in several ways has none.
    """
    first: dict[int, str] = {}
    ties = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        other = first.setdefault(id(tensor), name)
        if name == other:
            continue
        if _same(state[name], state[other]):
            ties[name] = other
        elif isinstance(state[name], QuantizedTensor) and isinstance(state[other], QuantizedTensor):
            warnings.warn(
                f"{other} and {name} are one tensor with two sets of codes: restore_ takes the "
                "file with quantized=False alone",
                stacklevel=3,
            )
    return ties


def _same(one: Tensor | QuantizedTensor, other: Tensor | QuantizedTensor) -> bool:
    if isinstance(one, QuantizedTensor) and isinstance(other, QuantizedTensor):
        alike = one.bits == other.bits and torch.equal(one.scale, other.scale)
        return alike and torch.equal(one.codes, other.codes)
    return isinstance(one, Tensor) and isinstance(other, Tensor)


def _specs(model: nn.Module) -> dict[str, dict[str, Any]]:
    """The specs of quantised layers: the fields of each that are not the default."""
    default = asdict(BitSpec())
    specs = {}
    for name, layer in model.named_modules():
        if isinstance(layer, QuantLayer):
            own = asdict(layer.spec)
            specs[name] = {key: value for key, value in own.items() if value != default[key]}
    return specs


def load_quantized(path: str | Path) -> dict[str, Tensor | QuantizedTensor]:
    """The state of an integer checkpoint, bit for bit as it was saved, on the CPU.

    Nothing in the file is executed, and no size that it claims is believed before it agrees with
    the bytes at hand.

    Raises:
        QuantizedFileError: The file is no such checkpoint; the message says why.
        OSError: It cannot be read.
        ImportError: Without the extra ``export``.
    """
    return _load(path)[0]


def float_state(state: Tensors) -> dict[str, Tensor]:
    """A state for ``load_state_dict`` of a float model: quantised tensors become the float32 values
    they stand for.
    """
    values = {}
    for name, value in state.items():
        values[name] = value.dequantize() if isinstance(value, QuantizedTensor) else value
    return values


def restore_(model: Model, path: str | Path, *, quantized: bool = True) -> Model:
    """Put an integer checkpoint into a model of the same architecture, float or quantised, in
    place.

    Args:
        model: Changed in place.
        path: A file of :func:`save_quantized`.
        quantized: Swap the layers that were quantised when the file was saved, with their specs,
            and fix the scales of the file, so that forward computes with its codes, until the
            weights are trained or the weights or the spec are set anew. A file of a bare state
            holds no specs: quantise the model first. False only sets the float values of the
            weights: a float model then computes with what was saved, with float activations.

    Returns:
        The model.

    Raises:
        QuantizedFileError: The file is no integer checkpoint, or not of this model.
        OSError, ImportError: As of :func:`load_quantized`.
    """
    state, specs = _load(path)
    _check_fits(model, state, path)
    if quantized:
        _quantize_as_saved_(model, specs, path)
    model.load_state_dict(float_state(state))
    plain = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    # again, where a quantised weight is tied to one that is not
    model.load_state_dict(plain, strict=False)
    if quantized:
        _fix_scales_(model, state, path)
    return model


def _check_fits(model: nn.Module, state: Tensors, path: str | Path) -> None:
    here = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    there = {
        name: tuple((v.codes if isinstance(v, QuantizedTensor) else v).shape)
        for name, v in state.items()
    }
    for name in [*here, *there]:
        ours, theirs = here.get(name, "absent"), there.get(name, "absent")
        if ours != theirs:
            raise QuantizedFileError(
                f"{path}: of another model: {name} is {theirs} there and {ours} here"
            )


def _quantize_as_saved_(model: nn.Module, specs: dict[str, Any], path: str | Path) -> None:
    for layer, given in specs.items():
        try:
            spec = BitSpec.parse(given)
            quantize_(model, spec, lambda name, _, layer=layer: name == layer)  # type: ignore[misc]
        except (TypeError, ValueError) as error:
            raise QuantizedFileError(
                f"{path}: layer {layer!r} cannot be quantised as it was: {error}"
            ) from error


@torch.no_grad()
def _fix_scales_(model: nn.Module, state: Tensors, path: str | Path) -> None:
    """``round(codes * scale / scale)`` is the codes again, whatever the rule that once found the
    scale.
    """
    layers = {
        f"{name}.{layer.weight_key}".removeprefix("."): layer
        for name, layer in model.named_modules(remove_duplicate=False)
        if isinstance(layer, QuantLayer)
    }
    for name, value in state.items():
        if not isinstance(value, QuantizedTensor):
            continue
        layer = layers.get(name)
        bits = layer.spec.weights if layer is not None else FLOAT_BITS
        if layer is None or bits != value.bits:
            raise QuantizedFileError(
                f"{path}: {name} has {value.bits} bits there and {bits} here: call quantize_ first"
            )
        scale = value.scale.to(layer.weight.device)
        if layer.weight_step is not None:
            layer.weight_step.copy_(scale)
        else:
            layer.fixed_scale = scale
        try:
            codes = layer.quantized_weight().codes
        except ValueError as error:
            raise QuantizedFileError(f"{path}: {name} holds no numbers: {error}") from error
        if not torch.equal(codes.cpu(), value.codes):
            raise QuantizedFileError(
                f"{path}: {name} is tied to a weight of other codes: restore with quantized=False"
            )


# ---- reading -------------------------------------------------------------------------------------


def _load(path: str | Path) -> tuple[dict[str, Tensor | QuantizedTensor], dict[str, Any]]:
    """The state, and the specs of layers as they are written."""
    tensors, metadata = _read(path)
    if (found := (metadata.get("format"), metadata.get("version"))) != (FORMAT, VERSION):
        raise QuantizedFileError(
            f"{path}: format must be {FORMAT!r}, version {VERSION!r}, got {found[0]!r}, "
            f"{found[1]!r}"
        )
    state: dict[str, Tensor | QuantizedTensor] = {}
    for name, row in _json(path, metadata, "codes").items():
        try:
            state[name] = _quantized(name, row, tensors)
        except ValueError as error:
            raise QuantizedFileError(f"{path}: {name}: {error}") from error
    for name, tensor in tensors.items():
        if state.setdefault(name, tensor) is not tensor:
            raise QuantizedFileError(f"{path}: {name} is there twice, as codes and as it is")
    for name, first in _json(path, metadata, "ties").items():
        if name in state or not isinstance(first, str) or first not in state:
            raise QuantizedFileError(
                f"{path}: {name} must be tied to a tensor of the file, got {first!r}"
            )
        state[name] = state[first]
    return state, _json(path, metadata, "specs")


def _read(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    safetensors = needed("safetensors", "export")
    try:
        with safetensors.safe_open(user_path(path), framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except safetensors.SafetensorError as error:
        raise QuantizedFileError(f"{path}: not a readable safetensors file ({error})") from error


def _json(path: str | Path, metadata: Mapping[str, str], key: str) -> dict[str, Any]:
    try:
        value = json.loads(metadata.get(key, ""))
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise QuantizedFileError(
            f"{path}: metadata {key!r} must be a JSON object, got {metadata.get(key, '')[:80]!r}"
        )
    return value


def _quantized(name: str, row: object, tensors: dict[str, Tensor]) -> QuantizedTensor:
    """Take codes and scale out of `tensors`; ValueError where they are not what they say."""
    if (
        not isinstance(row, list)
        or not row
        or not all(type(size) is int and size >= 0 for size in row)
    ):
        raise ValueError(f"must be described by [bits, *shape], got {row!r}")
    bits, shape = row[0], row[1:]
    if not 2 <= bits <= 16:
        raise ValueError(f"bits must be 2..16, got {bits}")
    packed, scale = (tensors.pop(f"{name}.{part}", None) for part in ("codes", "scale"))
    if packed is None or scale is None:
        raise ValueError("its codes or its scale are missing")
    if scale.dtype != torch.float32 or list(scale.shape) not in ([], shape[:1]):
        raise ValueError(
            f"scale must be float32, [] or {shape[:1]}, got {scale.dtype} {list(scale.shape)}"
        )
    if not ((scale > 0) & scale.isfinite()).all():
        raise ValueError("scale must be positive and finite")
    codes = unpack(packed, bits, math.prod(shape)).view(shape)
    if codes.numel() and codes.amin() == -(1 << (bits - 1)):
        raise ValueError(
            f"codes of {bits} bits must be at least {1 - (1 << (bits - 1))}, got "
            f"{int(codes.amin())}"
        )
    return QuantizedTensor(codes, scale, bits)
