"""The base class of layers that compute with quantised weights and activations.

Such a layer holds the float parameters of the layer that it replaces, under the same names, and
saves nothing else: a float ``state_dict`` loads into it, and its own into the float layer. With a
float32 spec it computes what its parent does, to the bit.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin

from bhfl.quant.backends import get_backend
from bhfl.quant.codes import QuantizedTensor
from bhfl.quant.functional import (
    fake_quantize,
    fake_quantize_activations,
    quantize,
    quantize_backward,
    quantize_with_gradient,
)
from bhfl.quant.parametrized import become_, own_class, refuse_parametrized
from bhfl.quant.ranges import bounded_scale, fan_in, wage_alpha, wage_shift
from bhfl.quant.rounding import levels
from bhfl.quant.sending import quantize_as_sent, spec_scale
from bhfl.quant.spec import FLOAT_BITS, PRESETS, BitSpec


class QuantLayer(nn.Module):
    """A mixin: a subclass has it and a layer of torch as its bases, in this order.

    :func:`bhfl.quant.quantize_` changes the class of a layer of torch to it, so that its own
    constructor seldom runs. Under ``torch.nn.utils.parametrize`` it quantises the weight that the
    parametrizations give.

    Attributes:
        spec: The bits; changed by :meth:`set_spec_`.
        backend: The name of the way to compute, see :mod:`bhfl.quant.backends`; it outlives a
            change of the spec.
        generator: The source of stochastic rounding in backward; see :func:`bhfl.quant.seed_`.
        weight_step: The learned step of range rule lsq, else None: a parameter, but never in the
            state dict.
        fixed_scale: The scale of the forward weights where it is fixed: with strict storage by
            :func:`bhfl.quant.begin_round_`, and for restored codes while the weights are these.
        storage_scale: The scale of the stored weights with strict storage, fixed at the same time.
    """

    weight_key = "weight"
    """The name of the weight among the parameters."""

    spec: BitSpec
    backend: str = "fake"
    generator: torch.Generator | None = None
    weight: Tensor
    weight_step: nn.Parameter | None
    fixed_scale: Tensor | None
    storage_scale: Tensor | None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.set_spec_(PRESETS["float32"])

    def set_spec_(self, spec: BitSpec) -> None:
        """Take another spec: fixed scales are forgotten, and a learned step starts from the weights
        (and is frozen if they are). ValueError if this layer cannot take the spec.
        """
        check_layer(self, spec)
        self.spec = spec
        # as buffers they move with the layer, and outside the state dict it stays that of a float
        # layer
        self.register_buffer("fixed_scale", None, persistent=False)
        self.register_buffer("storage_scale", None, persistent=False)
        step = None
        if spec.range_rule == "lsq":
            start = self._range(spec.weights)
            step = nn.Parameter(start, requires_grad=self.weight.requires_grad)
        self.register_parameter("weight_step", step)

    def is_as_set(self, spec: BitSpec) -> bool:
        """Whether it stands as :meth:`set_spec_` leaves it, with nothing fixed or learned since."""
        lasting = (self.fixed_scale, self.storage_scale, self.weight_step)
        return self.spec == spec and all(value is None for value in lasting)

    def to_float_(self) -> None:
        """Become the parent class again, with the weights as they are."""
        for name in ("spec", "fixed_scale", "storage_scale", "weight_step"):
            delattr(self, name)
        # the class has their defaults
        for name in ("backend", "generator"):
            vars(self).pop(name, None)
        # the layer of torch is the last base of every class of this kind
        become_(self, own_class(self).__bases__[-1])

    @torch.no_grad()
    def fix_range_(self) -> None:
        """Take what lasts for a round from the present weights: the scales of strict storage, and
        the start of a learned step.
        """
        if self.weight_step is not None:
            self.weight_step.copy_(self._range(self.spec.weights))
        if self.spec.storage < FLOAT_BITS:
            self.fixed_scale = self._range(self.spec.weights)
            same = self.spec.storage == self.spec.weights
            self.storage_scale = self.fixed_scale if same else self._range(self.spec.storage)

    def _range(self, bits: int) -> Tensor:
        """The scale that the range rule finds for the present weights at this many bits."""
        return spec_scale(self.weight, self.spec, bits)

    @torch.no_grad()
    def store_(self, generator: torch.Generator | None) -> None:
        """Put strict weights on the storage grid: stochastically, or to nearest without a
        generator.

        Raises:
            ValueError: :func:`bhfl.quant.begin_round_` has set no range, or the weight is
                parametrised.
        """
        if self.spec.storage == FLOAT_BITS:
            return
        if self.storage_scale is None:
            raise ValueError(
                f"store_ of {self.spec.label!r} weights needs their range: call "
                "begin_round_(model) first"
            )
        refuse_parametrized(self, "store_")
        stored = fake_quantize(
            self.weight, self.spec.storage, scale=self.storage_scale, generator=generator
        )
        self.weight.copy_(stored)

    @torch.no_grad()
    def quantized_weight(self) -> QuantizedTensor:
        """The codes that forward computes with.

        Raises:
            ValueError: The spec leaves the weights in float32, or they are not finite.
        """
        if self.spec.weights == FLOAT_BITS:
            raise ValueError("quantized_weight needs BitSpec.weights of 2..16, got 32")
        self._restored()
        return quantize(self.weight, self.spec.weights, **self._weight_rule())

    @torch.no_grad()
    def sent_weight(self) -> QuantizedTensor:
        """The codes that a client sends: those of :meth:`quantized_weight`, or its stored weights.

        Raises:
            ValueError: The spec leaves the weights in float32, or they are not finite.
        """
        if self.spec.sends == "computed":
            return self.quantized_weight()
        return quantize_as_sent(self.weight, self.spec, self.storage_scale)

    def _weight_rule(self) -> dict[str, Any]:
        """The arguments by which :func:`bhfl.quant.quantize` finds the scale of the weight, once it
        is known whether restored codes still hold.
        """
        scale = self.fixed_scale
        if self.weight_step is not None:
            # an optimiser may take the step through zero, and a scale is positive
            scale = bounded_scale(self.weight_step.abs().float(), levels(self.spec.weights))
        return {
            "range_rule": self.spec.range_rule,
            "granularity": self.spec.granularity,
            "scale": scale,
        }

    def _restored(self) -> Tensor | None:
        """The weight on the grid of restored codes. Where it is not these codes times their scale
        any more, or is about to be trained, its range moves with it from here on.
        """
        scale = self.fixed_scale
        if scale is None or self.spec.storage < FLOAT_BITS:
            return None
        if not (self.training and torch.is_grad_enabled() and self.weight.requires_grad):
            weight = self.weight.detach()
            on_grid = fake_quantize(weight, self.spec.weights, scale=scale)
            # a compiled graph would break where values are looked at
            if torch.compiler.is_compiling() or torch.equal(weight, on_grid):
                return on_grid
        self.fixed_scale = None
        return None

    def forward(self, input: Tensor) -> Tensor:
        """The output of the parent, computed with quantised input and weight; shapes as there."""
        if self.spec.is_float:
            return self.float_product(input, self.weight)
        return self._forward_output(get_backend(self.backend).forward(self, input))

    def float_product(self, x: Tensor, weight: Tensor) -> Tensor:
        """What the parent computes with such an input and weight, and with the bias of the layer.

        A subclass defines it, or else has a :meth:`forward` of its own, as embeddings do.

        Args:
            x: An input of the parent's shape, whose values may lie on a grid.
            weight: Values of the shape of the layer's own.

        Returns:
            The output of the parent's shape.

        Raises:
            NotImplementedError: The subclass has neither.
        """
        raise NotImplementedError(f"{type(self).__name__} must define float_product, or a forward")

    def forward_input(self, x: Tensor) -> Tensor:
        """The input on its grid."""
        return fake_quantize_activations(x, self.spec.activations)

    def forward_weight(self) -> Tensor:
        """The weight on its grid, with its gradient."""
        weight: Tensor = self.weight
        if self.spec.weights < FLOAT_BITS:
            on_grid = self._restored()
            # it is rounded once more only for its gradient
            if on_grid is not None and not (torch.is_grad_enabled() and weight.requires_grad):
                return on_grid
            weight = fake_quantize(weight, self.spec.weights, **self._weight_rule())
        return self._with_gradient_hook(weight)

    def forward_codes(self) -> tuple[Tensor, Tensor, Tensor]:
        """What integer products need of a weight of up to 8 bits, see `quantize_with_gradient`.

        Returns:
            A stand-in that takes the gradient of the weight, its int8 codes, and their scale.
        """
        self._restored()
        stand_in, codes, scale = quantize_with_gradient(
            self.weight, self.spec.weights, **self._weight_rule()
        )
        return self._with_gradient_hook(stand_in), codes, scale

    def _with_gradient_hook(self, weight: Tensor) -> Tensor:
        """The weight, whose gradient will be quantised where the spec says so."""
        if self.spec.gradients < FLOAT_BITS and weight.requires_grad and torch.is_grad_enabled():
            # the hook belongs to this forward pass, not to the parameter
            weight = weight.view_as(weight)
            hook = partial(self._quantize_gradient, generator=self.required_generator())
            weight.register_hook(hook)  # type: ignore[no-untyped-call]
        return weight

    def _forward_output(self, y: Tensor) -> Tensor:
        """The output, whose gradient will be quantised where the spec says so."""
        if self.spec.errors < FLOAT_BITS and y.requires_grad:
            hook = partial(
                quantize_backward,
                bits=self.spec.errors,
                generator=self.required_generator(),
                range_rule=self.spec.range_rule,
            )
            y.register_hook(hook)  # type: ignore[no-untyped-call]
        return y

    def required_generator(self) -> torch.Generator:
        """The generator of stochastic rounding.

        Raises:
            ValueError: :func:`bhfl.quant.seed_` has set none.
        """
        if self.generator is None:
            by = "" if self.backend == "fake" else f" by {self.backend!r}"
            raise ValueError(
                f"{self.spec.label!r}{by} rounds stochastically in backward: call "
                "seed_(model, generator) before training, or compute under torch.no_grad()"
            )
        return self.generator

    def _quantize_gradient(self, grad: Tensor, generator: torch.Generator) -> Tensor:
        """The gradient on its own grid; with range rule wage it is normalised only.

        The storage of WAGE rounds instead. Plain SGD with learning rate ``2**(1-storage) * lr`` so
        takes the steps of Wu et al. 2018 (section 3.3.4) with their ``lr``.
        """
        if self.spec.range_rule == "wage":
            return grad / (wage_shift(grad) * wage_alpha(fan_in(self.weight), self.spec.weights))
        return quantize_backward(grad, self.spec.gradients, generator)

    def extra_repr(self) -> str:
        """The arguments of the parent, the spec, and the backend unless it is fake: for one that
        chooses, ``auto (int8)`` names its choice.
        """
        text = f"{super().extra_repr()}, spec={self.spec.label}"
        if self.backend == "fake":
            return text
        chosen = chosen_backend(self)
        note = "" if chosen == self.backend else f" ({chosen})"
        return f"{text}, backend={self.backend}{note}"

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        # a float layer would refuse a key that it does not have
        destination.pop(f"{prefix}weight_step", None)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
        """Load as the parent does; fixed scales are forgotten, and a learned step starts again from
        the weights.
        """
        # Parametrizations load after their layer: begin_round_ starts the step from their weight.
        super()._load_from_state_dict(state_dict, prefix, *rest)
        _metadata, _strict, missing_keys, *_ = rest
        missing_keys[:] = [key for key in missing_keys if key != f"{prefix}weight_step"]
        # a state of other layers alone changes nothing here
        if f"{prefix}{self.weight_key}" not in state_dict:
            return
        self.fixed_scale = self.storage_scale = None
        if self.weight_step is not None:
            self.fix_range_()


def chosen_backend(layer: QuantLayer) -> str:
    """The name of the backend that really computes a layer: what ``auto`` chose, or ``fake`` where
    the backend cannot compute it.
    """
    if layer.spec.is_float:
        return "fake"
    return get_backend(layer.backend).chosen_for(layer).name


def takes_low_bits(layer: nn.Module) -> bool:
    """Whether a layer can take low bits: every one but some kinds of ``nn.Embedding``.

    These are those with ``sparse`` (the gradient of a quantised table is dense) or with
    ``max_norm`` (which would rewrite the quantised table in forward).
    """
    return not isinstance(layer, nn.Embedding) or not (layer.sparse or layer.max_norm is not None)


def check_layer(layer: nn.Module, spec: BitSpec, name: str = "") -> None:
    """ValueError, with its name in the model, for a layer that cannot take a spec."""
    where = f"layer {name!r}: " if name else ""
    if isinstance(layer, LazyModuleMixin):
        raise ValueError(
            f"{where}a {type(layer).__name__} without weights cannot be quantised: run a batch "
            "through the model first"
        )
    if not spec.is_float and not takes_low_bits(layer):
        raise ValueError(
            f"{where}an Embedding with sparse=True or max_norm cannot be quantised: leave it out "
            "with filter_fn"
        )
