"""Range rules."""

from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bhfl.quant import fake_quantize, quantize, quantize_affine, wage_alpha, weight_scale
from bhfl.quant.ranges import wage_shift


def squared_error(x: Tensor, bits: int, rule: str, granularity: str = "tensor") -> Tensor:
    found = fake_quantize(x, bits, range_rule=rule, granularity=granularity)  # type: ignore[arg-type]
    error = (found.double() - x.double()).square()
    return error.sum() if granularity == "tensor" else error.flatten(1).sum(1)


@settings(max_examples=80, deadline=None)
@given(
    values=st.lists(
        st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=60
    ),
    bits=st.integers(2, 16),
)
def test_mse_is_never_worse_than_absmax(values: list[float], bits: int) -> None:
    x = torch.tensor(values)
    assert squared_error(x, bits, "mse") <= squared_error(x, bits, "absmax") * (1 + 1e-9)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("shape", [(64, 32, 3, 3), (10, 100), (1, 3), (300, 500)])
def test_mse_per_channel_is_never_worse_than_absmax_in_any_channel(
    bits: int, shape: tuple[int, ...]
) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)) ** 3
    x[0] = 0
    assert (
        squared_error(x, bits, "mse", "channel") <= squared_error(x, bits, "absmax", "channel")
    ).all()


@pytest.mark.parametrize(("bits", "gain"), [(2, 4.0), (3, 3.5), (4, 2.5)])
def test_mse_finds_the_known_optimum_of_a_normal_distribution(bits: int, gain: float) -> None:
    x = torch.randn(300_000, generator=torch.Generator().manual_seed(0))
    # uniform symmetric grids of 3, 7 and 15 levels
    optimal_step = {2: 1.224, 3: 0.5224, 4: 0.3019}[bits]
    optimum = (fake_quantize(x, bits, scale=torch.tensor(optimal_step)).double() - x).square().sum()
    found = squared_error(x, bits, "mse")
    assert found <= optimum * 1.02
    assert found * gain < squared_error(x, bits, "absmax")


def test_mse_searches_every_channel_with_enough_of_it() -> None:
    x = torch.randn(512, 64, 3, 3, generator=torch.Generator().manual_seed(0))
    optimum = (
        (fake_quantize(x, 3, scale=torch.tensor(0.5224)).double() - x).square().flatten(1).sum(1)
    )
    assert (squared_error(x, 3, "mse", "channel") / optimum).mean() < 1.02


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
@pytest.mark.parametrize("shape", [(64, 256), (24, 7, 3, 3)])
@pytest.mark.parametrize("values", [torch.distributions.Normal, torch.distributions.Laplace])
def test_mse_is_close_to_the_best_of_a_thousand_scales(
    values: Any, shape: tuple[int, ...], bits: int
) -> None:
    torch.manual_seed(0)
    x = values(0.0, 1.0).sample(shape)
    groups = {"tensor": x.flatten().unsqueeze(0), "channel": x.flatten(1)}
    for granularity, rows in groups.items():
        widest = rows.abs().amax(1) / (2 ** (bits - 1) - 1)
        tried = [
            fake_quantize(rows, bits, scale=widest * part, granularity="channel")
            for part in torch.linspace(0.05, 1.0, 1000)
        ]
        best = torch.stack([(found - rows).square().sum(1) for found in tried]).amin(0)
        found = squared_error(x, bits, "mse", granularity)
        assert (found / best).mean() < 1.1


def test_another_granularity_is_refused() -> None:
    for function in (weight_scale, quantize, fake_quantize, quantize_affine):
        with pytest.raises(
            ValueError, match=r"^granularity must be one of tensor, channel, got 'row'"
        ):
            function(torch.randn(3, 4), 8, granularity="row")  # type: ignore[arg-type]


