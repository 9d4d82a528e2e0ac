"""Who is best: rows are compared on the seeds that both have."""

import math
from collections.abc import Mapping
from pathlib import Path

import pytest

from bhfl.report.forms import console
from bhfl.report.ranking import ranking
from bhfl.report.reading import Run
from bhfl.report.rows import Row, Section
from bhfl.report.tables import results
from tests.report import made


def row(label: str, accuracies: Mapping[int, float]) -> Row:
    runs = (
        Run(
            Path(label),
            made.told(made.config(label, seed)),
            [{"round": 1, "val/acc_int8": 0.0}],
            {"rounds": 1, "metrics": {"test/acc_int8": value}},
        )
        for seed, value in accuracies.items()
    )
    return Row(label, tuple(runs))


def section(*accuracies: Mapping[int, float], comparable: bool = True) -> Section:
    return Section(
        "title", tuple(row("ABCD"[i], found) for i, found in enumerate(accuracies)), (), comparable
    )


def stars(*accuracies: Mapping[int, float]) -> str:
    """The marks of the rows, as the console has them."""
    return "".join(
        {"": ".", "best": "*", "level": "~"}[mark]
        for mark in ranking(section(*accuracies), "int8").marks
    )


@pytest.mark.parametrize(
    ("accuracies", "marks"),
    [
        (
            [{0: 0.72, 1: 0.68}, {0: 0.715}],
            "*.",
        ),  # the means are 0.700 and 0.715; on seed 0 the first is better
        ([{0: 0.5, 1: 0.9}, {0: 0.6}], ".*"),
        ([{0: 0.5}, {1: 0.9}], ".."),
        ([{0: 0.5}], "."),
        ([{0: 0.5}, {0: 0.6}], ".*"),
        ([{0: 0.5}, {0: 0.5}], "**"),
        ([{0: 0.6, 1: 0.6}, {0: 0.5, 1: 0.5}, {7: 0.9}], "*.."),  # the third has no seed in common
        ([{0: 0.6, 1: 0.6}, {0: 0.5}, {1: 0.5}], "*.."),
        (
            [{0: 0.5, 1: 0.5}, {0: 0.6}, {1: 0.4}],
            "...",
        ),  # the second leads, and cannot be compared with the third
        ([{0: 0.5}, {0: 0.6}, {1: 0.5}, {1: 0.6}], "...."),
        ([{0: 2, 2: 1}, {0: 1, 1: 2}, {1: 1, 2: 2}], "..."),  # a circle
        ([{0: 0.6, 1: math.nan}, {0: 0.5, 1: 0.5}, {0: 0.4, 1: 0.4}], ".*."),
        ([{0: math.nan}, {0: 0.5}], ".."),
    ],
)
def test_rows_are_compared_on_common_seeds(accuracies: list[dict[int, float]], marks: str) -> None:
    assert stars(*accuracies) == marks


def test_level_is_one_standard_error_of_the_paired_differences() -> None:
    best = {0: 0.5, 1: 0.7, 2: 0.9}
    # s is 0.1, and s / sqrt(3) is 0.0577
    for behind, mark in ((0.01, "~"), (0.057, "~"), (0.058, ".")):
        other = {0: 0.4 - behind, 1: 0.7 - behind, 2: 1.0 - behind}
        assert stars(best, other)[1] == mark
    assert stars({0: 0.5, 1: 0.7}, {0: 0.499, 1: 0.699}) == "*."  # a little worse with each seed


def test_runs_of_unknown_settings_are_not_ranked() -> None:
    assert ranking(section({0: 0.5}, {0: 0.6}, comparable=False), "int8").marks == ["", ""]


def notes(*accuracies: Mapping[int, float]) -> str:
    return console(results(section(*accuracies)))


def test_the_table_says_on_how_many_seeds() -> None:
    assert "compared seed by seed on the seeds that both have: 1\n" in notes(
        {0: 0.5, 1: 0.6}, {0: 0.5}
    )
    text = notes({0: 0.6, 1: 0.6, 2: 0.6}, {0: 0.5, 1: 0.5}, {2: 0.5}, {9: 0.5})
    assert "compared seed by seed on the seeds that both have: 1 to 2\n" in text
    assert "D is not compared: no other row has one of its seeds" in text


def test_the_table_says_why_none_is_best() -> None:
    text = notes({0: 0.5}, {1: 0.9})
    assert "no best is marked in int8" in text
    assert "best of its column" not in text
