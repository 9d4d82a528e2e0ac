"""The report that a sweep ends with takes what `bhfl report` takes."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from bhfl.cli.reading import ConfigError
from bhfl.settings import Role
from bhfl.sweep import runner
from tests.report import made
from tests.sweep.conftest import MATRIX, Sweeps


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


@pytest.mark.parametrize(
    ("report", "wrong"),
    [
        ("metric: val/loss", True),
        ("metric: test/acc", False),
        ("metric: val/loss, mode: min", False),
        ("target: 0.5", False),
    ],
)
def test_a_mode_that_no_run_would_tell_is_missed_before_any_is_begun(
    sweep: Sweeps, report: str, wrong: bool
) -> None:
    jobs = [SimpleNamespace(name="A/seed0")]
    told = {Role.CHOICE.value: {"trainer.monitor": "val/acc_avg"}}
    plan = sweep.plan(f"{MATRIX}report: {{{report}}}\n")
    survey = SimpleNamespace(plan=plan, jobs=lambda: jobs, configs=lambda job: told)
    if not wrong:
        runner._check_mode(survey)  # type: ignore[arg-type]
        return
    message = (
        "report.mode must be max or min with report.metric val/loss, as A/seed0 monitors val/acc_a"
    )
    with pytest.raises(ConfigError, match=message):
        runner._check_mode(survey)  # type: ignore[arg-type]
