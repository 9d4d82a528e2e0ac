"""Small trainings: what a width must still be able to learn."""

import copy
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bhfl.quant import begin_round_, quantize_, seed_, store_


def problem() -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    y = torch.randint(0, 3, (120,))
    x = torch.randn(120, 10) + 3 * torch.nn.functional.one_hot(y, 10)
    return nn.Sequential(nn.Linear(10, 32), nn.ReLU(inplace=True), nn.Linear(32, 3)), x, y


def train(model: nn.Module, x: Tensor, y: Tensor, num_steps: int, lr: float) -> list[float]:
    generator = torch.Generator().manual_seed(0)
    seed_(model, generator)
    begin_round_(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    losses = []
    for _ in range(num_steps):
        loss = nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        store_(model, generator)
        losses.append(loss.item())
    return losses


def test_sixteen_bits_track_float32() -> None:
    model, x, y = problem()
    exact = train(copy.deepcopy(model), x, y, 50, 0.1)
    found = train(quantize_(model, "int16"), x, y, 50, 0.1)
    assert found == pytest.approx(exact, rel=0.01)


@pytest.mark.parametrize(
    "spec", ["ternary", "int3", "strict8", {"weights": 2, "activations": 8, "range_rule": "lsq"}]
)
def test_few_bits_fit_a_separable_set(spec: object) -> None:
    model, x, y = problem()
    train(quantize_(model, spec), x, y, 150, 0.1)  # type: ignore[arg-type]
    assert (model(x).argmax(1) == y).float().mean() > 0.97


def test_wage_fits_a_separable_set() -> None:
    model, x, y = problem()
    train(quantize_(model, "wage2888"), x, y, 150, 2 * 2.0**-7)
    assert (model(x).argmax(1) == y).float().mean() > 0.95


BACKENDS = ["int8", "int8-bfloat16", "integer"]
SPECS = ["int8", "ternary", "strict8", "wage2888"]


def pairs() -> list[Any]:
    """Each backend with 8 bits and each spec with integers, and all other pairs as slow ones."""
    found = []
    for spec, backend in product(SPECS, BACKENDS):
        quick = spec == "int8" or backend == "integer"
        found.append(pytest.param(backend, spec, marks=() if quick else pytest.mark.slow))
    return found


@pytest.mark.parametrize(("backend", "spec"), pairs())
def test_other_backends_learn_as_fake_does(backend: str, spec: str) -> None:
    model, x, y = problem()
    lr = 2 * 2.0**-7 if spec == "wage2888" else 0.1
    expected = train(quantize_(copy.deepcopy(model), spec), x, y, 100, lr)
    found = train(quantize_(model, spec, backend=backend), x, y, 100, lr)
    assert found[0] == pytest.approx(expected[0], rel=1e-5)
    assert found[-1] < 0.3 * found[0]
    assert sum(found) == pytest.approx(sum(expected), rel=0.1)
