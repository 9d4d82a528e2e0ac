import copy
import json
import math

import pytest
import torch
from torch import nn

from bhfl.export import QuantizedFileError, float_state, load_quantized, restore_, save_quantized
from bhfl.models import CNN, ResNet8
from bhfl.quant import QuantizedTensor, begin_round_, quant_layer, quantize_, quantized_state

safetensors = pytest.importorskip("safetensors.torch", reason="the extra 'export' is not installed")

SPECS = [2, 3, 4, 8, 12, 16, "wage2888", "strict8", {"weights": 4, "granularity": "channel"}]
SPECS += [{"weights": 5, "activations": 8, "range_rule": rule} for rule in ("mse", "lsq", "pow2")]


def model(spec, net=CNN):
    torch.manual_seed(0)
    network = quantize_(net(4, (1, 8, 8), norm="batch"), spec).eval()
    begin_round_(network)
    return network


@pytest.mark.parametrize("spec", SPECS, ids=str)
@torch.no_grad()
def test_what_is_loaded_is_what_forward_computed_with(spec, tmp_path):
    saved, x = model(spec), torch.randn(3, 1, 8, 8)
    save_quantized(saved, tmp_path / "a.safetensors")
    state, loaded = quantized_state(saved), load_quantized(tmp_path / "a.safetensors")
    assert set(loaded) == set(state)
    for name, value in state.items():
        if isinstance(value, QuantizedTensor):
            assert loaded[name].bits == value.bits
            assert torch.equal(loaded[name].codes, value.codes)
            assert torch.equal(loaded[name].scale, value.scale)
        else:
            assert torch.equal(loaded[name], value)
    quantised = restore_(CNN(4, (1, 8, 8), norm="batch").eval(), tmp_path / "a.safetensors")
    assert torch.equal(quantised(x), saved(x))
    again = restore_(model(8), tmp_path / "a.safetensors")  # whatever it was quantised to before
    assert torch.equal(again(x), saved(x))
    plain = restore_(CNN(4, (1, 8, 8), norm="batch"), tmp_path / "a.safetensors", quantized=False)
    assert all(
        torch.equal(value, float_state(loaded)[name]) for name, value in plain.state_dict().items()
    )


@pytest.mark.parametrize("bits", range(2, 17))
def test_a_file_takes_its_bits(bits, tmp_path):
    network = model(bits, ResNet8)
    size = save_quantized(network, tmp_path / "a.safetensors")
    state = quantized_state(network)
    codes = sum(
        math.ceil(q.codes.numel() * bits / 8)
        for q in state.values()
        if isinstance(q, QuantizedTensor)
    )
    rest = sum(
        4 if isinstance(v, QuantizedTensor) else v.numel() * v.element_size()
        for v in state.values()
    )
    header = int.from_bytes((tmp_path / "a.safetensors").read_bytes()[:8], "little") + 8
    assert size == codes + rest + header
    assert header < 8000
    weights = {name: q for name, q in state.items() if isinstance(q, QuantizedTensor)}
    size = save_quantized(weights, tmp_path / "b.safetensors")
    safetensors.save_file(float_state(weights), tmp_path / "float.safetensors")
    whole = (tmp_path / "float.safetensors").stat().st_size
    assert bits / 32 * whole < size < bits / 32 * whole + 2500  # scales and names


def test_a_state_can_be_saved_too_but_has_no_specs(tmp_path):
    saved = model(4)
    save_quantized(quantized_state(saved), tmp_path / "a.safetensors")
    with pytest.raises(
        QuantizedFileError, match="has 4 bits there and 32 here: call quantize_ first"
    ):
        restore_(CNN(4, (1, 8, 8), norm="batch"), tmp_path / "a.safetensors")
    x = torch.randn(2, 1, 8, 8)
    assert torch.equal(restore_(model(4), tmp_path / "a.safetensors")(x), saved(x))


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(64, 32), nn.Linear(32, 64, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x):
        return self.head(self.embed(x))


