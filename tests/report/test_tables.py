"""The tables, cell by cell, in their three forms."""

import csv
import io
from pathlib import Path

import pytest

from bhfl.report.forms import as_csv, console, markdown
from bhfl.report.goals import Goal
from bhfl.report.reading import find_runs, read_run
from bhfl.report.rows import Section, sections
from bhfl.report.tables import Cell, Table, results, until
from tests.report import made
from tests.report.test_goals import section as timed_section

timed_section = timed_section  # a fixture


@pytest.fixture
def section(tmp_path: Path) -> Section:
    """FedAvg and ProWD over two seeds, ProWD clearly the better for int8, and a run that is not
    finished.
    """
    for seed, shift in ((0, -0.01), (1, 0.01)):
        made.run(tmp_path / f"a{seed}", made.config("FedAvg", seed), (0.5 + shift, 0.8 + shift))
        made.run(tmp_path / f"b{seed}", made.config("ProWD", seed), (0.7 + shift, 0.795 - shift))
    made.run(
        tmp_path / "c", made.config("Local", max_rounds=8), (0.9, 0.9), finished=False, up=0, down=0
    )
    (found,) = sections([read_run(folder) for folder in find_runs([tmp_path])])
    return found


def test_console(section: Section) -> None:
    lines = console(results(section)).splitlines()
    assert lines[0] == "Digits, IID, cnn, 5 x int8, 5 x float32"
    assert (
        " ".join(lines[2].split())
        == "method int8 float32 average seeds rounds up MB down MB bits up"
    )
    assert lines[4] == (
        "FedAvg         50.0 ± 1.4   80.0 ± 1.4*  65.0 ± 1.4        2       3"
        "   3.00     6.00     16.0"
    )
    assert lines[5] == (
        "ProWD          70.0 ± 1.4*  79.5 ± 1.4~  74.8 ± 0.0*       2       3"
        "   3.00     6.00     16.0"
    )
    assert (
        " ".join(lines[6].split()) == "Local, seed 0 (90.0) (90.0) (90.0) seed 0 3 of 8 0.00 0.00 -"
    )
    assert lines[1] == lines[3] == lines[7] == "-" * len(lines[4])
    assert any(line.endswith("/c: not finished: 3 of 8 rounds") for line in lines)
    assert "rows are compared seed by seed on the seeds that both have: 2" in lines
    assert lines[-1].startswith("*: best of its column; ~: within the spread")
    assert "at most its standard error" in lines[-1]


def test_markdown(section: Section) -> None:
    lines = markdown(results(section)).splitlines()
    assert (
        lines[2]
        == "| method | int8 | float32 | average | seeds | rounds | up MB | down MB | bits up |"
    )
    assert lines[3] == "|---|" + "---:|" * 8
    assert (
        lines[5]
        == "| ProWD | **70.0 ± 1.4** | *79.5 ± 1.4* | **74.8 ± 0.0** | 2 | 3 | 3.00 | 6.00 | 16.0 |"
    )


def test_markdown_escapes_what_would_be_markup() -> None:
    lines = markdown(Table("a|b_c", ["x"], [[Cell("1*2")]])).splitlines()
    assert lines == ["## a\\|b\\_c", "", "| x |", "|---|", "| 1\\*2 |"]


def test_markdown_is_no_html_and_no_link() -> None:
    evil = "<script>alert(1)</script> [x](javascript:1) `c` ![i](u) &lt;"
    text = markdown(Table(evil, ["x"], [[Cell(evil)]], [evil]))
    assert "<" not in text
    assert "\\[x\\](javascript:1) \\`c\\` \\!\\[i\\](u) &amp;lt;" in text.splitlines()[-1]


def test_no_field_of_the_csv_is_a_formula(tmp_path: Path) -> None:
    folder = made.run(tmp_path / "=cmd" / "version_0")
    (folder / "settings.json").unlink()
    (line,) = csv.DictReader(io.StringIO(as_csv(sections([read_run(folder)]))))
    assert line["method"] == "'=cmd/version_0"


def test_numbers_of_any_size_stay_short(tmp_path: Path) -> None:
    made.run(tmp_path / "a", **{"comm/uplink_MB": [1e299, 1e299, 1e299]})
    (row,) = results(sections([read_run(tmp_path / "a")])[0]).rows
    assert all(len(cell.text) < 20 for cell in row)


