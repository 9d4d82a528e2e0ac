"""A checkpoint's history gives every value back, in little room, and takes no more memory than a
history could.
"""

from __future__ import annotations

import json
import math
import random
import struct
import zlib
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bhfl.engine import history
from bhfl.engine.checkpoint import CheckpointError
from bhfl.engine.history import PackedHistory, unpack


def packed(rows: list[dict]) -> torch.Tensor:
    made = PackedHistory()
    for row in rows:
        made.append(row)
    return made.tensor()


def exact(value: Any) -> Any:
    """`value` so that equal means equal to the bit and of one type."""
    if isinstance(value, float):
        return "float", "nan" if math.isnan(value) else struct.pack("d", value)
    if isinstance(value, list):
        return [exact(item) for item in value]
    if isinstance(value, dict):
        return [(key, exact(item)) for key, item in value.items()]
    return type(value).__name__, value


VALUES = st.one_of(
    st.floats(), st.integers(), st.booleans(), st.none(), st.text(),
    st.lists(st.text(), max_size=3),
    st.sampled_from([
        5e-324, -0.0, 0.1, 1e308, math.inf, -math.inf, math.nan, 2**53 + 1, 2**63, 0, 0.0, False,
    ]),
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.dictionaries(
            st.sampled_from(["round", "val/acc", "ü\n", "problems", ""]) | st.text(), VALUES
        )
    )
)
def test_every_value_comes_back(rows):
    assert [exact(row) for row in unpack(packed(rows))] == [exact(row) for row in rows]


def test_rows_are_kept_apart_from_those_added_later():
    made, rows = PackedHistory(), [{"round": n, "a": n / 3} for n in range(1, 6)]
    for n, row in enumerate(rows, 1):
        made.append(row)
        assert unpack(made.tensor()) == rows[:n]


@pytest.mark.parametrize("kind", ["float64", "float32", "some names by turns"])
def test_two_thousand_metrics_take_at_most_a_third(kind):
    rng, rows = random.Random(0), []
    for round in range(1, 11):
        values = {f"metric/{i:04d}": rng.gauss(0, 1) for i in range(2000)}
        if kind == "float32":
            values = {name: float(torch.tensor(value)) for name, value in values.items()}
        if kind == "some names by turns":
            values = {name: value for name, value in values.items() if name[-1] > "1" or round % 2}
        rows.append({"round": round, **values})
    assert packed(rows).numel() < len(json.dumps(rows)) / 3


def test_long_runs_that_hardly_change_are_read():
    names = [f"metric/{i:03d}" for i in range(500)]
    rows = [{"round": round, **dict.fromkeys(names, 0.0)} for round in range(1, 3001)]
    assert unpack(packed(rows)) == rows


def compressed(text: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(zlib.compress(text)), dtype=torch.uint8)


@pytest.mark.parametrize(
    "text",
    [
        b"[0]\n", b'{"keys":["a"]}\n[0]\n', b'{"keys":["a"]}\n[0,1,2]\n', b'{"keys":[3]}\n',
        b'{"keys":["a"]}\n[1,1]\n', b'{"keys":5}\n', b'{"names":["a"]}\n', b"nonsense\n", b"\xff\n",
        b"5\n", b"null\n", b'{"keys":["a"]}\n[0,1]', b'{"keys":[["a"]]}\n',
        b'{"keys":["a"]}\n["0",1]\n', b"[" * 100_000 + b"]" * 100_000 + b"\n",
        b'{"keys":["a"]}\n[0,' + b"9" * 5000 + b"]\n",
    ],
)  # fmt: skip
def test_text_that_is_no_history(text):
    with pytest.raises(CheckpointError, match="history cannot be read"):
        unpack(compressed(text))


@pytest.mark.parametrize("keep", [0, 1, 10, -5, -1])
def test_a_history_that_is_cut_off(keep):
    whole = packed([{"round": n, "a": n / 7} for n in range(1, 9)])
    with pytest.raises(CheckpointError, match="history cannot be read"):
        unpack(whole[:keep])


@pytest.mark.parametrize(
    "wrong", [None, "[]", [1], torch.zeros(3), torch.zeros(2, 2).byte(), torch.tensor(1).byte()]
)
def test_what_is_no_packed_rows(wrong):
    with pytest.raises(CheckpointError, match="must be packed rows"):
        unpack(wrong)


@pytest.mark.parametrize("piece", [b"[0,0]\n", b"[0,     "])
def test_a_history_that_unpacks_without_end_is_given_up(piece, monkeypatch):
    monkeypatch.setattr(history, "MAX_TEXT", 2**16)
    monkeypatch.setattr(history, "MAX_GROWTH", 2)
    read = []
    monkeypatch.setattr(
        history.json,
        "loads",
        lambda line: read.append(len(line)) or json.JSONDecoder().decode(line.decode()),
    )
    with pytest.raises(CheckpointError, match="larger than 65,536 bytes and 2 times its own size"):
        unpack(compressed(b'{"keys":["a"]}\n' + piece * 2**20))
    assert sum(read) < 2**17
