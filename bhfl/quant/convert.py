"""What is done to a whole model: swap its layers, move them to another spec, read their codes, keep
them on their grid.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from bhfl.quant.backends import get_backend
from bhfl.quant.codes import QuantizedTensor
from bhfl.quant.layers import QUANT_CLASSES, can_be_quantized, guard_fused_kernels_
from bhfl.quant.parametrized import become_, own_class, refuse_parametrized
from bhfl.quant.quant_layer import QuantLayer, check_layer, chosen_backend, takes_low_bits
from bhfl.quant.spec import FLOAT_BITS, BitSpec

Model = TypeVar("Model", bound=nn.Module)
SpecLike = BitSpec | int | str | Mapping[str, Any]
"""What :meth:`BitSpec.parse` takes."""


def quantize_(
    model: Model,
    spec: SpecLike,
    filter_fn: Callable[[str, nn.Module], bool] | None = None,
    *,
    backend: str | None = None,
) -> Model:
    """Swap the classes of the layers of a model in place: parameters, keys, hooks, ties and storage
    stay.

    Swapped are ``nn.Linear``, ``nn.Conv1d``, ``nn.Conv2d``, ``nn.ConvTranspose2d``,
    ``nn.Embedding`` and ``nn.MultiheadAttention`` (with its output projection; not with ``kdim``,
    ``vdim``, ``add_bias_kv`` or ``add_zero_attn``), with parametrizations or without. Layers that
    were swapped before take the new spec. Subclasses are left alone, because nobody knows what else
    they do with their weight. The fused kernel by which ``nn.TransformerEncoderLayer`` bypasses its
    layers in evaluation is switched off while it holds quantised ones.

    Args:
        model: Changed in place.
        spec: A :class:`BitSpec`, or what :meth:`BitSpec.parse` takes: ``8``, ``"ternary"``,
            ``{"weights": 4}``.
        filter_fn: Called with the name and the module of each candidate; False leaves it out.
        backend: How the layers compute, see :func:`set_backend_`; None keeps what they have, at
            first ``"fake"``.

    Returns:
        The model.

    Raises:
        ValueError: The spec or the backend is unknown, a layer cannot be quantised, as a lazy one
            before its first batch (the message names it), or no layer is left to quantise.
        ImportError: The backend needs a package that cannot be imported.
    """
    spec = BitSpec.parse(spec)
    if not isinstance(model, nn.Module):
        raise ValueError(f"quantize_ needs a module, got {type(model).__name__}")
    if filter_fn is not None and not callable(filter_fn):
        raise ValueError(
            f"filter_fn must be a function of name and module, got {filter_fn!r}; backend= names a "
            "backend"
        )
    chosen = [
        (name, module)
        for name, module in _candidates(model)
        if filter_fn is None or filter_fn(name, module)
    ]
    chosen = _without_orphans(model, chosen)
    if not chosen and not spec.is_float:
        kept = " that filter_fn keeps" if filter_fn else ""
        raise ValueError(
            f"nothing to quantise to {spec.label!r} in {type(model).__name__}: no nn.Linear, "
            f"nn.Conv1d, nn.Conv2d, nn.ConvTranspose2d, nn.Embedding or nn.MultiheadAttention{kept}"
        )
    # all checks come before any change: a model is swapped wholly or not at all
    for name, module in chosen:
        check_layer(module, spec, name)
    if backend is not None:
        get_backend(backend).require()
    for _, module in chosen:
        _swap_(module, spec, backend)
    guard_fused_kernels_(model)
    return model


def _swap_(module: nn.Module, spec: BitSpec, backend: str | None) -> None:
    """Make a module a quantised layer, unless it is one, and give it a spec and perhaps a
    backend.
    """
    if not isinstance(module, QuantLayer):
        become_(module, QUANT_CLASSES[own_class(module)])
    layer = cast(QuantLayer, module)
    layer.set_spec_(spec)
    if backend is not None:
        layer.backend = backend


def set_backend_(
    model: Model, backend: str, filter_fn: Callable[[str, nn.Module], bool] | None = None
) -> Model:
    """Change how the Quant* layers of a model compute; bits, keys, storage and codes stay.

    * ``fake``: float products of values on their grids, for any width and any layer.
    * ``int8``: products of int8 codes forward, the same codes as fake; gradients by float products.
      It takes up to 8 bits.
    * ``int8-bfloat16``: as int8, with gradients by bfloat16 products.
    * ``integer``: as int8, with both gradients by int8 products, whose errors are rounded
      stochastically (see :func:`seed_`).
    * ``bitsandbytes``: linear layers of 8 bits with granularity "channel" by that package.
    * ``auto``, ``auto-bfloat16``, ``auto-integer``: int8, int8-bfloat16 or integer for the layers
      that are faster by it, and fake for the others; see :func:`backend_choices` and :func:`tune`.

    A layer that a backend cannot compute is computed by fake, and a :class:`BackendWarning` says so
    once.

    Args:
        model: Changed in place.
        backend: One of the names above.
        filter_fn: Called with the name and the module of each Quant* layer; False leaves it as it
            is.

    Returns:
        The model itself.

    Raises:
        ValueError: The backend is unknown, or the model has no Quant* layers that filter_fn keeps.
        ImportError: The backend needs a package that cannot be imported.
    """
    get_backend(backend).require()
    layers = [
        layer for name, layer in quant_layers(model) if filter_fn is None or filter_fn(name, layer)
    ]
    if not layers:
        raise ValueError(
            f"no Quant* layers to compute by {backend!r} in {type(model).__name__}: call quantize_ "
            "first"
        )
    for layer in layers:
        layer.backend = backend
    return model


def backend_choices(model: nn.Module) -> dict[str, str]:
    """The backend that really computes each Quant* layer, by the name of the layer: what auto
    chose, or what fell back.
    """
    return {name: chosen_backend(layer) for name, layer in quant_layers(model)}


def layer_weights(model: nn.Module) -> list[str]:
    """The names of the weights that :func:`quantize_` quantises, or has quantised, in the order of
    the model.

    A weight that several layers share has the name of the first. A weight that is computed from
    others, as by a parametrization, is not a parameter and has no name here.

    Args:
        model: Any module, before or after :func:`quantize_`.

    Raises:
        ValueError: The model has no layer that can be quantised.
    """
    names: dict[int, str] = {}
    for name, module in _without_orphans(model, list(_candidates(model))):
        key = "in_proj_weight" if isinstance(module, nn.MultiheadAttention) else "weight"
        # the attribute would compute a parametrized weight, which is no parameter
        weight = module._parameters.get(key)
        if weight is not None and takes_low_bits(module):
            names.setdefault(id(weight), f"{name}.{key}" if name else key)
    if not names:
        raise ValueError(
            f"{type(model).__name__} has no quantisable layer: no Linear, Conv, Embedding or "
            "attention whose weight is a parameter, and not computed from others"
        )
    return list(names.values())


def _candidates(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Name and module of each layer that can be quantised, or has been."""
    for name, module in model.named_modules():
        kind = own_class(module)
        # a lazy layer is one of that class after its first batch
        found = (getattr(kind, "cls_to_become", None) or kind) in QUANT_CLASSES
        if (found and can_be_quantized(module)) or isinstance(module, QuantLayer):
            yield name, module


