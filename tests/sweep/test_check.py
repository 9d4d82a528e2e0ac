"""Configurations are parsed before anything is run, and run folders must have been made with
them.
"""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from bhfl.cli.reading import ConfigError
from bhfl.sweep.check import Configs
from bhfl.sweep.plan import Job
from bhfl.sweep.survey import Survey
from tests.sweep.conftest import Sweeps

MATRIX = """\
base: {trainer.max_rounds: 3}
seeds: [0, 1]
methods:
  FedAvg: {config: c.yaml}
  FedProx: {config: c.yaml, algorithm: FedProx, algorithm.mu: 0.5}
"""


def jobs(sweep: Sweeps, text: str = MATRIX) -> list[Job]:
    plan = sweep.plan(text)
    return [plan.job(cell) for cell in plan.cells]


def test_what_a_job_is_told(sweep: Sweeps) -> None:
    told = Configs(machine=False)(jobs(sweep)[3])
    result = told["result"]
    assert (result["algorithm"], result["algorithm.mu"]) == ("bhfl.algorithms.FedProx", 0.5)
    assert result["trainer.seed"] == 1
    assert told["task"]["clients"] == [{"bits": "int8", "count": 1}]
    assert told["length"]["trainer.max_rounds"] == 3


def test_all_problems_are_collected_with_their_places(sweep: Sweeps) -> None:
    text = MATRIX.replace("max_rounds", "max_round").replace("c.yaml", "d.yaml", 1)
    Path("d.yaml").write_text("clients: {8: 1}\nalgorithm: FedAvgg\n")
    with pytest.raises(ConfigError) as refused:
        Configs(machine=False).check(jobs(sweep, text))
    assert refused.value.problems == [
        (
            "d.yaml:2: algorithm must name an Algorithm, got 'FedAvgg'; "
            "did you mean 'FedAvg'? (FedAvg/seed0 and 1 more)"
        ),
        (
            "m.yaml:1: trainer.max_round is an unknown option; "
            "did you mean 'max_rounds'? (FedAvg/seed0 and 3 more)"
        ),
    ]


def test_an_option_that_holds_objects_is_the_same_for_all_runs(sweep: Sweeps) -> None:
    profile = "{mine: {uplink_bps: 1.0e+5, downlink_bps: 4.0e+5, compute_flops: 5.0e+10}}"
    network = f"trainer.network: {{profiles: mine, custom_profiles: {profile}}}"
    found = jobs(sweep, MATRIX.replace("max_rounds: 3", f"max_rounds: 3, {network}"))
    words = [word for word in found[0].args if word.startswith("--trainer.network=")]
    Configs(machine=False).check(found)
    # the first run's objects are not written into what the second one is told
    assert [word for word in found[2].args if word.startswith("--trainer.network=")] == words


def test_what_a_constructor_refuses_is_found_too(sweep: Sweeps) -> None:
    with pytest.raises(ConfigError, match=r"mu must be .* \(FedProx/seed0 and 1 more\)"):
        Configs(machine=False).check(jobs(sweep, MATRIX.replace("0.5", "-1.0")))


def test_what_this_machine_lacks_is_refused_before_it_is_run(sweep: Sweeps) -> None:
    text = MATRIX.replace("trainer.max_rounds: 3", "trainer.accelerator: cuda, trainer.devices: 99")
    Configs(machine=False).check(jobs(sweep, text))
    with pytest.raises(ConfigError, match=r"\(FedAvg/seed0 and 3 more\)"):
        Configs(machine=True).check(jobs(sweep, text))


def made(job: Job, **changes: object) -> Path:
    """A run folder of `job` with a checkpoint, whose trainer had other options; its settings."""
    told = Configs(machine=False)(job)
    for name, value in changes.items():
        (role,) = [role for role, options in told.items() if f"trainer.{name}" in options]
        told[role] = {**told[role], f"trainer.{name}": value}
    run = job.folder / "version_0"
    (run / "checkpoints").mkdir(parents=True)
    (run / "checkpoints" / "round=00001.ckpt").touch()
    (run / "settings.json").write_text(json.dumps(told))
    return run / "settings.json"


