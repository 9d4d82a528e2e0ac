"""What is drawn on standard error, and where it is not."""

from __future__ import annotations

import pytest

from bhfl.engine.console import told, yellow


def test_a_log_has_the_colours_that_are_forced_and_nothing_that_moves(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    with told("loading PyTorch"):
        pass
    assert capsys.readouterr() == ("", "")
    assert yellow("note").startswith("\x1b[")
