"""Which runs there are, in what order, and with which options."""

from pathlib import Path

from bhfl.sweep.plan import Cell
from tests.sweep.conftest import Sweeps

MATRIX = """\
base: {trainer.max_rounds: 3}
seeds: [0, 1]
settings: {s: {clients: {8: 2}}, t: {clients: {4: 2}}}
methods:
  A: {config: c.yaml}
  B: {config: c.yaml, algorithm.mask: false}
"""
TUNE = "tune: {key: x, values: [1, 2], seeds: [9, 1], setting: %s}\n"


def test_seeds_come_last(sweep: Sweeps) -> None:
    plan = sweep.plan(MATRIX)
    assert [plan.job(cell).name for cell in plan.cells] == [
        f"{setting}/{method}/seed{seed}" for seed in (0, 1) for setting in "st" for method in "AB"
    ]


def test_some_come_first(sweep: Sweeps) -> None:
    cells = sweep.plan(MATRIX + "first: [B, t]\n").cells
    assert cells[:2] == [Cell("t", "B", 0), Cell("t", "B", 1)]
    assert cells[2:4] == [Cell("s", "A", 0), Cell("s", "B", 0)]
    assert len(cells) == 8


def test_only_some(sweep: Sweeps) -> None:
    assert {cell.method for cell in sweep.plan(MATRIX, "B").cells} == {"B"}
    assert len(sweep.plan(MATRIX, "B").cells) == 4
    assert sweep.plan(MATRIX, "A", "t").cells == [Cell("t", "A", 0), Cell("t", "A", 1)]
    assert sweep.plan(MATRIX, "A", "B", "t").cells == sweep.plan(MATRIX, "t").cells


def test_later_options_win(sweep: Sweeps) -> None:
    plan = sweep.plan(MATRIX + TUNE % "s")
    assert plan.job(Cell("t", "B", 1), 2).args == [
        "fit", "--config=c.yaml", "--trainer.max_rounds=3", "--clients={4: 2}",
        "--algorithm.mask=false", "--x=2", "--seed_everything=1",
        "--trainer.default_root_dir=runs/m", "--trainer.name=t/B/seed1",
    ]  # fmt: skip


def test_one_setting_tunes_for_all(sweep: Sweeps) -> None:
    plan = sweep.plan(MATRIX + TUNE % "s")
    trials = [plan.trials(Cell(setting, "A", 0)) for setting in "st"]
    assert trials[0] == trials[1]
    assert [[job.name for job in of_seed.values()] for of_seed in trials[0]] == [
        [f"_tuning/A/{value}/seed{seed}" for value in (1, 2)] for seed in (9, 1)
    ]
    assert all("--clients={8: 2}" in job.args for of_seed in trials[0] for job in of_seed.values())
    assert all("--seed_everything=9" in job.args for job in trials[0][0].values())


def test_a_run_that_was_a_trial_is_that_trial(sweep: Sweeps) -> None:
    plan = sweep.plan(MATRIX + TUNE % "s")
    assert plan.job(Cell("s", "A", 1), 2) == plan.trials(Cell("s", "A", 0))[1][2]
    assert plan.job(Cell("s", "A", 0), 2).name == "s/A/seed0"
    assert plan.job(Cell("t", "A", 1), 2).name == "t/A/seed1"


def test_each_setting_tunes_for_itself(sweep: Sweeps) -> None:
    plan = sweep.plan(MATRIX + TUNE % "each")
    trials = plan.trials(Cell("t", "A", 0))[0]
    assert [job.name for job in trials.values()] == ["_tuning/t/A/1/seed9", "_tuning/t/A/2/seed9"]
    assert "--clients={4: 2}" in trials[1].args


def test_without_settings_and_tuning(sweep: Sweeps) -> None:
    plan = sweep.plan("seeds: [0]\nmethods: {A: {config: c.yaml}}\n")
    job = plan.job(plan.cells[0])
    assert (job.name, plan.trials(plan.cells[0])) == ("A/seed0", [])
    assert (job.folder, job.run, job.done) == (Path("runs/m/A/seed0"), None, False)


def test_a_method_may_have_more_seeds_than_others(sweep: Sweeps) -> None:
    cells = sweep.plan(MATRIX.replace("A: {", "A: {seeds: [7, 0], "), "s").cells
    assert cells == [Cell("s", "A", 0), Cell("s", "B", 0), Cell("s", "B", 1), Cell("s", "A", 7)]


def test_trials_with_options_of_their_own_are_no_runs(sweep: Sweeps) -> None:
    tune = (TUNE % "s").replace("}", ", options: {trainer.max_rounds: 2}}")
    plan = sweep.plan(MATRIX + tune)
    cell = Cell("s", "A", 1)
    assert plan.job(cell, 2).name == "s/A/seed1"
    _, of_one = plan.trials(cell)
    assert "--trainer.max_rounds=2" not in plan.job(cell, 2).args
    assert of_one[2].args[-5:] == [
        "--trainer.max_rounds=2", "--x=2", "--seed_everything=1",
        "--trainer.default_root_dir=runs/m", "--trainer.name=_tuning/A/2/seed1",
    ]  # fmt: skip


def test_a_method_takes_the_value_of_another(sweep: Sweeps) -> None:
    plan = sweep.plan(MATRIX + (TUNE % "s").replace("}", ", like: {B: A}}"))
    cell = Cell("s", "B", 1)
    assert plan.trials(cell) == plan.trials(Cell("s", "A", 1))
    assert plan.tuned_for(cell) == plan.tuned_for(Cell("s", "A", 1)) == "A"
    assert plan.job(cell, 2).name == "s/B/seed1"
