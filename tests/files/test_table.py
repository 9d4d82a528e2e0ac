"""A CSV that grows, and is cut back to its first rows."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from bhfl.files import TableFile


def table(folder: Path) -> TableFile:
    return TableFile(folder / "t.csv", ["round", "name"])


def until(round: int):
    def keep(row: Mapping[str, str]) -> bool:
        return int(row["round"]) <= round

    return keep


@pytest.fixture
def written(tmp_path: Path) -> TableFile:
    """A table of three rows, the second of which brings a column."""
    found = table(tmp_path)
    assert found.cut(until(0)) == 0
    found.append([{"round": 1, "name": 'a, "b"'}])
    found.append([{"round": 2, "acc": 0.1 + 0.2, "name": None}])
    found.append([{"round": 3, "acc": 1e-300, "name": "c"}])
    return found


def test_a_column_comes_with_the_first_row_that_has_it(written):
    assert written.path.read_text() == (
        'round,name,acc\n1,"a, ""b""",\n2,,0.30000000000000004\n3,c,1e-300\n'
    )


def test_it_is_cut_back_and_goes_on_as_if_nothing_had_been(tmp_path, written):
    whole = written.path.read_bytes()
    again = table(tmp_path)
    assert again.cut(until(2)) == 2
    again.append([{"round": 3, "acc": 1e-300, "name": "c"}])
    assert written.path.read_bytes() == whole


@pytest.mark.parametrize(
    ("content", "left"),
    [
        (b"round,name\n1,a\n2", 1),
        (b"round,name\n1,a\n2,b,c\n3,d\n", 1),
        (b"round,name\n1,\xff\n", 0),
        (b"round,name\n1," + b"x" * 200_000 + b"\n", 0),
        (b"name,round\n1,a\n", 0),
        (b"\x00\x01", 0),
        (b"", 0),
    ],
    ids=["cut off", "cells", "no text", "long", "another", "binary", "empty"],
)
def test_a_damaged_file_is_read_up_to_the_damage(tmp_path, content, left):
    found = table(tmp_path)
    found.path.write_bytes(content)
    assert found.cut(until(9)) == left
    found.append([{"round": 7, "name": "x"}])
    assert found.path.read_text() == "round,name\n" + "1,a\n" * left + "7,x\n"


def test_rows_are_added_to_no_link_and_to_no_file_that_has_vanished(tmp_path, written):
    written.path.unlink()
    with pytest.raises(FileNotFoundError, match=r"t\.csv"):
        written.append([{"round": 1}])
    (tmp_path / "notes").write_text("mine")
    written.path.symlink_to(tmp_path / "notes")
    with pytest.raises(OSError, match=r"t\.csv"):
        written.append([{"round": 1}])
    assert (tmp_path / "notes").read_text() == "mine"