def _without_orphans(
    model: nn.Module, chosen: list[tuple[str, nn.Module]]
) -> list[tuple[str, nn.Module]]:
    """Leave out the output projections of attention that stays float: it reads their weight and
    never calls them.
    """
    swapped = {module for _, module in chosen}
    orphans = set()
    for module in model.modules():
        quantized = isinstance(module, QuantLayer) or module in swapped
        if isinstance(module, nn.MultiheadAttention) and not quantized:
            orphans.add(module.out_proj)
    return [(name, module) for name, module in chosen if module not in orphans]


def set_spec_(model: Model, spec: SpecLike) -> Model:
    """Move all Quant* layers of a model to another spec.

    With range rule lsq this makes new parameters, the learned steps: an optimiser that was made
    before does not have them.

    Args:
        model: Changed in place.
        spec: See :func:`quantize_`.

    Returns:
        The model.

    Raises:
        ValueError: The spec is unknown, or the model has no Quant* layers to hold it.
    """
    return quantize_(model, spec, lambda _, module: isinstance(module, QuantLayer))


@torch.no_grad()
def dequantize_(model: Model) -> Model:
    """Turn Quant* layers back into plain float layers, in place; the weights become the values that
    forward computed with.

    Args:
        model: Changed in place.

    Returns:
        The model.

    Raises:
        ValueError: A quantised weight has parametrizations, which compute it anew: remove them
            first; or it has NaN or infinity. The model is as it was then.
    """
    quantized = {
        key: layer
        for key, layer in layers_by_weight(model).items()
        if layer.spec.weights < FLOAT_BITS
    }
    for layer in quantized.values():
        refuse_parametrized(layer, "dequantize_")
    # all values before any weight changes: tied layers share theirs
    values = {key: _codes(key, layer).dequantize() for key, layer in quantized.items()}
    for key, value in values.items():
        quantized[key].weight.copy_(value)
    for _, layer in quant_layers(model):
        layer.to_float_()
    guard_fused_kernels_(model)
    return model


