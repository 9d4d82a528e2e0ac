"""Files are written whole or not at all, and through no link."""

import errno
import os
import stat
from contextlib import nullcontext
from pathlib import Path

import pytest

from bhfl.files import RoundsFile, durable, replacing, write_text


def test_rows_are_added_to_no_link_and_to_no_file_that_has_vanished(tmp_path: Path) -> None:
    rows = RoundsFile(tmp_path / "rounds.jsonl")
    with pytest.raises(FileNotFoundError, match=r"rounds\.jsonl"):
        rows.append({"round": 1})
    (tmp_path / "notes").write_text("mine")
    (tmp_path / "rounds.jsonl").symlink_to(tmp_path / "notes")
    with pytest.raises(OSError, match=r"rounds\.jsonl"):
        rows.append({"round": 1})
    rows.rewrite([{"round": 1}])
    rows.append({"round": 2})
    assert rows.read() == [{"round": 1}, {"round": 2}]
    assert (tmp_path / "notes").read_text() == "mine"


def test_a_file_system_that_cannot_put_folders_on_disk_is_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for code, fails in ((errno.EINVAL, False), (errno.EIO, True)):

        def sync(file: int, code: int = code) -> None:
            if stat.S_ISDIR(os.fstat(file).st_mode):
                raise OSError(code, os.strerror(code))

        monkeypatch.setattr(os, "fsync", sync)
        with pytest.raises(OSError, match="output") if fails else nullcontext():
            write_text(tmp_path / "a", "whole")
        assert (tmp_path / "a").read_text() == "whole"


def test_a_folder_in_the_place_of_a_file_is_told_with_what_helps(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(IsADirectoryError) as refused:
        write_text(tmp_path / "a", "whole")
    assert str(refused.value).endswith(f"'{tmp_path / 'a'}'")
    assert refused.value.__notes__ == ["(a folder is in the place of this file: move it away)"]
    assert os.listdir(tmp_path) == ["a"]


def test_who_may_read_is_said_when_it_is_written(tmp_path: Path) -> None:
    with durable(tmp_path / "mine", mode=0o600) as file:
        file.write(b"secret")
    assert (tmp_path / "mine").stat().st_mode & 0o777 == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize("umask", [0o022, 0o027])
def test_what_a_library_puts_in_place_has_ordinary_permissions(tmp_path: Path, umask: int) -> None:
    path = tmp_path / "file"
    before = os.umask(umask)
    try:
        with replacing(path) as temporary:
            own = tmp_path / "own"
            # as safetensors does
            own.touch(0o600)
            own.rename(temporary)
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask
