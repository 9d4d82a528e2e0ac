"""Symmetric quantisation: codes, errors, stochastic rounding, gradients, and torch as the
oracle.
"""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bhfl.quant import QuantizedTensor, fake_quantize, quantize, quantize_backward, weight_scale

ALL_BITS = range(2, 17)
FLOAT_MAX = torch.finfo(torch.float32).max
RULES = ("absmax", "mse", "lsq", "pow2", "wage")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def same_bits(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.contiguous().view(torch.int32), b.contiguous().view(torch.int32))


def mixed_magnitudes(numel: int) -> Tensor:
    """Subnormal to near-maximal values, zeros and both extremes."""
    g = generator(7)
    exponent = torch.randint(-149, 128, (numel,), generator=g)
    values = torch.ldexp(torch.randn(numel, generator=g, dtype=torch.float64), exponent)
    values = values.clamp(-FLOAT_MAX, FLOAT_MAX).float()
    values[:4] = torch.tensor([0.0, -0.0, FLOAT_MAX, -FLOAT_MAX])
    return values


@pytest.mark.parametrize("bits", ALL_BITS)
def test_every_code_is_reached_and_is_a_fixed_point(bits: int) -> None:
    n = 2 ** (bits - 1) - 1
    every = torch.arange(-n, n + 1)
    for scale in (1.0, 0.1, 3e-7, 1.7e30, 2.0**-126):
        step = torch.tensor(scale)
        x = every.float() * step
        assert x.isfinite().all()
        for noise in (None, generator()):
            found = quantize(x, bits, scale=step, generator=noise)
            assert found.codes.dtype == (torch.int8 if bits <= 8 else torch.int16)
            assert torch.equal(found.codes.long(), every)
            assert torch.equal(found.dequantize(), x)
    # with its own range
    assert torch.equal(quantize(every.float() * 0.3, bits).codes.long(), every)


@pytest.mark.parametrize("bits", [2, 4, 8, 11, 16])
@pytest.mark.parametrize("rule", ["absmax", "pow2"])
def test_error_is_within_half_a_step_or_one_stochastic(bits: int, rule: str) -> None:
    mixed = mixed_magnitudes(50_000)
    ordinary = torch.randn(50_000, generator=generator())
    for x in (mixed, ordinary, ordinary * 1e-38, ordinary * 1e-43, ordinary * 1e37):
        for noise, steps in ((None, 0.5), (generator(), 1.0)):
            found = quantize(x, bits, range_rule=rule, generator=noise)  # type: ignore[arg-type]
            assert found.codes.abs().max() <= 2 ** (bits - 1) - 1
            error = (found.dequantize().double() - x.double()).abs()
            assert (error <= steps * found.scale.double() + 2**-22 * x.double().abs()).all()


@pytest.mark.parametrize("bits", ALL_BITS)
def test_agrees_with_torch_to_the_bit(bits: int) -> None:
    n = 2 ** (bits - 1) - 1
    x = torch.randn(6, 5, 4, generator=generator(bits))
    for scale in (weight_scale(x, bits), weight_scale(x, bits, "mse")):
        ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
        a = fake_quantize(ours, bits, scale=scale)
        b = torch.fake_quantize_per_tensor_affine(
            theirs, scale, torch.tensor(0, dtype=torch.int32), -n, n
        )
        assert same_bits(a, b)
        grad = torch.randn(x.shape)
        a.backward(grad)
        b.backward(grad)
        assert torch.equal(ours.grad, theirs.grad)  # type: ignore[arg-type]
    scale = weight_scale(x, bits, "mse", "channel")
    zero = torch.zeros(6, dtype=torch.int32)
    theirs = torch.fake_quantize_per_channel_affine(x, scale, zero, 0, -n, n)
    assert same_bits(fake_quantize(x, bits, scale=scale), theirs)


