"""What the callback tells of a run: lines while it goes on, and a table at the end."""

import logging
import sys
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from types import SimpleNamespace

import pytest

from bhfl.algorithms import FedAvg
from bhfl.callbacks import Progress
from bhfl.engine.figures import metric_names
from bhfl.engine.progress import in_notebook, table
from tests.engine.hand_made import HandMade, Module, points
from tests.federation import fit


def run(folder: Path, **options):
    data = HandMade([points(6), points(6, seed=3)])
    settings = {"monitor": "train/loss", "mode": "min", "max_rounds": 2, **options}
    return fit(folder, FedAvg(), {8: 1, 32: 1}, Module, data, **settings)


def test_a_run_is_told_line_by_line_and_ends_in_a_table(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "bhfl")
    trainer = run(tmp_path, callbacks=[Progress()])
    assert {record.name for record in caplog.records} == {"bhfl"}
    lines = "\n".join(caplog.messages).splitlines()
    assert lines[0].startswith("FedAvg: 2 clients (1 x int8, 1 x float32), ")
    assert lines[1] == f"logs and checkpoints: {trainer.run.folder}"
    assert [line.split("  ")[0] for line in lines[2:4]] == ["round 1/2", "round 2/2"]
    assert "\n".join(lines).endswith(table(trainer, {}, "acc", "test"))


class Terminal(StringIO):
    """A console that somebody looks at."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Callable[[], Terminal]:
    """Looks on from when it is called; pytest puts consoles of its own between fixture and test."""
    return lambda: looked_at(monkeypatch)


def looked_at(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    shown = Terminal()
    monkeypatch.setattr(sys, "stdout", Terminal())
    monkeypatch.setattr(sys, "stderr", shown)
    return shown


def test_a_script_whose_output_is_captured_says_nothing_unasked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path).callbacks == []
    assert capsys.readouterr() == ("", "")


def test_on_a_terminal_there_is_a_bar_unasked(
    tmp_path: Path, terminal: Callable[[], Terminal]
) -> None:
    shown = terminal()
    (callback,) = run(tmp_path).callbacks
    assert isinstance(callback, Progress)
    assert "2/2" in shown.getvalue()


def test_a_bar_can_be_declined(tmp_path: Path, terminal: Callable[[], Terminal]) -> None:
    shown = terminal()
    assert run(tmp_path, enable_progress_bar=False).callbacks == []
    run(tmp_path, enable_progress_bar=False, callbacks=[Progress()])
    assert shown.getvalue() == ""


def test_a_bar_that_was_asked_for_is_not_there_twice(
    tmp_path: Path, terminal: Callable[[], Terminal]
) -> None:
    terminal()
    own = Progress("loss")
    assert run(tmp_path, callbacks=[own]).callbacks == [own]


def test_a_notebook_looks_on_too(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not in_notebook()
    for shell, known in ((SimpleNamespace(kernel=1), True), (SimpleNamespace(), False)):
        ipython = SimpleNamespace(get_ipython=lambda shell=shell: shell)
        monkeypatch.setitem(sys.modules, "IPython", ipython)
        assert in_notebook() is known


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
