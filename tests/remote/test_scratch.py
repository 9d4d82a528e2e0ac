"""Folders of processes that have ended are removed by the next one, and no others."""

import tempfile
from pathlib import Path

import pytest

from bhfl.remote.scratch import scratch
from tests.processes import PROCESSES


def die_in(pipe, folder: str) -> None:
    tempfile.tempdir = folder
    with scratch() as own:
        (own / "superlink.db").write_text("an update")
        pipe.send(str(own))
        pipe.recv()


def test_what_a_killed_process_left_is_removed_and_what_is_in_use_is_not(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    other = tmp_path / "bhfl-net-link"
    other.symlink_to(tmp_path)
    ours, theirs = PROCESSES.Pipe()
    process = PROCESSES.Process(target=die_in, args=(theirs, str(tmp_path)))
    process.start()
    left = Path(ours.recv())
    assert left.stat().st_mode & 0o777 == 0o700
    with scratch() as own:
        assert own.parent == tmp_path
        assert left.is_dir()
        process.kill()
        process.join()
        assert left.is_dir()
        with scratch():
            assert not left.exists()
            assert own.is_dir()
    assert list(tmp_path.glob("bhfl-*")) == [other]


def test_a_folder_goes_with_its_block_whatever_ends_it(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(KeyError), scratch():
        raise KeyError
    assert not list(tmp_path.iterdir())