@settings(max_examples=60, deadline=None)
@given(
    values=st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), max_size=40),
    bits=st.integers(2, 16),
    rule=st.sampled_from(RULES),
    granularity=st.sampled_from(["tensor", "channel"]),
    stochastic=st.booleans(),
)
def test_fake_quantize_is_dequantize_of_quantize_to_the_bit(
    values: list[float], bits: int, rule: str, granularity: str, stochastic: bool
) -> None:
    x = torch.tensor(values).view(-1, 2) if len(values) % 2 == 0 else torch.tensor(values)
    options = {"range_rule": rule, "granularity": granularity}
    codes = quantize(x, bits, **options, generator=generator() if stochastic else None)  # type: ignore[arg-type]
    fake = fake_quantize(x, bits, **options, generator=generator() if stochastic else None)  # type: ignore[arg-type]
    assert codes.codes.shape == x.shape
    assert codes.scale.shape == (x.shape[:1] if granularity == "channel" and rule != "wage" else ())
    assert (codes.scale > 0).all()
    assert same_bits(codes.dequantize(), fake)


def test_big_tensors_go_through_several_blocks() -> None:
    x = torch.randn(37, 5003, generator=generator())
    for granularity in ("tensor", "channel"):
        found = quantize(x, 8, granularity=granularity)  # type: ignore[arg-type]
        scale = found.scale.view(-1, 1) if granularity == "channel" else found.scale
        assert torch.equal(found.codes, (x * (1 / scale)).round().clamp(-127, 127).to(torch.int8))
        assert torch.equal(found.dequantize(), fake_quantize(x, 8, granularity=granularity))  # type: ignore[arg-type]


def test_float32_is_the_same_object() -> None:
    x = torch.randn(3)
    assert fake_quantize(x, 32) is x
    assert quantize_backward(x, 32, generator()) is x


def test_zeros_empty_and_half_precision() -> None:
    for rule in RULES:
        assert torch.equal(fake_quantize(torch.zeros(3, 4), 4, range_rule=rule), torch.zeros(3, 4))
        for shape in ((0,), (0, 3), (3, 0)):
            for granularity in ("tensor", "channel") if rule != "wage" else ("tensor",):
                empty = torch.empty(shape)
                found = quantize(empty, 4, range_rule=rule, granularity=granularity)  # type: ignore[arg-type]
                assert (
                    found.dequantize().shape
                    == fake_quantize(empty, 4, range_rule=rule).shape
                    == shape
                )
    half = torch.randn(50).bfloat16()
    assert fake_quantize(half, 4).dtype == torch.bfloat16
    assert torch.equal(fake_quantize(half, 4), quantize(half, 4).dequantize().bfloat16())


def test_a_scale_that_is_given_is_used_and_clips() -> None:
    found = quantize(torch.tensor([0.4, 1.6, -9.0, 3e38]), 3, scale=torch.tensor(1.0))
    assert found.codes.tolist() == [0, 2, -3, 3]
    noisy = quantize(
        torch.tensor([0.0, -9.0, 3e38]), 3, scale=torch.tensor(1e-30), generator=generator()
    )
    assert noisy.codes.tolist() == [0, -3, 3]
    per_channel = quantize(torch.ones(2, 1), 3, scale=torch.tensor([1.0, 0.5]))
    assert per_channel.codes.tolist() == [[1], [2]]


# ------------------------------------------------------------------------------ stochastic rounding


@pytest.mark.parametrize("bits", ALL_BITS)
def test_stochastic_rounding_is_unbiased(bits: int) -> None:
    draws = 1_000_000
    n = 2 ** (bits - 1) - 1
    for value in (0.3, -0.7, 0.5, n - 0.25):
        x = torch.full((draws,), value)
        codes = quantize(x, bits, scale=torch.tensor(1.0), generator=generator(bits)).codes.double()
        fraction = value - math.floor(value)
        sigma = math.sqrt(fraction * (1 - fraction) / draws)
        assert abs(codes.mean().item() - value) < 5 * sigma + 2**-17
        assert set(codes.unique().tolist()) == {math.floor(value), math.floor(value) + 1}


