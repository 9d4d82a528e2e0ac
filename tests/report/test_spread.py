"""How a metric is spread over clients, as a table and as a picture."""

import json
from pathlib import Path

import pytest

from bhfl.report.pictures import chapters, colours
from bhfl.report.reading import find_runs, read_run
from bhfl.report.rows import sections
from bhfl.report.spread import Tested as Point
from bhfl.report.spread import over_clients, points, read_tested
from tests.report import made


@pytest.fixture
def section(tmp_path: Path):
    """Two seeds whose clients were tested on samples of their own, and a method without such."""
    for seed, shift in ((0, 0.0), (1, 0.02)):
        folder = made.run(tmp_path / f"a{seed}", made.config(seed=seed))
        summary = json.loads((folder / "summary.json").read_text())
        for group, value in {"": 0.6, "_int8": 0.5, "_float32": 0.7}.items():
            summary["metrics"] |= {
                f"clients_test/acc_mean{group}": value + shift,
                f"clients_test/acc_std{group}": 0.1,
                f"clients_test/acc_worst10{group}": value - 0.3 + shift,
                f"clients_test/acc_jain{group}": 0.95,
            }
        (folder / "summary.json").write_text(json.dumps(summary))
        (folder / "clients.csv").write_text(
            "round,stage,client,group,status,samples,test/acc\n"
            "3,train,0,int8,ok,12,\n3,test,0,int8,,12,0.25\n3,test,1,float32,,30,0.75\n3,te"
        )
    made.run(tmp_path / "b", made.config("Local"))
    (found,) = sections([read_run(folder) for folder in find_runs([tmp_path])])
    return found


def test_the_table_has_all_clients_and_each_group(section):
    table = over_clients(section)
    assert table.title == "Own test accuracy over clients"
    cells = [[cell.text for cell in row] for row in table.rows]
    # Jain's index and the deviation are the same in all rows
    assert table.head == ["method", "clients", "mean", "worst 10 %"]
    assert cells == [
        ["FedAvg", "all", "61.0 ± 1.4", "31.0 ± 1.4"],
        ["FedAvg", "int8", "51.0 ± 1.4", "21.0 ± 1.4"],
        ["FedAvg", "float32", "71.0 ± 1.4", "41.0 ± 1.4"],
    ]
    assert "the same in all rows: std 10.0 ± 0.0, Jain's index 0.9500 ± 0.0000" in table.notes


def test_the_picture_has_each_client_that_was_tested(section):
    found = points(section)
    assert found == {"FedAvg": [Point("int8", 12.0, 0.25), Point("float32", 30.0, 0.75)]}
    drawn = {chapter.title: chapter for chapter in chapters(section, colours([section]))}
    chapter = drawn["Clients: what each has, against its samples"]
    assert [picture.title for picture in chapter.pictures] == ["FedAvg"]
    assert b"own test accuracy" in chapter.pictures[0].svg


def test_without_own_samples_there_is_neither(tmp_path):
    made.run(tmp_path / "a")
    (section,) = sections([read_run(tmp_path / "a")])
    assert over_clients(section) is None
    assert points(section) == {}


@pytest.mark.parametrize("content", [b"", b"\x00\xff", b"stage,samples\ntest,3\n", b"a\n\n\n"])
def test_a_damaged_file_has_no_clients(tmp_path, content):
    (tmp_path / "clients.csv").write_bytes(content)
    assert read_tested(tmp_path, "acc") == []
