"""Straight-through gradients by ``torch.autograd.gradcheck``: they are the derivatives of smooth
surrogates.

A surrogate is what the straight-through estimator pretends that was computed: the remainder of
rounding is a constant, and beyond the largest code the value is.
"""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck

from bhfl.quant import (
    fake_quantize,
    fake_quantize_activations,
    fake_quantize_affine,
    quantize_,
    set_spec_,
    weight_scale,
)

BITS, N = 3, 3


def with_gradient_of(
    function: Callable[..., Tensor], surrogate: Callable[..., Tensor]
) -> Callable[..., Tensor]:
    """Computes the surrogate; its gradient is that of the function."""

    class Mixed(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *inputs: Tensor) -> Tensor:
            ctx.save_for_backward(*inputs)
            return surrogate(*inputs)

        @staticmethod
        def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
            inputs = [x.detach().requires_grad_() for x in ctx.saved_tensors]
            with torch.enable_grad():
                y = function(*inputs)
            return torch.autograd.grad(y, inputs, grads[0].to(y.dtype))

    return Mixed.apply  # type: ignore[no-any-return]


def data(*shape: int, seed: int = 0) -> Tensor:
    return (
        torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double().requires_grad_()
    )


def columns(scale: Tensor) -> Tensor:
    return scale.view(-1, 1) if scale.dim() else scale


@pytest.mark.parametrize(
    ("rule", "granularity"),
    [
        ("absmax", "tensor"),
        ("absmax", "channel"),
        ("pow2", "tensor"),
        ("pow2", "channel"),
        ("wage", "tensor"),
    ],
)
def test_rules_that_clip_nothing_have_the_gradient_of_the_identity(
    rule: str, granularity: str
) -> None:
    options: Any = {"range_rule": rule, "granularity": granularity}
    assert gradcheck(
        with_gradient_of(lambda x: fake_quantize(x, BITS, **options), lambda x: x + 0.0), data(4, 5)
    )


@pytest.mark.parametrize(
    "function",
    [
        lambda x: fake_quantize_activations(x, BITS),
        lambda x: fake_quantize_affine(x, BITS),
        lambda x: fake_quantize_affine(x, BITS, granularity="channel"),
        lambda x: fake_quantize_affine(x, BITS, generator=torch.Generator()),
        lambda x: fake_quantize(x, BITS, generator=torch.Generator()),
    ],
)
def test_affine_and_stochastic_rounding_have_the_gradient_of_the_identity(
    function: Callable[..., Tensor],
) -> None:
    assert gradcheck(with_gradient_of(function, lambda x: x + 0.0), data(4, 5))


@pytest.mark.parametrize("granularity", ["tensor", "channel"])
def test_outside_the_range_the_gradient_is_zero(granularity: str) -> None:
    x = data(4, 50)
    options: Any = {"range_rule": "mse", "granularity": granularity}
    edge = columns(weight_scale(x, BITS, **options)).double() * (N + 0.5)
    assert (x.abs() > edge).any()
    surrogate = with_gradient_of(
        lambda x: fake_quantize(x, BITS, **options),
        lambda x: torch.where(x.abs() < edge, x, edge * x.sign()),
    )
    assert gradcheck(surrogate, x)


@pytest.mark.parametrize("granularity", ["tensor", "channel"])
def test_a_learned_step_has_the_gradient_of_its_paper(granularity: str) -> None:
    """Esser et al. 2020, equation 3, divided by ``sqrt(values of a step * n)``."""
    x = data(4, 10)
    step = (
        torch.tensor([0.3, 0.4, 0.5, 0.6]).double()
        if granularity == "channel"
        else torch.tensor(0.4).double()
    )
    v = x.detach() / columns(step)
    inside, remainder = v.abs() < N, v.round() - v
    assert inside.any()
    assert not inside.all()

    def surrogate(x: Tensor, s: Tensor) -> Tensor:
        return torch.where(inside, x + columns(s) * remainder, N * columns(s) * v.sign())

    def function(x: Tensor, s: Tensor) -> Tensor:
        factor = math.sqrt(x.numel() / s.numel() * N)
        scaled = s.detach() + factor * (s - s.detach())
        return fake_quantize(x, BITS, range_rule="lsq", scale=scaled)

    assert gradcheck(with_gradient_of(function, surrogate), (x, step.requires_grad_()))


LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(4, 3), (5, 4)),
    "conv1d": (lambda: nn.Conv1d(2, 2, 3, padding=1, dilation=2), (2, 2, 6)),
    "conv2d": (lambda: nn.Conv2d(2, 4, 2, stride=2, padding=1, groups=2), (2, 2, 4, 4)),
    "transposed": (lambda: nn.ConvTranspose2d(2, 3, 2, stride=2), (1, 2, 3, 3)),
}


@pytest.mark.parametrize("backend", ["fake", "int8"])
@pytest.mark.parametrize("name", [*LAYERS, "embedding"])
@pytest.mark.filterwarnings("ignore::bhfl.quant.BackendWarning")
def test_layers_have_the_gradients_of_the_layer_with_what_rounding_added(
    name: str, backend: str
) -> None:
    torch.manual_seed(0)
    tokens = torch.tensor([[1, 2], [0, 2]])
    layer = nn.Embedding(4, 3) if name == "embedding" else LAYERS[name][0]()
    quantize_(
        layer.double(),
        {"weights": 4, "activations": 8, "range_rule": "absmax", "granularity": "channel"},
        backend=backend,
    )
    x = tokens if name == "embedding" else data(*LAYERS[name][1])
    weight: Tensor = layer.weight.detach().clone().requires_grad_()
    added = fake_quantize(weight, 4, granularity="channel").detach() - weight.detach()
    noise = 0 if name == "embedding" else fake_quantize_activations(x, 8).detach() - x.detach()
    plain = set_spec_(
        quantize_(LAYERS[name][0]() if name != "embedding" else nn.Embedding(4, 3), 8), 32
    ).double()
    plain.load_state_dict(layer.state_dict())

    def function(weight: Tensor, *inputs: Tensor) -> Tensor:
        return torch.func.functional_call(layer, {"weight": weight}, inputs or (tokens,))

    def surrogate(weight: Tensor, *inputs: Tensor) -> Tensor:
        shifted = (inputs[0] + noise,) if inputs else (tokens,)
        return torch.func.functional_call(plain, {"weight": weight + added}, shifted)

    inputs = (weight,) if name == "embedding" else (weight, x)
    assert gradcheck(with_gradient_of(function, surrogate), inputs, atol=1e-4)
