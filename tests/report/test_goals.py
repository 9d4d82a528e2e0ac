"""How soon a goal was reached: by hand, censored, and against a baseline."""

import math
from pathlib import Path

import pytest

from bhfl.report.goals import Goal
from bhfl.report.reading import Run, find_runs, read_run
from bhfl.report.rows import Section, sections
from tests.report import made


def timed(folder: Path, algorithm: str, seed: int, accuracies: list[float], seconds: float) -> None:
    """A run whose rounds all take as long."""
    times = [seconds * round for round in range(1, len(accuracies) + 1)]
    values = [{"float32": value} for value in accuracies]
    found = made.rows(values, 1_000_000, 4_000_000, **{"time/simulated_s": times})
    made.write(folder, made.config(algorithm, seed, {"float32": 10}), found)


def read(root: Path) -> list[Section]:
    return sections([read_run(folder) for folder in find_runs([root])])


@pytest.fixture
def section(tmp_path: Path) -> Section:
    """FedAvg in 100 s a round, FedPAQ in 10 or 20, and Local, which one seed does not bring far
    enough.
    """
    timed(tmp_path / "a0", "FedAvg", 0, [0.2, 0.4, 0.6], 100)
    timed(tmp_path / "a1", "FedAvg", 1, [0.4, 0.2, 0.6], 100)
    timed(tmp_path / "b0", "FedPAQ", 0, [0.2, 0.3, 0.4], 10)
    timed(tmp_path / "b1", "FedPAQ", 1, [0.5, 0.6, 0.6], 20)
    timed(tmp_path / "c0", "Local", 0, [0.2, 0.2, 0.2], 1)
    timed(tmp_path / "c1", "Local", 1, [0.2, 0.2, 0.4], 1)
    (found,) = read(tmp_path)
    return found


def test_what_it_took_by_hand(section: Section) -> None:
    first, second = section.rows[0].runs
    goal = Goal(0.4)
    assert [goal.reached(first, axis) for axis in ("s", "rounds", "MB up", "MB down")] == [
        200,
        2,
        2,
        8,
    ]
    assert goal.reached(second, "s") == 100
    assert Goal(0.4, window=3).reached(first, "s") == 300
    assert Goal(0.35, window=2).reached(second, "s") == 300  # medians 0.3 and 0.4
    assert math.isinf(Goal(0.7).reached(first, "s"))


def test_validations_fewer_than_rounds(tmp_path: Path) -> None:
    found = made.rows([{"float32": value} for value in (0.9, 0.5, 0.9)])
    for tag in ("val/acc_avg", "val/acc_float32"):
        del found[0][tag]
    run = Run(tmp_path, made.told(made.config()), found, {})
    assert (Goal(0.8).reached(run, "rounds"), Goal(0.8).reached(run, "MB up")) == (3, 3)
    assert math.isnan(Goal(0.8).reached(run, "s"))  # there is no network


def test_sooner_seed_by_seed(section: Section) -> None:
    fedavg, fedpaq, local = section.rows
    goal = Goal(0.4)
    found = goal.times_sooner(fedpaq, fedavg, "s")
    assert found is not None
    assert found.mean == pytest.approx((200 / 30 + 100 / 20) / 2)
    assert goal.times_sooner(local, fedavg, "s") is None  # seed 0 never got there
    assert goal.times_sooner(fedavg, local, "s") is None


def test_the_baseline_is_the_first_row_or_the_one_named(section: Section) -> None:
    assert Goal(0.4).base(section) is section.rows[0]
    assert Goal(0.4, baseline="Local").base(section) is section.rows[2]
    Goal(0.4, baseline="Local").check_baseline([section])
    with pytest.raises(
        ValueError,
        match="--baseline must be the label of a finished row, got 'X'; there are FedAvg, Fed",
    ):
        Goal(0.4, baseline="X").check_baseline([section])


@pytest.mark.parametrize("target", [0.0, 1.0, 34.0, -1.0, math.nan])
def test_targets_out_of_range(target: float) -> None:
    with pytest.raises(ValueError, match=r"--target must be an accuracy in \(0, 1\), got"):
        Goal(target)


def test_a_window_of_none() -> None:
    with pytest.raises(ValueError, match="--window must be at least 1, got 0"):
        Goal(0.5, window=0)
