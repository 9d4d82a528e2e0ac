"""A program that is looked after: it is started anew when it ends, and ends with who started it."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from bhfl.remote import supervised
from bhfl.remote.supervised import Supervised


def python(
    tmp_path: Path, script: str, fatal: Callable[[str], str] = lambda said: ""
) -> Supervised:
    command = [sys.executable, "-I", "-S", "-u", "-c", script]
    return Supervised("it", command, {}, tmp_path / "log", ready="ready", fatal=fatal)


def until(true: Callable[[], object], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.01)


def alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_it_is_started_anew_when_it_is_killed_and_not_when_it_is_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervised, "FIRST_PAUSE", 0.01)
    it = python(tmp_path, "import time; print('ready'); time.sleep(60)")
    it.start()
    first = it.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    until(lambda: it.starts == 2 and it.wait(0))
    second = it.pid
    assert second is not None
    assert second != first
    it.stop()
    assert not alive(second)
    assert it.starts == 2
    assert it.pid is None


def test_what_it_says_is_logged_but_for_requests_that_went_well(tmp_path: Path) -> None:
    said = """'"POST /v1/fleet/x" 200 OK', '"POST /v1/fleet/x" 401', 'ready'"""
    it = python(tmp_path, f"import time; [print(x) for x in [{said}]]; time.sleep(60)")
    it.start()
    assert it.said() == '"POST /v1/fleet/x" 401 ready'
    it.stop()
    assert (tmp_path / "log").read_text() == '"POST /v1/fleet/x" 401\nready\n'


HELPED = """
import subprocess, sys, time
print(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]).pid)
print("ready")
time.sleep(60)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells what became of a helper")
def test_one_that_has_lost_its_helper_is_started_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervised, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(supervised, "_LOOK", 0.05)
    it = python(tmp_path, HELPED)
    it.start()
    first = int(it.said().split()[0])
    time.sleep(0.2)
    assert it.starts == 1
    os.kill(first, signal.SIGKILL)
    until(lambda: it.starts == 2 and it.wait(0))
    second = int(it.said().split()[0])
    it.stop()
    os.kill(second, signal.SIGKILL)


def test_a_log_that_cannot_be_written_keeps_nothing_from_going_on(tmp_path: Path) -> None:
    it = python(tmp_path, "import time; print('x' * 10**6); print('ready'); time.sleep(60)")
    it.log = Path("/dev/full")
    it.start(20)
    assert it.wait(0)
    it.stop()


def test_pauses_grow_while_it_does_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(supervised, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(supervised, "LONGEST_PAUSE", 0.04)
    it = python(tmp_path, "import sys; print('no luck'); sys.exit(3)")
    with pytest.raises(RuntimeError, match=r"it does not run after 1.0 s and \d+ starts: no luck"):
        it.start(1.0)
    pauses = [record.args[2] for record in caplog.records]  # type: ignore[index]
    # as many as the machine had time for
    assert len(pauses) >= 3
    assert pauses[:4] == [0.01, 0.02, 0.04, 0.04][: len(pauses)]
    assert "it ended with 3" in caplog.text


def test_one_that_takes_long_is_spoken_of_and_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(supervised, "_LONG", 0.2)
    it = python(
        tmp_path, "import time; print('on'); time.sleep(0.5); print('ready'); time.sleep(9)"
    )
    it.start(None)
    assert it.wait(0)
    it.stop()
    assert [record.getMessage() for record in caplog.records] == ["it waits: on"]


def test_what_cannot_get_better_is_not_tried_again(tmp_path: Path) -> None:
    it = python(tmp_path, "print('bad key')", lambda said: f"refused: {said}")
    with pytest.raises(RuntimeError, match=r"^refused: bad key$"):
        it.start()
    assert it.starts == 1
    assert it.failure == "refused: bad key"


PARENT = """
import pathlib, sys, time
from bhfl.remote.supervised import Supervised
script = "import signal, time; print('ready'); time.sleep(60)"
it = Supervised("it", [sys.executable, "-c", script], {"PYTHONUNBUFFERED": "1"},
    pathlib.Path(sys.argv[1]), ready="ready")
it.start()
print(it.pid, flush=True)
time.sleep(60)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child of its parent's end")
def test_it_ends_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    command = [sys.executable, "-B", "-c", PARENT, str(tmp_path / "log")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert alive(child)
        parent.kill()
    until(lambda: not alive(child))
