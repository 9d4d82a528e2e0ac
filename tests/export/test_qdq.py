"""The ONNX graphs under onnxruntime, against the torch models that they are made of."""

import copy

import pytest
import torch
from torch import nn

from bhfl.export import export_onnx
from bhfl.models import CNN, MLP, ResNet8
from bhfl.quant import QuantLayer, quantize_, quantize_affine

onnx = pytest.importorskip("onnx", reason="the extra 'onnx' is not installed")
runtime = pytest.importorskip("onnxruntime", reason="the extra 'onnx' is not installed")
pytest.importorskip("onnxscript", reason="the extra 'onnx' is not installed")
pytestmark = pytest.mark.skipif(not hasattr(torch.onnx, "ops"), reason="ONNX files need torch 2.8")


def opened(file):
    options = runtime.SessionOptions()
    options.intra_op_num_threads = 1
    return runtime.InferenceSession(file, options, providers=["CPUExecutionProvider"])


def outputs(session, x):
    return [
        torch.from_numpy(y) for y in session.run(None, {session.get_inputs()[0].name: x.numpy()})
    ]


def run(path, x):
    return outputs(opened(path), x)[0]


LAYERS = {
    "linear": (nn.Linear(24, 10), (4, 3, 24)),
    "conv1d": (nn.Conv1d(4, 6, 3, padding=1), (4, 4, 9)),
    "conv2d": (nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2, bias=False), (4, 4, 9, 9)),
    "transposed": (nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1), (4, 4, 5, 5)),
    "embedding": (nn.Embedding(11, 6), None),
}


class EveryLayer(nn.Module):
    """One layer of each kind side by side, each with an input and an output of its own: an export
    takes a second, however many there are.
    """

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleDict(
            {name: copy.deepcopy(layer) for name, (layer, _) in LAYERS.items()}
        )

    def forward(self, *inputs):
        return tuple(layer(x) for layer, x in zip(self.layers.values(), inputs, strict=True))


CHANNEL = {"weights": 8, "activations": 8, "granularity": "channel"}


@pytest.mark.parametrize(
    "spec",
    # eight bits a tensor are those of the networks, too
    [CHANNEL, *(pytest.param(bits, marks=pytest.mark.slow) for bits in (3, 8))],
    ids=str,
)
@torch.no_grad()
def test_every_layer_is_equal(spec, tmp_path):
    model = quantize_(EveryLayer(), spec)
    torch.manual_seed(1)
    inputs = []
    for _, shape in LAYERS.values():
        inputs.append(torch.arange(12).view(4, 3) % 11 if shape is None else torch.randn(shape))
    export_onnx(model, tuple(inputs), tmp_path / "a.onnx")
    session = opened(tmp_path / "a.onnx")
    names = [value.name for value in session.get_inputs()]
    for change in (torch.clone, lambda x: x[:1], negative, lambda x: 0 * x):
        changed = [change(x) for x in inputs]
        feeds = dict(zip(names, [x.numpy() for x in changed], strict=True))
        for name, y, found in zip(LAYERS, model(*changed), session.run(None, feeds), strict=True):
            apart = (torch.from_numpy(found) - y).abs().max()
            assert apart <= 1e-5 * max(1, y.abs().max()), name


def negative(x):
    """Two samples without a positive value, but for what looks words up."""
    return -x[:2].abs() if x.is_floating_point() else x[:2]


@torch.no_grad()
def test_codes_of_activations_are_equal_to_the_bit(tmp_path):
    eye = nn.Linear(512, 512, bias=False)
    eye.weight.copy_(torch.eye(512))
    model = quantize_(nn.Sequential(eye), {"activations": 8})
    export_onnx(model, torch.randn(2, 512), tmp_path / "a.onnx")
    for seed in range(20):
        x = torch.randn(200, 512, generator=torch.Generator().manual_seed(seed)) * 10.0 ** (
            seed - 10
        )
        assert torch.equal(run(tmp_path / "a.onnx", x), model(x))


