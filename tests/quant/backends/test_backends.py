"""Backends: other ways to compute the same layer, on the same codes."""

import copy
import itertools
import math
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from bhfl.quant import (
    BackendWarning,
    backend_choices,
    begin_round_,
    dequantize_,
    fake_quantize,
    fake_quantize_activations,
    quantize_,
    quantized_state,
    seed_,
    set_backend_,
    set_spec_,
)
from bhfl.quant.backends import codes, conv, linear

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same'")

SPECS: dict[str, Any] = {
    "int8": 8,
    "ternary": "ternary",
    "per channel": {"weights": 8, "activations": 8, "granularity": "channel"},
    "mse, few bits": {
        "weights": 3,
        "activations": 5,
        "range_rule": "mse",
        "granularity": "channel",
    },
    "lsq": {"weights": 4, "activations": 8, "range_rule": "lsq"},
    "strict8": "strict8",
    "wage2888": "wage2888",
}
CASES: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "linear": (lambda: nn.Linear(40, 24), lambda: torch.randn(33, 40)),
    "linear, one row, no bias": (lambda: nn.Linear(3, 1, bias=False), lambda: torch.randn(3)),
    "linear, four dimensions, not contiguous": (
        lambda: nn.Linear(7, 5),
        lambda: torch.randn(7, 2, 4, 3).permute(1, 2, 3, 0),
    ),
    "conv2d": (lambda: nn.Conv2d(8, 16, 3, padding=1), lambda: torch.randn(2, 8, 9, 7)),
    "conv2d, everything": (
        lambda: nn.Conv2d(
            4, 6, (3, 2), stride=(2, 3), padding=(2, 1), dilation=(1, 2), groups=2, bias=False
        ),
        lambda: torch.randn(3, 4, 11, 12),
    ),
    "conv2d, padding beyond the kernel": (
        lambda: nn.Conv2d(3, 5, 2, padding=3, stride=2),
        lambda: torch.randn(2, 3, 5, 6),
    ),
    "conv2d, depthwise, one image": (
        lambda: nn.Conv2d(4, 8, 3, groups=4),
        lambda: torch.randn(4, 6, 6),
    ),
    "conv2d, one channel": (lambda: nn.Conv2d(1, 1, 1), lambda: torch.randn(2, 1, 3, 3)),
    "conv2d, circular": (
        lambda: nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular"),
        lambda: torch.randn(2, 3, 6, 6),
    ),
    "conv2d, same": (lambda: nn.Conv2d(3, 4, 4, padding="same"), lambda: torch.randn(2, 3, 6, 6)),
    "conv2d, channels last": (
        lambda: nn.Conv2d(8, 4, 3),
        lambda: torch.randn(2, 8, 6, 6).contiguous(memory_format=torch.channels_last),
    ),
    "conv1d": (
        lambda: nn.Conv1d(4, 6, 3, stride=2, padding=2, dilation=2, groups=2),
        lambda: torch.randn(2, 4, 11).relu(),
    ),
    "conv1d, one signal": (lambda: nn.Conv1d(4, 6, 3, padding="valid"), lambda: torch.randn(4, 11)),
}


@pytest.fixture(autouse=True)
def all_reported() -> Iterator[None]:
    """A fallback that no test expects is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", BackendWarning)
        yield


@pytest.fixture(params=["oneDNN", "unfolded"])
def both_convolutions(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever gains by them."""
    if request.param == "oneDNN" and conv.onednn_fault():
        pytest.skip(conv.onednn_fault())
    monkeypatch.setattr(conv, "PIXELS_PER_OUTPUT", 0 if request.param == "oneDNN" else 1 << 62)


def twins(name: str, spec: Any, backend: str) -> tuple[nn.Module, nn.Module, Tensor]:
    """A layer by fake, its copy by another backend, an input."""
    torch.manual_seed(0)
    layer, data = CASES[name]
    fake = quantize_(layer(), spec)
    begin_round_(fake)
    other = set_backend_(copy.deepcopy(fake), backend)
    for model in (fake, other):
        seed_(model, torch.Generator().manual_seed(1))
    return fake, other, data()