def test_tied_weights_are_stored_once(tmp_path):
    saved, x = quantize_(Tied(), 8), torch.arange(5)
    assert save_quantized(saved, tmp_path / "a.safetensors") < 1.6 * 64 * 32
    loaded = restore_(Tied(), tmp_path / "a.safetensors")
    assert loaded.head.weight is loaded.embed.weight
    assert torch.equal(loaded(x), saved(x))
    # two ways to quantise one weight: both are kept
    quantize_(saved, 4, lambda name, _: name == "head")
    with pytest.warns(
        UserWarning, match=r"embed\.weight and head\.weight are one tensor with two sets of codes"
    ):
        save_quantized(saved, tmp_path / "b.safetensors")
    loaded = load_quantized(tmp_path / "b.safetensors")
    assert (loaded["embed.weight"].bits, loaded["head.weight"].bits) == (8, 4)
    with pytest.raises(
        QuantizedFileError, match=r"embed\.weight is tied to a weight of other codes"
    ):
        restore_(Tied(), tmp_path / "b.safetensors")


@pytest.mark.parametrize("quantised", ["embed", "head"])
def test_a_quantised_weight_tied_to_a_float_one_comes_back(quantised, tmp_path):
    saved, x = quantize_(Tied(), 8, lambda name, _: name == quantised), torch.arange(5)
    save_quantized(saved, tmp_path / "a.safetensors")
    assert torch.equal(restore_(Tied(), tmp_path / "a.safetensors")(x), saved(x))


def test_a_layer_that_is_used_twice(tmp_path):
    def network():
        layer = nn.Linear(8, 8)
        return nn.Sequential(layer, nn.ReLU(), layer)

    saved, x = quantize_(network(), 4), torch.randn(2, 8)
    save_quantized(saved, tmp_path / "a.safetensors")
    assert set(load_quantized(tmp_path / "a.safetensors")) == {
        "0.weight",
        "0.bias",
        "2.weight",
        "2.bias",
    }
    assert torch.equal(restore_(network(), tmp_path / "a.safetensors")(x), saved(x))


def test_attention_of_a_transformer_comes_back(tmp_path):
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True).eval()
    saved, x = quantize_(copy.deepcopy(layer), 8), torch.randn(2, 3, 16)
    save_quantized(saved, tmp_path / "a.safetensors")
    assert torch.equal(restore_(layer, tmp_path / "a.safetensors")(x), saved(x))


@pytest.mark.parametrize("spec", [8, {"weights": 4, "activations": 8, "range_rule": "mse"}])
def test_what_is_restored_can_be_trained_on(spec, tmp_path):
    torch.manual_seed(0)
    save_quantized(quantize_(nn.Linear(4, 1), spec), tmp_path / "a.safetensors")
    layer, x = restore_(nn.Linear(4, 1), tmp_path / "a.safetensors"), torch.randn(64, 4)
    held = layer.eval()(x)
    assert layer.fixed_scale is not None
    optimizer = torch.optim.Adam(layer.parameters(), 0.05)
    target = x @ torch.tensor([[5.0], [-3.0], [4.0], [2.0]])
    layer.train()
    for _ in range(300):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(layer(x), target)
        loss.backward()
        optimizer.step()
    assert loss < 0.02 * target.var()  # beyond the range of the file, about 0.5
    assert not torch.equal(layer.eval()(x), held)


CHANGES = {
    "in place": lambda layer: layer.weight.mul_(3),
    "as data": lambda layer: layer.weight.data.mul_(3),
    "anew": lambda layer: setattr(layer, "weight", nn.Parameter(3 * layer.weight)),
    "by torch": lambda layer: layer.reset_parameters(),
}
"""Ways to change the weights of a layer without training it."""


@pytest.mark.parametrize("change", CHANGES)
@torch.no_grad()
def test_weights_that_are_changed_by_hand_get_a_range_of_their_own(change, tmp_path):
    torch.manual_seed(0)
    rows = nn.Linear(6, 4)
    rows.weight.mul_(0.1)
    save_quantized(quantize_(rows, 8), tmp_path / "a.safetensors")
    layer, x = restore_(nn.Linear(6, 4).eval(), tmp_path / "a.safetensors"), torch.randn(5, 6)
    copied = copy.deepcopy(layer)
    CHANGES[change](layer)
    expected = quantize_(nn.Linear(6, 4), 8)
    expected.load_state_dict(layer.state_dict())
    assert torch.equal(layer(x), expected(x))
    assert torch.equal(copied(x), rows(x))


