"""What is missing is run, and nothing else."""

import json
import os
import sys
import time
from pathlib import Path

import pytest

import bhfl as package
from bhfl.cli.reading import ConfigError
from bhfl.sweep import processes
from bhfl.sweep.plan import Plan
from bhfl.sweep.processes import locked
from bhfl.sweep.reader import read_matrix
from bhfl.sweep.runner import Runner
from bhfl.sweep.survey import CUT_OFF, DIVERGED, DONE, DROPPED, MISSING, UNTUNED, Survey
from tests.processes import PROCESSES
from tests.sweep.conftest import FAKE, MATRIX, TUNED, FakeConfigs, Sweeps


def begun() -> list[str]:
    """The log's first words of each start of a run, in all runs."""
    logs = sorted(Path("runs/m").rglob("log.txt"))
    return [
        f"{log.parent.name}: {line}"
        for log in logs
        for line in log.read_text().splitlines()
        if line[:1] == "$"
    ]


def test_all_that_is_missing_is_run_once(sweep: Sweeps, capsys: pytest.CaptureFixture[str]) -> None:
    assert set(sweep.survey(MATRIX).states().values()) == {MISSING}
    assert sweep(MATRIX, "A").left == 0
    assert sweep.survey(MATRIX).states() == {
        "A/seed0": DONE, "B/seed0": MISSING, "A/seed1": DONE, "B/seed1": MISSING,
    }  # fmt: skip
    runner = sweep(MATRIX)
    assert (runner.left, runner.failed) == (0, [])
    assert len(begun()) == 4
    sweep(MATRIX)
    assert len(begun()) == 4
    assert " done; 0 of 12 rounds left" in capsys.readouterr().out
    assert [str(run) for run in runner.survey.finished()] == [
        f"runs/m/{method}/seed{seed}/version_0" for method in "AB" for seed in (0, 1)
    ]


class ThereIs(float):
    """The time at which a file is there, compared with the clock."""

    def __new__(cls, file: Path) -> "ThereIs":
        there = super().__new__(cls, "inf")
        there.file = file
        return there

    def __gt__(self, now: float) -> bool:
        return not self.file.exists()