@torch.no_grad()
def test_attention(tmp_path):
    torch.manual_seed(0)
    model = quantize_(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 8).eval()
    x = torch.randn(4, 3, 16)
    export_onnx(model, x, tmp_path / "a.onnx")
    assert (run(tmp_path / "a.onnx", x) - model(x)).abs().max() <= 1e-5


def with_codes(path):
    """The graph with the codes of all inputs of layers as further outputs."""
    graph = onnx.load(path)
    names = [node.output[0] for node in graph.graph.node if node.op_type == "QuantizeLinear"]
    graph.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names)
    return opened(graph.SerializeToString())


def first_turned_codes(model, x, theirs):
    """In the first layer whose input has other codes than in torch: how many differ, and by how
    much; None if none.
    """
    ours = []
    layers = [layer for layer in model.modules() if isinstance(layer, QuantLayer)]
    hooks = [
        m.register_forward_pre_hook(lambda _, args: ours.append(quantize_affine(args[0], 8).codes))
        for m in layers
    ]
    model(x)
    for hook in hooks:
        hook.remove()
    # the graph has another order, and layers share inputs: the nearest codes are those of this one
    for mine in ours:
        same = [codes for codes in theirs if codes.shape == mine.shape]
        apart = min(
            ((mine.int() - codes.int()).abs() for codes in same), key=lambda d: int(d.sum())
        )
        if apart.any():
            return int((apart > 0).sum()), int(apart.max())
    return None


NETWORKS = {
    "mlp": (MLP, {}),
    "cnn": (CNN, {}),
    "cnn-batch": (CNN, {"norm": "batch"}),
    "resnet8-batch": (ResNet8, {"norm": "batch"}),
    "resnet8-group": (ResNet8, {"norm": "group"}),
}


@pytest.mark.parametrize(
    "name",
    # batch norm stands in the CNN's
    [
        "cnn-batch",
        pytest.param("resnet8-group", marks=pytest.mark.slow),
        pytest.param("mlp", marks=pytest.mark.slow),
        pytest.param("cnn", marks=pytest.mark.slow),
        pytest.param("resnet8-batch", marks=pytest.mark.slow),
    ],
)
@torch.no_grad()
def test_networks_are_equal_but_for_the_odd_turned_code(name, tmp_path):
    torch.manual_seed(0)
    network, options = NETWORKS[name]
    model = quantize_(network(10, (1, 8, 8), **options), 8)
    for _ in range(3):
        model(torch.rand(32, 1, 8, 8))  # running statistics
    model.eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    size = export_onnx(model, torch.rand(1, 1, 8, 8), tmp_path / "a.onnx")
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    images = torch.rand(40, 1, 8, 8).split(1)
    session = opened(tmp_path / "a.onnx")
    apart = torch.stack([(outputs(session, x)[0] - model(x)).abs().max() for x in images])
    assert (apart <= 1e-5).float().mean() > 0.9
    assert apart.max() < 0.05
    session = with_codes(tmp_path / "a.onnx")
    for x in images:
        y, *codes = outputs(session, x)
        turned = first_turned_codes(model, x, codes)
        assert turned in (None, (1, 1))  # one value right between two codes got the other one
        assert turned or (y - model(x)).abs().max() <= 1e-5
    assert run(tmp_path / "a.onnx", torch.rand(3, 1, 8, 8)).shape == (3, 10)

    graph = onnx.load(tmp_path / "a.onnx")
    onnx.checker.check_model(graph, full_check=True)
    weights = sum(p.numel() for p in model.parameters() if p.dim() > 1)
    stored = {i.name: i for i in graph.graph.initializer}
    dequantized = [node.input[0] for node in graph.graph.node if node.op_type == "DequantizeLinear"]
    codes = [stored[key] for key in dequantized if key in stored]
    assert sum(len(i.raw_data) for i in codes) == weights
    assert {i.data_type for i in codes} == {onnx.TensorProto.INT8}
    assert size < weights + 60_000
    assert b"bhfl/" not in (tmp_path / "a.onnx").read_bytes()


