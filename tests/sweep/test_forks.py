"""Runs are forks of a process that has loaded the libraries, and are what they are without it."""

import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from subprocess import TimeoutExpired

import pytest

from bhfl.engine.ending import LostProcessError
from bhfl.sweep import forks
from bhfl.sweep.forks import ForkServer

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="runs are forked on Linux alone")

SERVER = """\
import os, signal, sys, threading, time
from bhfl.sweep import forks
from bhfl.sweep.child import end_with_parent

forks._LOADED = ("json",)
sys.argv[1:] = forks.serve()
threading.Thread(target=end_with_parent, daemon=True).start()
print(*sys.argv[1:], os.getsid(0) == os.getpid(), len(os.listdir("/proc/self/fd")))
print("told", file=sys.stderr)
if sys.argv[1] == "wait":
    sys.stdout.flush()
    time.sleep(60)
if sys.argv[1] == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
raise SystemExit(int(sys.argv[2]))
"""


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "log.txt"


@pytest.fixture
def server(log: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ForkServer]:
    """One that loads nothing, and whose runs tell their arguments."""
    monkeypatch.setattr(forks, "SERVER", (sys.executable, "-c", SERVER))
    with open(log.with_name("lock"), "w") as lock:
        there = ForkServer(lock.fileno())
        yield there
        there.close()


def begun(server: ForkServer, log: Path, *words: str) -> forks.Forked:
    with open(log, "ab") as file:
        return server.start(words, file.fileno())


def told(log: Path) -> str:
    """What a run that goes on has told by now."""
    for _ in range(500):
        if "\n" in log.read_text().replace("told\n", ""):
            break
        time.sleep(0.02)
    return log.read_text()


def test_a_run_has_its_arguments_its_log_a_session_and_its_exit_code(
    server: ForkServer, log: Path
) -> None:
    run = begun(server, log, "a b", "7")
    assert run.wait(10) == 7
    assert run.poll() == 7
    # its descriptors: three streams, the lock, and the one that reads the folder
    assert sorted(log.read_text().splitlines()) == ["a b 7 True 5", "told"]
    run.stdin.close()


def test_runs_go_on_side_by_side_and_are_ended_one_by_one(server: ForkServer, log: Path) -> None:
    waiting = begun(server, log, "wait")
    assert "wait True" in told(log)
    killed = begun(server, log.with_name("b"), "killed")
    assert killed.wait(10) == -signal.SIGKILL
    assert waiting.poll() is None
    with pytest.raises(TimeoutExpired):
        waiting.wait(0.01)
    waiting.terminate()
    assert waiting.wait(10) == -signal.SIGTERM
    # as `subprocess.Popen` bears it
    waiting.kill()


def test_the_end_of_standard_input_ends_a_run(server: ForkServer, log: Path) -> None:
    run = begun(server, log, "wait")
    assert "wait True" in told(log)
    run.stdin.close()
    assert run.wait(10) == -signal.SIGTERM


def test_an_answer_that_nobody_took_is_not_taken_for_the_next(
    server: ForkServer, log: Path
) -> None:
    run = begun(server, log, "wait")
    run.kill()
    assert run.wait(10) == -signal.SIGKILL
    server._socket.send(b'[-1, ["late", "0"]]')  # as of an asker that a signal cut short
    late = begun(server, log, "a", "5")
    assert late.wait(10) == 5


def test_the_loss_of_the_process_is_told(server: ForkServer, log: Path) -> None:
    run = begun(server, log, "wait")
    os.kill(server._process.pid, signal.SIGKILL)
    server._process.wait()
    with pytest.raises(LostProcessError, match="the process that runs are forked from has ended"):
        run.poll()
    run.kill()
