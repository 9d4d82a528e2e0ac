"""The backends that choose, and the table that they choose by."""

import copy

import pytest
import torch
from torch import nn

from bhfl.quant import backend_choices, quantize_, set_backend_, set_spec_, tune
from bhfl.quant.backends import auto, tuning


@pytest.fixture(autouse=True)
def own_table(monkeypatch: pytest.MonkeyPatch) -> None:
    table = {("int8", "linear"): 64, ("int8", "conv"): 32, ("integer", "conv"): 16}
    monkeypatch.setattr(auto, "TABLES", {"cpu": table})
    monkeypatch.setattr(tuning, "TABLES", auto.TABLES)


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 32, 3),
        nn.Conv2d(32, 64, 3),
        nn.Conv2d(64, 64, 3, padding=1, groups=4),
        nn.Flatten(),
        nn.Linear(64, 64),
        nn.Linear(64, 10),
        nn.Unflatten(1, (2, 5)),
        nn.Conv1d(2, 32, 2),
    )


@pytest.mark.filterwarnings("error::bhfl.quant.BackendWarning")
def test_layers_below_the_table_stay_with_fake() -> None:
    net = quantize_(model(), 8, backend="auto")
    assert backend_choices(net) == {
        "0": "fake",
        "1": "int8",
        "2": "fake",
        "4": "int8",
        "5": "fake",
        "7": "fake",
    }
    assert repr(net[1]).endswith("spec=int8, backend=auto (int8))")
    assert repr(net[5]).endswith("spec=int8, backend=auto (fake))")
    x = torch.randn(2, 3, 5, 5)
    torch.testing.assert_close(net(x), set_backend_(copy.deepcopy(net), "fake")(x))
    set_spec_(net, 12)  # no integers so wide: a choice, not a fallback
    assert set(backend_choices(net).values()) == {"fake"}
    net(x)
    set_backend_(set_spec_(net, 8), "auto-integer")
    assert backend_choices(net) == {
        "0": "fake",
        "1": "integer",
        "2": "integer",
        "4": "fake",
        "5": "fake",
        "7": "fake",
    }
    set_backend_(net, "auto-bfloat16")
    assert set(backend_choices(net).values()) == {"fake"}


def test_a_layer_is_measured_by_what_it_multiplies_for_each_value() -> None:
    assert (
        auto.num_channels(nn.Linear(64, 64))
        == auto.num_channels(nn.Conv2d(256, 256, 3, groups=4))
        == 64
    )
    assert (
        auto.num_channels(nn.Linear(4096, 128)) == auto.num_channels(nn.Conv2d(128, 4096, 3)) == 248
    )
    assert auto.num_channels(nn.MultiheadAttention(64, 2)) == 96
    assert auto.num_channels(nn.Embedding(64, 64)) == 0
    assert [auto.kind(nn.Conv2d(8, 8, kernel)) for kernel in (1, 3, (1, 2))] == [
        "linear",
        "conv",
        "conv",
    ]


def test_float32_and_copies_and_state_dicts_do_not_care() -> None:
    net = quantize_(model(), 32, backend="auto")
    x = torch.randn(2, 3, 5, 5)
    assert torch.equal(net(x), model()(x))
    assert list(net.state_dict()) == list(model().state_dict())
    assert backend_choices(copy.deepcopy(set_spec_(net, 8))) == backend_choices(net)


def test_tune_takes_the_least_size_from_which_all_are_faster(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seconds = {  # by size
        "int8": {8: 0.5, 16: 1.1, 32: 0.9, 64: 0.5},
        "int8-bfloat16": {8: 0.5, 16: 0.5, 32: 0.5, 64: 0.97},
        "integer": {8: 0.9, 16: 0.9, 32: 0.9, 64: 0.9},
    }

    def measured(
        layer: nn.Module, x: torch.Tensor, backends: list[str], spec: object, num_turns: int
    ) -> dict[str, float]:
        return {backend: seconds[backend][x.shape[1]] for backend in backends}

    auto.TABLES["cuda"] = {("int8", "linear"): 1}
    monkeypatch.setattr(tuning, "_relative_seconds", measured)
    found = tune(sizes=(8, 16, 32, 64))
    assert found == {
        (b, k): n for k in ("linear", "conv") for b, n in (("int8", 32), ("integer", 8))
    }
    assert {"cpu": found, "cuda": {("int8", "linear"): 1}} == auto.TABLES


def test_a_hopeless_backend_is_not_measured_any_further(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, list[str]]] = []

    def measured(
        layer: nn.Module, x: torch.Tensor, backends: list[str], spec: object, num_turns: int
    ) -> dict[str, float]:
        asked.append((x.shape[1], backends))
        return {backend: 0.5 if backend == "int8" else 13.0 for backend in backends}

    monkeypatch.setattr(tuning, "_relative_seconds", measured)
    assert tune(sizes=(8, 16)) == {("int8", "linear"): 8, ("int8", "conv"): 8}
    everyone = list(auto.FAST.values())
    assert asked == [(8, everyone), (16, ["int8"])] * 2


def test_tune_really_measures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "_NUM_IMAGES", 1)
    state = torch.get_rng_state()
    for (backend, kind), size in tune(sizes=(8, 16), num_rows=64, num_turns=1).items():
        assert size in (8, 16)
        assert backend in auto.FAST.values()
        assert kind in ("linear", "conv")
    assert torch.equal(torch.get_rng_state(), state)
