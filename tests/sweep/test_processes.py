"""Two sweeps never work in one folder."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bhfl.sweep.processes import locked


def test_the_second_is_refused(tmp_path: Path) -> None:
    with locked(tmp_path / "m"):
        message = f"{tmp_path / 'm'}: another sweep is at work here, process {os.getpid()}"
        with pytest.raises(BlockingIOError, match=message), locked(tmp_path / "m"):
            pass
    with locked(tmp_path / "m"):
        pass


def test_the_next_waits_for_runs_that_are_left(tmp_path: Path) -> None:
    with locked(tmp_path) as lock:
        left = subprocess.Popen(
            [sys.executable, "-c", "import time; time.sleep(1)"], pass_fds=[lock]
        )
    assert left.poll() is None
    with locked(tmp_path):
        assert left.wait(5) == 0


def test_a_run_ends_with_its_sweep(tmp_path: Path) -> None:
    code = (
        "import threading, time\n"
        "from bhfl.sweep.child import end_with_parent\n"
        "threading.Thread(target=end_with_parent, daemon=True).start()\n"
        "print('begun', flush=True)\n"
        "time.sleep(60)"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert child.stdin is not None
    assert child.stdout is not None
    assert child.stdout.readline() == b"begun\n"
    time.sleep(0.2)
    assert child.poll() is None
    child.stdin.close()
    assert child.wait(10) == -15
    child.stdout.close()


@pytest.mark.parametrize("name", [".sweep.lock", ".runs.lock"])
def test_a_lock_is_opened_through_no_link(tmp_path: Path, name: str) -> None:
    (tmp_path / "notes").write_text("mine")
    (tmp_path / name).symlink_to(tmp_path / "notes")
    with pytest.raises(OSError, match=name), locked(tmp_path):
        pass
    assert (tmp_path / "notes").read_text() == "mine"