def run(layer: nn.Module, x: Tensor) -> list[Tensor]:
    """Output, gradients of the input and of the parameters."""
    x = x.detach().clone().requires_grad_()
    y = layer(x)
    (
        y * (torch.arange(y.numel(), device=y.device).view_as(y) * 0.37).frac().sub(0.3)
    ).sum().backward()  # no sum cancels
    return [y.detach(), *(t.grad for t in (x, *layer.parameters()) if t.grad is not None)]


def run_with_error_on_grid(layer: nn.Module, x: Tensor) -> list[Tensor]:
    """The same for an error of int8 codes times a power of two, which needs no rounding."""
    layer.zero_grad()
    x = x.detach().clone().requires_grad_()
    y = layer(x)
    error = torch.randint(-100, 128, y.shape, generator=torch.Generator().manual_seed(3)).float()
    error.view(-1)[0] = 127
    y.backward(error / 64)
    return [y.detach(), *(t.grad.clone() for t in (x, *layer.parameters()) if t.grad is not None)]


def assert_near(found: list[Tensor], expected: list[Tensor], part: float) -> None:
    """Each within a part of the largest value of its tensor."""
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=part * max(b.abs().max().item(), 1e-6))


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("name", CASES)
@pytest.mark.usefixtures("both_convolutions")
def test_int8_is_fake_up_to_float_rounding(name: str, spec: str) -> None:
    fake, int8, x = twins(name, SPECS[spec], "int8")
    noisy = fake.spec.errors < 32  # type: ignore[union-attr,operator]
    if noisy:  # hooks round stochastically: a rounding error may move a code
        set_spec_(fake, {"weights": 8, "activations": 8, "storage": 8})
        set_spec_(int8, {"weights": 8, "activations": 8, "storage": 8})
    expected, found = run(fake, x), run(int8, x)
    assert_near(found, expected, 2e-6)
    assert [t.dtype for t in found] == [t.dtype for t in expected]
    assert found[0].stride() == expected[0].stride() or 1 in found[0].shape


@pytest.mark.parametrize("name", ["linear", "conv2d, everything", "conv1d"])
@pytest.mark.parametrize("spec", SPECS)
def test_integer_gradients_are_unbiased(name: str, spec: str) -> None:
    fake, integer, x = twins(name, SPECS[spec], "integer")
    if fake.spec.errors < 32:  # type: ignore[union-attr,operator]
        pytest.skip("the hooks add noise of their own")
    expected = run(fake, x)
    draws = []
    for _ in range(60):
        integer.zero_grad()
        draws.append(run(integer, x))
    for index, exact in enumerate(expected):
        found = torch.stack([draw[index] for draw in draws])
        sigma = found.std(0) / 60**0.5
        assert ((found.mean(0) - exact).abs() <= 5.5 * sigma + 2e-6 * exact.abs().max()).all()
    assert (draws[0][1] - expected[1]).abs().max() < 0.03 * expected[1].abs().max()
    assert not torch.equal(draws[0][1], draws[1][1])


@pytest.mark.parametrize("name", CASES)
@pytest.mark.usefixtures("both_convolutions")
def test_integer_gradients_are_exact_for_errors_on_the_grid(name: str) -> None:
    """Errors that are codes times a power of two need no rounding: then both gradients are those of
    fake.
    """
    fake, integer, x = twins(name, SPECS["int8"], "integer")
    assert_near(run_with_error_on_grid(integer, x), run_with_error_on_grid(fake, x), 2e-6)


def test_no_generator_is_needed_where_nothing_has_a_gradient() -> None:
    layer = quantize_(nn.Linear(8, 4), 8, backend="integer").requires_grad_(False)
    x = torch.randn(3, 8)
    assert layer(x).shape == (3, 4)
    with pytest.raises(ValueError, match="call seed_"):
        layer(x.requires_grad_())


def test_integer_gradients_come_from_the_generator_of_the_layer() -> None:
    _, integer, x = twins("conv2d", 8, "integer")
    draws = []
    for seed in (1, 1, 2):
        integer.zero_grad()
        seed_(integer, torch.Generator().manual_seed(seed))
        draws.append(run(integer, x)[1])
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    fresh = quantize_(nn.Linear(3, 2), 8, backend="integer")
    with pytest.raises(
        ValueError, match=r"'int8' by 'integer' rounds stochastically in backward: call seed_"
    ):
        fresh(torch.randn(4, 3))
    with torch.no_grad():
        fresh(torch.randn(4, 3))


