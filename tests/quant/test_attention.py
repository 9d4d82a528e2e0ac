"""Attention against ``nn.MultiheadAttention``, and the fused kernels that would step over quantised
layers.
"""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bhfl.quant import (
    QuantizedTensor,
    QuantLinear,
    QuantMultiheadAttention,
    begin_round_,
    dequantize_,
    quantize_,
    quantized_state,
    seed_,
    set_backend_,
    set_spec_,
    store_,
)

B = 3
L = 4
S = 5
E = 8
FLOAT_MASK = torch.randn(L, S, generator=torch.Generator().manual_seed(0))
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {  # of the layer, of the call
    "as it comes": ({}, {}),
    "batch first, no weights": ({"batch_first": True}, {"need_weights": False}),
    "no bias, weights of each head": ({"bias": False}, {"average_attn_weights": False}),
    "padding": (
        {},
        {"key_padding_mask": torch.tensor([[0, 0, 0, 1, 1], [0] * 5, [0, 1, 0, 1, 0]]).bool()},
    ),
    "float mask": ({}, {"attn_mask": FLOAT_MASK}),
    "causal": (
        {},
        {"attn_mask": torch.ones(L, S).triu(1).bool(), "is_causal": True, "need_weights": False},
    ),
    "mask of each head, and padding": (
        {"batch_first": True},
        {
            "attn_mask": FLOAT_MASK.expand(B * 2, L, S).contiguous(),
            "key_padding_mask": torch.zeros(B, S),
        },
    ),
}


def inputs(layer: nn.MultiheadAttention, batched: bool = True) -> list[Tensor]:
    g = torch.Generator().manual_seed(1)
    data = [
        torch.randn(B, n, E, generator=g) if batched else torch.randn(n, E, generator=g)
        for n in (L, S, S)
    ]
    return data if layer.batch_first or not batched else [x.transpose(0, 1) for x in data]


