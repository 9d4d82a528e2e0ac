"""ONNX graphs with fixed ranges, under onnxruntime."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from bhfl.export import export_onnx
from bhfl.export.static import _Reader
from bhfl.models import build
from bhfl.quant import quantize_

onnx = pytest.importorskip("onnx", reason="the extra 'onnx' is not installed")
pytest.importorskip("onnxscript", reason="the extra 'onnx' is not installed")
runtime = pytest.importorskip("onnxruntime", reason="the extra 'onnx' is not installed")
pytestmark = pytest.mark.skipif(not hasattr(torch.onnx, "ops"), reason="ONNX files need torch 2.8")


def digits() -> tuple[torch.Tensor, torch.Tensor]:
    from sklearn.datasets import load_digits

    found = load_digits()
    images = torch.from_numpy(found.images).float().div(16).unsqueeze(1)
    return images, torch.from_numpy(found.target).long()


@pytest.fixture(scope="module")
def trained() -> nn.Module:
    """A CNN of int8 that has learned the first digits."""
    images, labels = digits()
    torch.manual_seed(0)
    model = quantize_(build("cnn", num_classes=10, input_shape=(1, 8, 8)), 8).train()
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    for _ in range(6):
        for rows in torch.randperm(1200).split(32):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images[rows]), labels[rows]).backward()
            optimizer.step()
    return model.eval()


def accuracy(logits: torch.Tensor, labels: torch.Tensor) -> float:
    return float((logits.argmax(1) == labels).float().mean())


@torch.no_grad()
def test_accuracy_stays_within_a_point_and_ranges_are_constants(
    trained: nn.Module, tmp_path: Path
) -> None:
    images, labels = digits()
    path = tmp_path / "static.onnx"
    before = {name: tensor.clone() for name, tensor in trained.state_dict().items()}
    size = export_onnx(trained, images[:2], path, calibration=images[:256].split(64))
    assert size == path.stat().st_size
    assert all(torch.equal(before[name], t) for name, t in trained.state_dict().items())
    graph = onnx.load(path).graph
    constants = {one.name for one in graph.initializer}
    nodes = [node for node in graph.node if node.op_type == "QuantizeLinear"]
    assert nodes
    assert all({*node.input[1:]} <= constants for node in nodes)
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    test, right = images[1200:], labels[1200:]
    (logits,) = session.run(None, {session.get_inputs()[0].name: test.numpy()})
    ours = accuracy(trained(test), right)
    assert ours > 0.8
    assert abs(accuracy(torch.from_numpy(logits), right) - ours) <= 0.01


@pytest.mark.parametrize(
    ("spec", "problem"),
    [
        (4, "'0' has weights of 4"),
        ({"weights": 8, "activations": 4}, "'0' has activations of 4"),
        ({"weights": 8}, "'0' has activations of 32"),
    ],
)
def test_other_widths_are_refused(spec, problem: str, tmp_path: Path) -> None:
    model = quantize_(nn.Sequential(nn.Linear(3, 2)), spec)
    x = torch.zeros(2, 3)
    with pytest.raises(ValueError, match=f"fixed ranges need 8 bits .* and {problem}"):
        export_onnx(model, x, tmp_path / "a.onnx", calibration=[x])
    assert list(tmp_path.iterdir()) == []


def test_batches_that_forward_cannot_take_are_told() -> None:
    with pytest.raises(ValueError, match="1 tensors as the example does, got 2: leave labels out"):
        _Reader(["x"], [[torch.zeros(2, 3), torch.zeros(2)]]).get_next()


def test_what_the_tool_cannot_do_is_told_by_its_cause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*args: object) -> int:
        raise AssertionError("scale issue")

    monkeypatch.setattr("bhfl.export.qdq._program", lambda *args: None)
    monkeypatch.setattr("bhfl.export.qdq.quantize_file", failing)
    model = quantize_(nn.Sequential(nn.Linear(3, 2)), 8)
    x = torch.zeros(2, 3)
    with pytest.raises(ValueError, match="cannot be exported to ONNX: AssertionError: scale issue"):
        export_onnx(model, x, tmp_path / "a.onnx", calibration=[x])
