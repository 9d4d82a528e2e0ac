"""What a run writes, where its disk refuses."""

from __future__ import annotations

import errno
import json
import shutil
import subprocess
import sys

import pytest
from lightning.fabric.loggers.logger import Logger
from torch.utils.tensorboard import SummaryWriter

from bhfl.algorithms import FedCOMGATE, ProWD
from bhfl.algorithms.prowd import Dequantizer
from bhfl.callbacks import WeightHistograms
from bhfl.engine.callback import Callback
from bhfl.engine.checkpoint import CheckpointError
from bhfl.engine.run import Run
from bhfl.files import claim
from bhfl.recorded import described, flatten
from bhfl.report.reading import read_run
from bhfl.settings import Role
from bhfl.told import differences
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


def rounds_of(trainer):
    return [json.loads(line)["round"] for line in trainer.run.rows.path.read_text().splitlines()]


def run(folder, *loggers):
    data = HandMade([points(6)])
    return fit(
        folder, None, {32: 1}, Module, data, monitor="train/loss", mode="min", logger=list(loggers)
    )


@pytest.mark.parametrize("calls", [0, 1, 3])
def test_a_logger_that_cannot_write_stops_no_run(tmp_path, calls):
    full, fine = Full(calls), Full(9)
    with pytest.warns(
        UserWarning, match="Full is left out from now on: .*No space left on device"
    ) as warned:
        trainer = run(tmp_path / "a", full, fine)
    assert len([w for w in warned if "left out" in str(w.message)]) == 1
    assert (full.steps, fine.steps, fine.calls) == ([1, 2, 3][:calls], [1, 2, 3], 5)
    assert rounds_of(trainer) == [1, 2, 3]
    assert (trainer.run.folder / "summary.json").exists()
    assert same(trainer.server.params, run(tmp_path / "b").server.params)


