"""What runs are compared by: what they monitored, or any metric that they have."""

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from bhfl.report.command import main, write_report
from bhfl.report.latex import as_latex
from bhfl.report.metric import Metric, asked, monitored
from bhfl.report.ranking import ranking
from bhfl.report.reading import find_runs, read_run
from bhfl.report.rows import Section, sections
from bhfl.report.tables import Cell, Table, results
from bhfl.report.words import summary
from tests.report import made


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """No pictures, which other tests look at."""
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)


def losing(folder: Path, method: str, seed: int, losses: Mapping[str, float], **options: Any):
    """A run of a model without an accuracy, that monitored its loss."""
    config = made.config(
        method, seed, trainer__monitor="val/mse_avg", trainer__mode="min", **options
    )
    average = sum(losses.values()) / len(losses)
    row = made.rows([{"x": 0.0}])[0]
    for tag in [tag for tag in row if "acc" in tag]:
        del row[tag]
    row |= {f"val/mse_{group}": value for group, value in losses.items()}
    row |= {"val/mse_avg": average, "val/mse_min": min(losses.values()), "train/loss": 2 * average}
    made.write(folder, config, [row])
    metrics = {
        tag.replace("val/", "test/"): 2 * row[tag] for tag in row if tag.startswith("val/mse")
    }
    summary = {"metrics": metrics, "rounds": 1, "bytes": {group: {} for group in losses}}
    (folder / "summary.json").write_text(__import__("json").dumps(summary))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for seed in range(3):
        shift = 0.001 * seed**2
        losing(tmp_path / f"a{seed}", "FedAvg", seed, {"int8": 0.4 + shift, "float32": 0.2 - shift})
        losing(tmp_path / f"b{seed}", "ProWD", seed, {"int8": 0.3, "float32": 0.2 + shift})
    return tmp_path


def read(folder: Path, *metric: Any) -> Section:
    (found,) = sections([read_run(run) for run in find_runs([folder])], *metric)
    return found


def test_what_was_monitored_is_compared_by_at_its_own_end(root):
    section = read(root)
    assert section.metric == Metric("test/mse", "min")
    assert section.groups == ["int8", "float32", "avg"]
    assert section.rows[0].value("int8").mean == pytest.approx(0.8 + 0.01 / 3)
    assert ranking(section, "int8").marks == ["", "best"]
    assert summary(section).startswith("ProWD is first, with a test mse of 0.50")
    table = results(section)
    assert "the lower the better" in table.notes
    assert table.rows[0][1].text.startswith("0.8033 ± ")


def test_any_metric_that_the_runs_have(root):
    assert read(root, "val/mse").rows[1].value("int8").mean == 0.3
    assert read(root, "val/mse_avg").groups == ["int8", "float32", "avg"]
    loss = read(root, "train/loss", "max")
    assert (loss.groups, loss.metric) == (["avg"], Metric("train/loss", "max"))
    assert ranking(loss, "avg").marks == ["best", ""]


def test_columns_that_are_empty_or_the_same_are_left_out_and_told(root):
    table = results(read(root))
    assert list(table.head) == ["method", "int8", "float32", "average"]
    same = next(note for note in table.notes if note.startswith("the same"))
    assert same == (
        "the same in all rows: seeds 3, rounds 1, up MB 1.00, down MB 2.00, bits up 16.0"
    )


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--metric", "val/mes"], "--metric must be one that the runs logged, got 'val/mes'; did "),
        (["--metric", "zzz"], "got 'zzz'; known: test/mse, val/mse"),
        (["--metric", "train/loss"], "--mode must be max or min with --metric train/loss"),
        (
            ["--metric", "test/mse_min"],
            "one of all groups, got 'test/mse_min': give test/mse",
        ),
        (
            ["--metric", "val/mse_int8"],
            "one of all groups, got 'val/mse_int8': give val/mse, by",
        ),
        (["--metric", "val/mse", "--mode", "least"], "invalid choice: 'least'"),
    ],
)
def test_a_metric_that_nobody_logged_is_told_with_the_nearest(root, capsys, args, message):
    with pytest.raises(SystemExit) as left:
        main([str(root), "--out", str(root / "out"), *args])
    assert left.value.code == 2
    told = capsys.readouterr().err
    assert message in told
    assert all(line.startswith("error: ") for line in told.splitlines())
    assert not (root / "out").exists()


def test_without_a_monitor_it_is_the_test_accuracy(tmp_path):
    runs = [read_run(made.run(tmp_path / "a"))]
    assert monitored(runs) == Metric("test/acc", "max")
    assert asked("val/acc", None, runs) == Metric("val/acc", "max")


def test_what_is_measured_by_no_test_is_that_of_validation(tmp_path):
    config = made.config(trainer__monitor="val/other_avg", trainer__mode="max")
    folder = made.run(tmp_path / "a", config, **{"val/other_avg": [0.1, 0.2, 0.3]})
    metric = monitored([read_run(folder)])
    # the made test has all that validation has
    assert metric == Metric("test/other", "max")
    (folder / "summary.json").write_text('{"metrics": {"test/acc_avg": 0.5}, "rounds": 3}')
    assert monitored([read_run(folder)]) == Metric("val/other", "max")


def test_the_csv_has_the_metric_by_its_name(root, tmp_path):
    write_report([root], tmp_path / "out", metric="val/mse")
    with open(tmp_path / "out" / "report.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["val_mse_int8"] for line in lines][1] == "0.3"
    assert lines[0]["val_mse_int8_seeds"] == "3"


def test_latex(root, tmp_path):
    write_report([root], tmp_path / "out", metric="val/mse", latex=True)
    text = (tmp_path / "out" / "report.tex").read_text()
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == 2
    assert r"\toprule" in text
    assert r"ProWD & \textbf{0.3000 $\pm$ 0.0000}" in text
    assert not [line for line in text.splitlines() if "_" in line and not line.startswith("%")]


def test_latex_takes_names_for_text():
    table = Table(
        r"50 % & {a}_b", ["m#", "x$"], [[Cell("~^\\"), Cell("λ±1", "level")]], ["n_1"], "l"
    )
    text = as_latex([table])
    assert r"\caption{50 \% \& \{a\}\_b}" in text
    assert r"m\# & x\$ \\" in text
    assert (
        r"\textasciitilde{}\textasciicircum{}\textbackslash{} & \textit{$\lambda$$\pm$1} \\" in text
    )
    assert "% n_1\n" in text
