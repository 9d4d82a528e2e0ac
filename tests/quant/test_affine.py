"""Affine quantisation: unsigned codes with a zero point."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bhfl.quant import fake_quantize_activations, fake_quantize_affine, quantize_affine


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@settings(max_examples=80, deadline=None)
@given(
    values=st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=1, max_size=40),
    bits=st.integers(2, 16),
    per_channel=st.booleans(),
    stochastic=st.booleans(),
)
def test_codes_fit_and_values_are_within_a_step(
    values: list[float], bits: int, per_channel: bool, stochastic: bool
) -> None:
    x = torch.tensor([*values, 0.0])
    x = torch.stack([x, x.flip(0) / 3 - 1, x.abs()])
    noise = generator() if stochastic else None
    found = quantize_affine(
        x, bits, granularity="channel" if per_channel else "tensor", generator=noise
    )
    assert found.codes.dtype == (torch.uint8 if bits <= 8 else torch.int32)
    assert found.codes.min() >= 0
    assert found.codes.max() <= 2**bits - 1
    assert found.scale.shape == found.zero_point.shape == ((3,) if per_channel else ())
    scale = (found.scale.view(-1, 1) if per_channel else found.scale).double()
    error = (found.dequantize().double() - x.double()).abs()
    assert (error <= (1 if stochastic else 0.5) * scale + 2**-20 * x.double().abs()).all()
    assert found.dequantize()[0, -1] == 0
    if not per_channel and not stochastic:
        assert torch.equal(found.dequantize(), fake_quantize_activations(x, bits) + 0.0)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_stochastic_rounding_is_unbiased_up_to_both_ends(bits: int) -> None:
    x = torch.rand(50, generator=generator()) * 3 - 1
    # rows of one scale, each rounded by a noise of its own
    found = quantize_affine(x.expand(4000, -1), bits, generator=generator(1))
    draws = found.dequantize()
    sigma = found.scale / 2 / 4000**0.5
    assert ((draws.double().mean(0) - x).abs() < 5 * sigma + 1e-5).all()


def test_gradients_dtypes_and_what_is_refused() -> None:
    x = torch.randn(4, 5, dtype=torch.bfloat16, requires_grad=True)
    y = fake_quantize_affine(x, 4, granularity="channel", generator=generator())
    grad = torch.randn(4, 5).bfloat16()
    y.backward(grad)
    assert y.dtype == torch.bfloat16
    assert torch.equal(x.grad, grad)  # type: ignore[arg-type]
    assert fake_quantize_affine(x, 32) is x
    assert quantize_affine(torch.empty(0, 3), 8, granularity="channel").dequantize().shape == (0, 3)
    assert torch.equal(fake_quantize_affine(torch.zeros(3), 8), torch.zeros(3))
    with pytest.raises(ValueError, match=r"bits must be 2\.\.16, got 1"):
        quantize_affine(torch.randn(3), 1)
    with pytest.raises(ValueError, match="finite values, got NaN or infinity"):
        quantize_affine(torch.tensor([1.0, float("nan")]), 8)
    with pytest.raises(
        ValueError, match="granularity 'channel' needs a tensor of at least one dimension"
    ):
        quantize_affine(torch.tensor(1.0), 8, granularity="channel")
