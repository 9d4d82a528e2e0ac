"""Quantised layers against the float layers they replace."""

import copy
import io
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from bhfl.quant import (
    BitSpec,
    QuantConv1d,
    QuantConv2d,
    QuantEmbedding,
    QuantLayer,
    QuantLinear,
    fake_quantize,
    fake_quantize_activations,
    quantize_,
    seed_,
    set_spec_,
)

Case = tuple[Callable[[], nn.Module], Callable[[], Tensor]]
CASES: dict[str, Case] = {
    "linear": (lambda: nn.Linear(7, 5), lambda: torch.randn(4, 7)),
    "linear without bias, three dimensions": (
        lambda: nn.Linear(7, 5, bias=False),
        lambda: torch.randn(2, 3, 7),
    ),
    "linear, not contiguous": (lambda: nn.Linear(7, 5), lambda: torch.randn(7, 4).t()),
    "conv1d, dilated, groups": (
        lambda: nn.Conv1d(4, 6, 3, padding=2, dilation=2, groups=2),
        lambda: torch.randn(2, 4, 11),
    ),
    "conv2d, strided, groups": (
        lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2, bias=False),
        lambda: torch.randn(2, 4, 9, 8),
    ),
    "conv2d, depthwise, not contiguous": (
        lambda: nn.Conv2d(4, 8, (3, 1), groups=4),
        lambda: torch.randn(2, 9, 8, 4).permute(0, 3, 1, 2),
    ),
    **{
        f"conv2d, {mode}": (
            lambda mode=mode: nn.Conv2d(3, 4, 3, padding=1, padding_mode=mode),  # type: ignore[misc]
            lambda: torch.randn(2, 3, 6, 6),
        )
        for mode in ("zeros", "reflect", "replicate", "circular")
    },
    "conv1d, same": (
        lambda: nn.Conv1d(3, 4, 4, padding="same", padding_mode="circular"),
        lambda: torch.randn(2, 3, 9),
    ),
    "conv2d, one image": (lambda: nn.Conv2d(3, 4, 3), lambda: torch.randn(3, 6, 6)),
    "transposed conv2d": (
        lambda: nn.ConvTranspose2d(
            4, 6, (3, 2), stride=2, padding=1, output_padding=1, groups=2, dilation=(2, 1)
        ),
        lambda: torch.randn(2, 4, 5, 6),
    ),
    "embedding": (
        lambda: nn.Embedding(9, 5, padding_idx=2),
        lambda: torch.tensor([[1, 2, 2], [8, 0, 1]]),
    ),
    "embedding, by frequency": (
        lambda: nn.Embedding(9, 5, scale_grad_by_freq=True),
        lambda: torch.tensor([1, 1, 3]),
    ),
    "embedding, sparse": (lambda: nn.Embedding(9, 5, sparse=True), lambda: torch.tensor([1, 1, 3])),
    "embedding, norm": (lambda: nn.Embedding(9, 5, max_norm=0.5), lambda: torch.tensor([1, 1, 3])),
}
QUANTIZABLE = [name for name in CASES if name not in ("embedding, sparse", "embedding, norm")]
W16 = BitSpec(weights=16, activations=16)


