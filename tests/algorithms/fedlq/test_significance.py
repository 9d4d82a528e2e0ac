"""Variance in closed form against draws, probing without a trace, curvature on a loss whose
curvature is known.
"""

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from bhfl.algorithms.fedlq.allocation import allocate
from bhfl.algorithms.fedlq.moves import coded, squared_errors
from bhfl.algorithms.fedlq.significance import (
    Probe,
    curvature,
    layer_costs,
    probe,
    significance,
    variance_table,
)
from bhfl.quant import layer_weights, quantize


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def small_model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(4 * 36, 8),
        nn.Linear(8, 3),
    )


def classification(model: nn.Module) -> tuple[float, float]:
    x = torch.randn(32, 1, 8, 8, generator=generator(1))
    y = torch.randint(3, (32,), generator=generator(2))
    output = model(x)
    return float(nn.functional.cross_entropy(output, y)), float(
        (output.argmax(1) == y).float().mean()
    )


def made_probe(
    harm: list[list[float]], distortion: list[list[float]], sizes: tuple[int, ...]
) -> Probe:
    names = tuple(f"layer{number}" for number in range(len(harm)))
    tables = (torch.tensor(table, dtype=torch.float64) for table in (harm, distortion))
    return Probe(names, sizes, (2, 4), *tables)


def quantization_variance(x: Tensor, bits: int) -> float:
    return variance_table([x], [bits]).item()


# --- variance -------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_variance_is_that_of_the_wire_quantiser(bits: int) -> None:
    x, random = torch.randn(40, 50, generator=generator(bits)), generator()
    draws = [
        (quantize(x, bits, generator=random).dequantize() - x).double().square().sum()
        for _ in range(400)
    ]
    assert quantization_variance(x, bits) == pytest.approx(
        float(torch.stack(draws).mean()), rel=0.03
    )


@pytest.mark.parametrize("bits", [0, 1, 2, 3, 4, 8, 32])
def test_what_is_carried_is_less_than_there_is(bits: int) -> None:
    # a few entries many times the others, as differences have
    x = torch.randn(40, 50, generator=generator()) ** 3
    error = squared_errors([x], [bits], coded).item()
    whole = float(x.double().square().sum())
    if bits in (0, 32):
        assert error == (0.0 if bits else whole)
    else:
        sent = coded(x, bits).dequantize()
        assert error == pytest.approx(float((x - sent).double().square().sum()))
        assert error < 0.9 * whole
    if bits == 2:
        assert quantization_variance(x, bits) > 4 * whole


@pytest.mark.parametrize("bits", [2, 4, 6])
def test_variance_is_that_of_textbook_qsgd(bits: int) -> None:
    x = torch.randn(300, generator=generator(bits), dtype=torch.float64)
    step = x.abs().max() / (2 ** (bits - 1) - 1)
    position = x.abs() / step
    noise = torch.rand(8000, len(x), generator=generator(7), dtype=torch.float64)
    codes = position.floor() + (noise < position.frac())
    error = float(((codes - position) * step).square().sum(1).mean())
    assert quantization_variance(x, bits) == pytest.approx(error, rel=0.03)


@given(
    st.integers(0, 10**6), st.integers(1, 400), st.sampled_from([2, 3, 5, 8]), st.floats(0.01, 100)
)
@settings(max_examples=60, deadline=None)
def test_variance_stays_below_its_bound_and_scales_with_the_square(
    seed: int, size: int, bits: int, factor: float
) -> None:
    x = torch.randn(size, generator=generator(seed), dtype=torch.float64)
    levels = 2 ** (bits - 1) - 1
    linf = quantization_variance(x, bits)
    energy = float(x.square().sum())
    assert linf <= size * float(x.abs().max()) ** 2 / (4 * levels**2) * (1 + 1e-5)
    assert quantization_variance(factor * x, bits) / factor**2 == pytest.approx(
        linf, rel=1e-3, abs=1e-5 * energy
    )


def test_variance_falls_to_a_quarter_with_every_bit() -> None:
    x = torch.randn(20_000, generator=generator())
    variances = [quantization_variance(x, bits) for bits in range(2, 13)]
    ratios = [later / earlier for earlier, later in pairwise(variances)]
    assert all(ratio < 1 for ratio in ratios)
    assert all(0.23 < ratio < 0.27 for ratio in ratios[3:])


