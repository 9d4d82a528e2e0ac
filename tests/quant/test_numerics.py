"""What every width, granularity and kind of grid promises: all codes, errors, means, and torch as
the oracle.
"""

import pytest
import torch
from torch import Tensor

from bhfl.quant import (
    AffineTensor,
    QuantizedTensor,
    fake_quantize,
    fake_quantize_activations,
    fake_quantize_affine,
    quantize,
    quantize_affine,
    weight_scale,
)

ALL_BITS = range(2, 17)
FLOAT_MAX = torch.finfo(torch.float32).max
STEPS = torch.tensor([1.0, 0.1, 3e-7, 1.7e30, 2.0**-126])
DRAWS = 1_000_000


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rows() -> Tensor:
    """A row a kind: ordinary, shifted, one-sided, subnormal, near-maximal, constant, zero, and with
    both extremes.
    """
    x = torch.randn(8, 997, generator=generator())
    x[1] += 40
    x[2].relu_()
    x[3] *= 1e-43
    x[4] *= 1e37
    x[5], x[6] = -2.5, 0
    x[7, :2] = torch.tensor([FLOAT_MAX, -FLOAT_MAX])
    return x


def quantized(
    x: Tensor, bits: int, kind: str, granularity: str, noise: torch.Generator | None
) -> tuple[Tensor, ...]:
    """The values and, broadcasting to them, the steps."""
    found: QuantizedTensor | AffineTensor
    if kind == "symmetric":
        found = quantize(x, bits, granularity=granularity, generator=noise)  # type: ignore[arg-type]
    else:
        found = quantize_affine(x, bits, granularity=granularity, generator=noise)  # type: ignore[arg-type]
    return found.dequantize(), found.scale.view(
        -1, *[1] * (x.dim() - 1)
    ) if found.scale.dim() else found.scale


# ---------------------------------------------------------------------------------------- all codes


@pytest.mark.parametrize("bits", ALL_BITS)
def test_every_symmetric_code_of_every_channel_comes_back(bits: int) -> None:
    n = 2 ** (bits - 1) - 1
    every = torch.arange(-n, n + 1).expand(len(STEPS), -1)
    x = every.float() * STEPS.view(-1, 1)
    for scale in (STEPS, None):  # given, and found
        for noise in (None, generator()):
            found = quantize(
                x,
                bits,
                granularity="channel",
                scale=scale,
                generator=noise if scale is not None else None,
            )
            assert torch.equal(found.codes.long(), every)
    assert torch.equal(quantize(x, bits, scale=STEPS).dequantize(), x)


