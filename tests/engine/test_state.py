"""State that can travel does so to the bit; any other is refused before training, by name and with
what to do.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bhfl.algorithms import (
    AdaQuantFL,
    FedCOM,
    FedCOMGATE,
    FedLQ,
    FedPAQ,
    FedProx,
    GroupedAvg,
    ProWD,
)
from bhfl.algorithms.fedlq import Sensitivity
from bhfl.algorithms.prowd import Dequantizer, Mask
from bhfl.callbacks import WeightHistograms
from bhfl.engine.state import check_state
from tests.engine.hand_made import HandMade, Module, float_state, points
from tests.federation import fit, same

REFUSED: dict[str, tuple[Callable[[], Tensor], str]] = {
    "float64": (
        lambda: torch.zeros(2).double(),
        r"must be float32, got: extra is torch\.float64; call \.float\(\)",
    ),
    "float16": (
        lambda: torch.zeros(2).half(),
        r"must be float32, got: extra is torch\.float16; call \.float\(\)",
    ),
    "float8": (
        lambda: torch.ones(2).to(torch.float8_e4m3fn),
        r"must be float32, got: extra is torch\.float8_e4m3fn",
    ),
    "complex64": (
        lambda: torch.ones(2) + 1j,
        r"must be real, got: extra is torch\.complex64; store torch\.view_as_real",
    ),
    "infinite": (
        lambda: torch.tensor([0.0, -torch.inf]),
        "buffers must hold neither NaN nor infinity, which has no mean, got others: extra; store",
    ),
    "uint16": (
        lambda: torch.ones(2).to(torch.uint16),
        r"must be int8, .* got: extra is torch\.uint16; store .* as int64",
    ),
    "uint32": (
        lambda: torch.ones(2).to(torch.uint32),
        r"must be int8, .* got: extra is torch\.uint32",
    ),
    "sparse": (
        lambda: torch.eye(2).to_sparse(),
        r"must be dense, got: extra is torch\.float32, torch\.sparse_coo; store",
    ),
    "csr": (
        lambda: torch.eye(2).to_sparse_csr(),
        r"must be dense, got: extra is torch\.float32, torch\.sparse_csr",
    ),
    "quantised": (
        lambda: torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8),
        r"must not be quantised by torch, got: extra is torch\.qint8; give the float model",
    ),
    "meta": (
        lambda: torch.ones(2, device="meta"),
        r"must have values, got: extra is on meta; .* to_empty",
    ),
    "lazy": (
        nn.parameter.UninitializedBuffer,
        r"must have values, got: extra is not initialised; run one batch",
    ),
    "nested": (
        lambda: torch.nested.nested_tensor([torch.ones(1), torch.ones(2)]),
        r"must not be nested tensors, got: extra is nested",
    ),
}
CARRIED: dict[str, Tensor] = {
    "bool": torch.tensor([True, False]),
    "uint8": torch.tensor([0, 255], dtype=torch.uint8),
    "int8": torch.tensor([-128, 127], dtype=torch.int8),
    "int16": torch.tensor([-(2**15), 2**15 - 1], dtype=torch.int16),
    "int32": torch.tensor([-(2**31), 2**31 - 1], dtype=torch.int32),
    "int64": torch.tensor([-(2**63), 2**63 - 1]),
    "scalar": torch.tensor(2.5),
    "scalar integer": torch.tensor(-3),
    "empty": torch.zeros(0),
    "empty matrix": torch.zeros(0, 5),
    "empty integers": torch.zeros(0, dtype=torch.int64),
}


class Extra(Module):
    """Has one more buffer, and counts its steps."""

    def __init__(self, extra: Tensor, persistent: bool = True) -> None:
        super().__init__()
        self.steps = 0
        self.register_buffer("extra", extra, persistent=persistent)

    def training_step(self, batch, batch_idx):
        self.steps += 1
        return super().training_step(batch, batch_idx)


def run(folder, module: Module, algorithm: Any = None, clients: Any = None, **options: Any):
    data = HandMade([points(6, i) for i in range(2)], held_out=points(4, 9))
    return fit(
        folder, algorithm, clients or {8: 1, 32: 1}, lambda: module, data, max_rounds=2, **options
    )


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_travel_is_refused_before_training_and_the_model_is_left_as_it_was(
    tmp_path, kind
):
    make, message = REFUSED[kind]
    model = Extra(make())
    hooks = dict(vars(model))
    with pytest.raises(ValueError, match=message):
        run(tmp_path, model)
    assert not model.steps
    assert type(model.net[0]) is nn.Linear
    assert vars(model).keys() == hooks.keys()
    assert not list(tmp_path.iterdir())


def test_weights_of_a_training_that_diverged_are_refused_unless_they_are_frozen():
    model = Module()
    weight = model.net[0].weight
    weight.data[0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"NaN nor infinity.*: net\.0\.weight; .* not diverged"):
        check_state(model)
    weight.requires_grad_(False)
    check_state(model)


@pytest.mark.parametrize(
    "kind", [kind for kind in REFUSED if kind not in ("meta", "lazy", "nested")]
)
def test_kept_out_of_the_state_it_does_train(tmp_path, kind):
    extra = REFUSED[kind][0]()
    model = Extra(extra, persistent=False)
    run(tmp_path, model)
    assert model.steps == 8
    assert (model.extra.dtype, model.extra.layout) == (extra.dtype, extra.layout)


@pytest.mark.parametrize("kind", ["meta", "lazy", "nested"])
def test_values_that_no_client_can_begin_anew_with_are_refused_there_too(tmp_path, kind):
    make, message = REFUSED[kind]
    with pytest.raises(ValueError, match=message):
        run(tmp_path, Extra(make(), persistent=False))


def test_the_other_remedies_work(tmp_path):
    run(tmp_path, Extra(torch.zeros(2).double()).float())
    run(tmp_path, Extra(torch.ones(2).to(torch.uint16).to(torch.int64)))
    run(tmp_path, Extra(torch.view_as_real(torch.ones(2) + 1j)))
    run(tmp_path, Extra(torch.eye(2).to_sparse().to_dense()))
    lazy = Module(nn.Sequential(nn.LazyLinear(7), nn.ReLU(), nn.LazyLinear(3)))
    with pytest.raises(ValueError, match=r"net\.0\.weight is not initialised"):
        run(tmp_path, lazy)
    lazy.net(points(2)[0])
    run(tmp_path, lazy)
    with torch.device("meta"):
        empty = Module()
    with pytest.raises(ValueError, match=r"net\.0\.weight is on meta"):
        run(tmp_path, empty)
    empty.to_empty(device="cpu").load_state_dict(Module().state_dict())
    run(tmp_path, empty)


def test_all_rules_that_are_broken_are_told_at_once():
    model = Extra(torch.ones(2) + 1j)
    model.net[0].double()
    with pytest.raises(
        ValueError, match=r"must be real, got: extra.*\n.*must be float32, got: net\.0\.weight"
    ):
        check_state(model)


@pytest.mark.parametrize("kind", CARRIED)
@pytest.mark.parametrize("algorithm", [None, FedPAQ(4)], ids=["fedavg", "fedpaq"])
def test_what_can_travel_comes_back_to_the_bit(tmp_path, kind, algorithm):
    model = Extra(CARRIED[kind].clone())
    trainer = run(tmp_path, model, algorithm)
    assert [row["clients/ok"] for row in trainer.run.history] == [2, 2]
    assert model.extra.dtype == CARRIED[kind].dtype
    assert torch.equal(model.extra, CARRIED[kind])


class Odd(Module):
    """Scalars, tensors and layers without entries, and a layer that the loss does not reach."""

    def __init__(self, sparse: bool = False) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(1.0))
        self.nothing, self.rows = nn.Parameter(torch.zeros(0)), nn.Parameter(torch.zeros(0, 5))
        self.columns = nn.Parameter(torch.zeros(5, 0))
        self.no_outputs = nn.Linear(6, 0)
        self.no_inputs = nn.Linear(0, 3)
        self.unused = nn.Linear(3, 2)
        self.words = nn.Embedding(10, 3, sparse=sparse)
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def training_step(self, batch, batch_idx):
        self.count += 1
        words = self.words((batch[0][:, 0].abs() * 3).long().clamp(max=9))
        logits = (
            self.net(batch[0]) * self.factor + words + self.no_inputs(self.no_outputs(batch[0]))
        )
        return (
            nn.functional.cross_entropy(logits, batch[1]) + self.nothing.sum() + self.columns.sum()
        )

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


ALGORITHMS: dict[str, Callable[[], Any]] = {
    "fedavg": lambda: None,
    "fedprox": lambda: FedProx(0.1),
    "fedpaq": lambda: FedPAQ(4),
    "buckets": lambda: FedCOM(4, bucket_size=8, norm="l2"),
    "gate": lambda: FedCOMGATE(4, allow_inexact=True),
    "grouped": GroupedAvg,
    "adaquantfl": AdaQuantFL,
    "fedlq": lambda: FedLQ("delta", sensitivity=Sensitivity("clients", refresh=1)),
    "planned": lambda: FedLQ(plan="server", sensitivity=Sensitivity(shrinkage=0)),
    "prowd": lambda: ProWD(
        dequantizer=Dequantizer(warmup_rounds=1, first_steps=2, distill_weight=0)
    ),
    "prowd delta": lambda: ProWD(Mask(per="group"), None, payload="delta"),
}


@pytest.mark.parametrize("name", ALGORITHMS)
def test_empty_tensors_and_scalars_train_with_every_method(tmp_path, name):
    model = Odd()
    before = float_state(model)
    options = {"callbacks": [WeightHistograms()], "logger": True} if name == "fedavg" else {}
    trainer = run(tmp_path, model, ALGORITHMS[name](), {4: 1, 32: 1}, **options)
    assert [row["clients/ok"] for row in trainer.run.history] == [2, 2]
    assert all(value.shape == before[key].shape for key, value in model.state_dict().items())
    assert not torch.equal(model.factor, before["factor"])


@pytest.mark.parametrize("name", ["fedavg", "fedprox", "gate"])
def test_sparse_gradients_are_the_dense_ones(tmp_path, name):
    states = []
    for sparse in (False, True):
        torch.manual_seed(0)
        model = Odd(sparse)
        run(tmp_path / str(sparse), model, ALGORITHMS[name](), {32: 2})
        states.append(float_state(model))
    dense, sparse_ = states
    assert same(dense, sparse_) or all(
        torch.allclose(dense[key], sparse_[key], atol=1e-6) for key in dense
    )
