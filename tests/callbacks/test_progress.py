"""What the callback tells of a run: lines while it goes on, and a table at the end."""

from pathlib import Path

import pytest

from bhfl.algorithms import FedAvg
from bhfl.callbacks import Progress
from bhfl.callbacks.progress import table
from bhfl.engine.figures import metric_names
from tests.engine.hand_made import HandMade, Module, points
from tests.federation import fit


def run(folder: Path, **options):
    data = HandMade([points(6), points(6, seed=3)])
    settings = {"monitor": "train/loss", "mode": "min", "max_rounds": 2, **options}
    return fit(folder, FedAvg(), {8: 1, 32: 1}, Module, data, **settings)


def test_a_run_is_told_line_by_line_and_ends_in_a_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = run(tmp_path, callbacks=[Progress()])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("FedAvg: 2 clients (1 x int8, 1 x float32), ")
    assert lines[1] == f"logs and checkpoints: {trainer.run.folder}"
    assert [line.split("  ")[0] for line in lines[2:4]] == ["round 1/2", "round 2/2"]
    assert "\n".join(lines).endswith(table(trainer, {}, "acc", "test"))


def test_the_table_has_a_row_for_each_group_and_one_for_all(tmp_path: Path) -> None:
    trainer = run(tmp_path)
    measured = {"test/acc_int8": 0.5, "test/acc_float32": 0.75, "test/acc_avg": 0.625}
    head, _, first, second, _, last, *notes = table(trainer, measured, "acc", "test").splitlines()
    assert head.split() == ["group", "clients", "test", "acc", "up", "MB", "down", "MB"]
    assert first.split()[:4] == ["int8", "1", "50.00", "%"]
    assert second.split()[:4] == ["float32", "1", "75.00", "%"]
    assert last.split()[:4] == ["all", "2", "62.50", "%"]
    up = [float(line.split()[4]) for line in (first, second, last)]
    assert up[2] == pytest.approx(up[0] + up[1], rel=0.01)
    assert notes[0].startswith("2 rounds in ")


def test_a_chosen_metric_that_is_no_accuracy_is_shown_as_it_is(tmp_path: Path) -> None:
    measured = {"test/loss_avg": 0.6931, "test/loss_min": 0.5, "test/acc_avg": 0.5}
    measured["test/acc_min"] = 0.4
    rows = table(run(tmp_path), measured, "loss", "test").splitlines()
    assert rows[0].split()[2:6] == ["test", "loss", "test", "acc"]
    assert rows[5].split()[2:5] == ["0.6931", "50.00", "%"]


def test_metrics_are_those_that_were_measured_by_group() -> None:
    metrics = dict.fromkeys(["val/acc_avg", "val/acc_min", "val/own_avg", "test/loss_avg"], 0.0)
    assert metric_names(metrics, "val") == ["acc"]
    assert metric_names(metrics, "test") == []
