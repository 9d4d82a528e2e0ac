"""A process that dies, freezes or fails ends the others in time, with one line that names it and
where.
"""

from __future__ import annotations

import json
import signal
import socket

import pytest

from bhfl.engine.watch import Watch
from tests.engine.lost_ranks import POINTS, left_alone
from tests.processes import PROCESSES

LINES = {
    "killed": "has ended without a word while ",
    "gone": "has ended without a word while ",
    "frozen": "has not been heard of for ",
    "asleep": "has not answered within ",
    "faulty": ": RuntimeError: a fault of this rank alone",
}
QUICK = [
    ("killed", "before they meet", 0), ("killed", "combining", 1), ("frozen", "in set-up", 0),
    ("faulty", "saving", 1),
]  # fmt: skip
"""The faults that the default suite tries."""
ALL = [(fate, point, victim) for fate in LINES for point in POINTS for victim in (0, 1)]
TORCH = "while torch connects them"  # which may write lines of its own
SLOW = [case for case in ALL if case not in QUICK and case[:2] != ("faulty", "training a client")]


@pytest.mark.parametrize(
    ("fate", "point", "victim"),
    [*QUICK, *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW)],
)
def test_a_lost_process_ends_the_other(tmp_path, fate, point, victim):
    timeout_seconds = 3
    end = left_alone(PROCESSES, tmp_path, victim, point, fate, timeout_seconds)
    assert end.code == 1, end
    assert end.seconds < timeout_seconds + 10
    assert "Traceback" not in end.said
    lines = [line for line in end.said.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, end
    assert lines[0].startswith(f"error: rank {victim} of 2")
    expected = "did not come to 127.0.0.1:" if point == "before they meet" else LINES[fate]
    assert expected in lines[0]
    saved = "goes on from round 1" if point == "saving" else "nothing new is saved"
    assert lines[0].endswith(saved), end


@pytest.mark.parametrize(
    ("point", "how", "code"),
    [
        ("before they meet", signal.SIGINT, 130),
        ("in set-up", signal.SIGTERM, 143),
        pytest.param(TORCH, signal.SIGINT, 130, marks=pytest.mark.slow),
        pytest.param(TORCH, signal.SIGTERM, 143, marks=pytest.mark.slow),
        pytest.param("combining", signal.SIGINT, 130, marks=pytest.mark.slow),
    ],
)
def test_signals_are_heard_while_a_process_waits_for_another(tmp_path, point, how, code):
    end = left_alone(
        PROCESSES, tmp_path, victim=1, point=point, fate="asleep", timeout_seconds=60, how=how
    )
    assert end.code == code, end
    assert end.seconds < 10
    lines = [line for line in end.said.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, end
    assert lines[0].startswith(("error: interrupted while ", "error: terminated while "))
    assert "Traceback" not in end.said


def test_an_error_of_a_long_line_is_told_to_the_others():
    """They hear no line of more than 16 kB, and would take this process for gone."""
    watch = Watch(1, 2, ("127.0.0.1", 1), 5.0)
    watch.peers[0].connection, there = socket.socketpair()
    with pytest.raises(RuntimeError), watch.together():
        raise RuntimeError("long " * 10_000)
    line = there.recv(1 << 20)
    assert json.loads(line)["error"].startswith("RuntimeError: long long")
    assert len(line) < 2000