def build(name: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    layer, data = CASES[name]
    return layer(), data()


def run(layer: nn.Module, x: Tensor) -> list[Tensor]:
    """Output, gradient of the input if it has one, gradients of the parameters."""
    if x.is_floating_point():
        x = x.detach().clone().requires_grad_()
    y = layer(x)
    y.square().sum().backward()
    grads = [p.grad.to_dense() for p in layer.parameters() if p.grad is not None]
    return [y.detach(), *([x.grad] if x.grad is not None else []), *grads]


@pytest.mark.parametrize("name", CASES)
def test_float32_is_the_parent_to_the_bit(name: str) -> None:
    plain, x = build(name)
    quant = quantize_(copy.deepcopy(plain), "float32")
    assert isinstance(quant, QuantLayer)
    for a, b in zip(run(plain, x), run(quant, x), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", QUANTIZABLE)
def test_sixteen_bits_are_close_to_float(name: str) -> None:
    plain, x = build(name)
    quant = quantize_(copy.deepcopy(plain), W16)
    for a, b in zip(run(plain, x), run(quant, x), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", QUANTIZABLE)
@pytest.mark.parametrize("granularity", ["tensor", "channel"])
def test_forward_is_the_parent_on_quantised_tensors(name: str, granularity: str) -> None:
    plain, x = build(name)
    spec = BitSpec(weights=4, activations=8, range_rule="mse", granularity=granularity)  # type: ignore[arg-type]
    quant = quantize_(copy.deepcopy(plain), spec)
    with torch.no_grad():
        plain.weight.copy_(
            fake_quantize(plain.weight, 4, range_rule="mse", granularity=granularity)
        )  # type: ignore
        expected = plain(fake_quantize_activations(x, 8) if x.is_floating_point() else x)
    for mode in (True, False):
        assert torch.equal(quant.train(mode)(x), expected)


def test_built_directly_they_are_float_layers() -> None:
    layers = [QuantLinear(3, 4), QuantConv1d(3, 4, 2), QuantConv2d(3, 4, 2), QuantEmbedding(5, 3)]
    for layer in layers:
        assert layer.spec.is_float
        assert list(layer.state_dict()) == [name for name, _ in layer.named_parameters()]
    assert (
        repr(set_spec_(layers[0], "ternary"))
        == "QuantLinear(in_features=3, out_features=4, bias=True, spec=ternary)"
    )
    assert layers[0].quantized_weight().codes.abs().max() == 1
    with pytest.raises(
        ValueError, match=r"quantized_weight needs BitSpec\.weights of 2\.\.16, got 32"
    ):
        layers[1].quantized_weight()


@pytest.mark.parametrize("spec", ["int8", "ternary", "strict8"])
def test_empty_batches_and_frozen_weights(spec: str) -> None:
    model = quantize_(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 2)), spec)
    seed_(model, torch.Generator())
    assert model(torch.empty(0, 3, 4, 4)).shape == (0, 2)
    model(torch.empty(0, 3, 4, 4)).sum().backward()
    model.requires_grad_(False)
    x = torch.randn(2, 3, 4, 4, requires_grad=True)
    model(x).sum().backward()
    assert x.grad is not None
    assert model(torch.zeros(2, 3, 4, 4)).isfinite().all()


def test_bfloat16_autocast_quantises_in_float32() -> None:
    layer = quantize_(nn.Linear(64, 32), "int8")
    x = torch.randn(16, 64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x)
        y.float().square().sum().backward()
    assert y.dtype == torch.bfloat16
    assert layer.weight.grad is not None
    weight = fake_quantize(layer.weight.detach(), 8).bfloat16()
    inputs = fake_quantize_activations(x, 8).bfloat16()
    assert torch.equal(y, nn.functional.linear(inputs, weight, layer.bias.detach().bfloat16()))


def test_bfloat16_autocast_of_every_preset() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(8 * 16, 4)
    )
    for spec in ("int4", "ternary", "strict8", "wage2888", {"weights": 4, "range_rule": "lsq"}):
        quantize_(model, spec)
        seed_(model, torch.Generator())
        with torch.autocast("cpu", dtype=torch.bfloat16):
            model(torch.randn(2, 3, 6, 6)).float().square().sum().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_channels_last_gives_the_same_numbers() -> None:
    torch.manual_seed(0)
    model = quantize_(
        nn.Conv2d(8, 8, 3),
        {"weights": 4, "activations": 8, "range_rule": "mse", "granularity": "channel"},
    )
    x = torch.randn(2, 8, 6, 6)
    expected = model(x)
    last = copy.deepcopy(model).to(memory_format=torch.channels_last)
    found = last(x.to(memory_format=torch.channels_last))
    assert found.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(found, expected)
    assert torch.equal(last.quantized_weight().codes, model.quantized_weight().codes)


# ----------------------------------------------------------------------------- errors and gradients


def on_grid(x: Tensor, bits: int) -> bool:
    codes = x / (x.abs().max() / (2 ** (bits - 1) - 1))
    return bool((codes - codes.round()).abs().max() < 1e-4)


def test_errors_are_quantised_at_the_output_and_the_forward_is_untouched() -> None:
    torch.manual_seed(0)
    plain = nn.Linear(6, 5)
    quant = quantize_(copy.deepcopy(plain), {"errors": 4})
    seed_(quant, torch.Generator().manual_seed(0))
    x = torch.randn(8, 6)
    y = quant(x)
    assert torch.equal(y, plain(x))
    seen: list[Tensor] = []
    y.register_hook(seen.append)  # after the hook of the layer: sees what flows back into it
    y.backward(torch.randn(8, 5))
    error = seen[0]
    assert on_grid(error, 4)
    torch.testing.assert_close(quant.bias.grad, error.sum(0))
    torch.testing.assert_close(quant.weight.grad, error.t() @ x)


def test_weight_gradients_are_quantised_before_they_reach_the_parameter() -> None:
    torch.manual_seed(0)
    for spec in ({"gradients": 4}, {"weights": 8, "gradients": 4}):
        layer = quantize_(nn.Linear(6, 5), spec)
        seed_(layer, torch.Generator().manual_seed(0))
        layer(torch.randn(8, 6)).square().sum().backward()
        assert layer.weight.grad is not None
        assert on_grid(layer.weight.grad, 4)
        assert layer.weight.grad.unique().numel() > 3


