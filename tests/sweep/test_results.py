"""Finished runs that are kept apart: what has the settings of one is not run, and what is finished
is kept.
"""

import json
import os
import shutil
from pathlib import Path

import pytest

from bhfl.cli.reading import ConfigError
from bhfl.sweep.check import Configs
from bhfl.sweep.defaults import UNKNOWN, default_of
from bhfl.sweep.results import unlike
from bhfl.sweep.survey import DIVERGED, DONE, DROPPED, UNTUNED, Survey
from tests.sweep.conftest import MATRIX, Sweeps
from tests.sweep.conftest import TUNED as ALIKE
from tests.sweep.test_runner import begun

KEPT = "results: kept\n"
TUNED = ALIKE.replace("B: {config: c.yaml}", "B: {config: c.yaml, y: 1}")


def test_what_is_finished_is_kept_and_not_run_again(sweep: Sweeps) -> None:
    assert sweep(TUNED + KEPT).left == 0
    # of each run the small files alone
    assert sorted(path.name for path in Path("kept/A/seed0").iterdir()) == [
        "rounds.jsonl", "settings.json", "summary.json",
    ]  # fmt: skip
    assert len(list(Path("kept").rglob("summary.json"))) == 8
    # as on a fresh clone
    shutil.rmtree("runs")
    runner = sweep(TUNED + KEPT)
    assert (runner.left, runner.failed, begun()) == (0, [], [])
    assert set(runner.survey.states().values()) == {DONE}
    assert runner.survey.tuning.chosen == {"A": 0.75, "B": 0.75}
    assert list(map(str, runner.survey.finished())) == ["kept/A/seed0", "kept/B/seed0"]


def test_what_is_missing_there_is_run_and_kept(sweep: Sweeps) -> None:
    sweep(MATRIX + KEPT)
    shutil.rmtree("runs")
    # where a kept run lies does not matter
    shutil.move("kept/B/seed1", "kept/elsewhere")
    shutil.rmtree("kept/A/seed1")
    assert sweep(MATRIX + KEPT).left == 0
    assert [line.split(":")[0] for line in begun()] == ["seed1"]
    assert Path("kept/A/seed1/summary.json").exists()
    assert not Path("kept/B/seed1").exists()


def test_what_was_run_before_there_was_such_a_folder_is_kept(sweep: Sweeps) -> None:
    sweep(MATRIX)
    sweep(MATRIX + KEPT)
    assert len(begun()) == len(list(Path("kept").rglob("summary.json"))) == 4


def test_what_is_in_the_way_of_a_run_that_is_to_be_kept_is_told_first(sweep: Sweeps) -> None:
    sweep(MATRIX + KEPT, "A")
    Path("kept/A/seed0/settings.json").unlink()
    with pytest.raises(ConfigError, match=r"^kept/A/seed0 is in the way of a run that is to be"):
        sweep.survey(MATRIX + KEPT)


def test_that_a_trial_diverged_is_kept_too(sweep: Sweeps) -> None:
    text = TUNED.replace("0.25]", "2]") + KEPT
    sweep(text)
    shutil.rmtree("runs")
    there = sweep(text)
    assert begun() == []
    assert there.survey.states()["_tuning/A/2/seed9"] == DIVERGED
    assert DROPPED not in there.survey.states().values()
    assert UNTUNED not in there.survey.states().values()


def test_a_trial_that_diverged_with_other_options_is_replaced(sweep: Sweeps) -> None:
    text = TUNED.replace("0.25]", "2]") + KEPT
    sweep(text, "A")
    shutil.rmtree("runs")
    path = Path("kept/_tuning/A/2/seed9/diverged.json")
    place = Path("kept/_tuning/A/0.5/seed9")
    shutil.rmtree(place)
    # what is told there is of x = 2
    path.parent.rename(place)
    assert sweep(text, "A").left == 0
    assert sorted(one.name for one in place.iterdir()) == [
        "rounds.jsonl", "settings.json", "summary.json",
    ]  # fmt: skip
    assert path.exists()


def test_a_copy_that_a_kill_left_is_passed_over_and_removed(sweep: Sweeps) -> None:
    sweep(MATRIX + KEPT, "A")
    old, new = (Path(f"kept/A/.seed0.{number:016x}.tmp") for number in range(2))
    Path("kept/A/seed0").rename(old)
    (old / "summary.json").unlink()
    # another sweep may be at work on this one
    shutil.copytree(old, new)
    os.utime(old, (0, 0))
    shutil.rmtree("runs")
    assert sweep(MATRIX + KEPT, "A").left == 0
    assert Path("kept/A/seed0/summary.json").exists()
    assert (old.exists(), new.exists()) == (False, True)


def test_what_another_sweep_keeps_meanwhile_is_kept_once(sweep: Sweeps) -> None:
    sweep(MATRIX + KEPT, "A")
    Path("kept").rename("later")
    survey = sweep.survey(MATRIX + KEPT, "A")
    # the other one is done with one run, and another matrix has one of the same name
    shutil.copytree("later", "kept")
    path = Path("kept/A/seed1/settings.json")
    path.write_text(json.dumps(told(x=3)))
    survey.keep()
    first, second = (survey.job(cell) for cell in survey.plan.cells)
    assert (survey.changed(first), survey.results.kept(first)) == ("", Path("kept/A/seed0"))
    assert survey.changed(second).startswith("kept/A/seed1 keeps a run of other settings: ")
    assert json.loads(path.read_text()) == told(x=3)


