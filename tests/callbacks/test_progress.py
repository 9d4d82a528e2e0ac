"""What the callback tells of a run: lines while it goes on, and a table at the end."""

import logging
import re
import sys
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from bhfl.algorithms import FedAvg
from bhfl.callbacks import Callback, Progress
from bhfl.engine.ending import STANDING
from bhfl.engine.figures import metric_names
from bhfl.engine.progress import following, in_notebook, table
from bhfl.engine.screen import Screen
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
    end = f"{table(trainer, {}, 'acc', 'test')}\n\n{following(trainer)}"
    assert "\n".join(lines).endswith(end)


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
    monkeypatch.setenv("TERM", "xterm")
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


def drawn(picture: object) -> str:
    """A picture as text."""
    file = StringIO()
    Console(file=file, width=100).print(picture)
    return file.getvalue()


def test_the_screen_says_what_is_done_then_shows_rounds_clients_and_figures() -> None:
    screen = Screen(Console(file=StringIO(), force_terminal=True))
    STANDING.at("splitting the data among the clients")
    assert "splitting the data among the clients ...\n" in drawn(screen.picture())
    screen.begin(1, 4)
    screen.count(counts=True, num_clients=3)
    screen.count(counts=False, num_clients=3)
    rounds, clients, *_ = drawn(screen.picture()).splitlines()
    assert rounds.split()[0] == "rounds"
    assert "1/4" in rounds
    assert "2/3" in clients
    assert "1 without an update" in clients
    screen.end_round({"loss": "0.5000"}, best=True)
    text = drawn(screen.picture())
    assert "2/4" in text
    assert "0/3" in text
    assert "loss 0.5000  best so far" in text
    screen.close()


def test_the_lines_of_a_terminal_go_however_a_run_ends(
    tmp_path: Path, terminal: Callable[[], Terminal]
) -> None:
    class Stops(Callback):
        def on_round_end(self, trainer, metrics):
            print("a word above the bars", file=sys.stderr)
            raise KeyboardInterrupt

    shown = terminal()
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, callbacks=[Progress(), Stops()])
    assert sys.stderr is shown
    assert (STANDING.listeners, STANDING.erase) == ([], b"")
    text = shown.getvalue()
    assert "a word above the bars\n" in text
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")


def test_a_notebook_has_a_line_that_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("bhfl.engine.progress.in_notebook", lambda: True)
    run(tmp_path)
    assert re.findall(r"\rround (\d/2)  loss", capsys.readouterr().err) == ["1/2", "2/2"]


def test_the_end_names_the_best_round_the_folder_and_what_to_type(tmp_path: Path) -> None:
    trainer = run(tmp_path)
    folder = trainer.run.folder
    best, where, *commands = following(trainer).splitlines()
    assert re.fullmatch(r"best round: [12], train/loss [\d.]+", best)
    assert where == f"run folder: {folder}"
    typed = [
        "next:",
        f"  bhfl test --config {folder}/config.yaml --ckpt_path best",
        f"  bhfl report {folder}",
    ]
    assert commands == typed
    (folder / "events.out.tfevents.1.host").touch()
    assert following(trainer).splitlines()[2:] == [*typed, f"  tensorboard --logdir {folder}"]