def attention(**options: Any) -> nn.MultiheadAttention:
    torch.manual_seed(0)
    layer = nn.MultiheadAttention(E, 2, **options)
    if layer.in_proj_bias is not None:
        nn.init.normal_(layer.in_proj_bias)
    return layer


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(("spec", "tolerance"), [(32, 0.0), (16, 2e-3)])
def test_as_the_parent(name: str, spec: int, tolerance: float) -> None:
    options, call = CASES[name]
    plain = attention(**options)
    quant = quantize_(copy.deepcopy(plain), spec)
    assert isinstance(quant, QuantMultiheadAttention)
    for a, b in zip(quant(*inputs(plain), **call), plain(*inputs(plain), **call), strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def test_one_sequence_self_attention_dropout_and_gradients() -> None:
    plain = attention(dropout=0.5)
    quant = quantize_(copy.deepcopy(plain), 16)
    q, k, v = inputs(plain, batched=False)
    for layer in (plain, quant):
        layer.eval()
    for a, b in zip(quant(q, k, v), plain(q, k, v), strict=True):
        torch.testing.assert_close(a, b, rtol=2e-3, atol=2e-3)
    x = inputs(plain)[0]
    for layer in (plain, quant):
        layer(x, x, x)[0].square().sum().backward()
    for a, b in zip(plain.parameters(), quant.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=5e-3, atol=5e-3)
    quant.train()
    assert not torch.equal(quant(x, x, x)[0], quant(x, x, x)[0])
    with pytest.raises(RuntimeError, match="Need attn_mask if specifying the is_causal hint"):
        quant(x, x, x, is_causal=True)


def test_keys_codes_strict_storage_and_the_way_back() -> None:
    plain = attention()
    quant = quantize_(copy.deepcopy(plain), "strict8")
    assert list(quant.state_dict()) == list(plain.state_dict())
    seed_(quant, torch.Generator())
    begin_round_(quant)
    state = quantized_state(quant)
    assert list(state) == list(plain.state_dict())
    kinds = {key: isinstance(value, QuantizedTensor) for key, value in state.items()}
    assert kinds == {
        "in_proj_weight": True,
        "in_proj_bias": False,
        "out_proj.weight": True,
        "out_proj.bias": False,
    }
    assert torch.equal(state["in_proj_weight"].dequantize(), quant.in_proj_weight)  # type: ignore[union-attr]
    quant(*inputs(plain))[0].square().sum().backward()
    store_(quant, torch.Generator())
    quant.load_state_dict(plain.state_dict())
    assert [type(m) for m in dequantize_(set_spec_(quant, 8)).modules()] == [
        type(m) for m in plain.modules()
    ]
    assert vars(quant).keys() == vars(plain).keys()
    lsq = quantize_(copy.deepcopy(plain), {"weights": 4, "range_rule": "lsq"})
    lsq(*inputs(plain))[0].square().sum().backward()
    assert all(p.grad is not None for p in lsq.parameters())
    assert list(lsq.state_dict()) == list(plain.state_dict())


@pytest.mark.parametrize("backend", ["int8", "integer"])
def test_backends(backend: str) -> None:
    fake = quantize_(attention(batch_first=True), 8)
    other = set_backend_(copy.deepcopy(fake), backend)
    found = []
    for layer in (fake, other):
        seed_(layer, torch.Generator())
        y = layer(*inputs(fake))[0]
        y.square().sum().backward()
        found.append((y, *(p.grad for p in layer.parameters())))
    assert_close = torch.testing.assert_close
    assert_close(found[1][0], found[0][0])
    for a, b in zip(found[1], found[0], strict=True):
        assert (a - b).norm() <= (1e-5 if backend == "int8" else 0.1) * b.norm()  # type: ignore[operator,union-attr]


def test_the_output_projection_alone_can_be_quantised() -> None:
    layer = quantize_(attention(batch_first=True), "ternary")
    quantize_(layer, 32, lambda _, module: module is layer)
    heads = quantize_(copy.deepcopy(layer), 32)
    nn.init.eye_(heads.out_proj.weight)
    x = torch.randn(B, L, E)
    expected = layer.out_proj(heads(x, x, x)[0] - heads.out_proj.bias)
    torch.testing.assert_close(layer(x, x, x)[0], expected)
    assert not torch.allclose(expected, quantize_(layer, 32)(x, x, x)[0], atol=1e-2)


def test_an_empty_batch_and_masks_of_no_kind() -> None:
    layer = quantize_(attention(batch_first=True), 8)
    empty = torch.zeros(0, L, E)
    assert layer(empty, empty, empty)[0].shape == (0, L, E)
    x = torch.randn(B, L, E)
    with pytest.raises(RuntimeError, match="masks must be of bool or of a floating dtype"):
        layer(x, x, x, key_padding_mask=torch.zeros(B, L, dtype=torch.uint8))


def test_what_is_left_alone() -> None:
    for options in ({"kdim": 4}, {"add_bias_kv": True}, {"add_zero_attn": True}):
        model = quantize_(
            nn.ModuleList([nn.Linear(2, 2), nn.MultiheadAttention(E, 2, **options)]), 8
        )  # type: ignore
        assert type(model[1]) is nn.MultiheadAttention
        assert not isinstance(model[1].out_proj, QuantLinear)
    model = quantize_(nn.ModuleList([nn.Linear(2, 2), attention()]), 8, lambda name, _: name != "1")
    assert not isinstance(model[1].out_proj, QuantLinear)
    model = quantize_(attention(), 8, lambda name, _: name != "out_proj")
    assert isinstance(model, QuantMultiheadAttention)
    assert not isinstance(model.out_proj, QuantLinear)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_fused_kernels_do_not_step_over_quantised_layers() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(E, 2, 16, batch_first=True)
    x = torch.randn(B, L, E)
    padding = torch.zeros(B, L).bool()
    padding[0, 2:] = True
    for plain in (layer, nn.TransformerEncoder(layer, 2)):
        plain.eval()
        quant = quantize_(copy.deepcopy(plain), 2)
        with torch.no_grad():
            expected = plain(x, src_key_padding_mask=padding)
        slow = quant(x, src_key_padding_mask=padding)
        with torch.no_grad():
            torch.testing.assert_close(quant(x, src_key_padding_mask=padding), slow)
            assert not torch.allclose(slow, plain(x))
            for back in (set_spec_(quant, 32), dequantize_(quant)):
                assert torch.equal(back(x, src_key_padding_mask=padding), expected)
        for a, b in zip(quant.modules(), plain.modules(), strict=True):
            assert vars(a).keys() == vars(b).keys()
