"""`sys.exit` in the middle of a command is no end of it."""

from pathlib import Path

import pytest

from bhfl.engine.ending import Terminated
from bhfl.engine.exits import ExitCalledError, no_exit_of_others

EXITING = "import sys\n\n\ndef leave():\n    sys.exit(0)\n"


def test_an_exit_in_the_middle_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "exiting.py").write_text(EXITING)
    monkeypatch.syspath_prepend(tmp_path)
    import exiting  # type: ignore[import-not-found]

    told = r"sys.exit\(0\) was called in .*exiting.py, line 5, in leave"
    with pytest.raises(ExitCalledError, match=told), no_exit_of_others():
        exiting.leave()


def test_our_own_exits_pass(tmp_path):
    from argparse import ArgumentParser

    with pytest.raises(SystemExit), no_exit_of_others():
        ArgumentParser().parse_args(["--help"])
    with pytest.raises(Terminated), no_exit_of_others(allowed=()):
        raise Terminated
