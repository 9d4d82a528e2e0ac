"""Validation before the first round: it is told, and changes nothing that comes after it."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric.loggers.logger import Logger

import bhfl
from bhfl.algorithms import AdaQuantFL, FedPer, Local
from bhfl.engine.algorithm import Algorithm
from bhfl.engine.checkpoint import digest
from bhfl.engine.trainer import FederatedTrainer
from bhfl.report.reading import read_run
from tests.engine.hand_made import HandMade, points
from tests.engine.test_best import Scripted
from tests.federation import Client, Net, fake, fit

METHODS: dict[str, Callable[[], Algorithm]] = {
    "history": lambda: AdaQuantFL(),
    "own": lambda: FedPer(personal=["net.6.*"]),
    "local": Local,
}


class Drawing(Client):
    """Draws while it is validated, and follows what validation has told of past rounds."""

    def __init__(self, monitor: str) -> None:
        super().__init__(Net(batch_norm=True))
        self.monitor = monitor

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        torch.rand(3)
        super().validation_step(batch, batch_idx)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), self.lr)
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=0)
        schedule = {"scheduler": plateau, "monitor": self.monitor}
        return {"optimizer": optimizer, "lr_scheduler": schedule}


class Steps(Logger):
    """Notes the step of each row."""

    name, version = "steps", "0"

    def __init__(self) -> None:
        self.rows: dict[int, dict[str, float]] = {}

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        self.rows.setdefault(step or 0, dict(metrics))

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        pass


def rows_of(trainer: FederatedTrainer) -> list[dict[str, Any]]:
    text = trainer.run.rows.path.read_text()
    rows = [json.loads(line) for line in text.splitlines()]
    return [{key: row[key] for key in row if not key.startswith("time/")} for row in rows]


@pytest.mark.parametrize("method", METHODS)
def test_it_changes_no_bit_of_what_comes_after(tmp_path: Path, method: str) -> None:
    # there is no model of all whose loss could be followed
    module = partial(Drawing, "train/loss" if method == "local" else "val/loss")
    found = []
    for first in (False, True):
        folder = tmp_path / str(first)
        options = {"validate_first": first, "max_rounds": 3, "patience": 2, "min_delta": 0.5}
        options["monitor"] = "val/acc_avg"
        found.append(fit(folder, METHODS[method](), None, module, fake(), **options))
    without, with_it = found
    assert all(row["clients/ok"] == 4 for row in with_it.run.history)
    assert rows_of(with_it)[1:] == rows_of(without)
    assert digest(vars(with_it.server)) == digest(vars(without.server))
    assert with_it.run.bests == without.run.bests
    row = rows_of(with_it)[0]
    assert row.pop("round") == 0
    assert row
    assert all(tag.startswith("val/") for tag in row)
    assert row.keys() == {tag for tag in rows_of(without)[0] if tag.startswith("val/")}


def score(folder: Path, values: list[float], **options: Any) -> FederatedTrainer:
    data = HandMade([points(6), points(6, seed=1)], held_out=points(4, seed=9))
    options = {"monitor": "val/score", "max_rounds": 2, "validate_first": True, **options}
    return fit(folder, None, {32: 2}, lambda: Scripted(values), data, **options)


def test_it_is_never_the_best_nor_counts_for_patience(tmp_path: Path) -> None:
    trainer = score(tmp_path, [0.9, 0.1, 0.1, 0.1], max_rounds=6, patience=2)
    assert (trainer.run.best, trainer.run.best_round) == (0.1, 1)
    assert trainer.server.round == 3


def test_it_is_round_0_of_the_rows_and_the_loggers_and_is_kept_on_resume(tmp_path: Path) -> None:
    steps = Steps()
    score(tmp_path, [0.9, 0.1], max_rounds=1, logger=[steps])
    assert steps.rows[0] == {
        "val/score": 0.9,
        "val/score_float32": 0.9,
        "val/score_avg": 0.9,
        "val/score_min": 0.9,
    }
    assert list(steps.rows) == [0, 1]
    trainer = score(tmp_path, [0.2, 0.3], max_rounds=3, ckpt_path="last")
    rows = rows_of(trainer)
    assert [row["round"] for row in rows] == [0, 1, 2, 3]
    assert rows[0]["val/score"] == 0.9
    # a run that began without it goes on without it
    score(tmp_path / "b", [0.1], max_rounds=1, validate_first=False)
    trainer = score(tmp_path / "b", [0.2], ckpt_path="last")
    assert [row["round"] for row in rows_of(trainer)] == [1, 2]


def test_readers_of_runs_tell_it_apart(tmp_path: Path) -> None:
    trainer = score(tmp_path, [0.9, 0.1, 0.2])
    assert trainer.run.folder is not None
    read = read_run(trainer.run.folder)
    assert (read.finished, read.faults, read.num_rounds) == (True, (), 2)
    assert [row["round"] for row in read.rounds] == [1, 2]
    assert read.series("val/score") == {1: 0.1, 2: 0.2}
    assert read.series("val/score", first=True) == {0: 0.9, 1: 0.1, 2: 0.2}
    result = bhfl.load_run(trainer.run.folder)
    assert result.first["val/score"] == 0.9
    assert result.rounds == 2
    (line,) = result.plot("score").get_lines()
    assert list(line.get_xdata()) == [0, 1, 2]


def test_there_is_no_such_row_where_nothing_is_validated(tmp_path: Path) -> None:
    data = HandMade([points(6), points(6, seed=1)])
    options = {"monitor": "train/loss", "mode": "min", "validate_first": True, "max_rounds": 1}
    trainer = fit(tmp_path, None, {32: 2}, lambda: Scripted([]), data, **options)
    assert [row["round"] for row in rows_of(trainer)] == [1]
    assert trainer.run.first == {}