@settings(max_examples=60, deadline=None)
@given(
    values=st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=1, max_size=40),
    bits=st.integers(2, 8),
)
def test_codes_of_inputs_are_those_of_fake_to_the_bit(values: list[float], bits: int) -> None:
    x = torch.tensor(values)
    found = codes.input_codes(x, bits)
    assert torch.equal(found.whole(torch.float32) * found.scale, fake_quantize_activations(x, bits))
    assert torch.equal(found.whole(torch.bfloat16).float(), found.whole(torch.float32))


def test_codes_of_weights_are_those_that_travel() -> None:
    for name in ("linear", "conv2d, everything"):
        for spec in SPECS.values():
            _, layer, _ = twins(name, spec, "int8")
            weight = quantized_state(layer)["weight"]
            stand_in, found, scale = layer.forward_codes()  # type: ignore[union-attr,operator]
            assert torch.equal(found, weight.codes)  # type: ignore[union-attr]
            assert torch.equal(scale, weight.scale)  # type: ignore[union-attr]
            assert stand_in.shape == layer.weight.shape


@settings(max_examples=40, deadline=None)
@example(
    size=(1, 1, 1),
    channels=(1, 2, 2),
    kernel=(1, 2),
    stride=(1, 1),
    padding=(1, 1),
    dilation=(1, 2),
    by_onednn=True,
)
@example(
    size=(1, 1, 1),
    channels=(1, 1, 2),
    kernel=(2, 3),
    stride=(1, 1),
    padding=(4, 4),
    dilation=(1, 1),
    by_onednn=True,
)
@given(
    size=st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 9)),
    channels=st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3)),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.tuples(st.integers(0, 4), st.integers(0, 4)),
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    by_onednn=st.booleans(),
)
def test_integer_convolutions_of_any_geometry(  # type: ignore[no-untyped-def]
    size, channels, kernel, stride, padding, dilation, by_onednn
) -> None:
    (batch, *image), (groups, per_group, outputs) = size, channels
    if any(
        n + 2 * p < d * (k - 1) + 1
        for n, p, d, k in zip(image, padding, dilation, kernel, strict=True)
    ):
        return
    usual = conv.PIXELS_PER_OUTPUT
    conv.PIXELS_PER_OUTPUT = 0 if by_onednn else 1 << 62
    try:
        torch.manual_seed(0)
        layer = nn.Conv2d(
            groups * per_group, groups * outputs, kernel, stride, padding, dilation, groups
        )
        # weights of a scale of 1/128, no bias: every sum of float32 is exact, also where it cancels
        with torch.no_grad():
            layer.weight.copy_(torch.randint(-127, 128, layer.weight.shape) / 128).view(-1)[0] = (
                127 / 128
            )
            layer.bias.zero_()
        x = torch.randn(batch, groups * per_group, *image)
        inputs = codes.input_codes(x.contiguous(memory_format=torch.channels_last), 8)
        values = (inputs.values.double() - inputs.zero) * inputs.scale.double()
        expected = [
            t.float() for t in run_with_error_on_grid(copy.deepcopy(layer).double(), values)
        ]
        quantised = quantize_(layer, 8)
        seed_(quantised, torch.Generator())
        for backend in ("int8", "integer"):
            assert_near(run_with_error_on_grid(set_backend_(quantised, backend), x), expected, 3e-6)
    finally:
        conv.PIXELS_PER_OUTPUT = usual


@pytest.mark.parametrize("backend", ["int8", "int8-bfloat16", "integer"])
def test_zero_constant_and_empty_inputs(backend: str) -> None:
    model = quantize_(
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 2)), 8, backend=backend
    )
    seed_(model, torch.Generator())
    for x in (
        torch.zeros(2, 3, 4, 4),
        torch.full((2, 3, 4, 4), 2.5),
        torch.full((2, 3, 4, 4), -1e-30),
    ):
        found = run(model, x)
        expected = run(set_backend_(copy.deepcopy(model), "fake"), x)[0]
        torch.testing.assert_close(found[0], expected)
        assert all(t.isfinite().all() for t in found)
        set_backend_(model, backend)
    assert torch.equal(
        model[0](torch.zeros(1, 3, 4, 4)), model[0].bias.view(1, 4, 1, 1).expand(1, 4, 2, 2)
    )
    model(torch.empty(0, 3, 4, 4)).sum().backward()
    nn.init.zeros_(model[2].weight)
    assert all(t.isfinite().all() for t in run(model, torch.randn(2, 3, 4, 4)))
    for model[0].padding, worst in itertools.product([(0, 0), (1, 1)], ["nan", "inf", "-inf"]):
        x = torch.full((2, 3, 4, 4), float(worst))
        assert not model[0](x).isfinite().any()


