"""One process at a time: who has a lock is named, and what is no lock is left alone."""

import os
import threading
from pathlib import Path

import pytest

from bhfl.files import claim, queue


def test_a_lock_is_no_link_where_no_flag_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bhfl.files.writing._NO_FOLLOW", 0)
    (tmp_path / ".lock").symlink_to(tmp_path / "notes")
    with pytest.raises(OSError, match=r"\.lock"):
        claim(tmp_path / ".lock", "busy")
    assert not (tmp_path / "notes").exists()


def test_the_next_is_told_who_has_it_also_where_the_first_byte_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bhfl.files.locks._LOCKED", 1)
    told = f"{tmp_path}: process {os.getpid()} sings"
    with claim(tmp_path / ".lock", "busy"), pytest.raises(BlockingIOError, match=told):
        claim(tmp_path / ".lock", "process {} sings")
    claim(tmp_path / ".lock", "busy").close()


@pytest.mark.skipif(os.name == "nt", reason="nothing is forked there")
@pytest.mark.filterwarnings("ignore:This process")
def test_a_fork_does_not_keep_a_lock_that_its_parent_has_left(tmp_path: Path) -> None:
    with claim(tmp_path / ".lock", "busy"):
        (there, up), (waits, end) = os.pipe(), os.pipe()
        child = os.fork()
        if not child:
            os.write(up, b".")
            os.close(end)
            os.read(waits, 1)
            os._exit(0)
        os.read(there, 1)
    try:
        claim(tmp_path / ".lock", "busy").close()
    finally:
        os.close(end)
        os.waitpid(child, 0)


def test_who_waits_goes_on_when_it_is_free(tmp_path: Path) -> None:
    entered = threading.Event()

    def wait() -> None:
        with queue(tmp_path / ".lock"):
            entered.set()

    with queue(tmp_path / ".lock"):
        waiting = threading.Thread(target=wait)
        waiting.start()
        assert not entered.wait(0.3)
    assert entered.wait(10)
    waiting.join()


@pytest.mark.parametrize("text", ["my notes\n", "12 34", "1" * 40 + "x"])
def test_a_lock_that_is_another_file_is_not_written_over(tmp_path: Path, text: str) -> None:
    (tmp_path / "notes").write_text(text)
    os.link(tmp_path / "notes", tmp_path / ".lock")
    with pytest.raises(BlockingIOError, match=r"\.lock is not a lock that a run made: remove it"):
        claim(tmp_path / ".lock", "busy")
    assert (tmp_path / "notes").read_text() == text


def test_a_pipe_for_a_lock_ends_no_wait(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / ".lock")
    with pytest.raises(BlockingIOError, match="is not a lock that a run made"):
        claim(tmp_path / ".lock", "busy")


def test_a_lock_is_one_number_whoever_had_it_before(tmp_path: Path) -> None:
    for before in ("", "1234567890"):
        (tmp_path / ".lock").write_text(before)
        claim(tmp_path / ".lock", "busy").close()
        assert (tmp_path / ".lock").read_text() == str(os.getpid())
