"""How far a sweep is."""

import time

import pytest

from bhfl.sweep import display
from bhfl.sweep.display import Display


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


def test_a_terminal_has_a_bar(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    shown = Display(total=10, done=2)
    shown.update(5)
    shown.tell("news")
    shown.close()
    out, err = capsys.readouterr()
    assert "news" in out
    assert "5/10" in err