@pytest.mark.parametrize(
    "dtype", [torch.float16, pytest.param(torch.float64, marks=pytest.mark.slow)]
)
def test_a_layer_alone_and_examples_of_another_dtype(dtype, tmp_path):
    layer = quantize_(nn.Linear(8, 4), 8).to(dtype)
    export_onnx(layer, torch.randn(2, 8, dtype=dtype), tmp_path / "a.onnx")
    x = torch.randn(3, 8)
    session = runtime.InferenceSession(tmp_path / "a.onnx")
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), layer.float()(x).detach())


class Base(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(5, 3)


class Several(Base):
    def forward(self, *inputs):
        return sum(self.layer(x) for x in inputs)


class FirstAndRest(Base):
    def forward(self, first, *rest):
        return self.layer(first) - sum(self.layer(x) for x in rest)


class Scaled(Base):
    def forward(self, x, scale, mask=None):
        return self.layer(x) * scale if mask is None else self.layer(x) * scale * mask


class OfDict(Base):
    def forward(self, batch):
        return self.layer(batch["x"]) + batch["y"][0]


class OfAll(Base):
    """All forms at once: an export takes a second, however many there are."""

    def forward(self, first, batch, scale, mask=None, *rest):
        y = self.layer(first) * scale + self.layer(batch["x"]) + batch["y"][0]
        return (y if mask is None else y * mask) - sum(self.layer(x) for x in rest)


class WithEmpty(Base):
    """Layers without an input or an output, an empty buffer, and scalars."""

    def __init__(self):
        super().__init__()
        self.nothing_in, self.nothing_out = nn.Linear(0, 3), nn.Linear(5, 0)
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.register_buffer("empty", torch.zeros(0))
        self.register_buffer("count", torch.tensor(3))

    def forward(self, x):
        return torch.cat(
            [self.layer(x) * self.scale + self.nothing_in(x[:, :0]), self.nothing_out(x)], 1
        )


ROWS = torch.linspace(-1, 1, 20).view(4, 5)
MORE = torch.linspace(-2, 1, 35).view(7, 5)
"""Another batch size."""


def of_all(rows):
    """What `OfAll` is given."""
    batch = {"x": -rows, "y": (torch.ones(3),)}
    return rows, batch, torch.tensor(0.5), rows[:, :1].cos(), rows.square(), rows + 1


EXAMPLES = {
    "all at once": (OfAll, of_all(ROWS), of_all(MORE)),
    "several": (Several, (ROWS, -ROWS), (MORE, MORE.square())),
    "one of several": (Several, (ROWS,), (MORE,)),
    "first and rest": (FirstAndRest, (ROWS, ROWS.square(), -ROWS), (MORE, -MORE, MORE.sin())),
    "a scalar": (Scaled, (ROWS, torch.tensor(0.5)), None),
    "an optional one": (Scaled, (ROWS, torch.tensor(0.5), torch.ones(4, 1)), None),
    "a dict": (OfDict, ({"x": ROWS, "y": (torch.ones(3),)},), None),
    "empty layers": (WithEmpty, (ROWS,), (MORE,)),
}
QUICK = ("all at once", "one of several", "a scalar")
"""With and without what a forward may be given or not."""


def forms():
    """All examples, those that another one holds too among the slow tests."""
    slow = pytest.mark.slow
    return [pytest.param(name, marks=() if name in QUICK else slow) for name in EXAMPLES]


def flat(value):
    return [
        leaf for leaf in torch.utils._pytree.tree_leaves(value) if isinstance(leaf, torch.Tensor)
    ]


@pytest.mark.parametrize("name", forms())
@torch.no_grad()
def test_every_form_of_forward(name, tmp_path):
    cls, example, given = EXAMPLES[name]
    torch.manual_seed(0)
    model = quantize_(cls().eval(), 8)
    assert export_onnx(model, example, tmp_path / "a.onnx") == (tmp_path / "a.onnx").stat().st_size
    session = opened(tmp_path / "a.onnx")
    names = [value.name for value in session.get_inputs()]
    given = example if given is None else given
    feeds = dict(zip(names, [leaf.numpy() for leaf in flat(given)], strict=True))
    (found,) = session.run(None, feeds)
    torch.testing.assert_close(torch.from_numpy(found), model(*given), atol=1e-5, rtol=1e-5)


def test_an_example_of_one_row_or_of_none_leaves_the_batch_open(tmp_path):
    model = quantize_(nn.Sequential(nn.Linear(5, 3)), 8)
    for example in (ROWS[:1], ROWS[:0]):
        export_onnx(model, example, tmp_path / "a.onnx")
        torch.testing.assert_close(
            run(tmp_path / "a.onnx", ROWS), model(ROWS).detach(), atol=1e-5, rtol=1e-5
        )


class Locked(Base):
    """Holds what cannot be copied."""

    def __init__(self):
        super().__init__()
        self.lock = __import__("threading").Lock()

    def forward(self, x):
        return self.layer(x)


class Counting(Base):
    """Its result depends on the number of rows in a way that no graph holds."""

    def forward(self, x):
        return self.layer(x) * int(x.sum().item())


@pytest.mark.parametrize(
    ("model", "example", "cause"),
    [
        (
            Base(),
            (ROWS,),
            r"Base cannot be exported to ONNX: it has no forward, which .*: define it",
        ),
        (
            Scaled(),
            (ROWS,),
            r"forward\(x, scale, mask=None\) of Scaled cannot take an example of 1: "
            "missing .*'scale'",
        ),
        (
            nn.Sequential(nn.Linear(5, 3)),
            torch.arange(4),
            r"Sequential cannot be exported to ONNX: RuntimeError: mat1",
        ),
        (
            nn.Sequential(nn.Linear(5, 3)),
            torch.tensor(1.0),
            r"the example holds no tensor with a dimension of samples",
        ),
        (
            nn.Sequential(nn.Linear(5, 3)),
            (),
            r"the example holds no tensor with a dimension of samples",
        ),
        (
            Locked(),
            (ROWS,),
            r"Locked cannot be exported, because it cannot be copied: cannot pickle",
        ),
        (Counting(), (ROWS,), r"Counting cannot be exported to ONNX: "),
    ],
    ids=["no forward", "too few", "labels", "scalar", "nothing", "locked", "counting"],
)
def test_what_cannot_be_exported_is_told_by_its_cause_in_one_line(model, example, cause, tmp_path):
    with pytest.raises(ValueError, match=cause) as told:
        export_onnx(quantize_(model, 8), example, tmp_path / "a.onnx")
    assert len(str(told.value).splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_model_without_forward_is_exported_once_it_has_one(tmp_path):
    class Defined(Base):
        def forward(self, x):
            return self.layer(x)

    assert export_onnx(quantize_(Defined(), 8), ROWS, tmp_path / "a.onnx")


def test_what_is_refused(tmp_path, monkeypatch):
    model = quantize_(nn.Sequential(nn.Linear(4, 2)), {"weights": 8, "activations": 12})
    with pytest.raises(
        ValueError, match="layer '0': activations must have at most 8 bits, or 32, got 12"
    ):
        export_onnx(model, torch.rand(2, 4), tmp_path / "a.onnx")
    monkeypatch.setitem(__import__("sys").modules, "onnxscript", None)
    with pytest.raises(ImportError, match=r"pip install 'bhfl\[onnx\]'"):
        export_onnx(model, torch.rand(2, 4), tmp_path / "a.onnx")