def test_a_seed_without_a_value_is_told(tmp_path: Path) -> None:
    for seed in (0, 1):
        made.run(tmp_path / f"a{seed}", made.config(seed=seed))
        made.run(tmp_path / f"b{seed}", made.config("Local", seed=seed), (0.1, 0.1))
    text = (tmp_path / "a1" / "summary.json").read_text()
    (tmp_path / "a1" / "summary.json").write_text(
        text.replace('"test/acc_int8": 0.8', '"test/acc_int8": NaN')
    )
    (found,) = sections([read_run(folder) for folder in find_runs([tmp_path])])
    table = results(found)
    assert [row[1] for row in table.rows] == [Cell("80.0 (1 of 2 seeds)"), Cell("10.0 ± 0.0")]
    assert table.rows[0][2] == Cell("90.0 ± 0.0", "best")
    assert "FedAvg is not compared in int8: a seed has no value" in table.notes


def test_csv(section: Section) -> None:
    lines = list(csv.DictReader(io.StringIO(as_csv([section], Goal(0.5)))))
    assert [line["method"] for line in lines] == ["FedAvg", "ProWD", "Local"]
    first, last = lines[0], lines[-1]
    assert (first["seeds"], first["state"], float(first["test_acc_int8"])) == (
        "0 1",
        "finished",
        pytest.approx(0.5),
    )
    assert float(first["test_acc_int8_std"]) == pytest.approx(0.0141421356)
    assert [first[key] for key in ("up_MB", "down_MB", "bits_up", "failed", "seconds")] == [
        "3.0",
        "6.0",
        "16.0",
        "0.0",
        "1.5",
    ]
    assert (first["reached_0.5"], first["rounds_to_0.5"], first["s_to_0.5"]) == ("2", "3.0", "")
    assert (last["state"], last["test_acc_int8"], last["val_acc_int8"]) == (
        "not finished",
        "",
        "0.9",
    )
    assert (last["reached_0.5"], last["rounds_to_0.5"]) == ("0", "")


def test_one_row_alone_is_not_marked(tmp_path: Path) -> None:
    made.run(tmp_path / "a")
    (found,) = sections([read_run(tmp_path / "a")])
    table = results(found)
    assert not any(cell.mark for row in table.rows for cell in row)
    assert "best of its column" not in console(table) + markdown(table)


def test_clients_that_were_lost_have_a_column(tmp_path: Path) -> None:
    made.run(tmp_path / "a", **{"clients/late": [0.0, 2.0, 1.0]})
    table = results(sections([read_run(tmp_path / "a")])[0])
    assert (table.head[-1], table.rows[0][-1].text) == ("late", "3")
    assert "failed" not in table.head


def test_rounds_of_seeds_that_stopped_early(tmp_path: Path) -> None:
    made.run(tmp_path / "a")
    made.write(tmp_path / "b", made.config(seed=1), made.rows([{"int8": 0.1, "float32": 0.1}] * 2))
    table = results(sections([read_run(tmp_path / "a"), read_run(tmp_path / "b")])[0])
    assert table.rows[0][5].text == "2 to 3"


def test_until_without_the_baseline(timed_section: Section) -> None:
    table, named = (
        until(timed_section, Goal(0.4, baseline=label)) for label in ("Elsewhere", "FedAvg")
    )
    assert table is not None
    assert named is not None
    for row, other in zip(table.rows, named.rows, strict=True):
        assert row[-2].text == "-"
        assert [*row[:-2], row[-1]] == [*other[:-2], other[-1]]
    assert table.notes[-1] == "times sooner: there is no Elsewhere here"


def test_until(timed_section: Section) -> None:
    table = until(timed_section, Goal(0.4, baseline="FedAvg"))
    assert table is not None
    assert table.head[:4] == ["method", "s a round", "s to 40 %", "rounds to 40 %"]
    texts = [[cell.text for cell in row] for row in table.rows]
    assert texts[0] == [
        "FedAvg",
        "100.0",
        "150 ± 71",
        "1.5 ± 0.7",
        "1.5 ± 0.7",
        "6.0 ± 2.8",
        "1.00 ± 0.00",
        "60.0 ± 0.0",
    ]
    assert texts[1] == [
        "FedPAQ",
        "15.0",
        "25 ± 7",
        "2.0 ± 1.4",
        "2.0 ± 1.4",
        "8.0 ± 5.7",
        "5.83 ± 1.18",
        "50.0 ± 14.1",
    ]
    assert texts[2] == ["Local", "1.0", *["reached in 1 of 2"] * 4, "-", "30.0 ± 14.1"]
    assert table.notes[1] == "times sooner: than FedAvg, in seconds, seed by seed"


def test_until_without_a_network_counts_rounds(section: Section) -> None:
    table = until(section, Goal(0.5, window=2))
    assert table is not None
    assert table.head[1] == "rounds to 50 %"
    assert "the median of 2 successive validations" in table.notes[0]
    assert "in rounds" in table.notes[1]


def test_until_of_unfinished_runs_alone(tmp_path: Path) -> None:
    made.run(tmp_path / "a", finished=False)
    assert until(sections([read_run(tmp_path / "a")])[0], Goal(0.5)) is None
