"""Activations: unsigned affine with the range of the batch."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bhfl.quant import fake_quantize_activations


@settings(max_examples=150, deadline=None)
@given(
    values=st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=1, max_size=40),
    bits=st.integers(2, 16),
)
def test_values_lie_on_a_grid_of_2_to_the_bits_codes_with_an_exact_zero(
    values: list[float], bits: int
) -> None:
    x = torch.tensor([*values, 0.0])
    found = fake_quantize_activations(x, bits)
    scale = max(
        (x.max().double() - x.min().double()).item() / (2**bits - 1) * (1 + 2**-20), 2.0**-126
    )
    codes = (found.double() / scale).round()
    assert codes.max() - codes.min() <= 2**bits - 1
    assert ((found.double() - x.double()).abs() <= scale / 2 + 2**-20 * x.double().abs()).all()
    assert found[-1] == 0


@pytest.mark.parametrize("bits", [2, 3, 8, 11])
def test_ties_at_both_ends_need_no_extra_code(bits: int) -> None:
    for low in range(2**bits - 1):
        x = torch.tensor([-(low + 0.5), 2**bits - 1 - (low + 0.5)])
        codes = fake_quantize_activations(x, bits).round()
        assert codes[1] - codes[0] <= 2**bits - 1


def test_constant_empty_and_negative_inputs() -> None:
    for value in (0.0, 5.0, -3.0, 1e-42):
        x = torch.full((4, 3), value)
        torch.testing.assert_close(fake_quantize_activations(x, 8), x, rtol=1e-5, atol=1e-38)
    empty = torch.empty(0, 3, requires_grad=True)
    assert fake_quantize_activations(empty, 8) is empty
    assert fake_quantize_activations(empty, 32) is empty


def test_every_code_of_a_relu_output_is_used() -> None:
    assert fake_quantize_activations(torch.linspace(0, 1, 1000), 4).unique().numel() == 16


def test_gradient_is_the_identity_and_the_dtype_stays() -> None:
    x = torch.randn(4, 5, dtype=torch.bfloat16, requires_grad=True)
    y = fake_quantize_activations(x, 4)
    grad = torch.randn(4, 5).bfloat16()
    y.backward(grad)
    assert y.dtype == torch.bfloat16
    assert torch.equal(x.grad, grad)  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_visible(value: float) -> None:
    assert not fake_quantize_activations(torch.tensor([1.0, value]), 8)[1].isfinite()
