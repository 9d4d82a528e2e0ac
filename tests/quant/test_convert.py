"""Walking over models: swaps in place, codes that equal the forward weights, and the way back."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from bhfl.quant import (
    PRESETS,
    BitSpec,
    QuantConv2d,
    QuantEmbedding,
    QuantizedTensor,
    QuantLinear,
    begin_round_,
    dequantize_,
    layer_weights,
    quantize_,
    quantized_state,
    seed_,
    set_spec_,
    store_,
)

SPECS: dict[str, Any] = {
    **PRESETS,
    "lsq": BitSpec(weights=4, activations=8, range_rule="lsq"),
    "lsq per channel": BitSpec(weights=3, range_rule="lsq", granularity="channel"),
    "pow2": BitSpec(weights=6, range_rule="pow2"),
    "mse per channel": BitSpec(weights=3, range_rule="mse", granularity="channel"),
    "strict, wider storage": BitSpec(weights=4, storage=8, range_rule="mse", granularity="channel"),
}


class Net(nn.Module):
    """An embedding tied to the output, both convolutions, a user's own subclass, and a norm
    between.
    """

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 8)
        self.conv1 = nn.Conv1d(8, 8, 3, padding=1)
        self.norm = nn.BatchNorm1d(8)
        self.conv2 = nn.Conv2d(1, 4, 3, padding=1, bias=False)
        self.own = OwnLinear(8, 8)
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.norm(torch.relu_(self.conv1(self.embedding(tokens).transpose(1, 2))))
        x = self.conv2(x.unsqueeze(1)).mean(1).transpose(1, 2)
        return self.head(self.own(x))


class OwnLinear(nn.Linear):
    """What a user may do: left alone."""


def net() -> Net:
    torch.manual_seed(0)
    return Net()


TOKENS = torch.randint(0, 11, (4, 7), generator=torch.Generator().manual_seed(0))


class SeenWeights(TorchFunctionMode):
    """Records the second argument of each linear, convolution and embedding that runs."""

    def __init__(self) -> None:
        super().__init__()
        self.weights: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.__name__ in ("linear", "conv1d", "conv2d", "embedding"):
            self.weights.append(args[1].detach())
        return func(*args, **(kwargs or {}))


def train_(model: nn.Module, num_steps: int) -> None:
    generator = torch.Generator().manual_seed(5)
    seed_(model, generator)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for _ in range(num_steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(TOKENS).flatten(0, 1), TOKENS.flatten()).backward()
        optimizer.step()
        store_(model, generator)


@pytest.mark.parametrize("name", SPECS)
def test_quantized_state_is_what_forward_computes_with_to_the_bit(name: str) -> None:
    model = quantize_(net(), SPECS[name])
    begin_round_(model)
    for num_steps in (0, 3):
        train_(model, num_steps)
        state = quantized_state(model)
        with torch.no_grad(), SeenWeights() as seen:
            model(TOKENS)
        keys = ["embedding.weight", "conv1.weight", "conv2.weight", "own.weight", "head.weight"]
        assert list(state) == list(model.state_dict())
        for key, used in zip(keys, seen.weights, strict=True):
            value = state[key]
            quantised = SPECS[name].weights < 32 and key != "own.weight"
            assert isinstance(value, QuantizedTensor) == quantised
            plain = value.dequantize() if isinstance(value, QuantizedTensor) else value
            assert torch.equal(plain.view(torch.int32), used.contiguous().view(torch.int32))
            if isinstance(value, QuantizedTensor):
                assert value.codes.abs().max() <= 2 ** (value.bits - 1) - 1
        assert isinstance(state["norm.running_mean"], Tensor)
        assert state["conv1.bias"].data_ptr() == model.conv1.bias.data_ptr()  # type: ignore[union-attr]
        assert not any(value.requires_grad for value in state.values() if isinstance(value, Tensor))


def test_quantize_changes_neither_keys_nor_storage_nor_ties_nor_hooks() -> None:
    model = net()
    calls: list[int] = []
    model.conv1.register_forward_hook(lambda *_: calls.append(1))
    before = {key: value.data_ptr() for key, value in model.state_dict().items()}
    parameters = list(model.parameters())
    modules = list(model.modules())
    assert quantize_(model, "int8") is model
    assert {key: value.data_ptr() for key, value in model.state_dict().items()} == before
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert all(a is b for a, b in zip(model.modules(), modules, strict=True))
    assert model.head.weight is model.embedding.weight
    model(TOKENS)
    assert calls == [1]
    assert [type(m) for m in (model.embedding, model.conv2, model.own, model.head)] == [
        QuantEmbedding,
        QuantConv2d,
        OwnLinear,
        QuantLinear,
    ]


def test_the_model_itself_may_be_a_layer_and_may_be_quantised_again() -> None:
    layer = quantize_(nn.Linear(3, 2), 8)
    assert list(quantized_state(layer)) == ["weight", "bias"]
    again = quantize_(layer, 4)
    assert again is layer
    assert isinstance(again, QuantLinear)
    assert again.spec == PRESETS["int4"]


def test_filter_chooses_by_name_and_module() -> None:
    model = quantize_(
        net(), "int8", lambda name, module: name != "head" and not isinstance(module, nn.Embedding)
    )
    assert [type(m) for m in (model.embedding, model.conv2, model.head)] == [
        nn.Embedding,
        QuantConv2d,
        nn.Linear,
    ]
    set_spec_(model, {"weights": 3})
    assert [type(m) for m in (model.embedding, model.head)] == [nn.Embedding, nn.Linear]
    assert model.conv2.spec.label == "w3a32"  # type: ignore[union-attr]


def test_dequantize_gives_plain_layers_with_the_values_of_the_forward() -> None:
    for spec in ("int4", "strict8", {"weights": 4, "range_rule": "lsq"}, "float32"):
        model = quantize_(net(), spec)
        begin_round_(model)
        values = {
            k: v.dequantize() if isinstance(v, QuantizedTensor) else v
            for k, v in quantized_state(model).items()
        }
        assert dequantize_(model) is model
        assert [type(m) for m in model.modules()] == [type(m) for m in net().modules()]
        assert all(torch.equal(value, model.state_dict()[key]) for key, value in values.items())
        assert [name for name, _ in model.named_parameters()] == [
            name for name, _ in net().named_parameters()
        ]
        assert vars(model.head).keys() == vars(net().head).keys()
        assert model.head.weight is model.embedding.weight


def test_refused() -> None:
    message = (
        "nothing to quantise to 'int8' in ReLU: "
        "no nn.Linear, nn.Conv1d, nn.Conv2d, nn.ConvTranspose2d, nn.Emb"
    )
    with pytest.raises(ValueError, match=message):
        quantize_(nn.ReLU(), 8)
    with pytest.raises(ValueError, match="nothing to quantise to 'int8' in Linear"):
        set_spec_(nn.Linear(2, 2), 8)
    assert isinstance(quantize_(nn.ReLU(), "float32"), nn.ReLU)
    with pytest.raises(ValueError, match="quantize_ needs a module, got OrderedDict"):
        quantize_(nn.Linear(2, 2).state_dict(), 8)
    with pytest.raises(
        ValueError,
        match=r"filter_fn must be a function of name and module, got 'int8'; backend= nam",
    ):
        quantize_(nn.Linear(2, 2), 8, "int8")
    with pytest.raises(ValueError, match=r"seed_ needs a torch\.Generator, .* got 42"):
        seed_(quantize_(nn.Linear(2, 2), 8), 42)
    for options in ({"sparse": True}, {"max_norm": 1.0}):
        model = nn.Sequential(nn.Linear(2, 2), nn.Embedding(3, 2, **options))
        with pytest.raises(
            ValueError,
            match=r"^layer '1': an Embedding with sparse=True or max_norm cannot be quantised",
        ):
            quantize_(model, 8)
        assert type(model[0]) is nn.Linear
        quantize_(model, 8, lambda _, module: isinstance(module, nn.Linear))
    for kind in (nn.LazyLinear, partial(nn.LazyConv2d, kernel_size=1)):
        model = nn.Sequential(nn.Conv2d(3, 3, 1), kind(2), nn.LazyBatchNorm2d())
        for spec in (8, "float32"):
            with pytest.raises(
                ValueError, match=r"^layer '1': a Lazy\w+ without weights cannot .*"
            ):
                quantize_(model, spec)
        assert type(model[0]) is nn.Conv2d
        model(torch.ones(1, 3, 3, 3))
        assert isinstance(quantize_(model, 8)[1], QuantLinear | QuantConv2d)
    with pytest.raises(ValueError, match="unknown preset 'int9000'"):
        quantize_(nn.Linear(2, 2), "int9000")
    model = quantize_(nn.Sequential(nn.Linear(2, 2)), 8)
    nn.init.constant_(model[0].weight, float("nan"))
    for reads in (quantized_state, dequantize_):
        with pytest.raises(ValueError, match=r"^0\.weight: quantize needs finite values"):
            reads(model)
    assert isinstance(model[0], QuantLinear)


# ----------------------------------------------------------------------------------- strict storage


def on_grid(weight: Tensor, scale: Tensor, bits: int) -> bool:
    scale = scale.view(-1, *[1] * (weight.dim() - 1)) if scale.dim() else scale
    codes = (weight / scale).round().clamp(-(2 ** (bits - 1) - 1), 2 ** (bits - 1) - 1)
    return torch.equal(codes * scale, weight)


@pytest.mark.parametrize("name", ["strict8", "wage2888", "strict, wider storage"])
def test_strict_weights_are_on_their_grid_after_every_step(name: str) -> None:
    spec = SPECS[name]
    model = quantize_(net(), spec)
    begin_round_(model)
    grids = {
        name: module.storage_scale.clone()
        for name, module in model.named_modules()
        if hasattr(module, "spec")
    }
    for _ in range(4):
        for layer, scale in grids.items():
            module = model.get_submodule(layer)
            assert on_grid(module.weight.detach(), scale, spec.storage)  # type: ignore[arg-type]
            assert torch.equal(module.storage_scale, scale)  # type: ignore[arg-type]
        before = [p.detach().clone() for p in model.parameters()]
        train_(model, 1)
    assert any(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_storing_is_unbiased_and_moves_nothing_that_is_on_the_grid() -> None:
    layer = quantize_(nn.Linear(40, 30, bias=False), "strict8")
    begin_round_(layer)
    stored = layer.weight.detach().clone()
    g = torch.Generator().manual_seed(0)
    store_(layer, g)
    assert torch.equal(layer.weight, stored)
    assert isinstance(layer, QuantLinear)
    assert layer.storage_scale is not None
    step = layer.storage_scale
    target = stored.clamp(-100 * step, 100 * step) + 0.3 * step
    total = torch.zeros_like(stored, dtype=torch.float64)
    for _ in range(400):
        with torch.no_grad():
            layer.weight.copy_(target)
        store_(layer, g)
        total += layer.weight.detach()
    error = (total / 400 - target) / step
    sigma = (0.3 * 0.7 / 400) ** 0.5
    assert error.abs().max() < 5.5 * sigma
    assert abs(error.mean()) < 5 * sigma / error.numel() ** 0.5


def test_storing_needs_the_range_of_the_weights_that_were_loaded() -> None:
    layer = quantize_(nn.Linear(3, 2), "strict8")
    message = r"store_ of 'strict8' weights needs their range: call begin_round_\(model\) first"
    with pytest.raises(ValueError, match=message):
        store_(layer, torch.Generator())
    begin_round_(layer)
    store_(layer, torch.Generator())
    layer.load_state_dict(nn.Linear(3, 2).state_dict())
    with pytest.raises(ValueError, match=message):
        store_(layer, torch.Generator())


@pytest.mark.parametrize("walk", [begin_round_, lambda model: store_(model, torch.Generator())])
def test_shadow_layers_have_nothing_to_fix_or_store(walk: Callable[[nn.Module], None]) -> None:
    for spec in ("float32", "int8", "ternary"):
        model = quantize_(net(), spec)
        before = [p.detach().clone() for p in model.parameters()]
        walk(model)
        assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_layer_weights_in_order_and_shared_weights_once() -> None:
    model = nn.Sequential(
        nn.Embedding(10, 4), nn.LayerNorm(4), nn.Conv1d(4, 4, 1), nn.Linear(4, 10, bias=False)
    )
    model[3].weight = model[0].weight
    assert layer_weights(model) == ["0.weight", "2.weight"]
    assert layer_weights(nn.Linear(2, 2)) == ["weight"]
    attention = nn.TransformerEncoderLayer(4, 2, 8)
    assert layer_weights(attention)[:2] == ["self_attn.in_proj_weight", "self_attn.out_proj.weight"]
    with pytest.raises(
        ValueError,
        match="Sequential has no quantisable layer: no Linear, Conv, Embedding or attention",
    ):
        layer_weights(nn.Sequential(nn.LayerNorm(4)))


def test_layer_weights_are_those_that_quantize_swaps() -> None:
    """A subclass is not swapped, so its weight is not listed; nor is the output of attention that
    stays float.
    """

    class Scaled(nn.Linear):
        pass

    model = nn.Sequential(
        nn.Linear(4, 4), Scaled(4, 4), nn.MultiheadAttention(4, 2, kdim=3), nn.Conv2d(1, 1, 1)
    )
    before = layer_weights(model)
    assert before == ["0.weight", "3.weight"]
    assert layer_weights(quantize_(model, 4)) == before
    codes = [
        name for name, value in quantized_state(model).items() if isinstance(value, QuantizedTensor)
    ]
    assert codes == before
