"""What a run writes, where its disk refuses."""

from __future__ import annotations

import errno
import subprocess
import sys

import pytest
from lightning.fabric.loggers.logger import Logger
from torch.utils.tensorboard import SummaryWriter

from bhfl.algorithms import ProWD
from bhfl.callbacks import WeightHistograms
from bhfl.engine.checkpoint import CheckpointError
from bhfl.engine.resume import contradictions, described
from tests.engine.hand_made import HandMade, Module, points
from tests.federation import fit, same


class Full(Logger):
    """A logger on a disk that is full from some call on."""

    name, version = "full", "0"

    def __init__(self, calls: int) -> None:
        self.calls, self.steps = calls, []

    def _write(self) -> None:
        self.calls -= 1
        if self.calls < 0:
            raise OSError(errno.ENOSPC, "No space left on device")

    def log_metrics(self, metrics, step=None) -> None:
        self._write()
        self.steps.append(step)

    def log_hyperparams(self, params, *args, **kwargs) -> None:
        pass

    def finalize(self, status) -> None:
        self._write()


def run(folder, *loggers):
    data = HandMade([points(6)])
    return fit(folder, None, {32: 1}, Module, data, monitor="train/loss", mode="min", logger=list(loggers))


@pytest.mark.parametrize("calls", [0, 1, 3])
def test_a_logger_that_cannot_write_stops_no_run(tmp_path, calls):
    full, fine = Full(calls), Full(9)
    with pytest.warns(UserWarning, match="Full is left out from now on: .*No space left on device") as warned:
        trainer = run(tmp_path / "a", full, fine)
    assert len([w for w in warned if "left out" in str(w.message)]) == 1
    assert (full.steps, fine.steps, fine.calls) == ([1, 2, 3][:calls], [1, 2, 3], 5)
    assert [row["round"] for row in trainer.run.rows.read()] == [1, 2, 3]
    assert (trainer.run.folder / "summary.json").exists()
    assert same(trainer.server.params, run(tmp_path / "b").server.params)


def test_histograms_that_cannot_be_written_stop_no_run(tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(SummaryWriter, "add_histogram", full)
    options = {"monitor": "train/loss", "mode": "min", "logger": True, "callbacks": [WeightHistograms()]}
    with pytest.warns(UserWarning, match="TensorBoardLogger is left out from now on: .*No space left on device"):
        trainer = fit(tmp_path, None, {32: 1}, Module, HandMade([points(6)]), **options)
    assert [row["round"] for row in trainer.run.rows.read()] == [1, 2, 3]


def test_a_folder_in_which_another_process_trains(tmp_path):
    folder = run(tmp_path).run.folder
    before = (folder / "rounds.jsonl").read_bytes()
    state = folder / "clients" / "00" / "client=0-round=00009.pt"  # what the other has just written
    state.parent.mkdir(parents=True)
    state.touch()
    hold = (
        "import sys, time; from bhfl.engine.folder import claim; f = claim(__import__('pathlib').Path(sys.argv[1])); "
    )
    other = subprocess.Popen(
        [sys.executable, "-c", hold + "print(flush=True); time.sleep(60)", str(folder)], stdout=subprocess.PIPE
    )
    assert other.stdout is not None
    other.stdout.readline()
    try:
        with pytest.raises(CheckpointError, match=f"version_0: process {other.pid} is training here"):
            go_on(tmp_path)
        assert (folder / "rounds.jsonl").read_bytes() == before
        assert state.exists()
    finally:
        other.kill()
        other.communicate()
    go_on(tmp_path)
    go_on(tmp_path)  # the process that has finished claims nothing


def go_on(folder):
    fit(folder, None, {32: 1}, Module, HandMade([points(6)]), "last", monitor="train/loss", mode="min")


def test_options_that_are_lists_are_told_apart():
    found = contradictions(*({"algorithm": described(ProWD(ladder=ladder))} for ladder in ([2, 32], [2, 8, 32])))
    assert found == ["algorithm.ladder: [2, 32] -> [2, 8, 32]"]
