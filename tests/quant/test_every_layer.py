"""Every kind of layer, by every backend, through what people do with layers of torch."""

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bhfl.quant import begin_round_, quantize_, seed_, set_backend_

CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(8, 6), (5, 8)),
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, padding=1), (3, 4, 9)),
    "conv2d": (lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2), (3, 4, 9, 9)),
    "transposed": (lambda: nn.ConvTranspose2d(4, 6, 3, stride=2), (3, 4, 5, 5)),
    "embedding": (lambda: nn.Embedding(11, 6), ()),
    "attention": (lambda: nn.MultiheadAttention(8, 2, batch_first=True), (3, 4, 8)),
    "transformer": (lambda: nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True), (3, 4, 8)),
}
SPECS: dict[str, Any] = {
    "int8": 8,
    "lsq": {"weights": 4, "activations": 8, "range_rule": "lsq"},
    "per channel": {"weights": 8, "activations": 8, "granularity": "channel"},
    "strict8": "strict8",
}


def layers_and_backends() -> list[Any]:
    """Each layer by each backend; the transformer's parts, attention and linear layers, are there
    too, so that it stands by one backend before the slow tests.
    """
    cases = []
    for name in CASES:
        for backend in ("fake", "int8", "integer"):
            is_slow = name == "transformer" and backend != "integer"
            marks = [pytest.mark.slow] if is_slow else []
            cases.append(pytest.param(name, backend, id=f"{name}-{backend}", marks=marks))
    return cases


pytestmark = [
    pytest.mark.parametrize(("name", "backend"), layers_and_backends()),
    pytest.mark.parametrize(
        "spec", ["int8", *(pytest.param(s, marks=pytest.mark.slow) for s in SPECS if s != "int8")]
    ),
    pytest.mark.filterwarnings(
        "ignore::bhfl.quant.BackendWarning"
    ),  # transposed convolutions have no integer product
]


def prepared(layer: nn.Module, spec: Any, backend: str) -> nn.Module:
    seed_(quantize_(layer, spec, backend=backend), torch.Generator().manual_seed(1))
    begin_round_(layer)
    return layer.eval()


def case(name: str, spec: str, backend: str) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """A layer and its inputs."""
    torch.manual_seed(0)
    make, shape = CASES[name]
    x = torch.randn(shape) if shape else torch.arange(9).view(3, 3)
    return prepared(make(), SPECS[spec], backend), (x,) * (3 if name == "attention" else 1)


def run(layer: Any, inputs: tuple[Tensor, ...]) -> Tensor:
    y = layer(*inputs)
    found: Tensor = y[0] if isinstance(y, tuple) else y
    return found


def test_compile(name: str, spec: str, backend: str) -> None:
    layer, inputs = case(name, spec, backend)
    torch.compiler.reset()
    compiled = torch.compile(layer, backend="eager")
    assert torch.equal(run(compiled, inputs), run(layer, inputs))
    gradients = []
    for forward in (layer, compiled):
        layer.zero_grad()
        seed_(layer, torch.Generator().manual_seed(2))
        run(forward, inputs).square().sum().backward()
        gradients.append([p.grad.clone() for p in layer.parameters() if p.grad is not None])
    assert gradients[0]
    for a, b in zip(*gradients, strict=True):
        assert torch.equal(a, b)


def test_export(name: str, spec: str, backend: str) -> None:
    layer, inputs = case(name, spec, backend)
    program = torch.export.export(layer, inputs).module()
    torch.testing.assert_close(run(program, inputs), run(layer, inputs), rtol=1e-4, atol=1e-5)
    assert torch.equal(run(program, inputs), run(set_backend_(layer, "fake"), inputs))


def test_autocast(name: str, spec: str, backend: str) -> None:
    layer, inputs = case(name, spec, backend)
    exact = run(layer, inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = run(layer, inputs)
    assert y.dtype == (
        torch.bfloat16 if name not in ("embedding", "transformer") else torch.float32
    )
    assert (y.float() - exact).abs().max() <= 0.05 * exact.abs().max()
    y.float().square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in layer.parameters())


def test_copies_and_state_dicts(name: str, spec: str, backend: str) -> None:
    layer, inputs = case(name, spec, backend)
    expected = run(layer, inputs)
    assert torch.equal(run(copy.deepcopy(layer), inputs), expected)
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    CASES[name][0]().load_state_dict(state)
    fresh = quantize_(CASES[name][0](), SPECS[spec])
    fresh.load_state_dict(state)
    assert torch.equal(run(prepared(fresh, SPECS[spec], backend), inputs), expected)