@pytest.mark.parametrize("bits", ALL_BITS)
def test_every_affine_code_comes_back(bits: int) -> None:
    top = 2**bits - 1
    every = torch.arange(top + 1)
    zeros = torch.tensor(sorted({0, 1, top // 3, top // 2, top - 1, top}))
    for step in (1.0, 0.1, 3e-7, 1.7e30, 2.0**-126):
        x = (every - zeros.view(-1, 1)).float() * step
        alone = [quantize_affine(row, bits) for row in x]
        together = quantize_affine(x, bits, granularity="channel")
        assert torch.equal(together.zero_point, zeros.int())
        for i, row in enumerate(alone):
            assert torch.equal(row.codes.long(), every)
            assert torch.equal(together.codes[i].long(), every)
            assert row.zero_point == zeros[i]
            torch.testing.assert_close(row.dequantize(), x[i], rtol=2**-19, atol=0)


# ------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize("granularity", ["tensor", "channel"])
@pytest.mark.parametrize("kind", ["symmetric", "affine"])
def test_errors_are_half_a_step_to_nearest_and_less_than_one_stochastically(
    kind: str, granularity: str
) -> None:
    for x in (rows(), *rows()) if granularity == "tensor" else (rows(),):
        for bits in ALL_BITS:
            for noise, most in ((None, 0.5), (generator(bits), 1.0)):
                found, step = quantized(x, bits, kind, granularity, noise)
                error = (found.double() - x.double()).abs()
                assert (error <= most * step.double() + 2**-20 * x.double().abs()).all()


@pytest.mark.parametrize("granularity", ["tensor", "channel"])
@pytest.mark.parametrize("kind", ["symmetric", "affine"])
def test_the_memory_layout_changes_nothing(kind: str, granularity: str) -> None:
    x = torch.randn(6, 5, 4, 3, generator=generator())
    layouts = (
        x.contiguous(memory_format=torch.channels_last),
        x.permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0),
        torch.stack([x, x], -1)[..., 0],
    )
    for seed in (None, 1):
        expected, _ = quantized(x, 4, kind, granularity, generator(seed) if seed else None)
        for other in layouts:
            assert torch.equal(other, x)
            assert torch.equal(
                quantized(other, 4, kind, granularity, generator(seed) if seed else None)[0],
                expected,
            )
    for other in layouts:
        assert torch.equal(fake_quantize_activations(other, 4), fake_quantize_activations(x, 4))


def test_activations_are_finite_up_to_half_a_step_below_the_largest_float() -> None:
    x = torch.tensor([FLOAT_MAX, FLOAT_MAX / 2, 0.0])
    for bits in ALL_BITS:
        # there is no step beyond: it shows
        assert not fake_quantize_activations(x, bits)[0].isfinite()
        less = x * (1 - 2.0**-bits)
        assert fake_quantize_activations(less, bits).isfinite().all()
        assert fake_quantize_affine(x, bits).isfinite().all()


# -------------------------------------------------------------------------------------------- means


@pytest.mark.parametrize("bits", [2, 5, 8, 16])
def test_each_channel_is_unbiased_over_a_million_draws(bits: int) -> None:
    n = 2 ** (bits - 1) - 1
    scale = torch.tensor([0.5, 1.0, 3.0])
    places = torch.tensor([0.3, -0.75, n - 0.125])  # in steps
    x = (places * scale).view(-1, 1).expand(-1, DRAWS)
    steps = quantize(x, bits, scale=scale, generator=generator(bits)).codes.double()
    assert_unbiased(steps, places)


@pytest.mark.parametrize("bits", [2, 5, 8, 16])
def test_affine_rounding_is_unbiased_over_a_million_draws(bits: int) -> None:
    x = torch.tensor([-1.0, 0.3, 0.77, 2.0])
    found = quantize_affine(x.view(-1, 1).expand(-1, DRAWS), bits, generator=generator(bits))
    assert_unbiased(found.codes.double() - found.zero_point, x / found.scale)


def assert_unbiased(steps: Tensor, places: Tensor) -> None:
    """Means within five sigma, and within what 16 bits of noise and float32 places can do."""
    fraction = places.double() - places.double().floor()
    sigma = (fraction * (1 - fraction) / DRAWS).sqrt()
    assert ((steps.mean(1) - places).abs() < 5 * sigma + 2**-16 + 2**-22 * places.abs()).all()
    assert (steps - places.double().view(-1, 1)).abs().max() < 1 + 2**-16 * places.abs().max()


# ------------------------------------------------------------------------------ torch as the oracle


@pytest.mark.parametrize("seed", range(5))
def test_affine_at_8_bits_is_that_of_torch_to_the_bit(seed: int) -> None:
    g = generator(seed)
    x = torch.randn(64, 1000, generator=g) * torch.rand(64, 1, generator=g) * 3 + torch.randn(
        64, 1, generator=g
    )
    whole, rowwise = quantize_affine(x, 8), quantize_affine(x, 8, granularity="channel")
    ours = {"tensor": whole, "channel": rowwise}
    theirs = {
        "tensor": torch.fake_quantize_per_tensor_affine(x, whole.scale, whole.zero_point, 0, 255),
        "channel": torch.fake_quantize_per_channel_affine(
            x, rowwise.scale, rowwise.zero_point, 0, 0, 255
        ),
    }
    for granularity, found in ours.items():
        assert torch.equal(found.dequantize(), theirs[granularity])
        assert torch.equal(fake_quantize_affine(x, 8, granularity=granularity), theirs[granularity])  # type: ignore
    assert torch.equal(fake_quantize_activations(x, 8), theirs["tensor"])


def test_gradients_per_channel_are_those_of_torch() -> None:
    x = torch.randn(6, 50, generator=generator())
    scale = weight_scale(x, 8, "mse", "channel") / 2
    grad = torch.randn(6, 50, generator=generator(1))
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    fake_quantize(ours, 8, scale=scale).backward(grad)
    zero = torch.zeros(6, dtype=torch.int32)
    torch.fake_quantize_per_channel_affine(theirs, scale, zero, 0, -127, 127).backward(grad)
    assert torch.equal(ours.grad, theirs.grad)  # type: ignore[arg-type]
    assert ours.grad.eq(0).any()  # type: ignore[union-attr]