@pytest.mark.parametrize("spec", ["lsq", "strict8", "wage2888"])
def test_a_weight_that_becomes_nan_shows(spec: str) -> None:
    model = quantize_(nn.Linear(4, 3), SPECS[spec], backend="int8")
    begin_round_(model)
    nn.init.constant_(model.weight, math.nan)
    with torch.no_grad():
        assert model(torch.ones(2, 4)).isnan().all()


@pytest.mark.parametrize("backend", ["int8", "int8-bfloat16", "integer"])
def test_float32_and_frozen_and_eval_and_copies(backend: str) -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 2))
    x = torch.randn(2, 3, 4, 4)
    model = quantize_(copy.deepcopy(plain), 32, backend=backend)
    for a, b in zip(run(model, x), run(plain, x), strict=True):
        assert torch.equal(a, b)
    set_spec_(model, 8)
    seed_(model, torch.Generator())
    assert [m.backend for m in (model[0], model[2])] == [backend] * 2
    assert {
        k: v.data_ptr() for k, v in model.state_dict().items()
    }.keys() == plain.state_dict().keys()
    model.load_state_dict(plain.state_dict())
    twin = copy.deepcopy(model)
    assert torch.equal(model(x), twin(x))
    model.requires_grad_(False)
    inputs = x.clone().requires_grad_()
    model(inputs).sum().backward()
    assert inputs.grad is not None
    with torch.inference_mode():
        assert torch.equal(model.eval()(x), twin(x))
    assert vars(dequantize_(model)[2]).keys() == vars(plain[2]).keys()


@pytest.mark.parametrize("name", ["linear", "conv2d"])
def test_bfloat16(name: str) -> None:
    """Backward in bfloat16 by name, and under autocast as all else is."""
    fake, other, x = twins(name, 8, "int8-bfloat16")
    expected = run(fake, x)
    assert_near(run(other, x), expected, 0.02)
    assert torch.allclose(other(x), expected[0], atol=1e-5)
    set_backend_(other, "int8")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        other.zero_grad()
        found = run(other, x)
    assert found[0].dtype == torch.bfloat16
    assert_near([t.float() for t in found], expected, 0.02)
    fake, other = fake.bfloat16(), other.bfloat16()
    other.zero_grad()
    fake.zero_grad()
    found = run(other, x.bfloat16())
    assert {t.dtype for t in found} == {torch.bfloat16}
    assert_near(found, run(fake, x.bfloat16()), 0.02)


@pytest.mark.parametrize("backend", ["int8", "integer"])
def test_codes_are_what_is_kept_for_backward(backend: str) -> None:
    layer = quantize_(nn.Conv2d(16, 16, 3, padding=1), 8, backend=backend)
    seed_(layer, torch.Generator())
    kept: list[Tensor] = []
    x = torch.randn(8, 16, 10, 10)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):  # type: ignore[func-returns-value]
        layer(x)
    sizes = {t.numel() * t.element_size() for t in kept if t.shape == x.shape}
    assert sizes == {x.numel()}


# ---------------------------------------------------------------------------------------- fallbacks


