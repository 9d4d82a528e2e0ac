"""Methods against figures that were published: tau-b, and an interval from draws of samples."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import kendalltau

from bhfl.engine.correct import packed
from bhfl.report.command import main, write_report
from bhfl.report.correct import shares_right
from bhfl.report.published import DRAWS, against, draw, read_published, tau_b
from bhfl.report.reading import find_runs, read_run
from bhfl.report.rows import sections
from tests.report import made

ROOT = Path(__file__).parents[2]
METHODS = ["FedAvg", "ProWD", "Local"]
FIGURES = """\
method,fleet,bits,value
FedAvg,50/50,8,70
ProWD,50/50,8,80
Local,50/50,8,60
FedAvg,50/50,32,75
ProWD,50/50,32,85
Local,50/50,32,80
FedAvg,80/20,8,1
"""
ACCURACIES = {"FedAvg": (0.6, 0.7), "ProWD": (0.5, 0.9), "Local": (0.4, 0.2)}
"""Of int8 and float32 clients."""


def digits(share: float, samples: int = 100) -> str:
    return "".join("1" if i < round(share * samples) else "0" for i in range(samples))


def made_run(folder: Path, method: str, seed: int, ends: tuple[float, float]) -> None:
    run = made.run(folder / f"{method}{seed}", made.config(method, seed), ends)
    groups = {"int8": [digits(ends[0])], "float32": [digits(ends[1])]}
    (run / "correct.json").write_text(json.dumps(packed(groups)))


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    for method, ends in ACCURACIES.items():
        for seed in range(3 if method == "ProWD" else 1):
            made_run(tmp_path / "runs", method, seed, ends)
    (tmp_path / "published.csv").write_text(FIGURES)
    return tmp_path / "runs"


def table(runs: Path):
    (section,) = sections([read_run(run) for run in find_runs([runs])])
    found = against(section, read_published(runs.parent / "published.csv"))
    return found and [[cell.text for cell in row] for row in found.rows]


@pytest.mark.parametrize(
    "values",
    [[1, 2, 3, 4], [4, 3, 2, 1], [1, 3, 2, 4], [1, 1, 2, 3], [2, 2, 1, 1], [5, 1, 1, 1]],
)
def test_tau_is_that_of_scipy(values):
    for known in ([1, 2, 3, 4], [1, 1, 2, 3], [3, 1, 2, 2]):
        assert tau_b(known, values) == pytest.approx(kendalltau(known, values).statistic)
    several = tau_b([1, 2, 3, 4], [values, values[::-1]])
    assert several.shape == (2,)
    assert several[0] == -several[1] == pytest.approx(tau_b([1, 2, 3, 4], values))


def test_tau_of_equal_values_is_unknown():
    assert math.isnan(tau_b([1, 2, 3], [5, 5, 5]))


def test_a_column_for_each_group(runs):
    # one of three pairs stands the other way round: ProWD is first there, and Local second
    first, second = table(runs)
    assert first[:4] == ["8", "int8", "3", "0.33"]
    assert second[:4] == ["32", "float32", "3", "0.33"]
    assert [row[-1] for row in (first, second)] == ["0 of 3", "0 of 3"]


def test_the_average_and_close_pairs(runs):
    path = runs.parent / "published.csv"
    path.write_text("method,fleet,bits,value\nFedAvg,50/50,8,1\nFedAvg,50/50,32,1\n")
    assert table(runs) is None
    more = "".join(f"{name},50/50,average,{i}\n" for i, name in enumerate(METHODS))
    path.write_text(path.read_text() + more)
    made_run(runs, "FedProx", 0, (0.302, 0.302))
    path.write_text(path.read_text() + "FedProx,50/50,average,9\n")
    (row,) = table(runs)
    # FedProx and Local, 30.2 and 30.0 on average, are level
    assert (row[:3], row[-1]) == (["average", "average", "4"], "1 of 6")


def test_the_interval_is_of_draws_of_samples_and_seeds():
    rng = np.random.default_rng(1)
    known = rng.random((1, 400)) < 0.6
    drawn = draw([known.astype(float), np.zeros((3, 400)), np.ones((2, 400))])
    assert drawn.shape == (DRAWS, 3)
    error = math.sqrt(known.mean() * (1 - known.mean()) / 400)
    assert drawn[:, 0].mean() == pytest.approx(known.mean(), abs=4 * error / math.sqrt(DRAWS))
    assert drawn[:, 0].std() == pytest.approx(error, rel=0.15)
    assert set(drawn[:, 1]) == {0.0}
    # three seeds are drawn, two are not
    steps = np.array([[0.0], [0.3], [0.6]]) * np.ones((3, 4))
    assert draw([steps]).std() == pytest.approx(math.sqrt(0.06 / 3), rel=0.15)
    assert draw([steps[:2]]).std() == pytest.approx(0.0, abs=1e-12)
    # the same samples for all methods
    both = draw([known.astype(float), known.astype(float)])
    assert (both[:, 0] == both[:, 1]).all()


def test_certain_orders_have_a_narrow_interval(runs):
    first, second = table(runs)
    # whoever is right about 60 samples is so about the 50 of another, and draws change no order
    assert first[4] == "0.33 to 0.33"
    assert second[4] == "0.33 to 0.33"
    (runs / "FedAvg0" / "correct.json").write_text("{}")
    assert [row[4] for row in table(runs)] == ["-", "-"]


def test_the_report_tells_it(runs, capsys):
    out = runs.parent / "out"
    text = write_report([runs], out, published=runs.parent / "published.csv")
    assert "Against what was published" in text
    assert "| 8 | int8 | 3 | 0.33 | 0.33 to 0.33 | 0 of 3 |" in (out / "report.md").read_text()
    options = ["--out", str(out), "--published", str(runs.parent / "published.csv")]
    assert main([str(runs), *options]) == 0
    assert "tau-b" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "--published must be a CSV with the columns method, fleet, bits and value, got none"),
        ("method,fleet,bits\nA,50/50,8\n", "method, fleet, bits and value, got {'method': 'A'"),
        ("method,fleet,bits,value\nA,50/50,8,x\n", "'value': 'x'} in row 1 of "),
        ("method,fleet,bits,value\nA,50/50,low,5\n", "'bits': 'low'"),
        ("method,fleet,bits,value\nA,50/50,8,1\nA,50/50,8,2\n", "A, 50/50, 8 again in row 2"),
        ("method,fleet,bits,value\nA,50-50,8,1\n", "of the runs, got 50-50; did you mean '50/50'?"),
    ],
)
def test_figures_that_cannot_be_used(runs, capsys, content, message):
    path = runs.parent / "published.csv"
    path.write_text(content)
    with pytest.raises(SystemExit) as left:
        main([str(runs), "--out", str(runs.parent / "out"), "--published", str(path)])
    assert left.value.code == 2
    assert message in capsys.readouterr().err


def test_shares_of_right_models_are_read_as_they_were_written(tmp_path):
    run = read_run(made.run(tmp_path / "run"))
    assert shares_right(run) == {}
    models = ["110", "010", "011", "010"]
    written = packed({"int8": models, "float32": models[:1]})
    (tmp_path / "run/correct.json").write_text(json.dumps(written))
    found = shares_right(run)
    assert found["int8"].tolist() == [0.25, 1, 0.25]
    assert found["float32"].tolist() == [1, 1, 0]
    damaged = [
        "[]", "{", '{"samples": 3}', '{"samples": 3, "groups": []}',
        json.dumps({**written, "samples": 30}), json.dumps({**written, "samples": "3"}),
        json.dumps(written).replace('"models": 4', '"models": 0'),
        json.dumps(written).replace("==", "=!"),
        json.dumps(written).replace('"models": 1', '"models": true'),
    ]  # fmt: skip
    for text in damaged:
        (tmp_path / "run/correct.json").write_text(text)
        assert shares_right(run) == {}, text


def test_what_was_published_is_whole():
    found = read_published(ROOT / "configs/cifar10/published.csv")
    assert set(found) == {"50/50", "80/20"}
    for fleet, low in (("50/50", 0.5), ("80/20", 0.8)):
        columns = found[fleet]
        assert {len(column) for column in columns.values()} == {6}
        for method, average in columns["average"].items():
            mean = low * columns["8"][method] + (1 - low) * columns["32"][method]
            assert average == pytest.approx(mean, abs=0.011)