@pytest.mark.parametrize("granularity", ["tensor", "channel"])
@pytest.mark.parametrize(
    ("shape", "period"), [((128, 128, 3, 3), 9), ((96, 48, 3, 3), 3), ((1024, 1024), 128)]
)
def test_mse_sees_every_tap_and_column(
    shape: tuple[int, ...], period: int, granularity: Any
) -> None:
    """Every ``period``-th value is twenty times smaller than the others."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    x.view(-1)[::period] /= 20
    shuffled = x.flatten(1)[
        :, torch.randperm(x[0].numel(), generator=torch.Generator().manual_seed(1))
    ].view(shape)
    seen, known = (squared_error(values, 3, "mse", granularity).sum() for values in (x, shuffled))
    assert seen < 1.05 * known


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("power", [0, 1, 5], ids=["uniform", "normal", "heavy"])
@pytest.mark.parametrize("unit", [1e-37, 1.0, 1e35])
def test_mse_finds_the_same_in_all_ways(
    bits: int, power: int, unit: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scales that are passed over, and sums that are broken off, change nothing."""
    generator = torch.Generator().manual_seed(bits)
    x = torch.randn(70_000, generator=generator) ** power if power else torch.rand(70_000) - 0.5
    x = (x * unit).view(70, 10, 10, 10).contiguous(memory_format=torch.channels_last)
    found = weight_scale(x, bits, "mse")
    monkeypatch.setattr("bhfl.quant.ranges._CLEAR", 0.0)
    monkeypatch.setattr("bhfl.quant.ranges._LIKELY", 0.0)
    assert torch.equal(weight_scale(x, bits, "mse"), found)


def test_mse_is_one_compiled_graph_with_the_same_scale() -> None:
    torch.compiler.reset()
    find = torch.compile(partial(weight_scale, range_rule="mse"), backend="eager", fullgraph=True)
    # the second of other sizes is compiled with sizes that are symbols
    for shape in [(40, 30), (64, 33)]:
        x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(find(x, 3), weight_scale(x, 3, range_rule="mse"))


@pytest.mark.parametrize("rule", ["absmax", "mse", "lsq", "pow2", "wage"])
def test_every_rule_has_the_shape_of_its_scale_without_values(rule: str) -> None:
    weight = torch.empty(4, 9, device="meta")
    assert weight_scale(weight, 2, rule).shape == ()
    if rule != "wage":
        assert weight_scale(weight, 4, rule, "channel").shape == (4,)


def test_mse_beats_absmax_under_an_outlier_and_does_not_depend_on_the_layout() -> None:
    x = torch.randn(16, 32, 9, 9, generator=torch.Generator().manual_seed(0))
    x[3, 3, 3, 3] = 60
    assert squared_error(x, 4, "mse") * 10 < squared_error(x, 4, "absmax")
    last = x.contiguous(memory_format=torch.channels_last)
    assert torch.equal(weight_scale(x, 4, "mse"), weight_scale(last, 4, "mse"))


def test_absmax_pow2_and_lsq_by_formula() -> None:
    x = torch.tensor([[0.3, -5.0], [4.0, 1.0]])
    assert weight_scale(x, 8) == torch.tensor(5.0) / 127
    assert torch.equal(weight_scale(x, 8, granularity="channel"), torch.tensor([5.0, 4.0]) / 127)
    assert weight_scale(x, 8, "pow2") == torch.tensor(8.0) / 127
    assert torch.equal(weight_scale(x, 8, "pow2", "channel"), torch.tensor([8.0, 4.0]) / 127)
    torch.testing.assert_close(weight_scale(x, 4, "lsq"), 2 * x.abs().mean() / 7**0.5)
    torch.testing.assert_close(weight_scale(x, 4, "lsq", "channel"), 2 * x.abs().mean(1) / 7**0.5)


def test_wage_constants() -> None:
    # fan-ins of VGG-7 at two bits, by hand: 0.75 / sqrt(6 / fan_in), to the nearest power of two
    assert [wage_alpha(num_inputs, 2) for num_inputs in (27, 1152, 2304, 4608, 8192, 1024)] == [
        2,
        8,
        16,
        16,
        32,
        8,
    ]
    assert wage_alpha(4, 2) == 1
    assert weight_scale(torch.randn(5, 128, 3, 3), 2, "wage") == 0.5 / 8


@pytest.mark.parametrize(
    ("largest", "shift"),
    [(1.0, 1.0), (1.4, 1.0), (1.42, 2.0), (0.7, 0.5), (0.71, 1.0), (-3e-5, 2.0**-15), (0.0, 0.5)],
)
def test_wage_shift_is_the_nearest_power_of_two(largest: float, shift: float) -> None:
    assert wage_shift(torch.tensor([0.0, largest, largest / 3])) == shift