def test_nothing_is_lost_at_32_bits_on_the_grid_or_of_zeros() -> None:
    assert quantization_variance(torch.randn(9), 32) == 0
    assert quantization_variance(torch.zeros(3, 3), 2) == 0
    assert quantization_variance(torch.empty(0), 2) == 0
    assert quantization_variance(torch.tensor([-7.0, 3.0, 0.0, 5.0]), 4) == pytest.approx(
        0, abs=1e-5
    )


def test_tables_have_a_row_a_layer() -> None:
    tensors = [torch.randn(5, 4), torch.zeros(3)]
    table = variance_table(tensors, (2, 8, 32))
    assert table.shape == (2, 3)
    assert table[0, 1] == quantization_variance(tensors[0], 8)
    assert torch.equal(layer_costs(torch.tensor([4.0, 1.0]), table)[0], 2 * table[0])


# --- probing --------------------------------------------------------------------------------------


def test_probe_quantises_one_layer_at_a_time_and_leaves_no_trace() -> None:
    model = small_model()
    model[1].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    addresses = {name: value.data_ptr() for name, value in model.state_dict().items()}
    flags = [module.training for module in model.modules()]
    layers, seen = layer_weights(model), []

    def evaluate(probed: nn.Module) -> tuple[float, float]:
        assert not any(module.training for module in probed.modules())
        changed = [
            name
            for name, value in probed.state_dict().items()
            if not torch.equal(value, before[name])
        ]
        seen.append(changed)
        for name in changed:
            bits = (2, 4)[(len(seen) - 2) % 2]
            assert torch.equal(
                probed.get_parameter(name), quantize(before[name], bits).dequantize()
            )
        return classification(probed)

    found = probe(model, layers, (2, 4), evaluate)
    assert seen == [[], *([layer] for layer in layers for _ in range(2))]
    assert found.layers == ("0.weight", "4.weight", "5.weight")
    assert found.sizes == (36, 1152, 24)
    assert (found.harm >= 0).all()
    assert (found.distortion[:, 0] > found.distortion[:, 1]).all()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert addresses == {name: value.data_ptr() for name, value in model.state_dict().items()}
    assert flags == [module.training for module in model.modules()]


@pytest.mark.parametrize("failing_call", [1, 2, 5])
def test_probe_restores_the_model_when_evaluation_fails(failing_call: int) -> None:
    model, calls = small_model(), []
    before = {name: value.clone() for name, value in model.state_dict().items()}

    def evaluate(_: nn.Module) -> tuple[float, float]:
        calls.append(1)
        if len(calls) == failing_call:
            raise KeyboardInterrupt
        return 1.0, 0.5

    with pytest.raises(KeyboardInterrupt):
        probe(model, layer_weights(model), (2, 4), evaluate, generator=generator())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.training


def test_stochastic_probes_depend_on_their_generator_alone() -> None:
    model = small_model()
    found = [
        probe(model, ["4.weight"], (2, 3), classification, generator=generator(seed))
        for seed in (5, 5, 6)
    ]
    assert torch.equal(found[0].harm, found[1].harm)
    assert not torch.equal(found[0].distortion, found[2].distortion)


def test_harm_may_be_measured_in_accuracy() -> None:
    model = nn.Linear(2, 2)
    losses = iter([(1.0, 0.9), (1.5, 0.7), (0.5, 0.95)])
    found = probe(model, ["weight"], (2, 4), lambda _: next(losses), metric="accuracy")
    assert found.harm.tolist() == [[pytest.approx(0.2), 0.0]]


def test_an_unused_layer_does_no_harm_and_gets_the_fewest_bits() -> None:
    class Unused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.Linear(64, 3), nn.Linear(64, 3)

        def forward(self, x: Tensor) -> Tensor:
            flat = x.flatten(1)
            result: Tensor = self.used(flat) + 0 * self.unused(flat)
            return result

    torch.manual_seed(0)
    model = Unused()
    layers = layer_weights(model)
    x = torch.randn(32, 64)
    wanted = model(x).detach()
    found = probe(
        model, layers, (2, 4), lambda probed: (float((probed(x) - wanted).square().mean()), 0.0)
    )
    assert (found.harm[0] > 0).all()
    assert torch.equal(found.harm[1], torch.zeros(2, dtype=torch.float64))
    assert significance(found)[1] == 0
    tensors = [model.get_parameter(name).detach() for name in layers]
    costs = layer_costs(curvature(found, shrinkage=1.0), variance_table(tensors, (2, 4, 8)))
    assert allocate(costs, found.sizes, (2, 4, 8), 2 * 192 * 6).bits == (8, 2)


