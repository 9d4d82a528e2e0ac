"""Walks over a model: swap its layers, move them to another spec, read their codes, keep them on their grid."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from bhfl.quant.functional import QuantizedTensor
from bhfl.quant.layers import QUANT_CLASSES, QuantLayer, check_layer
from bhfl.quant.spec import FLOAT_BITS, BitSpec

Model = TypeVar("Model", bound=nn.Module)
SpecLike = BitSpec | int | str | Mapping[str, Any]


def quantize_(model: Model, spec: SpecLike, filter_fn: Callable[[str, nn.Module], bool] | None = None) -> Model:
    """Swap the classes of the layers of a model in place: parameters, keys, hooks, ties and storage stay.

    Exactly ``nn.Linear``, ``nn.Conv1d``, ``nn.Conv2d`` and ``nn.Embedding`` are swapped, and layers swapped before take
    the new spec. Subclasses are left alone, because nobody knows what else they do with their weight:
    ``nn.MultiheadAttention``, for one, reads that of its output layer and never calls it.

    Args:
        model: Changed in place.
        spec: A :class:`BitSpec`, or what :meth:`BitSpec.parse` takes: ``8``, ``"ternary"``, ``{"weights": 4}``.
        filter_fn: Called with the name and the module of each candidate; False leaves it out.

    Returns:
        The model.

    Raises:
        ValueError: The spec is none, a layer cannot be quantised (the message names it), or none is left to quantise.
    """
    spec = BitSpec.parse(spec)
    chosen = [
        (name, module)
        for name, module in model.named_modules()
        if _is_candidate(module) and (filter_fn is None or filter_fn(name, module))
    ]
    if not chosen and not spec.is_float:
        raise ValueError(
            f"nothing to quantise to {spec.label!r} in {type(model).__name__}: no nn.Linear, nn.Conv1d, nn.Conv2d or "
            "nn.Embedding that filter_fn keeps"
        )
    for name, module in chosen:  # all checks before any change
        try:
            check_layer(module, spec)
        except ValueError as error:
            raise ValueError(f"layer {name!r}: {error}") from error
    for _, module in chosen:
        module.__class__ = QUANT_CLASSES.get(type(module), type(module))
        cast(QuantLayer, module).set_spec_(spec)
    return model


def _is_candidate(module: nn.Module) -> bool:
    return type(module) in QUANT_CLASSES or isinstance(module, QuantLayer)


def set_spec_(model: Model, spec: SpecLike) -> Model:
    """Move all Quant* layers of a model to another spec; an optimiser made before knows nothing of a new lsq step.

    Raises:
        ValueError: The spec is none, or the model has no Quant* layers to hold it.
    """
    return quantize_(model, spec, lambda _, module: isinstance(module, QuantLayer))


@torch.no_grad()
def dequantize_(model: Model) -> Model:
    """Back to plain float layers, in place; the weights become the values that forward computed with."""
    layers = [layer for _, layer in _quant_layers(model)]
    values = [layer.quantized_weight().dequantize() if layer.spec.weights < FLOAT_BITS else None for layer in layers]
    for layer, value in zip(layers, values, strict=True):
        if value is not None:
            layer.weight.copy_(value)
        layer.to_float_()
    return model


def quantized_state(model: nn.Module) -> dict[str, Tensor | QuantizedTensor]:
    """The state dict of a model, in its order and with its keys, with codes for quantised weights.

    Returns:
        For the weight of each Quant* layer with ``spec.weights < 32`` the :class:`QuantizedTensor` that its forward
        computes with, whose ``dequantize()`` equals it to the bit; anything else as it is, detached and not cloned.

    Raises:
        ValueError: A weight has NaN or infinity; the message names it.
    """
    state: dict[str, Tensor | QuantizedTensor] = dict(model.state_dict())
    for name, layer in _quant_layers(model, remove_duplicate=False):
        key = f"{name}.weight" if name else "weight"
        if layer.spec.weights < FLOAT_BITS and key in state:
            try:
                state[key] = layer.quantized_weight()
            except ValueError as error:
                raise ValueError(f"{key}: {error}") from error
    return state


def begin_round_(model: nn.Module) -> None:
    """Fix from the weights just loaded what lasts for a round.

    That is the grid of strict layers, on which their weights are put (to nearest), and the start of learned steps.
    Layers with float32 shadow weights have nothing to fix.
    """
    layers = [layer for _, layer in _quant_layers(model)]
    for layer in layers:  # all ranges before any projection: tied layers then share one grid
        layer.fix_range_()
    for layer in layers:
        layer.store_(None)


def store_(model: nn.Module, generator: torch.Generator) -> None:
    """After each optimiser step: put the weights of strict layers back on their grid by stochastic rounding.

    Raises:
        ValueError: :func:`begin_round_` has not fixed the grid since the weights were loaded.
    """
    for _, layer in _quant_layers(model):
        layer.store_(generator)


def seed_(model: nn.Module, generator: torch.Generator) -> None:
    """Set the generator that stochastic rounding of errors and gradients draws from, in all Quant* layers."""
    for _, layer in _quant_layers(model):
        layer.generator = generator


def _quant_layers(model: nn.Module, remove_duplicate: bool = True) -> Iterator[tuple[str, QuantLayer]]:
    for name, module in model.named_modules(remove_duplicate=remove_duplicate):
        if isinstance(module, QuantLayer):
            yield name, module