def test_noises_from_the_same_random_words_are_independent() -> None:
    """These words serve 1 << 15 elements, then again with another key."""
    x = torch.full((240 << 15,), 0.3)
    places = (
        quantize(x, 8, scale=torch.tensor(1.0), generator=generator())
        .codes.view(240, -1)[:, ::41]
        .float()
    )
    deviation = (places - 0.3) / math.sqrt(0.3 * 0.7)
    correlation = (deviation @ deviation.t() / deviation.shape[1]).fill_diagonal_(0)
    assert correlation.abs().max() < 5.5 / math.sqrt(deviation.shape[1])


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_stochastic_variance_is_the_closed_form(bits: int) -> None:
    x = torch.randn(300, generator=generator())
    scale = weight_scale(x, bits)
    fraction = (x.double() / scale.double()).frac().abs()
    expected = (scale.double() ** 2 * (fraction * (1 - fraction)).sum()).item()
    # rows of one scale, each rounded by a noise of its own
    rounded = fake_quantize(x.repeat(2000, 1), bits, generator=generator(1))
    errors = (rounded.double() - x).square().sum(1)
    assert errors.mean().item() == pytest.approx(expected, rel=0.03)


def test_stochastic_rounding_is_a_function_of_its_generator_and_of_the_values() -> None:
    x = torch.randn(8, 6, 5, 4, generator=generator())
    first = quantize(x, 4, generator=generator(3))
    assert torch.equal(first.codes, quantize(x, 4, generator=generator(3)).codes)
    assert not torch.equal(first.codes, quantize(x, 4, generator=generator(4)).codes)
    last = x.contiguous(memory_format=torch.channels_last)
    assert torch.equal(first.codes, quantize(last, 4, generator=generator(3)).codes)
    state = torch.get_rng_state()
    quantize(x, 4, generator=generator(3))
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("factor", [2.0**-20, 0.5, 4.0, 2.0**30])
def test_quantisation_is_homogeneous(factor: float) -> None:
    x = torch.randn(1000, generator=generator())
    for noise in (lambda: None, generator):
        assert torch.equal(
            fake_quantize(x * factor, 4, generator=noise()),
            factor * fake_quantize(x, 4, generator=noise()),
        )
    assert torch.equal(fake_quantize(-x, 4), -fake_quantize(x, 4))


# ---------------------------------------------------------------------------------------- gradients


@pytest.mark.parametrize("rule", ["absmax", "pow2", "wage"])
def test_gradient_is_the_identity_where_nothing_is_clipped(rule: str) -> None:
    x = torch.randn(5, 7, requires_grad=True)
    grad = torch.randn(5, 7)
    fake_quantize(x, 3, range_rule=rule).backward(grad)  # type: ignore[arg-type]
    assert torch.equal(x.grad, grad)  # type: ignore[arg-type]


def test_gradient_is_zero_where_values_are_clipped() -> None:
    x = torch.tensor([-4.0, -3.4, 0.2, 3.4, 3.6], requires_grad=True)
    fake_quantize(x, 3, scale=torch.tensor(1.0)).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [0, 1, 1, 1, 0]
    outlier = torch.cat(
        [torch.randn(20_000, generator=generator()), torch.tensor([50.0])]
    ).requires_grad_()
    fake_quantize(outlier, 2, range_rule="mse").sum().backward()
    assert outlier.grad is not None
    assert outlier.grad[-1] == 0
    assert outlier.grad[outlier.abs() < 0.5].eq(1).all()


