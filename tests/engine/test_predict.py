"""Predictions of a run's models, and the files that they are written to."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.utilities import CombinedLoader
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

import bhfl
from bhfl.algorithms import FedPer, Local
from bhfl.engine.predict import columns
from bhfl.engine.trainer import FederatedTrainer
from tests.engine.hand_made import HandMade, Module, points
from tests.federation import fit


class Forward(Module):
    """Predicts by its forward alone, as plain networks do."""

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images)


class Named(Module):
    """Predicts two tensors by name, and counts its hooks."""

    def on_predict_start(self) -> None:
        self.stages = [self.trainer.predicting, self.trainer.evaluating, self.trainer.training]

    def predict_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        logits = self.net(batch[0])
        return {"logits": logits.bfloat16(), "class": logits.argmax(1)}


class Loaded(HandMade):
    """Data with samples of their own to predict, which have no targets."""

    def predict_dataloader(self) -> list[Tensor]:
        return [torch.ones(2, 6), torch.zeros(1, 6)]


def data(cls: type[HandMade] = HandMade) -> HandMade:
    return cls([points(4), points(4, seed=1)], held_out=points(5, seed=9))


@pytest.fixture(scope="module")
def trainer(tmp_path_factory: pytest.TempPathFactory) -> FederatedTrainer:
    options = {"max_rounds": 1, "monitor": "train/loss", "mode": "min"}
    folder = tmp_path_factory.mktemp("run")
    return fit(folder, None, {3: 1, 32: 1}, Module, data(), **options)


def test_the_model_is_that_of_the_server_or_of_a_group(trainer: FederatedTrainer) -> None:
    images, _ = next(iter(data().test_batches()))
    found = {}
    for group in (None, "int3", "float32"):
        # a module of no run: the checkpoint's weights count
        (found[group],) = trainer.predict(Forward(), data(), "last", group=group)
        model = bhfl.load_model(trainer.run.folder, "last", group, model=Forward())
        with torch.no_grad():
            # int3 clients round activations to 8 bits besides
            assert torch.allclose(found[group], model(images), atol=0.01)
    assert torch.equal(found[None], found["float32"])
    assert not torch.allclose(found[None], found["int3"], atol=0.01)


def test_a_model_is_predicted_with_as_it_is_or_as_its_run_left_it(tmp_path: Path) -> None:
    fresh = Forward()
    plain = FederatedTrainer({32: 2}, logger=False, default_root_dir=str(tmp_path), devices=1)
    (found,) = plain.predict(fresh, data())
    images, _ = next(iter(data().test_batches()))
    with torch.no_grad():
        assert torch.equal(found, fresh(images))
    assert not list(tmp_path.iterdir())


def test_the_file_has_a_row_for_each_sample(trainer: FederatedTrainer, tmp_path: Path) -> None:
    out = tmp_path / "new" / "predicted.csv"
    (found,) = trainer.predict(Named(), data(), "last", out=out)
    rows = list(csv.reader(out.read_text().splitlines()))
    width = found["logits"].shape[1]
    assert rows[0] == ["sample", *(f"logits_{i}" for i in range(width)), "class", "target"]
    _, labels = next(iter(data().test_batches()))
    assert [int(row[-1]) for row in rows[1:]] == labels.tolist()
    assert [int(row[0]) for row in rows[1:]] == list(range(5))
    read = torch.tensor([[float(x) for x in row[1 : 1 + width]] for row in rows[1:]])
    assert torch.equal(read, found["logits"].float())
    trainer.predict(Named(), data(), "last", out=tmp_path / "predicted.npz")
    with np.load(tmp_path / "predicted.npz") as arrays:
        assert list(arrays) == ["sample", "logits", "class", "target"]
        assert np.array_equal(arrays["logits"], found["logits"].float().numpy())


def test_data_may_bring_what_is_to_be_predicted(trainer: FederatedTrainer, tmp_path: Path) -> None:
    outputs = trainer.predict(Forward(), data(Loaded), "last", out=tmp_path / "a.csv")
    assert list(map(len, outputs)) == [2, 1]
    assert "target" not in (tmp_path / "a.csv").read_text()


class Boxed:
    """A batch of a class of its own, which torch does not look into."""

    def __init__(self, rows: Tensor) -> None:
        self.rows = rows

    def to(self, device: Any) -> Boxed:
        return self


class BoxedData(HandMade):
    def predict_dataloader(self) -> list[Boxed]:
        return [Boxed(torch.ones(2, 6))]


class Unboxing(Module):
    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.net(batch.rows)


def test_a_batch_may_be_of_any_class(trainer: FederatedTrainer) -> None:
    (found,) = trainer.predict(Unboxing(), data(BoxedData), "last")
    assert len(found) == 2


SET: Any = TensorDataset(torch.ones(1, 6))
LOADER: Any = DataLoader(SET)


@pytest.mark.parametrize(
    ("returned", "told"),
    [
        ([LOADER, LOADER], "several"),
        ({"a": LOADER}, "dict"),
        (None, "NoneType"),
        (CombinedLoader([LOADER]), "CombinedLoader"),
        (SET, "TensorDataset"),
    ],
)
def test_what_is_not_one_loader_is_refused(
    trainer: FederatedTrainer, returned: Any, told: str
) -> None:
    class Returning(HandMade):
        def predict_dataloader(self) -> Any:
            return returned

    with pytest.raises(ValueError, match=f"predict_dataloader must return one loader, got {told}"):
        trainer.predict(Forward(), data(Returning), "last")


def test_a_module_knows_that_it_predicts(trainer: FederatedTrainer) -> None:
    module = Named()
    trainer.predict(module, data(), "last")
    assert module.stages == [True, False, False]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"group": "int5"}, "group must be one of the fleet's, got 'int5'; did you mean 'int3'"),
        ({"out": "a.txt"}, "out must end in .csv or .npz, got 'a.txt'"),
        ({"out": ""}, "out must be a path"),
        ({"out": "a.csv"}, "out must be a file to write, got the folder 'a.csv'"),
        (
            {"out": "/dev/null/a.csv"},
            "out must be a folder .*, got '/dev/null', and '/dev/null' is",
        ),
    ],
)
def test_what_cannot_be_is_refused(
    trainer: FederatedTrainer,
    options: Any,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.csv").mkdir()
    with pytest.raises(ValueError, match=message):
        trainer.predict(Forward(), data(), "last", **options)


def test_a_module_that_cannot_predict_is_refused(trainer: FederatedTrainer) -> None:
    with pytest.raises(ValueError, match="Module must define predict_step or forward to predict"):
        trainer.predict(Module(), data(), "last")


def test_a_method_without_a_global_model_is_refused(tmp_path: Path) -> None:
    trainer = FederatedTrainer({32: 2}, Local(), logger=False, devices=1)
    with pytest.raises(ValueError, match="predict needs a global model, and Local keeps none"):
        trainer.predict(Forward(), data())


@pytest.mark.parametrize(
    ("algorithm", "options", "message"),
    [
        (
            FedPer(["net.0"]),
            {},
            "the server's, and net.0.bias stays with the clients: test",
        ),
        (None, {"norm": "local"}, "the server's, and net.1.running_mean stays with the clients"),
    ],
)
def test_a_model_that_nobody_trained_as_a_whole_is_refused(
    tmp_path: Path, algorithm: Any, options: Any, message: str
) -> None:
    options = {"logger": False, "default_root_dir": str(tmp_path), "devices": 1, **options}
    module = Forward()
    module.net = torch.nn.Sequential(torch.nn.Linear(6, 4), torch.nn.BatchNorm1d(4))
    trainer = FederatedTrainer({3: 1, 32: 1}, algorithm, **options)
    with pytest.raises(ValueError, match=message):
        trainer.predict(module, data())


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        ([], "predict needs samples, and the data have none to predict"),
        ([torch.tensor(1.0)], "returns a tensor with a row for each sample, .*got Tensor for"),
        ([["a"]], "got list for 'output'"),
        ([torch.ones(2, 3), torch.ones(2, 4)], r"one shape of 'output', got \[\(3,\), \(4,\)\]"),
        ([{"a": torch.ones(2), "b": torch.ones(3)}], "as many rows of each output, got {'a': 2, "),
    ],
)
def test_what_no_file_can_hold_is_refused(outputs: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        columns(outputs, [None] * len(outputs))
