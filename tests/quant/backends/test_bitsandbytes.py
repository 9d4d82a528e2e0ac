"""The backend of that package, whose faults are kept away."""

import copy
import importlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from bhfl.quant import BackendWarning, backend_choices, quantize_, set_backend_
from bhfl.quant.backends import bnb

SPEC = {"weights": 8, "activations": 8, "granularity": "channel"}


@pytest.fixture(autouse=True)
def package_looked_for_anew() -> Iterator[None]:
    yield
    bnb._package.cache_clear()


def linear() -> tuple[nn.Module, nn.Module]:
    """A layer by bitsandbytes, and its copy by fake."""
    pytest.importorskip("bitsandbytes")
    torch.manual_seed(0)
    layer = quantize_(nn.Linear(24, 10), SPEC, backend="bitsandbytes")
    return layer, set_backend_(copy.deepcopy(layer), "fake")


@pytest.mark.filterwarnings("error::UserWarning")
def test_its_faults_do_not_show() -> None:
    """Three dimensions backward, bfloat16 autocast, and weights that another state dict
    replaced.
    """
    layer, fake = linear()
    x = torch.randn(3, 5, 24, requires_grad=True)
    for _ in range(2):  # the second time with gradients present and other weights
        y = layer(x)
        torch.testing.assert_close(y, fake(x), rtol=0.02, atol=0.02)
        y.square().sum().backward()
        assert layer.weight.grad is not None
        other = nn.Linear(24, 10).state_dict()
        layer.load_state_dict(other)
        fake.load_state_dict(other)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    torch.testing.assert_close(y.float(), fake(x), rtol=0.05, atol=0.05)
    assert torch.equal(layer.eval()(x), copy.deepcopy(layer)(x))
    assert layer(torch.empty(0, 24)).shape == (0, 10)


def test_a_compiled_model_computes_by_it_too() -> None:
    layer, fake = linear()
    torch.compiler.reset()
    x = torch.randn(4, 24)
    y = torch.compile(layer, backend="eager")(x)
    assert torch.equal(y, layer(x))
    assert not torch.equal(y, fake(x))


def test_its_codes_are_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, _ = linear()
    matmul, new_state = bnb._package()
    states: list[Any] = []
    monkeypatch.setattr(
        bnb, "_package", lambda: (matmul, lambda: states.append(new_state()) or states[-1])
    )
    layer(torch.randn(4, 24))
    assert torch.equal(states[0].CB, layer.quantized_weight().codes)  # type: ignore[union-attr,operator]


def test_what_it_has_not_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("bitsandbytes")
    model = quantize_(nn.Sequential(nn.Conv2d(1, 2, 1), nn.Linear(4, 2)), 8, backend="bitsandbytes")
    assert backend_choices(model) == {"0": "fake", "1": "fake"}
    with pytest.warns(BackendWarning) as found:
        model(torch.randn(2, 1, 4, 4))
    assert [str(w.message).split(": ", 1)[1] for w in found] == [
        "it has linear layers only; it runs as 'fake'",
        "it needs {weights: 8, activations: 8, granularity: channel}, got int8; it runs as 'fake'",
    ]


def test_a_package_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ModuleNotFoundError(f"No module named {name!r}")

    bnb._package.cache_clear()
    monkeypatch.setattr(importlib, "import_module", missing)
    model = nn.Linear(2, 2)
    with pytest.raises(
        ImportError,
        match=r"cannot import bitsandbytes \(No module named 'bitsandbytes'\): pip install",
    ):
        quantize_(model, SPEC, backend="bitsandbytes")
    assert type(model) is nn.Linear
