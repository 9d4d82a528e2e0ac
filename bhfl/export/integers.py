"""Integer checkpoints: safetensors files of packed codes, their scales, and the rest of a model as
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

from bhfl.engine.state import kind_of
from bhfl.engine.types import Tensors, without
from bhfl.export.extras import needed
from bhfl.files import replacing, user_path
from bhfl.quant import (
    BitSpec,
    QuantizedTensor,
    pack,
    quant_layers,
    quantize_,
    quantized_state,
    unpack,
)
from bhfl.quant.codes import float_tensors
from bhfl.quant.convert import layers_by_weight
from bhfl.quant.rounding import levels
from bhfl.quant.spec import FLOAT_BITS

FORMAT, VERSION = "bhfl.integers", "1"

Model = TypeVar("Model", bound=nn.Module)


class QuantizedFileError(ValueError):
    """A file is not an integer checkpoint, or is one of another model; the message says why."""


def save_quantized(model: nn.Module | Tensors, path: str | Path) -> int:
    """Write an integer checkpoint: at b bits about b/32 of the float32 file.

    Args:
        model: A model with Quant* layers: its weights are saved as the codes that forward computes
            with, tied ones once, together with the specs of the layers. Or a state as
            :func:`bhfl.quant.quantized_state` gives it.
        path: The file, which is written whole or not at all.

    Returns:
        The bytes of the file.

    Raises:
        ValueError: A weight has NaN or infinity, an entry is not a tensor or of a kind that the
            file cannot hold, such as a sparse one, or two tensors would have one name there.
        OSError: The file cannot be written.
        ImportError: The extra ``export`` is not installed.
    """
    save_file = needed("safetensors.torch", "export").save_file
    ties = {}
    # the specs of quantised layers: the fields of each that are not the default
    specs: dict[str, dict[str, Any]] = {}
    if isinstance(model, nn.Module):
        state: Tensors = quantized_state(model)
        ties = _ties(model, state)
        default = asdict(BitSpec())
        for name, layer in quant_layers(model):
            own = asdict(layer.spec)
            specs[name] = {key: value for key, value in own.items() if value != default[key]}
    else:
        state = model
    stored = without(state, ties)
    codes = {
        name: [value.bits, *value.codes.shape]
        for name, value in stored.items()
        if isinstance(value, QuantizedTensor)
    }
    metadata = {
        "format": FORMAT,
        "version": VERSION,
        "codes": json.dumps(codes),
        "ties": json.dumps(ties),
        "specs": json.dumps(specs),
    }
    with replacing(path) as temporary:
        save_file(_flat(stored), temporary, metadata)
    return user_path(path).stat().st_size


def _flat(state: Tensors) -> dict[str, Tensor]:
    """The tensors of the file, by name. Each is cloned, because safetensors refuses tensors that
    share memory.
    """
    flat = {}
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
            if not _can_be_written(tensor):
                raise ValueError(
                    f"{part} must be dense, with values of a type that safetensors has, got "
                    f"{kind_of(tensor)}"
                )
            flat[part] = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
    return flat


def _can_be_written(tensor: Tensor) -> bool:
    """Whether a file can hold it, once it is cloned."""
    if tensor.is_meta or tensor.is_nested or tensor.is_quantized or tensor.layout != torch.strided:
        return False
    return tensor.dtype not in (torch.complex32, torch.complex128)


def _ties(model: nn.Module, state: Tensors) -> dict[str, str]:
    """The first name of each tensor that has several, by its later names; a tensor that is
    quantised in several ways is left out.
    """
    first: dict[int, str] = {}
    ties = {}
    # without keep_vars each entry is detached: a new object, by which ties do not show
    for name, tensor in model.state_dict(keep_vars=True).items():
        other = first.setdefault(id(tensor), name)
        if name == other:
            continue
        one, two = state[name], state[other]
        if isinstance(one, QuantizedTensor) and isinstance(two, QuantizedTensor):
            alike = one.bits == two.bits and torch.equal(one.scale, two.scale)
            if alike and torch.equal(one.codes, two.codes):
                ties[name] = other
                continue
            warnings.warn(
                f"{other} and {name} are one tensor with two sets of codes: restore_ takes the "
                "file with quantized=False alone",
                stacklevel=3,
            )
        elif isinstance(one, Tensor) and isinstance(two, Tensor):
            ties[name] = other
    return ties


def load_quantized(path: str | Path) -> dict[str, Tensor | QuantizedTensor]:
    """The state of an integer checkpoint, bit for bit as it was saved, on the CPU.

    Nothing in the file is executed, and no size that it claims is believed before it agrees with
    the bytes at hand.

    Raises:
        QuantizedFileError: The file is not such a checkpoint; the message says why.
        OSError: The file cannot be read.
        ImportError: The extra ``export`` is not installed.
    """
    return _load(path)[0]


def restore_(model: Model, path: str | Path, *, quantized: bool = True) -> Model:
    """Load an integer checkpoint into a model of the same architecture, float or quantised.

    Args:
        model: Changed in place.
        path: A file of :func:`save_quantized`.
        quantized: Whether to swap the layers that were quantised when the file was saved, with
            their specs. They then compute with the codes of the file, as long as their weights are
            these: where training or a hand has changed any weight of a layer, or its spec, its
            range is found anew (by a compiled model when it is compiled). A file of a bare state
            holds no specs: quantise the model first. If false, only the float values of the
            weights are loaded: a float model then computes with them, and with float activations.

    Returns:
        The model.

    Raises:
        QuantizedFileError: The file is not an integer checkpoint, or one of another model.
        OSError: See :func:`load_quantized`.
        ImportError: See :func:`load_quantized`.
    """
    state, specs = _load(path)
    values = float_tensors(state)
    here = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    there = {name: tuple(value.shape) for name, value in values.items()}
    for name in [*here, *there]:
        ours = here.get(name, "absent")
        theirs = there.get(name, "absent")
        if ours != theirs:
            raise QuantizedFileError(
                f"{path}: of another model: {name} is {theirs} there and {ours} here"
            )
    for layer, given in specs.items() if quantized else ():
        try:
            spec = BitSpec.parse(given)
            quantize_(model, spec, lambda name, _, layer=layer: name == layer)  # type: ignore[misc]
        except (TypeError, ValueError) as error:
            raise QuantizedFileError(
                f"{path}: layer {layer!r} cannot be quantised as it was: {error}"
            ) from error
    model.load_state_dict(values)
    # again, because a weight that is saved as it is may be tied to a quantised one
    plain = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    model.load_state_dict(plain, strict=False)
    if quantized:
        # this comes last, because loading weights makes layers forget fixed scales
        _fix_scales_(model, state, path)
    return model


@torch.no_grad()
def _fix_scales_(model: nn.Module, state: Tensors, path: str | Path) -> None:
    """Let layers compute with the codes of the file, by fixing their scales to those of the file.

    ``round(codes * scale / scale)`` is the codes again, whatever the rule that found the scale.
    """
    layers = layers_by_weight(model)
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
    """The state, and the fields of the layers' specs as they are written."""
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
    """The tensors and the metadata of a safetensors file."""
    safetensors = needed("safetensors", "export")
    try:
        with safetensors.safe_open(user_path(path), framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except safetensors.SafetensorError as error:
        raise QuantizedFileError(f"{path}: not a readable safetensors file ({error})") from error


def _json(path: str | Path, metadata: Mapping[str, str], key: str) -> dict[str, Any]:
    """The JSON object that the metadata hold under a key."""
    try:
        value = json.loads(metadata.get(key, ""))
    # JSON that is nested deep enough takes the parser to the end of its stack
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise QuantizedFileError(
            f"{path}: metadata {key!r} must be a JSON object, got {metadata.get(key, '')[:80]!r}"
        )
    return value


def _quantized(name: str, row: object, tensors: dict[str, Tensor]) -> QuantizedTensor:
    """The quantised tensor that `row` describes, whose codes and scale are taken out of `tensors`;
    ValueError where they do not fit the description.
    """
    sizes = row if isinstance(row, list) else []
    # to isinstance, JSON's true would be an integer
    if not sizes or not all(type(size) is int and size >= 0 for size in sizes):
        raise ValueError(f"must be described by [bits, *shape], got {row!r}")
    bits, *shape = sizes
    # levels refuses what are not 2..16 bits
    least = -levels(bits)
    packed = tensors.pop(f"{name}.codes", None)
    scale = tensors.pop(f"{name}.scale", None)
    if packed is None or scale is None:
        raise ValueError("its codes or its scale are missing")
    if scale.dtype != torch.float32 or list(scale.shape) not in ([], shape[:1]):
        raise ValueError(
            f"scale must be float32, [] or {shape[:1]}, got {scale.dtype} {list(scale.shape)}"
        )
    if not ((scale > 0) & scale.isfinite()).all():
        raise ValueError("scale must be positive and finite")
    flat = unpack(packed, bits, math.prod(shape))
    # where one size is 0 there are no codes, by whose number unpack would refuse the other sizes;
    # torch counts in int64, even for an empty tensor
    if math.prod(max(size, 1) for size in shape) >= 2**63:
        raise ValueError(f"must be of a shape that a tensor may have, got {shape}")
    codes = flat.view(shape)
    # two's complement has one code more than the grid
    if codes.numel() and codes.amin() < least:
        raise ValueError(f"codes of {bits} bits must be at least {least}, got {least - 1}")
    return QuantizedTensor(codes, scale, bits)