def test_runs_of_other_options_are_refused_by_name(sweep: Sweeps) -> None:
    first, second, *_ = jobs(sweep)
    made(first, max_rounds=2)
    # where it was computed does not count
    made(second, local_epochs=7, default_root_dir="elsewhere", devices=3)
    with pytest.raises(ConfigError) as refused:
        Survey(sweep.plan(MATRIX), Configs(machine=False))
    remedy = "move it away, or give the matrix another name"
    assert refused.value.problems == [
        (
            "runs/m/FedAvg/seed0/version_0 was made with other options: trainer.max_rounds: "
            f"2 -> 3; {remedy}"
        ),
        (
            "runs/m/FedProx/seed0/version_0 was made with other options: trainer.local_epochs: "
            f"7 -> 1; {remedy}"
        ),
    ]


@pytest.mark.parametrize(
    "changes",
    [
        {"logger": False, "keep_checkpoints": 9, "checkpoint_every_n_rounds": 2},
        {"callbacks": ["mine.Watch"], "evaluate_clients": "after", "check_val_every_n_rounds": 2},
        {"max_failed_rounds": 9, "timeout_seconds": 9, "strategy": "ddp"},
        {"threads": 2, "channels_last": False},
    ],
)
def test_a_sweep_goes_on_after_what_is_no_result_has_changed(
    sweep: Sweeps, changes: dict[str, object]
) -> None:
    made(jobs(sweep)[0], **changes)
    Survey(sweep.plan(MATRIX), Configs(machine=False))


@pytest.mark.parametrize(
    "changes",
    [{"patience": 2}, {"monitor": "val/loss_avg"}, {"mode": "min"}, {"seed": 5}, {"norm": "local"}],
)
def test_a_sweep_does_not_take_another_run_for_its_own(
    sweep: Sweeps, changes: dict[str, object]
) -> None:
    made(jobs(sweep)[0], **changes)
    with pytest.raises(ConfigError, match=f"other options: trainer.{next(iter(changes))}: "):
        Survey(sweep.plan(MATRIX), Configs(machine=False))


@pytest.mark.parametrize("text", ["{", "[]", None])
def test_settings_that_cannot_be_read_are_named(sweep: Sweeps, text: str | None) -> None:
    path = made(jobs(sweep)[0])
    path.unlink()
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=r"FedAvg/seed0/version_0/settings\.json .*move its run"):
        Survey(sweep.plan(MATRIX), Configs(machine=False))


def test_the_order_of_a_fleet_counts(sweep: Sweeps) -> None:
    text = MATRIX.replace("max_rounds: 3", "max_rounds: 3, clients: {8: 1, 32: 1}")
    first, *_ = jobs(sweep, text)
    path = made(first)
    Survey(sweep.plan(text), Configs(machine=False))
    told = json.loads(path.read_text())
    told["task"]["clients"].reverse()
    path.write_text(json.dumps(told))
    with pytest.raises(ConfigError, match="was made with other options: clients: "):
        Survey(sweep.plan(text), Configs(machine=False))


def test_runs_of_the_same_options_are_taken(sweep: Sweeps) -> None:
    made(jobs(sweep)[0], accelerator="cpu", num_nodes=1)
    Survey(sweep.plan(MATRIX), Configs(machine=False))


def test_what_each_run_would_refuse_by_its_name_is_found_before_the_first(sweep: Sweeps) -> None:
    job = jobs(sweep)[0]
    for name, why in (("m" * 300, "must have at most"), ("a/../..", "must stay inside")):
        with pytest.raises(ValueError, match=f"the name of a run's folder {why}"):
            Configs(machine=False).check([replace(job, name=name)])