def test_a_run_whose_place_another_has_taken_is_told(
    sweep: Sweeps, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    keep = Survey.keep

    def taken(survey: Survey) -> None:
        # it comes while the run is at work
        if Path("runs/m/A/seed0").exists():
            Path("kept/A/seed0").mkdir(parents=True, exist_ok=True)
            Path("kept/A/seed0/notes").touch()
        keep(survey)

    monkeypatch.setattr(Survey, "keep", taken)
    assert sweep(MATRIX.replace("[0, 1]", "[0]") + KEPT, "A").failed == ["A/seed0"]
    assert "kept/A/seed0 is in the way of a run that is to be kept" in capsys.readouterr().out


def test_results_behind_a_link_are_found(sweep: Sweeps) -> None:
    sweep(MATRIX + KEPT)
    shutil.rmtree("runs")
    Path("kept/A").rename("elsewhere")
    Path("kept/A").symlink_to(Path("elsewhere").absolute())
    assert sweep(MATRIX + KEPT).left == 0
    assert begun() == []


def test_a_file_in_place_of_the_folder_is_told_before_anything_runs(sweep: Sweeps) -> None:
    Path("kept").touch()
    with pytest.raises(NotADirectoryError, match="kept"):
        sweep.survey(MATRIX + KEPT)


def test_results_of_other_settings_are_refused_by_name(sweep: Sweeps) -> None:
    sweep(MATRIX + KEPT)
    shutil.rmtree("runs")
    with pytest.raises(ConfigError) as refused:
        sweep.survey(MATRIX.replace("0.25", "0.5") + KEPT)
    first, second = refused.value.problems
    assert first.startswith("kept/B/seed0 keeps a run of other settings: options: [")
    assert first.endswith("move it away, or name another folder by results")
    assert second.startswith("kept/B/seed1 ")
    # beside the places of runs, a run of other settings is none of this matrix
    shutil.move("kept/B", "kept/before")
    assert sweep.survey(MATRIX.replace("0.25", "0.5") + KEPT).results.folder == Path("kept")


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        ("summary.json", None, "3 of 3 rounds"),
        ("summary.json", '{"rounds": 4}', "3 rounds in rounds.jsonl, 4 in summary.json"),
        ("summary.json", '{"rounds": 3, "failed": "x"}', "after 3 rounds, x"),
        ("rounds.jsonl", "{\n", "line 1 of rounds.jsonl is damaged"),
        ("settings.json", "{", "settings.json is damaged"),
    ],
)
def test_damaged_results_are_refused_by_name(
    sweep: Sweeps, name: str, text: str | None, problem: str
) -> None:
    sweep(MATRIX + KEPT, "A")
    path = Path("kept/A/seed0") / name
    if text is None:
        path.unlink()
    else:
        path.write_text(text)
    with pytest.raises(ConfigError, match=f"^kept/A/seed0 is no finished run: .*{problem}"):
        sweep.survey(MATRIX + KEPT)


# ---- settings ------------------------------------------------------------------------------------


def told(**result: object) -> dict[str, dict[str, object]]:
    return {"result": result, "machine": {"trainer.devices": 3}}


def test_only_what_makes_a_run_counts() -> None:
    assert unlike(told(a=1), {"result": {"a": 1.0}, "machine": {"trainer.devices": 1}}) == []
    assert unlike(told(a=1), told(a=2)) == ["a: 1 -> 2"]
    assert unlike(told(a=1), {"length": {"a": 1}}) == []


def test_an_option_that_is_newer_counts_as_its_default() -> None:
    now = {
        "algorithm": "bhfl.algorithms.ProWD",
        "algorithm.mask": True,
        "algorithm.mask.tau": 0.05,
        "model": "bhfl.models.Classifier",
        "model.optimizer": "torch.optim.SGD",
    }
    for key, default, other in [
        ("trainer.norm", "group", "local"),
        ("trainer.local_epochs", 1, 2),
        ("algorithm.mask.coarse", 0.1, 0.3),
        ("model.label_smoothing", 0.0, 0.1),
        ("model.optimizer.nesterov", False, True),
    ]:
        assert default_of(key, now) == default
        assert unlike(told(**now), told(**now, **{key: default})) == []
        found = unlike(told(**now), told(**now, **{key: other}))
        assert found == [f"{key}: absent -> {other!r}"]


@pytest.mark.parametrize("key", ["algorithm", "clients", "model.optimizer.lr", "data.x.y", "x"])
def test_an_option_without_a_known_default_makes_another_run(key: str) -> None:
    now = {"model.optimizer": "torch.optim.SGD", "data": "no.such.module.Data"}
    now[key] = now.get(key, "none")
    assert default_of("data.x.y", now) is UNKNOWN
    before = {name: value for name, value in now.items() if name != key}
    if key == "model.optimizer.lr":
        # torch's SGD has a default
        now[key] = 0.5
    assert unlike(told(**before), told(**now)) == [f"{key}: absent -> {now[key]!r}"]


def test_an_option_that_is_known_no_more_must_have_been_off() -> None:
    assert unlike(told(a=1, old=None, older=False), told(a=1)) == []
    assert unlike(told(a=1, old=0.5), told(a=1)) == ["old: 0.5 -> absent"]


def test_the_settings_of_a_true_run_are_found_again(sweep: Sweeps) -> None:
    text = "base: {trainer.max_rounds: 3}\nseeds: [0]\nmethods: {ProWD: {config: cifar10/prowd}}\n"
    plan = sweep.plan(text)
    job = plan.job(plan.cells[0])
    now = Configs(machine=False)(job)
    assert unlike(json.loads(json.dumps(now)), now) == []
    for role, options in now.items():
        for key in options:
            if role in ("result", "length", "choice") and key.count("."):
                fewer = {k: v for k, v in options.items() if k != key}
                changed = unlike({**now, role: fewer}, now)
                stated = default_of(key, {**now["result"], **now["task"]})
                assert (changed == []) == (stated == options[key]), key
