"""The scripts of examples/, run as they stand."""

import importlib.util
from pathlib import Path

import pytest
import torch

from bhfl.quant import QuantLayer

FOLDER = Path(__file__).parents[2] / "examples"


def script(name):
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_example_is_run_here():
    assert {path.stem for path in FOLDER.glob("*.py")} == {"resnet18_trainer", "vit_loop"}


def test_resnet18_under_a_plain_trainer(tmp_path):
    pytest.importorskip("safetensors", reason="the extra 'export' is not installed")
    torch.manual_seed(0)
    model = script("resnet18_trainer").main(tmp_path / "a.safetensors", num_images=32)
    assert sum(isinstance(layer, QuantLayer) for layer in model.modules()) == 19
    assert (tmp_path / "a.safetensors").stat().st_size < 0.27 * 4 * sum(
        p.numel() for p in model.parameters()
    )


@pytest.mark.parametrize("options", [{"steps": 120}, pytest.param({}, marks=pytest.mark.slow)])
def test_a_vision_transformer_in_a_plain_loop(options):
    found = script("vit_loop").main(**options)
    assert found["8 bits"] > 0.9
    assert found["ternary"] > 0.9
    assert found["ternary weights, plain layers"] > 0.85