def test_what_a_backend_cannot_compute_is_reported_once_and_computed_by_fake(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = quantize_(nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 2)), 12, backend="int8")
    x = torch.randn(3, 6)
    with pytest.warns(
        BackendWarning,
        match="'int8' cannot compute a QuantLinear: it needs weights and .* got 12, 12",
    ):
        found = model(x)
    assert torch.equal(model(x), found)  # no second warning, which would be an error here
    assert torch.equal(found, set_backend_(copy.deepcopy(model), "fake")(x))
    assert backend_choices(model) == {"0": "fake", "1": "fake"}
    assert "spec=int12, backend=int8 (fake)" in repr(model)
    set_spec_(model, 8)
    assert backend_choices(model) == {"0": "int8", "1": "int8"}
    assert "spec=int8, backend=int8)" in repr(model)
    monkeypatch.setattr(
        linear, "int_mm_fault", lambda device: f"torch._int_mm is not exact on {device}"
    )
    with pytest.warns(
        BackendWarning,
        match="cannot compute a QuantLinear: torch._int_mm is not exact on cpu; it runs",
    ):
        assert torch.equal(model(x), set_backend_(copy.deepcopy(model), "fake")(x))


@pytest.mark.parametrize("backend", ["int8", "int8-bfloat16", "integer"])
@pytest.mark.parametrize("name", ["conv2d", "conv1d"])
def test_a_device_without_integer_products_is_reported_for_convolutions_too(
    name: str, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake, other, x = twins(name, 8, backend)
    monkeypatch.setattr(
        conv, "int_mm_fault", lambda device: f"torch._int_mm does not run on {device}"
    )
    with pytest.warns(
        BackendWarning,
        match=f"'{backend}' cannot compute a QuantConv.d: torch._int_mm does not run on",
    ):
        assert torch.equal(other(x), fake(x))
    assert backend_choices(other) == {"": "fake"}
    assert backend_choices(set_backend_(other, "auto")) == {"": "fake"}


def test_sums_that_32_bits_may_not_hold_are_left_to_fake() -> None:
    with torch.device("meta"):
        layers = [nn.Linear(70_000, 2), nn.Conv2d(8000, 2, 3), nn.Conv2d(800, 2, 3)]
    products = (linear.Linear(), conv.Conv())
    found = [
        p.fault(m.weight.shape, m.weight.device) for p, m in zip(products, layers, strict=False)
    ]  # type: ignore
    assert found == [
        f"sums of {n} products may not fit into 32 bits (65793 do)" for n in (70_000, 72_000)
    ]


def test_int_mm_fault_says_what_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(a: Tensor, b: Tensor) -> Tensor:
        raise RuntimeError("not here\nsecond line")

    linear.int_mm_fault.cache_clear()
    monkeypatch.setattr(linear, "int_mm", broken)
    assert linear.int_mm_fault("cpu") == "torch._int_mm does not run on cpu (not here)"
    linear.int_mm_fault.cache_clear()
    monkeypatch.setattr(linear, "int_mm", lambda a, b: (a.int() @ b.int()).clamp(-1000, 1000))
    assert linear.int_mm_fault("cpu") == "torch._int_mm is not exact on cpu"
    linear.int_mm_fault.cache_clear()


@pytest.mark.parametrize("shape", [(1, 1, 1), (16, 8, 8), (17, 9, 15), (40, 3, 16)])
def test_products_on_cuda_have_the_shapes_that_it_takes(
    shape: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    m, k, n = shape
    a, b = torch.randint(-128, 128, (m, k)), torch.randint(-128, 128, (n, k))

    def on_cuda(a: Tensor, b: Tensor) -> Tensor:
        assert a.shape[0] > 16
        assert not any(size % 8 for size in (*b.shape, a.shape[1]))
        return a.int() @ b.int()

    monkeypatch.setattr(torch, "_int_mm", on_cuda)
    found = linear._filled_up(a.to(torch.int8), b.to(torch.int8).t())
    assert torch.equal(found, (a @ b.t()).int())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("backend", ["int8", "int8-bfloat16", "integer"])
@pytest.mark.parametrize("name", CASES)
def test_cuda(name: str, backend: str) -> None:
    fake, other, x = twins(name, SPECS["per channel"], backend)
    with torch.backends.cudnn.flags(allow_tf32=False):
        expected, found = run(fake.cuda(), x.cuda()), run(other.cuda(), x.cuda())
    assert_near(found[:1], expected[:1], 2e-5)
    assert_near(found, expected, 2e-5 if backend == "int8" else 0.1)
    assert linear.int_mm_fault("cuda:0") == ""


def test_many_rows_are_multiplied_in_slices() -> None:
    g = torch.full((80_000, 8), 127, dtype=torch.int8)
    x = torch.full((80_000, 8), -128, dtype=torch.int8)
    assert (
        linear.weight_sums([(g, x)], torch.tensor(127, dtype=torch.int32)) == -80_000.0 * 127 * 255
    ).all()


@pytest.mark.parametrize(("batch", "by_onednn"), [(8, False), (9, True)])
def test_onednn_multiplies_where_pixels_make_up_for_its_order_of_weights(
    batch: int, by_onednn: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if conv.onednn_fault():
        pytest.skip(conv.onednn_fault())
    used = []
    monkeypatch.setattr(conv, "_onednn", lambda *args: used.append(args) or conv._unfolded(*args))  # type: ignore[func-returns-value]
    quantize_(nn.Conv2d(2, 8, 3, padding=1), 8, backend="int8")(torch.randn(batch, 2, 8, 8))
    assert bool(used) == by_onednn


def test_few_rows_are_summed_in_integers_and_more_than_fit_in_floats() -> None:
    g = torch.randint(-128, 128, (60_000, 3)).to(torch.int8)
    x = torch.randint(-128, 128, (60_000, 5)).to(torch.int8)
    few = linear.weight_sums(zip(g.split(9000), x.split(9000), strict=True), None)
    assert few.dtype == torch.int32
    assert torch.equal(few, (g.long().t() @ x.long()).int())
    assert linear.weight_sums([(g, x)] * 2, None).dtype == torch.float32


def test_names() -> None:
    with pytest.raises(
        ValueError,
        match=r"^backend must be one of fake, int8, .* got 'in8' \(did you mean 'int8'\?\)",
    ):
        quantize_(nn.Linear(2, 2), 8, backend="in8")
    with pytest.raises(
        ValueError, match=r"^no Quant\* layers to compute by 'int8' in Linear: call quantize_ first"
    ):
        set_backend_(nn.Linear(2, 2), "int8")
    model = quantize_(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Embedding(3, 2)), 8)
    set_backend_(model, "int8", lambda name, _: name != "0")
    assert backend_choices(model) == {"0": "fake", "1": "int8", "2": "fake"}
    assert fake_quantize(model[0].weight, 8).shape == (2, 2)


@pytest.mark.parametrize("backend", ["int8", "integer", "auto"])
@pytest.mark.parametrize(
    ("make", "shape", "dtype"),
    [
        (lambda: nn.Linear(8, 8), (2, 7), torch.float32),
        (lambda: nn.Linear(8, 8), (2, 8), torch.int64),
        (lambda: nn.Conv1d(8, 8, 3), (2, 16, 9), torch.float32),
        (lambda: nn.Conv2d(8, 8, 3, groups=4), (2, 12, 9, 9), torch.float32),
        (lambda: nn.Conv2d(8, 8, 3), (8, 9), torch.float32),
        (lambda: nn.Conv2d(8, 8, (3, 5), padding=(1, 0)), (2, 8, 1, 4), torch.float32),
    ],
)
def test_what_torch_refuses_is_refused_in_its_words(
    make: Callable[[], nn.Module], shape: tuple[int, ...], dtype: torch.dtype, backend: str
) -> None:
    x = torch.ones(shape, dtype=dtype)
    messages = []
    for kind in ("fake", backend):
        layer = quantize_(make(), 8, backend=kind)
        seed_(layer, torch.Generator())
        with pytest.raises(RuntimeError) as refused:
            layer(x)
        messages.append(str(refused.value))
    assert messages[0] == messages[1]


def test_a_parametrized_weight_is_computed_once_a_forward() -> None:
    layer = quantize_(nn.utils.parametrizations.spectral_norm(nn.Linear(8, 8)), 8, backend="int8")
    computed: list[object] = []
    layer.parametrizations.weight[0].register_forward_hook(lambda *args: computed.append(args))  # type: ignore
    layer(torch.randn(2, 8))
    assert len(computed) == 1


def test_an_embedding_says_that_it_runs_as_fake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bhfl.quant.backends.base._REPORTED", set())
    with pytest.warns(
        BackendWarning, match="'int8' cannot compute a QuantEmbedding: it has no integer product"
    ):
        quantize_(nn.Embedding(8, 8), 8, backend="int8")(torch.tensor([1]))
