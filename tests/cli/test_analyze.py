"""``bhfl analyze``, from options to files and exit codes."""

import csv
import sys
from pathlib import Path
from typing import Any

import pytest

from bhfl.cli.commands import CommandTrainer
from bhfl.data import FakeImages
from bhfl.models import Classifier
from tests.cli.conftest import Command

OWN = """\
import lightning as L
import torch

class NoLoss(L.LightningModule):
    def __init__(self, num_classes: int = 4):
        super().__init__()
        self.net = torch.nn.Linear(64, num_classes)

    def validation_step(self, batch, batch_idx):
        self.log("val/acc", self.net(batch[0].flatten(1)).mean())

class LossOnly(NoLoss):
    def validation_step(self, batch, batch_idx):
        return torch.nn.functional.cross_entropy(self.net(batch[0].flatten(1)), batch[1])

class NoLayer(LossOnly):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Flatten()
"""


def layers(path: Path) -> list[dict[str, Any]]:
    with open(path / "layers.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_a_run_s_model_is_analysed_into_its_folder(bhfl: Command, tmp_path: Path) -> None:
    assert bhfl("fit", "--config", "tiny.yaml", "--trainer.max_rounds", "1").code == 0
    run = tmp_path / "runs" / "tiny" / "version_0"
    code, out, err = bhfl(
        "analyze", "--config", run / "config.yaml", "--ckpt_path", "best", "--probe_bits", "[3]"
    )
    assert code == 0
    assert "on 24 samples of the validation split" in out
    assert "Classifier after 1 rounds: loss" in out
    assert "100%" in err
    assert "error" not in err
    rows = layers(run / "analysis")
    assert len(rows) > 1
    assert "loss_increase_3" in rows[0]
    assert (
        f"\n{Path('runs/tiny/version_0/analysis/layers.png')}\n" in out
        or str(run / "analysis/layers.png") in out
    )
    assert (run / "analysis" / "layers.png").stat().st_size > 10_000


def test_untrained_weights_on_the_server_s_samples(bhfl: Command, tmp_path: Path) -> None:
    args = ("--config", "tiny.yaml", "--data.holdout", "20", "--samples", "16", "--threads", "1")
    for number in range(2):
        # one process all the same
        code, out, err = bhfl("analyze", *args, "--trainer.devices", "2")
        assert code == 0
        assert "on 16 samples of data.holdout" in out
        assert "these weights are untrained" in err
        assert (tmp_path / "runs" / "tiny" / f"analysis_{number}" / "layers.csv").is_file()
    again = [layers(tmp_path / "runs" / "tiny" / f"analysis_{number}") for number in range(2)]
    assert again[0] == again[1]


def test_without_matplotlib_the_table_is_still_written(
    bhfl: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    (tmp_path / "own_loss.py").write_text(OWN)
    code, _, err = bhfl(
        "analyze", "--config", "tiny.yaml", "--model", "own_loss.LossOnly", "--out", "here"
    )
    assert code == 0
    assert "note: no picture is drawn: pictures need matplotlib: pip install 'bhfl[plots]'" in err
    assert "accuracy_drop_2" not in layers(tmp_path / "here")[0]
    assert [path.name for path in (tmp_path / "here").iterdir()] == ["layers.csv"]


@pytest.mark.parametrize(
    ("args", "problem"),
    [
        (["--samples", "0"], "samples must be at least 1, got 0"),
        (["--threads", "0"], "threads must be an integer from 1 to"),
        (["--threads", "100000"], "threads must be at most"),
        (
            ["--probe_bits", "[2, 2]"],
            "probe_bits must be one or more distinct widths of 2..16, got [2, 2]",
        ),
        (["--uniform_bits", "32"], "uniform_bits must be 2..16, got 32"),
        (["--probe_bit", "[2]"], "--probe_bit is an unknown option; did you mean 'probe_bits'?"),
        (["--out", "tiny.yaml"], "out must be a folder that can be written to, got 'tiny.yaml'"),
        (["--algorithm", "Local"], "analyze needs a global model, and Local keeps none"),
        (["--data.val_fraction", "0"], "analyze needs samples held out of training"),
        (["--model", "own_bad.NoLoss"], "NoLoss.validation_step must log val/loss, and gives acc"),
        (["--model", "own_bad.NoLayer"], "NoLayer has no quantisable layer"),
    ],
)
def test_what_cannot_be_analysed(
    bhfl: Command, tmp_path: Path, args: list[str], problem: str
) -> None:
    (tmp_path / "own_bad.py").write_text(OWN)
    outcome = bhfl("analyze", "--config", "tiny.yaml", *args)
    assert outcome.code == 2
    assert len(outcome.problems) == 1
    assert problem in outcome.problems[0]
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("command", ["analyze", "partition", "profile"])
def test_a_file_in_the_place_of_the_folder_is_told_before_the_work(
    bhfl: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setattr(f"bhfl.analysis.{command}", lambda *_, **__: pytest.fail("it was at work"))
    (tmp_path / "runs").touch()
    (problem,) = bhfl(command, "--config", "tiny.yaml").problems
    assert "trainer.default_root_dir/trainer.name must be a folder" in problem


def test_a_file_in_the_place_of_the_run_s_folder_is_told_before_the_work(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("bhfl.analysis.analyze", lambda *_, **__: pytest.fail("it was at work"))
    trainer = CommandTrainer({32: 1}, devices=1)
    monkeypatch.setattr(trainer, "find_checkpoint", lambda _: (tmp_path, {}))
    (tmp_path / "analysis").touch()
    with pytest.raises(OSError, match="it must be a folder, no file and no link: move it away"):
        trainer.analyze(Classifier("mlp"), FakeImages(), "last")


def test_options_of_analyze_are_none_of_fit(bhfl: Command) -> None:
    assert (
        bhfl("fit", "--config", "tiny.yaml", "--samples", "5")
        .problems[0]
        .startswith("--samples is an unknown option")
    )
