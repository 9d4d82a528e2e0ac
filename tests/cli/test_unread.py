"""A command whose output nobody reads ends quietly, as behind ``| head``."""

import errno
import io
import logging
import os
import subprocess
import sys

import pytest

from bhfl.cli.command import UNREAD, run_or_tell
from bhfl.main import main


def ended(*args: str, unbuffered: str = "") -> subprocess.CompletedProcess[bytes]:
    """A command whose standard output is a pipe without a reader."""
    read, write = os.pipe()
    os.close(read)
    try:
        return subprocess.run(
            [sys.executable, "-m", "bhfl", *args],
            stdout=write,
            stderr=subprocess.PIPE,
            timeout=120,
            env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
        )
    finally:
        os.close(write)


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("args", [["--help"], ["init", "--list"]])
def test_it_says_nothing_more(args: list[str], unbuffered: str) -> None:
    found = ended(*args, unbuffered=unbuffered)
    assert (found.returncode, found.stderr) == (UNREAD, b"")


def test_a_failure_keeps_its_code() -> None:
    found = ended("report", "nowhere")
    assert found.returncode == 2
    assert b"no such folder" in found.stderr


def test_what_an_encoding_lacks_is_spelled_out() -> None:
    code = "from bhfl.cli.command import leave; leave(lambda args: print('k\\xe4se') or 0, None)"
    found = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
    )
    assert (found.returncode, found.stderr) == (0, b"")
    assert found.stdout.split() == [rb"k\xe4se"]


def test_it_is_not_told_as_a_wrong_configuration() -> None:
    def run(args: object) -> int:
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        run_or_tell(run, [])


def test_another_pipe_that_breaks_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(args: object) -> int:
        raise BrokenPipeError("of a socket")

    monkeypatch.setattr("bhfl.main.run", run)
    with pytest.raises(BrokenPipeError, match="of a socket"):
        main(["--version"])


def test_a_process_without_output_ends_as_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="the system has no such device")
@pytest.mark.parametrize(
    ("args", "unbuffered"),
    [
        (["--help"], ""),
        (["--help"], "1"),
        (["init", "--help"], "1"),
        (["init", "--list"], ""),
        (["init", "--list"], "1"),
        (["report", "--help"], ""),
        (["report", "--help"], "1"),
    ],
)
def test_a_full_disk_below_the_output_is_told_in_a_line(args: list[str], unbuffered: str) -> None:
    with open("/dev/full", "wb") as full:
        found = subprocess.run(
            [sys.executable, "-m", "bhfl", *args],
            stdout=full,
            stderr=subprocess.PIPE,
            timeout=120,
            env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
        )
    assert (found.returncode, found.stderr.count(b"\n")) == (2, 1)
    assert found.stderr.startswith(b"error: ")
    assert b"No space left on device" in found.stderr


def test_a_help_text_of_a_parser_is_left_as_quietly() -> None:
    found = ended("report", "--help")
    assert (found.returncode, found.stderr) == (UNREAD, b"")


def test_what_a_run_says_names_the_output_that_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(io.StringIO):
        def flush(self) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

    def run(args: object) -> int:
        logging.getLogger("bhfl").info("round 1/2")
        return 0

    monkeypatch.setattr(sys, "stdout", Full())
    said: list[str] = []
    monkeypatch.setattr("bhfl.cli.exits.say", said.append)
    assert run_or_tell(run, []) == 2
    assert said[0].startswith("error: [Errno 28] No space left on device: 'standard output' (make")
