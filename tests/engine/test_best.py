"""When a run ends before its last round, and which rounds are kept as the best."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

import bhfl
from bhfl.engine.best import watched
from bhfl.engine.callback import Callback
from bhfl.engine.checkpoint import CheckpointError, load
from bhfl.engine.trainer import FederatedTrainer
from tests.engine.hand_made import HandMade, Module, points
from tests.federation import fit, same

GROUPS = {8: 1, 32: 1}


class Scripted(Module):
    """Validates each group to the next number of a list."""

    def __init__(self, values: Sequence[float]) -> None:
        super().__init__()
        self.values = iter(values)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val/score", next(self.values))


def run(folder: Path, values: Sequence[float], clients: Any = None, **options: Any) -> Any:
    data = HandMade([points(6), points(6, seed=1)], held_out=points(4, seed=9))
    options = {"monitor": "val/score_avg", "max_rounds": 6, **options}
    return fit(folder, None, clients or GROUPS, lambda: Scripted(values), data, **options)


# ---- the best rounds, and patience ---------------------------------------------------------------


def test_each_group_has_its_best_model_and_all_are_waited_for(tmp_path: Path) -> None:
    # int8 is best in round 3, float32 in round 1, their mean in round 2
    values = [0.1, 0.9, 0.5, 0.8, 0.6, 0.1, 0.2, 0.2, 0.2, 0.2, 0.2, 0.2]
    trainer = run(tmp_path, values, best_by_group=True, patience=2)
    assert trainer.server.round == 5
    expected = {"": 2, "int8": 3, "float32": 1}
    assert {group: best.round for group, best in trainer.run.bests.items()} == expected
    for group, round in expected.items():
        name = f"best-{group}" if group else "best"
        assert load(trainer.run.checkpoints / f"{name}.ckpt")["server"]["round"] == round
    summary = json.loads((trainer.run.folder / "summary.json").read_text())
    best = {"monitor": "val/score_int8", "value": 0.6, "round": 3}
    assert summary["best_by_group"]["int8"] == best
    result = bhfl.load_run(trainer.run.folder)
    assert vars(result.best_by_group["int8"]) == best
    found = bhfl.load_model(trainer.run.folder, "best-float32", model=Module()).state_dict()
    path = trainer.run.checkpoints / "best-float32.ckpt"
    assert same(dict(found), load(path)["server"]["params"])
    with pytest.raises(CheckpointError, match="no checkpoint best-int9; did you mean 'best-int8'"):
        trainer.find_checkpoint("best-int9")


def test_without_it_the_mean_alone_is_looked_at(tmp_path: Path) -> None:
    values = [0.1, 0.9, 0.5, 0.8, 0.6, 0.1, 0.2, 0.2]
    trainer = run(tmp_path, values, patience=2)
    assert trainer.server.round == 4
    assert not list(trainer.run.checkpoints.glob("best-*"))
    with pytest.raises(CheckpointError, match=r"trainer\.best_by_group keeps one for each bit"):
        trainer.find_checkpoint("best-int8")


def test_the_best_rounds_are_kept_when_a_run_goes_on(tmp_path: Path) -> None:
    values = [0.1, 0.9, 0.5, 0.8, 0.6, 0.1, 0.2, 0.2]
    options = {"best_by_group": True, "patience": 2, "keep_checkpoints": 9}
    whole = run(tmp_path / "whole", [*values, *[0.2] * 4], **options)
    run(tmp_path / "cut", values[:4], max_rounds=2, **options)
    later = run(tmp_path / "cut", [*values[4:], *[0.2] * 4], ckpt_path="last", **options)
    assert later.run.bests == whole.run.bests
    assert later.server.round == whole.server.round == 5
    # the best model of a later round than the one that a run goes on from is none of its own
    checkpoints = later.run.checkpoints
    run(tmp_path / "cut", [0.0] * 8, ckpt_path=str(checkpoints / "round=00002.ckpt"), **options)
    assert sorted(path.name for path in checkpoints.glob("best*")) == [
        "best-float32.ckpt",
        "best.ckpt",
    ]


def test_small_steps_do_not_count_for_patience(tmp_path: Path) -> None:
    values = [0.5, 0.55, 0.58, 0.65, 0.66, 0.67]
    options = {"clients": {32: 2}, "patience": 2}
    assert run(tmp_path, values, min_delta=0.0, **options).server.round == 6
    trainer = run(tmp_path, values, min_delta=0.1, **options)
    # 0.65 is better than 0.5 by more than 0.1, but two rounds have passed by then
    assert trainer.server.round == 3
    # the best model is the best all the same
    assert trainer.run.best == 0.58


def test_a_metric_without_groups_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"best_by_group needs a trainer\.monitor .*'train/loss'"):
        run(tmp_path, [], monitor="train/loss", best_by_group=True)
    tags = [best.monitor for best in watched("val/acc_int8", ["int8", "float32"], True).values()]
    assert tags == ["val/acc_int8", "val/acc_int8", "val/acc_float32"]
    tags = [best.monitor for best in watched("val/acc_my_int8", ["int8", "my_int8"], True).values()]
    assert tags == ["val/acc_my_int8", "val/acc_int8", "val/acc_my_int8"]


@pytest.mark.parametrize("value", [-0.1, math.inf, "a"])
def test_a_min_delta_that_is_no_distance_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="min_delta must be finite and at least 0, got"):
        FederatedTrainer(GROUPS, min_delta=value)


@pytest.mark.parametrize("monitor", ["val/{}_local_int8", "clients_val/{}_mean_int8"])
def test_a_round_without_the_monitored_group_is_passed_over(tmp_path: Path, monitor: str) -> None:
    own = [points(4, seed=2), points(4, seed=3)]
    data = HandMade([points(6), points(6, seed=1)], held_out=points(4, seed=9), own=own)
    options: dict[str, Any] = {"evaluate_clients": "after", "clients_per_round": 1, "max_rounds": 6}

    def monitored(name: str) -> FederatedTrainer:
        tag = monitor.format(name)
        by_group = tag.startswith("val/")
        module = Scripted([0.5] * 99)
        options.update(monitor=tag, best_by_group=by_group, min_clients=1)
        return fit(tmp_path, None, {32: 1, 8: 1}, lambda: module, data, **options)

    trainer = monitored("score")
    having = [trainer.run.bests[""].monitor in row for row in trainer.run.history]
    assert not having[0]
    assert False in having[having.index(True) :]
    assert trainer.run.best_round == having.index(True) + 1
    with pytest.raises(
        ValueError, match=r"trainer\.monitor must be a logged metric, got '.*/scor_"
    ):
        monitored("scor")


def test_a_run_out_of_patience_says_so_where_it_is_to_go_on(tmp_path: Path) -> None:
    run(tmp_path, [0.5] * 20, patience=1)
    with pytest.warns(UserWarning, match="to train: its patience of 1 ended after round 2; a lar"):
        run(tmp_path, [0.5] * 20, patience=1, ckpt_path="last")
    assert run(tmp_path, [0.5] * 20, patience=3, ckpt_path="last").server.round == 4


# ---- callbacks -----------------------------------------------------------------------------------


class Stop(Callback):
    """Asks for the end in a hook, of a round or at the start."""

    def __init__(
        self, when: Callable[[FederatedTrainer], bool], hook: str = "on_round_end"
    ) -> None:
        def ask(trainer: FederatedTrainer, **named: Any) -> None:
            if when(trainer):
                trainer.should_stop = True

        vars(self)[hook] = ask


@pytest.mark.parametrize("hook", ["on_round_end", "on_client_end"])
def test_a_callback_stops_a_run_after_the_round(tmp_path: Path, hook: str) -> None:
    stop = Stop(lambda trainer: len(trainer.run.history) >= 2, hook)
    options = {"checkpoint_every_n_rounds": 9, "callbacks": [stop]}
    trainer = run(tmp_path, [0.5] * 20, **options)
    rounds = 2 if hook == "on_round_end" else 3
    assert trainer.server.round == rounds
    assert trainer.should_stop
    assert (trainer.run.folder / "summary.json").exists()
    # the last round has its checkpoint, whatever the number of rounds between two
    assert load(trainer.run.checkpoints / f"round={rounds:05d}.ckpt")["run"]["stopped"]


def test_who_asks_in_a_round_is_heard_by_a_run_that_goes_on_after_an_error_at_its_end(
    tmp_path: Path,
) -> None:
    class Faulty(Callback):
        def on_round_end(self, trainer: FederatedTrainer, metrics: dict[str, Any]) -> None:
            raise RuntimeError("mine")

    asked = Stop(lambda trainer: True, "on_client_end")
    with pytest.raises(RuntimeError, match="mine"):
        run(tmp_path, [0.5] * 4, callbacks=[asked, Faulty()])
    with pytest.warns(UserWarning, match="a callback stopped the run after round 1"):
        assert run(tmp_path, [0.5] * 4, ckpt_path="last").server.round == 1


def test_a_run_that_was_stopped_goes_on_only_if_it_is_made_longer(tmp_path: Path) -> None:
    stop = Stop(lambda trainer: len(trainer.run.history) == 2)
    run(tmp_path, [0.5] * 4, callbacks=[stop])
    with pytest.warns(UserWarning, match="a callback stopped the run after round 2; it goes on"):
        again = run(tmp_path, [0.5] * 20, ckpt_path="last")
    assert again.server.round == 2
    longer = run(tmp_path, [0.5] * 20, ckpt_path="last", max_rounds=7)
    assert longer.server.round == 7


def test_a_run_may_be_stopped_before_its_first_round(tmp_path: Path) -> None:
    trainer = run(tmp_path, [], callbacks=[Stop(lambda trainer: True, "on_fit_start")])
    assert trainer.server.round == 0
    # the next fit of the same trainer begins anew
    trainer.callbacks.clear()
    data = HandMade([points(6), points(6, seed=1)], held_out=points(4, seed=9))
    trainer.fit(Scripted([0.5] * 20), data)
    assert trainer.server.round == 6