def test_restored_weights_are_rounded_once_a_forward_and_have_gradients(tmp_path, monkeypatch):
    torch.manual_seed(0)
    save_quantized(quantize_(nn.Linear(6, 4), 4), tmp_path / "a.safetensors")
    layer, x = restore_(nn.Linear(6, 4).eval(), tmp_path / "a.safetensors"), torch.randn(5, 6)
    with_gradient = layer(x)
    calls = []
    rounded = quant_layer.fake_quantize
    monkeypatch.setattr(
        quant_layer,
        "fake_quantize",
        lambda *args, **rule: calls.append(1) or rounded(*args, **rule),
    )
    with torch.no_grad():
        assert torch.equal(layer(x), with_gradient)
    assert len(calls) == 1
    with_gradient.sum().backward()
    assert layer.weight.grad.abs().sum() > 0


@torch.no_grad()
def test_a_state_of_other_layers_leaves_codes_as_they_are(tmp_path):
    torch.manual_seed(0)
    spec = {"weights": 4, "activations": 8, "range_rule": "mse"}
    file = tmp_path / "a.safetensors"
    save_quantized(quantize_(nn.Sequential(nn.Linear(40, 40), nn.Linear(40, 4)), spec), file)
    net = restore_(nn.Sequential(nn.Linear(40, 40), nn.Linear(40, 4)).eval(), file)
    x = torch.randn(5, 40)
    held = net[0](x)
    net.load_state_dict({"1.weight": torch.ones(4, 40)}, strict=False)
    assert torch.equal(net[0](x), held)


@pytest.mark.filterwarnings("ignore:.*(Sparse CSR|prototype stage|quantize_per_tensor|ComplexHalf)")
@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda: torch.ones(2, dtype=torch.complex128), "torch.complex128"),
        (lambda: torch.ones(2, dtype=torch.complex32), "torch.complex32"),
        (lambda: torch.eye(2).to_sparse(), "torch.float32, torch.sparse_coo"),
        (lambda: torch.eye(2).to_sparse_csr(), "torch.float32, torch.sparse_csr"),
        (lambda: torch.ones(2, device="meta"), "on meta"),
        (lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]), "nested"),
        (lambda: torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8), "torch.qint8"),
    ],
)
def test_what_no_file_holds_is_refused_by_name(make, kind, tmp_path):
    network = quantize_(nn.Sequential(nn.Linear(2, 2)), 4)
    network.register_buffer("own", make())
    with pytest.raises(ValueError, match=f"^own must be dense, with values .*, got {kind}$"):
        save_quantized(network, tmp_path / "a.safetensors")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"a\.safetensors cannot be written: there is no folder .*/none"
    ):
        save_quantized(model(8), tmp_path / "none" / "a.safetensors")


def test_another_model_is_refused(tmp_path):
    save_quantized(model(8), tmp_path / "a.safetensors")
    with pytest.raises(
        QuantizedFileError,
        match=r"another model: head.4.weight is \(4, 128\) there and \(5, 128\) here",
    ):
        restore_(CNN(5, (1, 8, 8), norm="batch"), tmp_path / "a.safetensors")
    save_quantized({"a.codes": torch.ones(1)}, tmp_path / "b.safetensors")
    clash = {"a": quantized_state(model(8))["head.4.weight"], "a.codes": torch.ones(1)}
    with pytest.raises(ValueError, match=r"a\.codes is the name of two tensors"):
        save_quantized(clash, tmp_path / "b.safetensors")
    assert list(load_quantized(tmp_path / "b.safetensors")) == ["a.codes"]  # the old file is whole


ONE = {"w.codes": torch.tensor([0x21], dtype=torch.uint8), "w.scale": torch.tensor(1.0)}