@pytest.mark.parametrize("per_channel", [False, True])
def test_learned_scale_has_the_gradient_of_its_paper(per_channel: bool) -> None:
    """Against the numeric derivative of x + s * (round(v) - v) inside and n * s outside, the
    remainder held fixed.
    """
    bits, n = 4, 7
    x = torch.randn(6, 40, generator=generator())
    scale = torch.full((6,) if per_channel else (), 0.21)
    grad = torch.randn(x.shape, generator=generator(1))
    shaped = scale.view(-1, *[1] * (scale.dim())).double()
    v = x.double() / shaped
    inside, remainder = v.abs() < n, v.round() - v

    def loss(step: Tensor) -> Tensor:
        surrogate = torch.where(inside, x.double() + step * remainder, n * step * v.sign())
        return (surrogate * grad).sum(1) if per_channel else (surrogate * grad).sum()

    numeric = (loss(shaped + 1e-6) - loss(shaped - 1e-6)) / 2e-6
    values_per_step = 40 if per_channel else 240
    a, s = x.clone().requires_grad_(), scale.clone().requires_grad_()
    fake_quantize(a, bits, range_rule="lsq", scale=s).backward(grad)
    assert a.grad is not None
    assert s.grad is not None
    torch.testing.assert_close(
        s.grad.double(), numeric / math.sqrt(values_per_step * n), rtol=1e-4, atol=1e-5
    )
    assert torch.equal(a.grad, grad * inside)


def test_backward_quantiser_is_on_a_grid_and_unbiased() -> None:
    grad = torch.randn(400, generator=generator())
    draws = quantize_backward(grad.repeat(2000, 1), 4, generator(2))
    step = grad.abs().max() / 7
    codes = draws / step
    torch.testing.assert_close(codes, codes.round(), rtol=0, atol=1e-5)
    fraction = (grad / step).frac().abs()
    sigma = step * (fraction * (1 - fraction) / 2000).sqrt()
    assert ((draws.double().mean(0) - grad).abs() < 5 * sigma + 1e-5).all()


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_stays_visible(rule: str, value: float) -> None:
    x = torch.randn(20)
    x[3] = value
    with pytest.raises(ValueError, match="finite values, got NaN or infinity"):
        quantize(x, 8, range_rule=rule)  # type: ignore[arg-type]
    if rule != "wage" or math.isnan(value):  # a constant range clips infinity
        assert not fake_quantize(x, 8, range_rule=rule)[3].isfinite()  # type: ignore[arg-type]
    assert not quantize_backward(x, 8, generator(), range_rule=rule)[3].isfinite()  # type: ignore[arg-type]


def test_refused() -> None:
    for bits in (1, 17, 8.0, True):
        with pytest.raises(ValueError, match=r"^bits must be 2\.\.16, got "):
            quantize(torch.randn(3), bits)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^bits must be 2\.\.16, got 32"):
        quantize(torch.randn(3), 32)
    with pytest.raises(ValueError, match=r"quantize needs a floating tensor, got torch\.int64"):
        quantize(torch.arange(3), 8)
    with pytest.raises(ValueError, match=r"scale must be 0-dim or \[3\], got \[2\]"):
        quantize(torch.randn(3, 2), 8, scale=torch.ones(2))
    for wrong in (0.0, -0.5, math.nan, math.inf, 1e-40):
        for scale in (torch.tensor(wrong), torch.tensor([0.1, wrong, 0.1])):
            with pytest.raises(ValueError, match=r"^scale must be positive and finite, .* got "):
                quantize(torch.randn(3, 2), 8, scale=scale)
    with pytest.raises(
        ValueError, match="granularity 'channel' needs a tensor of at least one dimension"
    ):
        quantize(torch.tensor(1.0), 8, granularity="channel")


def test_quantized_tensor_dequantizes_per_channel() -> None:
    q = QuantizedTensor(
        torch.tensor([[[1], [2]], [[3], [-4]]], dtype=torch.int8), torch.tensor([0.5, 2.0]), 4
    )
    assert q.dequantize().tolist() == [[[0.5], [1.0]], [[6.0], [-8.0]]]
    assert q.codes.flatten().tolist() == [1, 2, 3, -4]