def test_histograms_that_cannot_be_written_stop_no_run(tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(SummaryWriter, "add_histogram", full)
    options = {
        "monitor": "train/loss",
        "mode": "min",
        "logger": True,
        "callbacks": [WeightHistograms()],
    }
    with pytest.warns(
        UserWarning, match="TensorBoardLogger is left out from now on: .*No space left on device"
    ):
        trainer = fit(tmp_path, None, {32: 1}, Module, HandMade([points(6)]), **options)
    assert rounds_of(trainer) == [1, 2, 3]


def test_a_folder_in_which_another_process_trains(tmp_path):
    folder = run(tmp_path).run.folder
    before = (folder / "rounds.jsonl").read_bytes()
    state = folder / "clients" / "00" / "client=0-round=00009.pt"  # what the other has just written
    state.parent.mkdir(parents=True)
    state.touch()
    hold = (
        "import sys, time; from bhfl.files import claim; "
        "f = claim(__import__('pathlib').Path(sys.argv[1]) / '.lock', ''); "
    )
    other = subprocess.Popen(
        [sys.executable, "-c", hold + "print(flush=True); time.sleep(60)", str(folder)],
        stdout=subprocess.PIPE,
    )
    assert other.stdout is not None
    other.stdout.readline()
    try:
        with pytest.raises(
            CheckpointError, match=f"version_0: process {other.pid} is training here"
        ):
            go_on(tmp_path)
        assert (folder / "rounds.jsonl").read_bytes() == before
        assert state.exists()
    finally:
        other.kill()
        other.communicate()
    go_on(tmp_path)
    go_on(tmp_path)  # the process that has finished claims nothing


def test_the_summary_is_written_while_nobody_else_may_write(tmp_path, monkeypatch):
    claimed = []
    finish = Run.finish

    def finished(run, *args):
        with pytest.raises(BlockingIOError):
            claim(run.folder / ".lock", "")
        claimed.append(run.folder)
        finish(run, *args)

    monkeypatch.setattr(Run, "finish", finished)
    folder = run(tmp_path).run.folder
    assert claimed == [folder]
    claim(folder / ".lock", "").close()


def go_on(folder, **options):
    fit(
        folder,
        None,
        {32: 1},
        Module,
        HandMade([points(6)]),
        "last",
        monitor="train/loss",
        mode="min",
        **options,
    )


@pytest.mark.parametrize("hook", ["on_fit_start", "configuration"])
def test_a_run_that_cannot_begin_leaves_its_folder_to_others(tmp_path, monkeypatch, hook):
    def fails(*_, **__):
        raise RuntimeError("no")

    folder = run(tmp_path).run.folder
    callback = Callback()
    callback.on_fit_start = fails if hook == "on_fit_start" else callback.on_fit_start
    if hook == "configuration":
        monkeypatch.setattr("bhfl.engine.fit.configuration", fails)
    # as a notebook keeps it, with all that its frames hold
    with pytest.raises(RuntimeError) as error:
        go_on(tmp_path, callbacks=[callback], max_rounds=4)
    claim(folder / ".lock", "process {} is training here").close()
    assert error.traceback
    told = folder / "summary.json"
    assert told.exists() == (hook == "on_fit_start")
    assert not told.exists() or json.loads(told.read_text())["failed"] == "RuntimeError: no"


LADDERS = ([2, 32], [2, 8, 32])


def test_options_that_are_lists_are_told_apart():
    told = []
    for ladder in LADDERS:
        algorithm = ProWD(dequantizer=Dequantizer(ladder))
        told.append({"result": flatten({"algorithm": described(algorithm)})})
    (line,) = differences(*told, [Role.RESULT])
    assert line == "algorithm.dequantizer.ladder: [2, 32] -> [2, 8, 32]"


# ---- how a run ends ------------------------------------------------------------------------------


class Broken(Module):
    """A model whose test fails, or whose validation does from some round on."""

    def __init__(self, where: str = "test") -> None:
        super().__init__()
        self.where, self.calls = where, 0

    def test_step(self, batch, batch_idx):
        if self.where == "test":
            raise KeyError("no such label")

    def validation_step(self, batch, batch_idx):
        self.calls += 1
        if self.where == "validation" and self.calls > 2:
            raise RuntimeError("nothing to see")
        super().validation_step(batch, batch_idx)


@pytest.mark.parametrize(
    ("where", "rounds", "failed"),
    [("test", 3, "KeyError: 'no such label'"), ("validation", 2, "RuntimeError: nothing")],
)
def test_what_a_run_came_to_is_written_with_what_failed(tmp_path, where, rounds, failed):
    data = HandMade([points(6)], held_out=points(4))
    options = {"clients": {32: 1}, "data": data, "monitor": "train/loss", "mode": "min"}
    with pytest.raises((KeyError, RuntimeError)):
        fit(tmp_path, module=lambda: Broken(where), **options)
    folder = tmp_path / "bhfl" / "version_0"
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["failed"].startswith(failed)
    assert summary["rounds"] == rounds
    assert summary["metrics"] == {}
    assert summary["bytes"]["float32"]["uplink_bytes"] > 0
    assert read_run(folder).finished is False
    assert read_run(folder).missing.startswith(f"after {rounds} rounds, {failed}")
    trainer = fit(tmp_path, module=lambda: Broken("nowhere"), ckpt_path="last", **options)
    assert read_run(trainer.run.folder).finished


def test_no_summary_of_an_end_that_is_none_any_more(tmp_path):
    folder = run(tmp_path).run.folder
    assert (folder / "summary.json").exists()

    class Stop(Callback):
        def on_fit_start(self, trainer):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(
            tmp_path, None, {32: 1}, Module, HandMade([points(6)]), "last", monitor="train/loss",
            mode="min", callbacks=[Stop()], max_rounds=5,
        )  # fmt: skip
    assert not (folder / "summary.json").exists()


# ---- what clients keep ---------------------------------------------------------------------------


def gate(folder, rounds, ckpt_path=None, **options):
    settings = {"max_rounds": rounds, "monitor": "train/loss", "mode": "min", **options}
    data = HandMade([points(6), points(6, seed=1)])
    return fit(
        folder,
        FedCOMGATE(4, allow_inexact=True),
        {8: 1, 32: 1},
        Module,
        data,
        ckpt_path,
        **settings,
    )


def test_a_resumed_run_misses_what_its_clients_kept(tmp_path):
    run = gate(tmp_path, 4).run
    path = run.folder / "clients" / "0000" / "client=0-round=00004.pt"
    good, other = path.read_bytes(), path.with_name("client=1-round=00004.pt").read_bytes()
    for content in (None, other, good[:-100]):
        path.unlink() if content is None else path.write_bytes(content)
        with pytest.raises(CheckpointError, match="client=0-round=00004"):
            gate(tmp_path, 5, "last")
    path.write_bytes(good)
    assert gate(tmp_path, 5, "last").server.round == 5


def test_a_kill_while_later_rounds_are_undone_leaves_a_run_that_goes_on(tmp_path, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    older = gate(tmp_path, 4).run.checkpoints / "round=00003.ckpt"
    with monkeypatch.context() as patch:
        patch.setattr("bhfl.engine.checkpoint.rewind", killed)
        with pytest.raises(KeyboardInterrupt):
            gate(tmp_path, 5, older)
    assert gate(tmp_path, 5, "last").server.round == 5


def test_a_bit_that_changed_in_what_a_client_kept_ends_the_run_by_name(tmp_path):
    path = gate(tmp_path, 2).run.folder / "clients" / "0000" / "client=1-round=00002.pt"
    data = bytearray(path.read_bytes())
    data[data.index(b"data/0") + 100] ^= 1  # in the numbers of the first tensor
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"client=1-round=00002\.pt: damaged"):
        gate(tmp_path, 3, "last")


def test_a_folder_that_vanishes_in_a_run_is_named(tmp_path):
    class Vanish(Callback):
        def __init__(self, name):
            self.name = name

        def on_round_end(self, trainer, metrics):
            shutil.rmtree(trainer.run.folder / self.name)

    with pytest.raises(CheckpointError, match=r"there is no .*client=0-round=00001\.pt"):
        gate(tmp_path / "a", 3, callbacks=[Vanish("clients")])
    for name, error in {"": "version_0", "checkpoints": "checkpoints"}.items():
        with pytest.raises(OSError, match=error):
            fit(
                tmp_path / f"b{name}", None, {32: 1}, Module, HandMade([points(6)]),
                callbacks=[Vanish(name)], monitor="train/loss", mode="min",
            )  # fmt: skip
    assert not list(tmp_path.glob("b/bhfl/version_0/*"))
