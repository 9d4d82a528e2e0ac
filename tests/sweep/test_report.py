"""The report that a sweep ends with takes what `bhfl report` takes."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from bhfl.cli.reading import ConfigError
from bhfl.sweep import runner
from bhfl.sweep.plan import Cell, Job, Plan
from bhfl.sweep.rehearsal import rehearse
from bhfl.told import Told
from tests.report import made
from tests.sweep.conftest import MATRIX, TUNED, Sweeps


@pytest.fixture
def runs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[Path, str]:
    """Two finished runs, of which the one with the higher accuracy has the higher loss."""
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    found = {}
    for name, method, loss in (("A", "FedAvg", 0.5), ("B", "ProWD", 0.7)):
        run = folder / f"runs/m/{name}/seed0/version_0"
        made.run(run, made.config(method), **{"val/loss_avg": [loss] * 3})
        found[run] = name
    return found


def test_runs_are_compared_by_the_metric_of_the_matrix(
    sweep: Sweeps, runs: dict[Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    Path("order.csv").write_text("method\nA\nB\n")
    given = "report: {metric: val/loss, mode: min, latex: true, order: order.csv}\n"
    runner._report(sweep.plan(MATRIX + given), runs)
    out = capsys.readouterr().out
    assert "the lower the better" in out
    assert "tau" in out
    assert "0.7000" in Path("runs/m/report/report.tex").read_text()


def test_a_metric_that_nobody_logged_is_told_by_its_key_with_the_nearest(
    sweep: Sweeps, runs: dict[Path, str]
) -> None:
    plan = sweep.plan(MATRIX + "report: {metric: val/los, mode: min}\n")
    with pytest.raises(ConfigError) as caught:
        runner._report(plan, runs)
    (problem,) = caught.value.problems
    assert problem == (
        "no report is written: report.metric must be one that the runs logged, got 'val/los'; did "
        "you mean 'val/loss'?; the runs are kept"
    )
    assert not Path("runs/m/report").exists()


@dataclass
class Foreseen:
    """What a rehearsal asks of a survey, of runs whose settings are made up."""

    plan: Plan
    model: str = "bhfl.models.Classifier"

    @property
    def trials(self) -> list[Job]:
        return list(self.plan.all_trials(self.plan.cells).values())

    def job(self, cell: Cell) -> Job:
        return self.plan.job(cell, 0.5)

    def configs(self, job: Job) -> Told:
        algorithm = {"A": "FedAvg", "B": "ProWD"}[job.name.removeprefix("_tuning/")[0]]
        told = made.told(made.config(algorithm, seed=job.seed))
        told["task"]["model"] = self.model
        told["choice"] = {"trainer.monitor": "val/acc_avg", "trainer.mode": "max"}
        return told


FIGURES = "method,fleet,bits,value\nA,50/50,8,1\nB,50/50,8,2\n"


@pytest.mark.parametrize(
    ("report", "model", "problem"),
    [
        ("metric: val/loss", "Classifier", "report.mode must be max or min with report.metric val"),
        ("metric: val/loss", "of.others", "report.mode must be max or min with report.metric val"),
        ("metric: test/acc", "Classifier", ""),
        ("metric: test/acc_avg", "Classifier", ""),
        ("metric: val/loss, mode: min", "Classifier", ""),
        ("metric: val/los, mode: min", "Classifier", "got 'val/los'; did you mean 'val/loss'"),
        ("metric: tset/f1, mode: max", "Classifier", ""),
        ("metric: test/f1, mode: max", "Classifier", "report.metric must be one that the runs log"),
        ("metric: test/f1, mode: max, order: order.csv", "of.others", ""),
        ("metric: test/acc_int8", "Classifier", "report.metric must be one of all groups, got"),
        ("metric: test/acc_min", "Classifier", "report.metric must be one of all groups, got"),
        ("target: 0.5, order: order.csv, published: figures.csv", "Classifier", ""),
        ("metric: comm/total_MB, mode: min, order: order.csv", "Classifier", ""),
        ("order: other.csv", "Classifier", "report.order must name methods that are compared, got"),
        ("order: other.csv", "of.others", "report.order must name methods that are compared, got"),
        ("order: figures.txt", "Classifier", "report.order must be a CSV with a column method"),
        ("published: order.csv", "Classifier", "report.published must be a CSV with the columns"),
        ("published: fleet.csv", "Classifier", "report.published must have a fleet of the runs"),
    ],
)
def test_what_no_report_could_tell_is_refused_before_any_run(
    sweep: Sweeps, report: str, model: str, problem: str
) -> None:
    Path("order.csv").write_text("method\nB\nA\n")
    Path("other.csv").write_text("method\nB\nC\n")
    Path("figures.csv").write_text(FIGURES)
    Path("fleet.csv").write_text(FIGURES.replace("50/50", "80/20"))
    Path("figures.txt").write_text("nothing")
    plan = sweep.plan(f"{MATRIX}report: {{{report}}}\n")
    survey = Foreseen(plan, model if "." in model else f"bhfl.models.{model}")
    if not problem:
        rehearse(survey)  # type: ignore[arg-type]
        return
    with pytest.raises(ConfigError) as refused:
        rehearse(survey)  # type: ignore[arg-type]
    assert problem in str(refused.value)


def test_a_part_of_the_matrix_goes_without_what_is_told_of_the_whole(
    sweep: Sweeps, runs: dict[Path, str]
) -> None:
    Path("order.csv").write_text("method\nA\nB\n")
    text = MATRIX + "report: {order: order.csv}\n"
    plan = sweep.plan(text, "A")
    rehearse(Foreseen(plan))  # type: ignore[arg-type]
    (first, _) = runs
    runner._report(plan, {first: "A"})
    # as where the minutes are over, or another method has failed
    runner._report(sweep.plan(text), {first: "A"})
    assert Path("runs/m/report/report.md").exists()


@pytest.mark.parametrize(
    ("metric", "wrong"), [("val/acc_agv", True), ("val/acc_local_int8", False)]
)
def test_a_metric_of_trials_that_none_logs_is_refused_before_any(
    sweep: Sweeps, metric: str, wrong: bool
) -> None:
    survey = Foreseen(sweep.plan(TUNED.replace("seeds: [9]}", f"seeds: [9], metric: {metric}}}")))
    if not wrong:
        rehearse(survey)  # type: ignore[arg-type]
        return
    with pytest.raises(ConfigError, match=r"^tune.metric must be .* 'val/acc_agv'; did you mean"):
        rehearse(survey)  # type: ignore[arg-type]
