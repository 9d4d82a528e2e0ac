"""Runs and models from run folders: as a fit returned them, and what is refused."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import bhfl
from bhfl.algorithms import GroupedAvg
from bhfl.data import FakeImages
from bhfl.engine import FederatedTrainer, FitResult
from bhfl.engine.checkpoint import CheckpointError
from bhfl.models import Classifier
from bhfl.quant import QuantLayer
from tests.federation import Client, fake, same


def trained(folder: Path, model: Any, data: Any, **options: Any) -> FitResult:
    settings = {"max_rounds": 3, "logger": False, "default_root_dir": folder, "devices": 1}
    torch.manual_seed(0)
    return FederatedTrainer({4: 2, 32: 1}, **{**settings, **options}).fit(model, data)


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> FitResult:
    """A run of an algorithm with a model for each group."""
    folder = tmp_path_factory.mktemp("runs")
    data = FakeImages(num_train=96, num_test=32, shape=(1, 8, 8), num_classes=4)
    return trained(folder, Classifier("mlp", num_classes=4), data, algorithm=GroupedAvg())


@pytest.fixture
def copied(result: FitResult, tmp_path: Path) -> Path:
    """A copy of its folder, to be damaged."""
    return Path(shutil.copytree(result.folder, tmp_path / "version_0"))


def test_a_run_from_disk_is_what_its_fit_returned(result: FitResult) -> None:
    found = bhfl.load_run(result.folder)
    assert isinstance(found, FitResult)
    for key in ("folder", "method", "groups", "metrics", "bytes", "seconds", "best", "history"):
        assert getattr(found, key) == getattr(result, key), key
    assert repr(found) == repr(result)
    assert found.server.round == 3
    assert same(found.server.params, result.server.params)
    for group in (None, "int4", "float32"):
        assert same(found.state_dict(group), result.state_dict(group))


def test_a_model_comes_with_the_weights_of_a_round_and_a_group(result: FitResult) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    last = bhfl.load_model(result.folder, "last")
    assert torch.equal(torch.get_rng_state(), before)
    assert isinstance(last, Classifier)
    assert not last.training
    assert not any(isinstance(layer, QuantLayer) for layer in last.modules())
    assert same(dict(last.state_dict()), result.state_dict())
    low = bhfl.load_model(result.folder, "last", group="int4")
    assert same(dict(low.state_dict()), result.state_dict("int4"))
    values = [weight.unique().numel() for name, weight in low.named_parameters() if weight.ndim > 1]
    assert max(values) <= 15


def test_the_best_round_is_the_default(tmp_path: Path) -> None:
    found = trained(tmp_path, Client(), fake(), monitor="train/loss")
    assert found.best.round < 3
    best = bhfl.load_model(found.folder, model=Client())
    state = torch.load(found.folder / "checkpoints" / "best.ckpt", weights_only=True)["state"]
    assert same(dict(best.state_dict()), state["server"]["params"])


def test_a_class_that_nothing_names_is_asked_for(tmp_path: Path) -> None:
    class Hidden(Client):
        pass

    folder = trained(tmp_path, Hidden(), fake(), max_rounds=1).folder
    with pytest.raises(
        ValueError, match="algorithm, data, model cannot be made again, model is not w"
    ) as e:
        bhfl.load_model(folder)
    assert "Hidden is written in a script, a notebook or a function" in str(e.value)
    assert str(e.value).endswith("give bhfl.load_model a model of the run's architecture as model=")
    model = Hidden()
    assert bhfl.load_model(folder, group="int4", model=model) is model


def test_a_model_of_another_shape_is_refused(result: FitResult) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
    with pytest.raises(CheckpointError, match="the checkpoint is of another model: "):
        bhfl.load_model(result.folder, model=model)
    assert type(model[1]) is nn.Linear


def test_which_model_must_be_known(result: FitResult) -> None:
    with pytest.raises(ValueError, match="which must be one of best, last, got 'bets'"):
        bhfl.load_model(result.folder, "bets")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="group must be one of the run's, got 'int8'"):
        bhfl.load_model(result.folder, group="int8")


def cut_off(folder: Path) -> None:
    (folder / "summary.json").unlink()
    lines = (folder / "rounds.jsonl").read_text().splitlines(keepends=True)
    # validation before training, and two rounds
    (folder / "rounds.jsonl").write_text("".join(lines[:3]))


def failed(folder: Path) -> None:
    summary = json.loads((folder / "summary.json").read_text())
    (folder / "summary.json").write_text(json.dumps({**summary, "failed": "ValueError: no"}))


def without_bytes(folder: Path) -> None:
    summary = json.loads((folder / "summary.json").read_text())
    (folder / "summary.json").write_text(json.dumps({**summary, "bytes": []}))


def of_another_version(folder: Path) -> None:
    summary = json.loads((folder / "summary.json").read_text())
    del summary["best"]
    (folder / "summary.json").write_text(json.dumps(summary))
    environment = json.loads((folder / "env.json").read_text())
    (folder / "env.json").write_text(json.dumps({**environment, "bhfl": "0.0.7"}))


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (
            cut_off,
            r"has not come to its end \(2 of 3 rounds\): go on with it by ckpt_path, or take",
        ),
        (without_bytes, "its files lack what this version reads, AttributeError: 'list'"),
        (failed, r"has not come to its end \(after 3 rounds, ValueError: no\)"),
        (
            of_another_version,
            f"'best'; it was written by bhfl 0.0.7, and this is {bhfl.__version__}",
        ),
        (lambda folder: (folder / "settings.json").unlink(), "no settings.json: its settings are"),
    ],
)
def test_what_is_no_whole_run_is_told_in_one_line(
    copied: Path, harm: Callable[[Path], None], message: str
) -> None:
    harm(copied)
    with pytest.raises(ValueError, match=message) as caught:
        bhfl.load_run(copied)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("harm", [Path.unlink, lambda path: path.write_bytes(b"PK")])
def test_weights_of_a_round_before_are_not_taken_for_the_last(
    copied: Path, harm: Callable[[Path], None]
) -> None:
    harm(copied / "checkpoints" / "round=00003.ckpt")
    found = bhfl.load_run(copied)
    assert found.metrics
    for take in (found.state_dict, lambda: found.server):
        with warnings.catch_warnings(action="ignore"), pytest.raises(ValueError) as caught:
            take()
        assert "its last usable checkpoint is of round 2 of 3: bhfl.load_m" in str(caught.value)


def test_a_run_that_was_cut_off_still_has_a_model(copied: Path, result: FitResult) -> None:
    cut_off(copied)
    assert same(dict(bhfl.load_model(copied, "last").state_dict()), result.state_dict())


def test_a_checkpoint_of_another_version_is_refused(copied: Path) -> None:
    path = copied / "checkpoints" / "best.ckpt"
    content = torch.load(path, weights_only=True)
    torch.save({**content, "format": 4}, path)
    with pytest.raises(CheckpointError, match="checkpoint format must be 7, got 4"):
        bhfl.load_model(copied)


@pytest.mark.parametrize("load", [bhfl.load_run, bhfl.load_model])
def test_a_folder_that_is_none_is_told(load: Any, copied: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nowhere: no such folder; folder must be that of a run"):
        load(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=f"no run, which has .*; there are {copied}"):
        load(tmp_path)


def test_a_name_that_the_package_does_not_have_is_an_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'load_runs'"):
        bhfl.load_runs  # type: ignore[attr-defined]  # noqa: B018