def test_backward_is_reproducible_from_its_generator() -> None:
    torch.manual_seed(0)
    model = quantize_(
        nn.Sequential(nn.Linear(6, 5), nn.ReLU(inplace=True), nn.Linear(5, 3)), "strict8"
    )
    x = torch.randn(8, 6)

    def grads(seed: int) -> Tensor:
        model.zero_grad()
        seed_(model, torch.Generator().manual_seed(seed))
        model(x).square().sum().backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    state = torch.get_rng_state()
    assert torch.equal(grads(1), grads(1))
    assert not torch.equal(grads(1), grads(2))
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("spec", ["strict8", {"gradients": 8}, {"errors": 8}])
def test_backward_without_a_generator_is_refused_before_it_starts(spec: object) -> None:
    layer = quantize_(nn.Linear(6, 5), spec)  # type: ignore[arg-type]
    with pytest.raises(
        ValueError,
        match=r"in backward: call seed_\(model, generator\) .*or compute under torch.no_grad",
    ):
        layer(torch.randn(2, 6))
    with torch.no_grad():
        layer(torch.randn(2, 6))


# -------------------------------------------------------------------------------------- state dicts


def test_state_dicts_go_from_and_to_stock_torchvision() -> None:
    models = pytest.importorskip("torchvision.models")
    stock, other = models.resnet18(num_classes=10), models.resnet18(num_classes=10)
    for spec in ("int8", "strict8", {"weights": 4, "range_rule": "lsq", "granularity": "channel"}):
        quant = quantize_(models.resnet18(num_classes=10), spec)
        assert list(quant.state_dict()) == list(stock.state_dict())
        quant.load_state_dict(stock.state_dict(), strict=True)
        other.load_state_dict(quant.state_dict(), strict=True)
        for a, b in zip(stock.state_dict().values(), other.state_dict().values(), strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize(
    "spec", ["int8", "strict8", "wage2888", {"weights": 4, "range_rule": "lsq"}]
)
def test_copies_and_saved_states(spec: object) -> None:
    torch.manual_seed(0)
    model = quantize_(nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 3)), spec)  # type: ignore[arg-type]
    seed_(model, torch.Generator().manual_seed(0))
    twin = copy.deepcopy(model)
    x = torch.randn(4, 6)
    assert torch.equal(model(x), twin(x))
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    fresh = quantize_(nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 3)), spec)  # type: ignore[arg-type]
    fresh.load_state_dict(torch.load(file, weights_only=True))
    seed_(fresh, torch.Generator().manual_seed(0))
    assert torch.equal(model(x), fresh(x))


def test_a_missing_weight_is_still_missed() -> None:
    layer = quantize_(nn.Linear(3, 2), {"weights": 4, "range_rule": "lsq"})
    with pytest.raises(RuntimeError, match=r'Missing key\(s\) in state_dict: "weight"'):
        layer.load_state_dict({"bias": torch.zeros(2)})


def test_the_step_of_a_frozen_layer_is_frozen() -> None:
    net = nn.Sequential(nn.Linear(3, 3).requires_grad_(False), nn.Linear(3, 3))
    quantize_(net, {"weights": 4, "activations": 8, "range_rule": "lsq"})
    assert [name for name, p in net.named_parameters() if p.requires_grad] == [
        "1.weight",
        "1.bias",
        "1.weight_step",
    ]


def test_the_learned_step_is_a_parameter_that_restarts_with_the_weights() -> None:
    torch.manual_seed(0)
    layer = quantize_(nn.Linear(30, 20), {"weights": 4, "range_rule": "lsq"})
    assert isinstance(layer, QuantLinear)
    assert [name for name, _ in layer.named_parameters()] == ["weight", "bias", "weight_step"]
    assert layer.weight_step is not None
    layer(torch.randn(5, 30)).square().sum().backward()
    assert layer.weight_step.grad is not None
    assert layer.weight_step.grad != 0
    with torch.no_grad():
        layer.weight_step.neg_()  # an optimiser may carry it past zero
    assert layer.quantized_weight().scale > 0
    layer.load_state_dict({"weight": 2 * layer.weight.detach(), "bias": torch.zeros(20)})
    torch.testing.assert_close(
        layer.weight_step.detach(), 2 * layer.weight.detach().abs().mean() / 7**0.5
    )
    set_spec_(layer, "int8")
    assert layer.weight_step is None


def test_a_class_without_a_product_is_told_what_it_must_define() -> None:
    class Unfinished(QuantLayer, nn.Bilinear):
        pass

    with pytest.raises(NotImplementedError, match="Unfinished must define float_product, or a for"):
        Unfinished(2, 2, 2)(torch.ones(1, 2))