def test_what_was_cut_off_goes_on(sweep: Sweeps, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_SECONDS", "60")
    stopped = sweep(
        MATRIX,
        "A",
        until=ThereIs(Path("runs/m/A/seed0/version_0/checkpoints/round=00001.ckpt")),
        jobs=1,
    )
    assert stopped.left == 2
    assert not stopped.failed
    assert sweep.survey(MATRIX, "A").states() == {"A/seed0": CUT_OFF, "A/seed1": MISSING}
    rows = Path("runs/m/A/seed0/version_0/rounds.jsonl")
    before = len(rows.read_text().splitlines())
    monkeypatch.setenv("FAKE_SECONDS", "0")
    runner = sweep(MATRIX, "A")
    assert (runner.left, runner.display.before) == (0, before)
    assert [json.loads(line)["round"] for line in rows.read_text().splitlines()] == [1, 2, 3]
    assert ["--ckpt_path=last" in line for line in begun()] == [False, True, False]


def test_a_run_that_fails_is_told_and_the_others_go_on(
    sweep: Sweeps, capsys: pytest.CaptureFixture[str]
) -> None:
    text = MATRIX.replace("x: 0.25", "fails: 7")
    runner = sweep(text)
    assert sorted(runner.failed) == ["B/seed0", "B/seed1"]
    assert runner.left == 2
    out = capsys.readouterr().out
    assert (
        "B/seed0 failed with exit code 7; runs/m/B/seed0/log.txt ends with\n  rounds are lost\n"
        in out
    )
    assert sweep.survey(text).states()["A/seed1"] == DONE


def test_a_signal_that_ended_a_run_is_named(
    sweep: Sweeps, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep(MATRIX.replace("x: 0.25", "fails: killed"), "B", jobs=1)
    assert (
        "B/seed0 was ended by signal 9; runs/m/B/seed0/log.txt ends with\n"
        in capsys.readouterr().out
    )


# ---- tuning


def test_the_best_on_the_validation_split_is_used(
    sweep: Sweeps, capsys: pytest.CaptureFixture[str]
) -> None:
    states = sweep.survey(TUNED).states()
    assert list(states.values()) == [MISSING] * 6 + [UNTUNED] * 2
    runner = sweep(TUNED)
    assert runner.left == 0
    assert "--x=0.75" in next(line for line in begun() if line.startswith("seed0"))
    assert all("--seed_everything=9" in line for line in begun() if not line.startswith("seed0"))
    tried = "A: x = 0.75 by val/acc_avg (0.5: 0.5000, 0.75: 0.7500, 0.25: 0.2500)"
    assert f"{tried}; it is at the edge of the values tried\n" in capsys.readouterr().out
    kept = json.loads(Path("runs/m/tuning.json").read_text())
    trials = {f"_tuning/A/{value}/seed9": value for value in (0.5, 0.75, 0.25)}
    assert kept["outcomes"]["A"] == {"chosen": 0.75, "at_edge": True, "trials": trials}
    assert kept["tune"]["metric"] == "val/acc_avg"
    assert [str(run) for run in runner.survey.finished()] == [
        f"runs/m/{method}/seed0/version_0" for method in "AB"
    ]
    again = sweep(TUNED)
    assert (again.left, len(begun())) == (0, 8)


def test_a_finished_run_that_lost_rows_goes_on_and_is_not_counted(sweep: Sweeps) -> None:
    text = TUNED.replace("0.5, 0.75, 0.25", "0.75")
    sweep(text, "A")
    path = Path("runs/m/_tuning/A/0.75/seed9/version_0/rounds.jsonl")
    whole = path.read_text()
    for left in (whole[: len(whole) // 2], None):
        path.unlink() if left is None else path.write_text(left)
        states = sweep.survey(text, "A").states()
        assert states == {"_tuning/A/0.75/seed9": CUT_OFF, "A/seed0": UNTUNED}
    runner = sweep(text, "A")
    assert (runner.left, path.read_text()) == (0, whole)
    # the run itself, which was over, is not begun again
    assert ["--ckpt_path=last" in line for line in begun()] == [False, False, True]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"tune": null}', '{"outcomes": []}', "\0"])
def test_damaged_notes_of_tuning_are_refused_by_name(sweep: Sweeps, text: str) -> None:
    Path("runs/m").mkdir(parents=True)
    Path("runs/m/tuning.json").write_text(text)
    with pytest.raises(ConfigError) as refused:
        sweep.survey(TUNED)
    (problem,) = refused.value.problems
    assert problem.startswith("runs/m/tuning.json ")
    assert problem.endswith("; remove it: a sweep of all methods finds it again from its trials")


@pytest.mark.parametrize("text", ["", "{", "[]", "{}"])
@pytest.mark.parametrize("where", ["runs/m", "kept"])
def test_damaged_notes_of_trials_that_diverged_are_refused_by_name(
    sweep: Sweeps, where: str, text: str
) -> None:
    paths = []
    for value in (0.25, 0.75):
        path = Path(where, f"_tuning/A/{value}/seed9/diverged.json")
        path.parent.mkdir(parents=True)
        path.write_text(text)
        paths.append(path)
    with pytest.raises(ConfigError) as refused:
        sweep.survey(f"{TUNED}results: kept\n", "A")
    for path, problem in zip(reversed(paths), refused.value.problems, strict=True):
        assert problem.startswith(f"{path} ")
        assert problem.endswith("; remove it, and the trial is run again")


def test_methods_that_are_tuned_apart_are_kept_together(sweep: Sweeps) -> None:
    sweep(TUNED, "A")
    sweep(TUNED, "B")
    assert json.loads(Path("runs/m/tuning.json").read_text())["outcomes"].keys() == {"A", "B"}


def test_a_value_in_the_middle_is_not_at_the_edge(sweep: Sweeps) -> None:
    runner = sweep(TUNED.replace("0.25]", "0.875, 2]"), "A")
    assert runner.survey.tuning.outcomes["A"]["chosen"] == 0.875
    assert not runner.survey.tuning.outcomes["A"]["at_edge"]


def test_a_value_that_trails_is_not_tried_with_the_next_seed(
    sweep: Sweeps, capsys: pytest.CaptureFixture[str]
) -> None:
    text = TUNED.replace("seeds: [9]", "seeds: [9, 0], margin: 0.3")
    runner = sweep(text, "A")
    # three with seed 9, two with seed 0, of which one is the run
    assert (runner.left, len(begun())) == (0, 5)
    tried = "0.5: 0.5000 over 2 seeds, 0.75: 0.7500 over 2 seeds, 0.25: 0.2500"
    assert f"A: x = 0.75 by val/acc_avg ({tried})" in capsys.readouterr().out
    states = sweep.survey(text, "A").states()
    assert states.pop("_tuning/A/0.25/seed0") == DROPPED
    assert set(states.values()) == {DONE}
    assert [str(run) for run in runner.survey.finished()] == [
        "runs/m/_tuning/A/0.75/seed0/version_0"
    ]
    assert (sweep(text, "A").left, len(begun())) == (0, 5)


def test_without_a_margin_all_values_are_tried_with_all_seeds(sweep: Sweeps) -> None:
    assert sweep(TUNED.replace("seeds: [9]", "seeds: [9, 8]"), "A").left == 0
    assert len(begun()) == 7


def test_a_trial_that_diverges_is_not_chosen_and_not_repeated(sweep: Sweeps) -> None:
    text = TUNED.replace("0.25]", "2]")
    assert sweep(text, "A").left == 0
    assert sweep.survey(text, "A").states()["_tuning/A/2/seed9"] == DIVERGED
    assert len(begun()) == 4
    sweep(text, "A")
    assert len(begun()) == 4


def test_a_value_that_diverges_late_drops_no_other(
    sweep: Sweeps, capsys: pytest.CaptureFixture[str]
) -> None:
    text = TUNED.replace(
        "[0.5, 0.75, 0.25], seeds: [9]", "[0.875, 0.5, 0.25], seeds: [9, 8], margin: 0.3"
    )
    runner = sweep(text, "A")
    assert (runner.left, runner.failed, runner.display.before) == (0, [], 0)
    out = capsys.readouterr().out
    assert (
        "A: x = 0.5 by val/acc_avg (0.875: diverged, 0.5: 0.5000 over 2 seeds, 0.25: 0.2500 over 2 "
        "seeds)" in out
    )
    assert "; 0 of 21 rounds left" in out
    assert len(begun()) == 7
    assert (sweep(text, "A").left, len(begun())) == (0, 7)


def test_no_round_is_left_of_what_is_not_run(
    sweep: Sweeps, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep(TUNED.replace("seeds: [9]", "seeds: [9, 8], margin: 0.1"), "A")
    assert "A/seed0 done; 0 of 21 rounds left" in capsys.readouterr().out


def test_a_method_of_which_every_trial_diverges_fails_alone(
    sweep: Sweeps, capsys: pytest.CaptureFixture[str]
) -> None:
    text = TUNED.replace("[0.5, 0.75, 0.25]", "[2, 3]")
    for _ in range(2):
        runner = sweep(text, "A")
        assert runner.failed == ["A"]
        assert runner.left == 1
        assert "A: no value of x can be chosen: every trial diverged" in capsys.readouterr().out


def test_a_metric_that_is_not_logged(sweep: Sweeps, capsys: pytest.CaptureFixture[str]) -> None:
    runner = sweep(TUNED.replace("seeds: [9]", "seeds: [9], metric: val/f1"), "A", jobs=1)
    assert runner.failed == ["A"]
    assert (
        "tune.metric must be logged, got 'val/f1'; _tuning/A/0.5/seed9 logged val/acc_avg"
        in capsys.readouterr().out
    )


def test_runs_with_a_value_that_is_chosen_no_more_are_refused(
    sweep: Sweeps, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sweep(TUNED, "A").left == 0
    runner = sweep(TUNED.replace("0.25]", "0.25, 0.875]"), "A")
    assert runner.failed == ["A/seed0"]
    assert len(begun()) == 5  # a trial more, and no start of what is refused
    assert (
        "runs/m/A/seed0/version_0 was made with other options: options: " in capsys.readouterr().out
    )


# ---- being killed


def run_slowly(folder: Path) -> None:
    """The sweep of ``m.yaml``, whose runs do not end in time."""
    os.chdir(folder)
    os.environ |= {"FAKE_SECONDS": "60", "PYTHONPATH": str(Path(package.__file__).parents[1])}
    processes.RUN = FAKE
    processes.FORKS = False
    with locked(Path("runs/m")) as lock:
        there = Survey(Plan(read_matrix("m.yaml"), Path("runs/m")), FakeConfigs())
        Runner(there, processes.Processes(lock), 2).run(float("inf"))


def alive(word: str) -> list[int]:
    """The processes of which an argument contains `word`."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if word.encode() in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:  # it has just ended
            continue
    return found


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")
def test_a_sweep_that_is_killed_leaves_nobody_behind_and_goes_on(
    sweep: Sweeps, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "m.yaml").write_text(
        MATRIX.replace("{config: c.yaml}", f"{{config: c.yaml, mark: {folder.name}}}")
    )
    text = (folder / "m.yaml").read_text()
    killed = PROCESSES.Process(target=run_slowly, args=(folder,))
    killed.start()
    first = Path("runs/m/A/seed0/version_0")
    while not list(first.glob("checkpoints/round=*.ckpt")):
        assert killed.is_alive()
        time.sleep(0.05)
    killed.kill()
    killed.join()
    with locked(Path("runs/m")):  # waits for those it left
        assert alive(f"--mark={folder.name}") == []
    assert sweep.survey(text).states()["A/seed0"] == CUT_OFF
    runner = sweep(text)
    assert (runner.left, runner.failed) == (0, [])
    assert len((first / "rounds.jsonl").read_text().splitlines()) == 3
