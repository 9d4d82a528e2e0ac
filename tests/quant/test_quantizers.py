"""Range rules of one's own."""

import doctest
import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from bhfl.quant import (
    BitSpec,
    Quantizer,
    fake_quantize,
    quantize,
    quantize_,
    quantizers,
    register_quantizer,
)
from bhfl.quant.rounding import levels


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    before = dict(quantizers.REGISTERED)
    quantizers.REGISTERED.clear()
    yield
    quantizers.REGISTERED.clear()
    quantizers.REGISTERED.update(before)


def half_of_absmax() -> type[Quantizer]:
    @register_quantizer
    class Half(Quantizer):
        name = "half"

        def scale(self, x: Tensor, bits: int) -> Tensor:
            return x.abs().amax(1) / 2 / levels(bits)

    return Half


def test_the_example_of_the_documentation() -> None:
    found = doctest.testmod(quantizers)
    assert (found.failed, found.attempted) == (0, 7)


@pytest.mark.parametrize("granularity", ["tensor", "channel"])
def test_codes_and_gradients_follow_from_its_scale(granularity: str) -> None:
    half_of_absmax()
    x = torch.randn(4, 6, 3, generator=torch.Generator().manual_seed(0), requires_grad=True)
    options = {"range_rule": "half", "granularity": granularity}
    largest = x.detach().abs().amax((1, 2)) if granularity == "channel" else x.detach().abs().amax()
    found = quantize(x, 4, **options)  # type: ignore[arg-type]
    torch.testing.assert_close(found.scale, largest / 14)
    assert torch.equal(fake_quantize(x, 4, **options), found.dequantize())  # type: ignore[arg-type]
    fake_quantize(x, 4, **options).sum().backward()  # type: ignore[arg-type]
    step = found.scale.view(-1, 1, 1) if granularity == "channel" else found.scale
    assert torch.equal(x.grad, ((x / step).abs() < 7.5).float())  # type: ignore[arg-type]
    assert fake_quantize(torch.zeros(3), 4, range_rule="half").eq(0).all()
    assert fake_quantize(torch.empty(0, 3), 4, **options).shape == (0, 3)  # type: ignore[arg-type]
    assert not fake_quantize(torch.tensor([1.0, math.inf]), 4, range_rule="half").isfinite().all()


def test_layers_of_every_backend_take_it() -> None:
    half_of_absmax()
    spec = BitSpec(weights=4, activations=8, range_rule="half")
    x = torch.randn(5, 6)
    layer = quantize_(nn.Linear(6, 3), spec)
    torch.testing.assert_close(
        quantize_(layer, spec, backend="int8")(x), quantize_(layer, spec, backend="fake")(x)
    )


def test_refused() -> None:
    with pytest.raises(
        ValueError,
        match=r"^BitSpec\.range_rule must be one of auto, absmax, mse, lsq, pow2, wage, got 'half'",
    ):
        BitSpec(weights=4, range_rule="half")
    with pytest.raises(
        ValueError, match=r"^range_rule must be one of absmax, mse, lsq, pow2, wage, got 'half'"
    ):
        quantize(torch.randn(3), 4, range_rule="half")
    half = half_of_absmax()
    with pytest.raises(
        ValueError,
        match=r"^Half\.name must not be taken, got 'half'; taken: auto, absmax, .* wage, half",
    ):
        register_quantizer(half)
    with pytest.raises(
        ValueError, match=r"^register_quantizer needs a subclass of Quantizer, got <class 'int'>"
    ):
        register_quantizer(int)  # type: ignore[type-var]
    half.name = "auto"
    with pytest.raises(ValueError, match=r"^Half\.name must not be taken, got 'auto'; taken: auto"):
        register_quantizer(half)
    half.name = "Half"
    with pytest.raises(ValueError, match=r"^Half\.name must be a lower-case word, got 'Half'"):
        register_quantizer(half)
    for result, shape in ((torch.ones(()), r"\[\]"), (torch.ones(3), r"\[3\]"), (0.1, "float")):
        half.scale = lambda self, x, bits, result=result: result  # type: ignore[assignment,method-assign,misc]
        with pytest.raises(
            ValueError,
            match=rf"^the scale of range rule 'half' must be a tensor \[2\], got {shape}$",
        ):
            quantize(torch.randn(2, 3), 4, range_rule="half", granularity="channel")
