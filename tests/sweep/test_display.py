"""How far a sweep is."""

import io
import sys
import time

import pytest
from rich.console import Console

from bhfl.sweep import display
from bhfl.sweep.display import FAILED, RUNNING, Display, Shown


@pytest.mark.parametrize(
    ("elapsed", "left"),
    [(1, "about 3 s"), (40, "about 2 min"), (7200, "about 6.0 h")],
)
def test_the_time_left_goes_by_the_rounds_of_this_sweep(
    monkeypatch: pytest.MonkeyPatch, elapsed: float, left: str
) -> None:
    clock = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    shown = Display(total=10, done=2)
    assert shown.left() == "8 of 10 rounds left"
    clock[0] += elapsed
    shown.update(4)
    assert shown.left() == f"6 of 10 rounds left, {left}"


def test_lines_are_seldom_where_there_is_no_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(display, "SELDOM_SECONDS", 1000.0)
    shown = Display(total=10, done=0)
    shown.update(1)
    assert capsys.readouterr().out == ""
    monkeypatch.setattr(display, "SELDOM_SECONDS", -1.0)
    shown.update(5)
    assert capsys.readouterr().out.startswith("5 of 10 rounds left, about ")
    shown.close()


def test_a_terminal_has_a_table_of_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {"TERM": "xterm", "LINES": "9", "COLUMNS": "80"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    shown = Display(total=40, done=2)
    over = Shown("done", "done", 10, 10)
    runs = [over, Shown("waits", "missing", 0, 10), Shown("works", RUNNING, 5, 10)]
    shown.update(5, [*runs, Shown("failed", FAILED, 3, 10)])
    shown.tell("news")
    table = Console(file=io.StringIO(), width=80, force_terminal=False, color_system=None)
    table.print(shown.picture())
    shown.close()
    out, err = capsys.readouterr()
    assert out == "news\n"
    assert err.rindex("\x1b[?25h") > err.rindex("\x1b[?25l")
    # as many runs as there is room for, those at work first
    head, *lines = table.file.getvalue().splitlines()
    assert head.split() == ["run", "state", "rounds"]
    assert [line.split()[0] for line in lines[:-1]] == ["works", "failed", "waits"]
    assert lines[0].split()[-1] == "5/10"
    assert lines[-1].startswith("1 done, 1 missing, 1 running, 1 failed, 35 of 40 rounds left")
