"""What a client sends is said apart from what it computes with."""

import copy

import pytest
import torch
from torch import nn

from bhfl.quant import (
    PRESETS,
    BitSpec,
    QuantizedTensor,
    begin_round_,
    fake_quantize,
    quantize_,
    quantized_state,
    seed_,
    store_,
)

SHADOWS = BitSpec(weights=2, activations=8, range_rule="mse", send_bits=8)


def trained(spec: BitSpec) -> nn.Linear:
    """A layer after one step of training."""
    torch.manual_seed(0)
    layer = quantize_(nn.Linear(7, 3), spec)
    begin_round_(layer)
    generator = torch.Generator().manual_seed(0)
    seed_(layer, generator)
    layer(torch.randn(5, 7)).square().sum().backward()
    with torch.no_grad():
        layer.weight -= 0.01 * layer.weight.grad
    store_(layer, generator)
    return layer


def sent(layer: nn.Linear) -> QuantizedTensor:
    weight = quantized_state(layer, sent=True)["weight"]
    assert isinstance(weight, QuantizedTensor)
    return weight


@pytest.mark.parametrize("spec", PRESETS.values(), ids=PRESETS)
def test_presets_send_what_they_compute_with_unless_their_name_says_so(spec: BitSpec) -> None:
    if spec.name == "wage2888-stored":
        assert (spec.sends, spec.sent_bits, spec.label) == ("stored", 8, "wage2888-stored")
        return
    assert spec.sent_bits == spec.weights
    if spec.weights < 32:
        layer = trained(spec)
        computed = quantized_state(layer)["weight"]
        assert isinstance(computed, QuantizedTensor)
        assert torch.equal(sent(layer).codes, computed.codes)
        assert sent(layer).scale == computed.scale


def test_shadow_weights_are_rounded_to_nearest_when_they_are_sent() -> None:
    layer = trained(SHADOWS)
    weight = sent(layer)
    assert weight.bits == 8
    assert torch.equal(weight.dequantize(), fake_quantize(layer.weight, 8))
    # what it computes with is another matter
    computed = quantized_state(layer)["weight"]
    assert isinstance(computed, QuantizedTensor)
    assert computed.bits == 2


def test_each_channel_that_is_computed_with_its_scale_is_sent_with_one() -> None:
    spec = BitSpec(weights=4, granularity="channel", send_bits=12)
    weight = sent(trained(spec))
    assert weight.scale.shape == (3,)
    assert weight.codes.abs().amax(1).tolist() == [2**11 - 1] * 3


@pytest.mark.parametrize(
    "spec", [PRESETS["wage2888-stored"], BitSpec(weights=4, storage=6, sends="stored")]
)
def test_stored_weights_are_sent_as_they_are(spec: BitSpec) -> None:
    layer = trained(spec)
    weight = sent(layer)
    assert weight.bits == spec.storage
    assert torch.equal(weight.dequantize(), layer.weight)


def test_a_spec_that_sends_the_same_is_the_same() -> None:
    assert copy.copy(SHADOWS) == BitSpec(
        weights=2, activations=8, range_rule="mse", sends="stored", send_bits=8
    )


@pytest.mark.parametrize(
    ("spec", "label"),
    [
        (SHADOWS, "ternary-s8"),
        (BitSpec(weights=2, activations=8, send_bits=8), "ternary-s8"),
        (BitSpec(weights=2, activations=7, send_bits=8), "w2a7-s8"),
        (BitSpec(weights=4, storage=6, sends="stored"), "w4a32s6-s6"),
        (BitSpec(weights=2, send_bits=4, name="mine"), "mine"),
    ],
)
def test_the_label_says_what_is_sent(spec: BitSpec, label: str) -> None:
    assert spec.label == label


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"weights": 2, "sends": "stored"}, "sends must be 'computed' with storage=32 and without"),
        ({"sends": "stored"}, "sends must be 'computed' with storage=32 and without send_bits"),
        ({"weights": 2, "sends": "store"}, "sends must be one of computed, stored, got 'store'"),
        ({"weights": 8, "send_bits": 4}, "send_bits must be weights=8 to 16, got 4"),
        ({"weights": 2, "send_bits": 32}, "send_bits must be weights=2 to 16, got 32"),
        ({"weights": 2, "send_bits": 1}, "send_bits must be 2..16 or 32, got 1"),
        ({"weights": 2, "send_bits": True}, "send_bits must be 2..16 or 32, got True"),
        ({"send_bits": 8}, "send_bits must be left out unless .* got 8 with weights=32"),
        ({"weights": 2, "storage": 8, "send_bits": 8}, "send_bits must be left out .* storage=8"),
        (
            {"weights": 2, "sends": "computed", "send_bits": 8},
            "sends must be 'stored', or left out, with send_bits .* got 'computed' with 8",
        ),
    ],
)
def test_what_contradicts_the_spec_is_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BitSpec.parse(fields)
