"""Differences seed by seed with their interval, and mean ranks over settings."""

import math
from pathlib import Path

import pytest
from scipy.stats import kendalltau, ttest_rel

from bhfl.report.command import main, write_report
from bhfl.report.paired import differences, interval, ranks, read_order
from bhfl.report.reading import find_runs, read_run
from bhfl.report.rows import sections
from tests.report import made


def read(folder: Path):
    return sections([read_run(run) for run in find_runs([folder])])


VALUES = {"FedAvg": [0.50, 0.61, 0.52, 0.58], "ProWD": [0.71, 0.70, 0.69, 0.74]}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for method, values in VALUES.items():
        for seed, value in enumerate(values):
            made.run(tmp_path / f"{method}{seed}", made.config(method, seed), (value, value))
    made.run(tmp_path / "Local0", made.config("Local", 0), (0.1, 0.1))
    return tmp_path


def test_the_interval_is_that_of_a_paired_t_test():
    found = [a - b for a, b in zip(*VALUES.values(), strict=True)]
    known = ttest_rel(*VALUES.values()).confidence_interval(0.95)
    assert interval(found) == pytest.approx((known.low, known.high))
    assert all(map(math.isnan, interval(found[:2])))


def test_differences_seed_by_seed(root):
    (section,) = read(root)
    table = differences(section)
    assert table.title == "Differences from ProWD"
    cells = {row[0].text: [cell.text for cell in row[1:]] for row in table.rows}
    low, high = interval([a - b for a, b in zip(*VALUES.values(), strict=True)])
    assert cells["FedAvg"] == ["-15.75", f"{100 * low:.2f} to {100 * high:.2f}", "4"]
    # one seed has no interval
    assert cells["Local"] == ["-61.00", "-", "1"]
    assert any("on average over clients less that of ProWD" in note for note in table.notes)


def test_two_seeds_have_no_column_of_intervals(tmp_path):
    for seed in (0, 1):
        made.run(tmp_path / f"a{seed}", made.config("FedAvg", seed))
        made.run(tmp_path / f"b{seed}", made.config("ProWD", seed), (0.5, 0.5))
    (section,) = read(tmp_path)
    assert differences(section).head == ["method", "difference", "seeds"]


def test_a_single_method_differs_from_none(tmp_path):
    made.run(tmp_path / "a")
    (section,) = read(tmp_path)
    assert differences(section) is None


@pytest.fixture
def settings(tmp_path: Path) -> Path:
    """Three methods in two settings, of which one has two alike."""
    ends = {"FedAvg": (0.5, 0.5), "ProWD": (0.7, 0.5), "Local": (0.1, 0.9)}
    for method, values in ends.items():
        for number, value in enumerate(values):
            config = made.config(method, clients={"int8": 5, "float32": 5 + number})
            made.run(tmp_path / f"{method}{number}", config, (value, value))
    return tmp_path


def test_mean_ranks_over_settings(settings):
    table = ranks(read(settings), None)
    cells = [[cell.text for cell in row] for row in table.rows]
    assert cells == [["ProWD", "1.75"], ["Local", "2.00"], ["FedAvg", "2.25"]]
    assert "the same in all rows: settings 2" in table.notes


def test_ranks_against_an_order(settings, tmp_path):
    (tmp_path / "order.csv").write_text("rank,method\n1,FedAvg\n2,ProWD\n3,Local\n")
    text = write_report([settings], tmp_path / "out", order=tmp_path / "order.csv")
    tau = kendalltau([1, 2, 3], [2.25, 1.75, 2.0]).statistic
    assert f"Kendall's tau to the order given, of 3 methods: {tau:.3f}" in text


def test_one_setting_has_no_table_of_ranks(root):
    assert ranks(read(root), None) is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("name\nFedAvg\n", "--order must be a CSV with a column method"),
        ("method\nFedAvg\nFedAvg\n", "--order must name each method once, got 'FedAvg' again"),
        ("method\nFedavg\nProWD\n", "compared, got 'Fedavg'; did you mean 'FedAvg'?"),
        ("method\nFedAvg\n", "--order must name two methods or more, got 1"),
    ],
)
def test_an_order_that_cannot_be_used(settings, tmp_path, capsys, content, message):
    (tmp_path / "order.csv").write_text(content)
    with pytest.raises(SystemExit) as left:
        main(
            [str(settings), "--out", str(tmp_path / "out"), "--order", str(tmp_path / "order.csv")]
        )
    assert left.value.code == 2
    assert message in capsys.readouterr().err


def test_an_order_is_read_as_it_stands(tmp_path):
    (tmp_path / "a.csv").write_text("method\n b \na\n")
    assert read_order(tmp_path / "a.csv") == ["b", "a"]
    with pytest.raises(FileNotFoundError):
        read_order(tmp_path / "none.csv")
