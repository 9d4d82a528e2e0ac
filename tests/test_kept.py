"""The results that are kept with the configurations are those of their matrices as they are now, so
that a fresh clone runs none of them again.
"""

from pathlib import Path

import pytest

from bhfl.report.reading import read_run
from bhfl.sweep.check import Configs
from bhfl.sweep.plan import Job, Plan
from bhfl.sweep.reader import read_matrix
from bhfl.sweep.results import Results, unlike

ROOT = Path(__file__).parents[1]
KEEPING = [
    path
    for path in sorted((ROOT / "configs").rglob("sweeps/*.yaml"))
    if read_matrix(str(path)).results
]
MOST_PARSED = 3
"""The kept runs of each matrix whose configurations the quick tests parse: it takes a while."""


def kept(path: Path) -> tuple[Plan, list[str]]:
    """The plan of a matrix, and the names of the jobs of which a run is kept."""
    matrix = read_matrix(str(path))
    folder = ROOT / str(matrix.results)
    found = sorted(folder.rglob("summary.json"))
    return Plan(matrix, Path("runs")), [str(one.parent.relative_to(folder)) for one in found]


def jobs(plan: Plan, names: list[str]) -> list[Job]:
    """The jobs of some names: trials, and each cell with every value that it may be tuned to."""
    known = plan.all_trials(plan.cells)
    values = plan.matrix.tune.values if plan.matrix.tune else [None]
    found = [known[name] for name in names if name in known]
    for cell in plan.cells:
        of_values = [plan.job(cell, value) for value in values]
        found += [job for job in of_values if job.name in names and job.name not in known]
    return found


@pytest.mark.parametrize("path", KEEPING, ids=lambda path: path.stem)
def test_kept_runs_lie_in_places_of_their_matrix(path: Path) -> None:
    plan, names = kept(path)
    assert {job.name for job in jobs(plan, names)} == set(names)


@pytest.mark.parametrize("name", ["fedlq", "fedlq-down4"])
def test_every_run_of_make_fedlq_is_kept(name: str) -> None:
    path = ROOT / f"configs/cifar10/sweeps/{name}.yaml"
    plan, names = kept(path)
    assert {plan.job(cell).name for cell in plan.cells} == set(names)


def check(path: Path, most: int | None) -> None:
    """Each kept run has the settings of its job, with one of the values that it may be tuned to."""
    plan, names = kept(path)
    configs = Configs(machine=False)
    for name in names[:most]:
        run = read_run(ROOT / str(plan.matrix.results) / name)
        found = [unlike(run.told, configs(job)) for job in jobs(plan, [name])]
        assert [] in found, f"{name}: {found}"


@pytest.mark.parametrize("path", KEEPING, ids=lambda path: path.stem)
def test_some_kept_runs_are_those_of_their_matrix(path: Path) -> None:
    check(path, MOST_PARSED)


@pytest.mark.slow
@pytest.mark.parametrize("path", KEEPING, ids=lambda path: path.stem)
def test_all_kept_runs_are_those_of_their_matrix(path: Path) -> None:
    check(path, None)


@pytest.mark.parametrize("path", KEEPING, ids=lambda path: path.stem)
def test_kept_runs_are_whole_and_small(path: Path) -> None:
    folder = ROOT / str(read_matrix(str(path)).results)
    # it refuses what is damaged or not finished
    Results(folder, Configs(machine=False))
    for file in folder.rglob("*.*"):
        assert file.stat().st_size < 200_000, file