def quantized_state(model: nn.Module, *, sent: bool = False) -> dict[str, Tensor | QuantizedTensor]:
    """The state dict of a model, in its order and with its keys, with codes for quantised weights.

    Args:
        model: A model with Quant* layers.
        sent: Give the codes that a client sends, which are other ones where ``spec.sends`` is
            ``stored``.

    Returns:
        For the weight of each Quant* layer with ``spec.weights < 32``, the :class:`QuantizedTensor`
        that forward computes with: in a float32 model its ``dequantize()`` equals the forward
        weight to the bit. Anything else is as it is, detached and not cloned.

    Raises:
        ValueError: A weight has NaN or infinity; the message names it.
    """
    state: dict[str, Tensor | QuantizedTensor] = dict(model.state_dict())
    for key, layer in layers_by_weight(model).items():
        # a parametrized weight is not in the state: what it is computed from is
        if layer.spec.weights < FLOAT_BITS and key in state:
            state[key] = _codes(key, layer, sent)
    return state


def _codes(key: str, layer: QuantLayer, sent: bool = False) -> QuantizedTensor:
    """The codes of a quantised weight; ValueError with its key where it has NaN or infinity."""
    try:
        return layer.sent_weight() if sent else layer.quantized_weight()
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from error


def layers_by_weight(model: nn.Module) -> dict[str, QuantLayer]:
    """The Quant* layers of a model by the keys that their weights have in its state dict; a layer
    that is there under several names has as many keys.
    """
    return {
        f"{name}.{module.weight_key}".removeprefix("."): module
        for name, module in model.named_modules(remove_duplicate=False)
        if isinstance(module, QuantLayer)
    }


def begin_round_(model: nn.Module) -> None:
    """Fix what lasts for a round, from the weights that were just loaded.

    With strict storage (``spec.storage < 32``) that is the grid, on which the weights are then put,
    rounded to nearest. With range rule lsq it is the start of the learned steps. Other layers have
    nothing to fix.
    """
    layers = [layer for _, layer in quant_layers(model)]
    # all ranges come before any rounding: tied layers then share one grid
    for layer in layers:
        layer.fix_range_()
    for layer in layers:
        layer.store_(None)


def store_(model: nn.Module, generator: torch.Generator) -> None:
    """Put the weights of layers with strict storage back on their grid, after an optimiser step.

    Args:
        model: Changed in place.
        generator: The source of stochastic rounding.

    Raises:
        ValueError: :func:`begin_round_` has not fixed the grid since the weights were loaded.
    """
    for _, layer in quant_layers(model):
        layer.store_(generator)


def seed_(model: nn.Module, generator: torch.Generator) -> None:
    """Set the generator that stochastic rounding of errors and gradients draws from.

    Args:
        model: All of its Quant* layers get the generator.
        generator: The source of the draws, on the device of the model or on the CPU.

    Raises:
        ValueError: It is not a ``torch.Generator``.
    """
    if not isinstance(generator, torch.Generator):
        raise ValueError(
            f"seed_ needs a torch.Generator, as torch.Generator().manual_seed(0), got {generator!r}"
        )
    for _, layer in quant_layers(model):
        layer.generator = generator


def quant_layers(model: nn.Module) -> Iterator[tuple[str, QuantLayer]]:
    """The name and the module of each Quant* layer of a model, in its order."""
    for name, module in model.named_modules():
        if isinstance(module, QuantLayer):
            yield name, module
