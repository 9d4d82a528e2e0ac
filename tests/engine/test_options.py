"""Options of the trainer that no shipped configuration sets: each has a test of its effect."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from bhfl.engine.callback import Callback
from bhfl.engine.checkpoint import digest
from bhfl.engine.trainer import FederatedTrainer
from tests.engine.hand_made import HandMade, Module, points
from tests.federation import fit

HERE = Path(__file__).parent
PROCESSES = "test_several_devices_are_processes_that_meet_in_collectives"
CLIPPED = "test_gradients_are_clipped_together_and_those_of_the_optimizer_only"
TESTED = {
    "callbacks": "test_options.py::test_the_cohort_is_drawn_as_asked",
    "channels_last": "test_client.py::test_channels_last",
    "checkpoint_every_n_rounds": "test_options.py::test_checkpoints_are_written_and_kept_as_asked",
    "default_root_dir": "test_options.py::test_run_folders_are_made_where_they_are_asked_for",
    "enable_progress_bar": "../callbacks/test_progress.py::test_a_bar_can_be_declined",
    "gradient_clip_val": f"test_client.py::{CLIPPED}",
    "keep_checkpoints": "test_options.py::test_checkpoints_are_written_and_kept_as_asked",
    "logger": "client/test_module_trainer.py::test_the_logger_of_the_run_is_the_module_s",
    "lr_schedule": "client/test_optim.py::test_restart_begins_anew_in_each_round",
    "max_failed_rounds": "test_failures.py::test_what_may_pass_is_waited_for",
    "mode": "test_trainer.py::test_patience_and_the_best_model",
    "monitor": "test_options.py::test_the_best_round_is_that_of_the_monitored_metric",
    "num_nodes": "test_options.py::test_processes_are_those_of_all_nodes",
    "save_in_int8": "test_client.py::test_low_bit_clients_save_in_int8",
    "seed": "test_options.py::test_another_seed_makes_other_cohorts_and_weights",
    "server_optimizer": "test_trainer.py::test_server_optimisers_step_on_the_difference",
    "strategy": f"test_settings.py::{PROCESSES}",
    "threads": "test_options.py::test_clients_compute_with_as_many_threads_as_asked",
    "timeout_seconds": f"test_settings.py::{PROCESSES}",
    "validate_first": "test_first.py::test_it_changes_no_bit_of_what_comes_after",
}
"""Option to the test that fails where the option is ignored."""


def options_in(value: Any) -> set[str]:
    """Names of the trainer's options in a configuration, a sweep's dotted ones too."""
    found: set[str] = set()
    for key, item in value.items() if isinstance(value, dict) else ():
        head, _, rest = str(key).partition(".")
        if head == "trainer":
            found |= {rest.partition(".")[0]} if rest else set(item)
        elif head in ("clients", "algorithm"):
            found.add(head)
        found |= options_in(item)
    return found


def test_each_option_is_set_by_a_configuration_or_has_a_test_of_its_effect():
    set_by_some: set[str] = set()
    for path in (HERE.parents[1] / "configs").rglob("*.yaml"):
        set_by_some |= options_in(yaml.safe_load(path.read_text()))
    options = set(inspect.signature(FederatedTrainer).parameters)
    assert len(set_by_some & options) > 10
    assert options - set_by_some == TESTED.keys()
    for option, test in TESTED.items():
        file, _, name = test.partition("::")
        tree = ast.parse((HERE / file).read_text())
        tests = {one.name: one for one in tree.body if isinstance(one, ast.FunctionDef)}
        assert option in ast.unparse(tests[name]), f"{test} sets no {option}"


# ---- effects that no other test shows ------------------------------------------------------------


class Watch(Callback):
    """The clients of each round, by group."""

    def __init__(self) -> None:
        self.rounds: list[list[str]] = []
        self.cohorts: list[list[int]] = []

    def on_round_end(self, trainer: FederatedTrainer, metrics: dict[str, Any]) -> None:
        participants = trainer.server.participants
        self.cohorts.append(participants)
        self.rounds.append([trainer.clients[client].group for client in participants])


def data(size: int = 1) -> HandMade:
    return HandMade([points(4, seed=i) for i in range(size)], held_out=points(6, seed=9))


def run(folder: Path, clients: Any, size: int, **options: Any) -> FederatedTrainer:
    options = {"monitor": "train/loss", "mode": "min", **options}
    return fit(folder, None, clients, Module, data(size), **options)


def test_a_fleet_by_fractions_has_as_many_clients_as_asked(tmp_path):
    fleet = [{"bits": 8, "fraction": 0.5}, {"bits": 32, "fraction": 0.5}]
    trainer = run(tmp_path, fleet, 6, num_clients=6, max_rounds=1)
    assert [client.group for client in trainer.clients] == ["int8"] * 3 + ["float32"] * 3


@pytest.mark.parametrize("sampling", ["stratified", "uniform", "poisson"])
def test_the_cohort_is_drawn_as_asked(tmp_path, sampling):
    watch = Watch()
    options = {"clients_per_round": 2, "sampling": sampling, "callbacks": [watch]}
    run(tmp_path, {8: 4, 32: 1}, 5, max_rounds=6, **options)
    sizes = {len(groups) for groups in watch.rounds}
    assert len(sizes) > 1 if sampling == "poisson" else sizes == {2}
    both = [set(groups) == {"int8", "float32"} for groups in watch.rounds]
    assert all(both) == (sampling == "stratified")


def test_another_seed_makes_other_cohorts_and_weights(tmp_path):
    found = []
    for number, seed in enumerate((0, 0, 1)):
        watch = Watch()
        options = {"clients_per_round": 2, "max_rounds": 4, "callbacks": [watch], "seed": seed}
        trainer = run(tmp_path / str(number), {32: 5}, 5, **options)
        found.append((watch.cohorts, digest(trainer.server.params)))
    assert found[0] == found[1]
    assert found[0][0] != found[2][0]
    assert found[0][1] != found[2][1]


@pytest.mark.parametrize("keep", [1, 2])
def test_checkpoints_are_written_and_kept_as_asked(tmp_path, keep):
    options = {"max_rounds": 5, "checkpoint_every_n_rounds": 2, "keep_checkpoints": keep}
    trainer = run(tmp_path, {32: 1}, 1, **options)
    found = sorted(path.name for path in trainer.run.checkpoints.glob("round=*"))
    assert found == ["round=00004.ckpt", "round=00005.ckpt"][-keep:]


@pytest.mark.parametrize(("asked", "number"), [("none", 0), ("after", 1), ("both", 2)])
def test_the_clients_own_models_are_measured_where_asked(tmp_path, asked, number):
    trainer = run(tmp_path, {8: 1, 32: 1}, 2, max_rounds=1, evaluate_clients=asked)
    row = trainer.run.history[-1]
    tags = ["val/loss_local_float32", "val/loss_local_before_float32"]
    assert [tag in row for tag in tags] == [i < number for i in range(2)]


def test_the_best_round_is_that_of_the_monitored_metric(tmp_path):
    for monitor in ("train/loss", "val/loss_avg"):
        trainer = run(tmp_path, {32: 2}, 2, max_rounds=3, monitor=monitor)
        values = [row[monitor] for row in trainer.run.history]
        assert trainer.run.best == min(values)
    assert trainer.run.best != min(row["train/loss"] for row in trainer.run.history)


def test_run_folders_are_made_where_they_are_asked_for(tmp_path):
    trainer = run(tmp_path, {32: 1}, 1, max_rounds=1, default_root_dir=str(tmp_path / "there"))
    assert trainer.run.folder == tmp_path / "there" / "bhfl" / "version_0"
    assert (trainer.run.folder / "summary.json").exists()


def test_clients_compute_with_as_many_threads_as_asked(tmp_path):
    class Counting(Module):
        def on_train_start(self):
            self.log("threads", float(torch.get_num_threads()))

    rows = []
    for threads in (1, 2):
        options = {"max_rounds": 1, "monitor": "train/loss", "mode": "min", "threads": threads}
        rows += fit(tmp_path, None, {32: 1}, Counting, data(), **options).run.history
    assert [row["train/threads"] for row in rows] == [1.0, 2.0]


def test_processes_are_those_of_all_nodes():
    trainer = FederatedTrainer({32: 4}, devices=1, accelerator="cpu", num_nodes=2)
    assert trainer.fabric.world_size == 2


def test_nodes_that_nobody_started_are_not_waited_for(tmp_path, monkeypatch):
    monkeypatch.delenv("MASTER_PORT", raising=False)
    with pytest.raises(ValueError, match="num_nodes is 2, and nothing says where the nodes meet"):
        fit(tmp_path, None, {32: 1}, devices=1, num_nodes=2, timeout_seconds=3)
