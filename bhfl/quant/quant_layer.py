"""What the layers have in common that compute with quantised weights and activations, on the float
parameters of the layers they replace.

A float ``state_dict`` loads into them and theirs into the float layers: parameters keep their names
and nothing else is saved. With a float32 spec each is its parent to the bit.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from bhfl.quant.backends import get_backend
from bhfl.quant.functional import (
    QuantizedTensor,
    fake_quantize,
    fake_quantize_activations,
    quantize,
    quantize_backward,
    quantize_with_gradient,
)
from bhfl.quant.parametrized import become_, own_class, refuse_parametrized
from bhfl.quant.ranges import (
    bounded_scale,
    fan_in,
    wage_alpha,
    wage_scale,
    wage_shift,
    weight_scale,
)
from bhfl.quant.rounding import levels
from bhfl.quant.spec import FLOAT_BITS, PRESETS, BitSpec


class QuantLayer(nn.Module):
    """What the quantised layers have in common.

    Under ``torch.nn.utils.parametrize`` it quantises the weight that the parametrizations give.

    Attributes:
        spec: The bits; changed by :meth:`set_spec_`.
        backend: The name of the way to compute, see :mod:`bhfl.quant.backends`; it outlives a
            change of the spec.
        generator: Source of stochastic rounding in backward; see :func:`bhfl.quant.seed_`.
        weight_step: The learned step of range rule lsq, else None: a parameter, but never in the
            state dict.
        fixed_scale: Strict storage: the scale of the forward weights, fixed by
            :func:`bhfl.quant.begin_round_`. Other weights: that of restored codes, until they are
            trained.
        storage_scale: Strict storage: the scale of the stored weights, fixed at the same time.
    """

    weight_key = "weight"
    """The name of the weight among the parameters."""

    spec: BitSpec
    backend: str = "fake"
    generator: torch.Generator | None
    weight: Tensor
    weight_step: nn.Parameter | None
    fixed_scale: Tensor | None
    storage_scale: Tensor | None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.set_spec_(PRESETS["float32"])

    def set_spec_(self, spec: BitSpec) -> None:
        """Take another spec; forgets fixed ranges, and starts a learned step from the weights
        (frozen as they are).
        """
        self.spec = spec
        self.generator = getattr(self, "generator", None)
        self.register_buffer("fixed_scale", None, persistent=False)
        self.register_buffer("storage_scale", None, persistent=False)
        learned = spec.range_rule == "lsq"
        step = (
            nn.Parameter(self._range(spec.weights), requires_grad=self.weight.requires_grad)
            if learned
            else None
        )
        self.register_parameter("weight_step", step)

    def to_float_(self) -> None:
        """Become the parent class again, with the weights as they are."""
        for name in ("spec", "generator", "fixed_scale", "storage_scale", "weight_step"):
            delattr(self, name)
        vars(self).pop("backend", None)
        become_(self, own_class(self).__bases__[-1])

    @torch.no_grad()
    def fix_range_(self) -> None:
        """Derive what lasts for a round from the present weights: the strict scales, the start of a
        learned step.
        """
        if self.weight_step is not None:
            self.weight_step.copy_(self._range(self.spec.weights))
        if self.spec.storage < FLOAT_BITS:
            self.fixed_scale = self._range(self.spec.weights)
            same = self.spec.storage == self.spec.weights
            self.storage_scale = self.fixed_scale if same else self._range(self.spec.storage)

    def _range(self, bits: int) -> Tensor:
        if self.spec.range_rule == "wage":
            return wage_scale(self.weight, bits, self.spec.weights)
        return weight_scale(self.weight, bits, self.spec.range_rule, self.spec.granularity)

    @torch.no_grad()
    def store_(self, generator: torch.Generator | None) -> None:
        """Put strict weights on the storage grid: stochastically, or to nearest without a
        generator.
        """
        if self.spec.storage == FLOAT_BITS:
            return
        if self.storage_scale is None:
            raise ValueError(
                f"store_ of {self.spec.label!r} weights needs their range: call "
                "begin_round_(model) first"
            )
        refuse_parametrized(self, "store_")
        self.weight.copy_(
            fake_quantize(
                self.weight, self.spec.storage, scale=self.storage_scale, generator=generator
            )
        )

    @torch.no_grad()
    def quantized_weight(self) -> QuantizedTensor:
        """The codes that forward computes with; ValueError if the weights are float32 or not
        finite.
        """
        if self.spec.weights == FLOAT_BITS:
            raise ValueError("quantized_weight needs BitSpec.weights of 2..16, got 32")
        return quantize(self.weight, self.spec.weights, **self._weight_rule())

    def _weight_rule(self) -> dict[str, Any]:
        if self.fixed_scale is not None and self.spec.storage == FLOAT_BITS and self._is_trained():
            self.fixed_scale = None  # the weights will move, and their range with them
        scale = self.fixed_scale
        if self.weight_step is not None:
            scale = bounded_scale(self.weight_step.abs().float(), levels(self.spec.weights))
        return {
            "range_rule": self.spec.range_rule,
            "granularity": self.spec.granularity,
            "scale": scale,
        }

    def _is_trained(self) -> bool:
        return self.training and torch.is_grad_enabled() and self.weight.requires_grad

    def forward(self, input: Tensor) -> Tensor:
        """The output of the parent, computed with quantised input and weight; shapes as there."""
        if self.spec.is_float:
            return self.float_product(input, self.weight)
        return self._forward_output(get_backend(self.backend).forward(self, input))

    def float_product(self, x: Tensor, weight: Tensor) -> Tensor:
        """What the parent computes with such an input and weight, and with the bias of the
        layer.
        """
        raise NotImplementedError(f"{type(self).__name__} has no product of an input and a weight")

    def forward_input(self, x: Tensor) -> Tensor:
        """The input on its grid."""
        return fake_quantize_activations(x, self.spec.activations)

    def forward_weight(self) -> Tensor:
        """The weight on its grid, with its gradient."""
        weight: Tensor = self.weight
        if self.spec.weights < FLOAT_BITS:
            weight = fake_quantize(weight, self.spec.weights, **self._weight_rule())
        return self._with_gradient_hook(weight)

    def forward_codes(self) -> tuple[Tensor, Tensor, Tensor]:
        """A stand-in that takes the gradient of the weight, its int8 codes, and their scale; for up
        to 8 bits.
        """
        stand_in, codes, scale = quantize_with_gradient(
            self.weight, self.spec.weights, **self._weight_rule()
        )
        return self._with_gradient_hook(stand_in), codes, scale

    def _with_gradient_hook(self, weight: Tensor) -> Tensor:
        if self.spec.gradients < FLOAT_BITS and weight.requires_grad and torch.is_grad_enabled():
            # the hook belongs to this forward pass, not to the parameter
            weight = weight.view_as(weight)
            weight.register_hook(self._gradient_hook(self._quantize_gradient))  # type: ignore[no-untyped-call]
        return weight

    def _forward_output(self, y: Tensor) -> Tensor:
        if self.spec.errors < FLOAT_BITS and y.requires_grad:
            y.register_hook(self._gradient_hook(self._quantize_error))  # type: ignore[no-untyped-call]
        return y

    def _gradient_hook(
        self, quantize_with: Callable[[Tensor, torch.Generator], Tensor]
    ) -> Callable[[Tensor], Tensor]:
        generator = self.required_generator()
        return lambda grad: quantize_with(grad, generator)

    def required_generator(self) -> torch.Generator:
        """The generator; ValueError without one."""
        if self.generator is None:
            by = "" if self.backend == "fake" else f" by {self.backend!r}"
            raise ValueError(
                f"{self.spec.label!r}{by} rounds stochastically in backward: call "
                "seed_(model, generator) before training"
            )
        return self.generator

    def _quantize_error(self, error: Tensor, generator: torch.Generator) -> Tensor:
        return quantize_backward(
            error, self.spec.errors, generator, range_rule=self.spec.range_rule
        )

    def _quantize_gradient(self, grad: Tensor, generator: torch.Generator) -> Tensor:
        """A gradient on its own grid; that of WAGE is normalised only, and rounded by the storage.

        Plain SGD with learning rate ``2**(1-storage) * lr`` then takes the steps of Wu et al. 2018
        with their ``lr``.
        """
        if self.spec.range_rule == "wage":
            return grad / (wage_shift(grad) * wage_alpha(fan_in(self.weight), self.spec.weights))
        return quantize_backward(grad, self.spec.gradients, generator)

    def extra_repr(self) -> str:
        """The arguments of the parent, the spec, and the backend if it is another than fake."""
        text = f"{super().extra_repr()}, spec={self.spec.label}"
        return text if self.backend == "fake" else f"{text}, backend={describe_backend(self)}"

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination.pop(f"{prefix}weight_step", None)

    def _load_from_state_dict(  # noqa: PLR0913
        self,
        state_dict: Any,
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        """Other weights make fixed ranges void; a learned step starts again from them.

        Parametrizations load after their layer: :func:`bhfl.quant.begin_round_` starts a step from
        what they give.
        """
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        missing_keys[:] = [key for key in missing_keys if key != f"{prefix}weight_step"]
        self.fixed_scale = self.storage_scale = None
        if self.weight_step is not None:
            self.fix_range_()


def describe_backend(layer: QuantLayer) -> str:
    """The backend of a layer, and in brackets the one that computes it where that is another:
    ``auto (int8)``.
    """
    chosen = "fake" if layer.spec.is_float else get_backend(layer.backend).chosen_for(layer).name
    return layer.backend if chosen == layer.backend else f"{layer.backend} ({chosen})"


def takes_low_bits(layer: nn.Module) -> bool:
    """Whether a layer can take low bits: every one but some kinds of ``nn.Embedding``.

    These are those with ``sparse`` (the gradient of a quantised table is dense) or with
    ``max_norm`` (which would rewrite the quantised table in forward).
    """
    return not isinstance(layer, nn.Embedding) or not (layer.sparse or layer.max_norm is not None)


def check_layer(layer: nn.Module, spec: BitSpec) -> None:
    """ValueError if a layer cannot take a spec."""
    if not spec.is_float and not takes_low_bits(layer):
        raise ValueError(
            "an Embedding with sparse=True or max_norm cannot be quantised: leave it out with "
            "filter_fn"
        )