@pytest.mark.parametrize(
    ("tensors", "changes", "message"),
    [
        (ONE, {"format": "pt"}, "format must be 'bhfl.integers', version '1', got 'pt', '1'"),
        (ONE, {"version": "2"}, "version '1', got 'bhfl.integers', '2'"),
        (ONE, {"codes": "[" * 100_000}, "metadata 'codes' must be a JSON object"),
        (ONE, {"specs": "[]"}, "metadata 'specs' must be a JSON object"),
        (
            ONE,
            {"codes": '{"w": [4, -2]}'},
            r"w: must be described by \[bits, \*shape\], got \[4, -2\]",
        ),
        (ONE, {"codes": '{"w": [17, 2]}'}, r"w: bits must be 2\.\.16, got 17"),
        (
            ONE,
            {"codes": '{"w": [4, 4611686018427387904, 64]}'},
            r"w: 295147905179352825856 codes of 4 bits are uint8",
        ),
        (ONE, {"codes": '{"w": [4, 3]}'}, r"w: 3 codes of 4 bits are uint8 of shape \[2\]"),
        (
            {**ONE, "w.codes": torch.zeros(0, dtype=torch.uint8)},
            {"codes": f'{{"w": [4, {2**63}, 0]}}'},
            "w: must be of a shape that a tensor may have",
        ),
        (
            {**ONE, "w.codes": torch.zeros(0, dtype=torch.uint8)},
            {"codes": f'{{"w": [4, 0, {2**40}, {2**40}]}}'},
            "w: must be of a shape that a tensor may have",
        ),
        (ONE, {"codes": '{"v": [4, 2]}'}, "v: its codes or its scale are missing"),
        (ONE, {"ties": '{"v": "u"}'}, "v must be tied to a tensor of the file, got 'u'"),
        ({**ONE, "w": torch.ones(2)}, {}, "w is there twice"),
        (
            {**ONE, "w.scale": torch.ones(3)},
            {},
            r"w: scale must be float32, \[\] or \[2\], got torch.float32 \[3\]",
        ),
        ({**ONE, "w.scale": torch.tensor(math.nan)}, {}, "w: scale must be positive and finite"),
        (
            {**ONE, "w.codes": torch.tensor([0x81], dtype=torch.uint8)},
            {},
            "w: codes of 4 bits must be at least -7, got -8",
        ),
    ],
)
def test_bad_files(tensors, changes, message, tmp_path):
    notes = {"codes": json.dumps({"w": [4, 2]}), "ties": "{}", "specs": "{}"}
    metadata = {"format": "bhfl.integers", "version": "1", **notes, **changes}
    safetensors.save_file(tensors, tmp_path / "a.safetensors", metadata)
    with pytest.raises(QuantizedFileError, match=message):
        load_quantized(tmp_path / "a.safetensors")


def test_files_of_no_kind(tmp_path):
    torch.save({"w": torch.ones(1)}, tmp_path / "a.pt")
    with pytest.raises(QuantizedFileError, match="not a readable safetensors file"):
        load_quantized(tmp_path / "a.pt")
    with pytest.raises(FileNotFoundError):
        load_quantized(tmp_path / "none.safetensors")
    (tmp_path / "empty").write_bytes(b"")
    with pytest.raises(QuantizedFileError):
        load_quantized(tmp_path / "empty")


def test_a_rule_that_nobody_knows(tmp_path):
    state = quantized_state(model(8))
    save_quantized(model(8), tmp_path / "a.safetensors")
    tensors = safetensors.load_file(tmp_path / "a.safetensors")
    codes = {
        name: [8, *q.codes.shape] for name, q in state.items() if isinstance(q, QuantizedTensor)
    }
    notes = {
        "codes": json.dumps(codes),
        "ties": "{}",
        "specs": '{"head.4": {"weights": 8, "range_rule": "mine"}}',
    }
    safetensors.save_file(
        tensors, tmp_path / "b.safetensors", {"format": "bhfl.integers", "version": "1", **notes}
    )
    with pytest.raises(
        QuantizedFileError,
        match=r"layer 'head.4' cannot be quantised as it was: BitSpec.range_rule",
    ):
        restore_(CNN(4, (1, 8, 8), norm="batch"), tmp_path / "b.safetensors")


def test_the_extra_is_named_where_it_is_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "safetensors", None)
    with pytest.raises(ImportError, match=r"pip install 'bhfl\[export\]'"):
        load_quantized(tmp_path / "a.safetensors")


def test_scales_beyond_all_numbers_are_no_checkpoint(tmp_path):
    """The file holds finite scales; the weights that they make are not."""
    state = quantized_state(quantize_(nn.Linear(6, 3), 4))
    codes = state["weight"]
    state["weight"] = QuantizedTensor(codes.codes, torch.full_like(codes.scale, 3e38), codes.bits)
    save_quantized(state, tmp_path / "a.safetensors")
    with pytest.raises(QuantizedFileError, match=r"a\.safetensors: weight holds no numbers"):
        restore_(quantize_(nn.Linear(6, 3), 4), tmp_path / "a.safetensors")