def test_a_loss_that_is_no_number_names_the_layer() -> None:
    losses = iter([1.0, 1.0, math.nan])
    with pytest.raises(
        ValueError,
        match=r"must return a finite loss, got nan for the model with 4\.weight at 4 bits",
    ):
        probe(small_model(), ["4.weight"], (2, 4), lambda _: (next(losses), 0.0))
    with pytest.raises(
        ValueError, match="must return a finite loss, got inf for the model untouched"
    ):
        probe(small_model(), ["4.weight"], (2, 4), lambda _: (math.inf, 0.0))


# --- curvature and significance -------------------------------------------------------------------


def quadratic(
    optimum: list[Tensor], curvatures: list[float]
) -> Callable[[nn.Module], tuple[float, float]]:
    """Loss `sum_l h_l ||w_l - w*_l||^2 / 2`."""

    def evaluate(model: nn.Module) -> tuple[float, float]:
        distances = [
            (w.double() - o).square().sum()
            for w, o in zip(model.parameters(), optimum, strict=True)
        ]
        return float(
            sum(h * distance / 2 for h, distance in zip(curvatures, distances, strict=True))
        ), 0.0

    return evaluate


@pytest.mark.parametrize("offset", [0.0, 0.02])
def test_curvature_of_a_quadratic_is_found_within_ten_percent(offset: float) -> None:
    torch.manual_seed(3)
    model = nn.Sequential(*(nn.Linear(width, 100, bias=False) for width in (50, 100, 200)))
    wanted = [0.1, 5.0, 1.0]
    optimum = [
        w.detach().double() + offset * w.detach().std() * torch.randn_like(w)
        for w in model.parameters()
    ]
    found = probe(
        model, layer_weights(model), (2, 4), quadratic(optimum, wanted), generator=generator()
    )
    assert curvature(found, shrinkage=1.0).tolist() == pytest.approx(wanted, rel=0.1)
    expected = [[quantization_variance(w, bits) for bits in (2, 4)] for w in model.parameters()]
    assert found.distortion.tolist() == [pytest.approx(row, rel=0.05) for row in expected]


def test_curvature_is_a_median_shrunk_towards_the_mean() -> None:
    found = made_probe([[1.0, 3.0], [4.0, 4.0]], [[1.0, 1.0], [2.0, 2.0]], (10, 10))
    assert curvature(found, 1.0).tolist() == [4.0, 4.0]
    found = made_probe([[1.0, 1.0], [3.0, 3.0]], [[1.0, 1.0], [1.0, 1.0]], (10, 10))
    assert curvature(found, 1.0).tolist() == [2.0, 6.0]
    assert curvature(found, 0.5).tolist() == [3.0, 5.0]
    assert curvature(found, 0.0).tolist() == [4.0, 4.0]


def test_curvature_without_evidence_is_neutral() -> None:
    on_the_grid = made_probe([[1.0, 1.0], [0.0, 0.0]], [[1.0, 1.0], [0.0, 0.0]], (10, 10))
    assert curvature(on_the_grid, 1.0).tolist() == [2.0, 2.0]
    harmless = made_probe([[0.0, 0.0], [0.0, 0.0]], [[1.0, 1.0], [0.0, 0.0]], (10, 10))
    assert curvature(harmless, 1.0).tolist() == [1.0, 1.0]


def test_significance_is_harm_share_over_memory_share() -> None:
    found = made_probe([[3.0, 1.0], [1.0, 1.0]], [[1.0, 1.0], [1.0, 1.0]], (100, 300))
    assert significance(found).tolist() == pytest.approx([0.625 / 0.25, 0.375 / 0.75])
    assert significance(found, "convex").tolist() == pytest.approx(
        [(0.625 + 0.75) / 2, (0.375 + 0.25) / 2]
    )
    harmless = made_probe([[0.0, 0.0], [0.0, 0.0]], [[1.0, 1.0], [1.0, 1.0]], (100, 300))
    assert significance(harmless).tolist() == [1.0, 1.0]


def test_refreshes_are_averaged() -> None:
    old = made_probe([[1.0, 1.0]], [[2.0, 2.0]], (10,))
    new = made_probe([[2.0, 0.0]], [[1.0, 1.0]], (10,))
    assert new.blend(old, decay=0.7).harm.tolist() == [pytest.approx([1.3, 0.7])]
    assert new.blend(old, decay=0.7).distortion.tolist() == [pytest.approx([1.7, 1.7])]
    assert torch.equal(new.blend(old, decay=0.0).harm, new.harm)
