"""Paths as users give them, folders behind links, and files that are read up to a limit."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bhfl.files import read_limited, user_path, walk


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("~", "/home/me"),
        ("~/a b/ü/", "/home/me/a b/ü"),
        ("runs/", "runs"),
        ("a/../b", "a/../b"),
        (Path("~/x"), "/home/me/x"),
    ],
)
def test_what_a_user_means(given: str | Path, meant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert str(user_path(given)) == meant


def test_a_folder_called_as_the_home_folder_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert user_path("./~") == user_path(user_path("./~")) == tmp_path / "~"


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ("", "must not be empty"),
        (" ", "must not be empty"),
        ("a\0b", "zero byte"),
        ("~nobody_of_this_name/x", r"no such home folder; write ./~nobody"),
    ],
)
def test_what_is_no_path(given: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        user_path(given)


def names(folder: Path, once: bool = False) -> list[str]:
    return [
        str(place.relative_to(folder) / name)
        for place, _, files in walk(folder, once)
        for name in files
    ]


def test_links_are_followed_and_loops_are_not(tmp_path: Path) -> None:
    root, elsewhere = tmp_path / "root", tmp_path / "elsewhere"
    for folder in (root / "a", elsewhere / "deep"):
        folder.mkdir(parents=True)
        (folder / "file").touch()
    (root / "b").symlink_to(elsewhere)
    (root / "c").symlink_to("b/deep")
    (root / "a" / "up").symlink_to("..")
    (elsewhere / "deep" / "round").symlink_to(root)
    (root / "self").symlink_to("self")
    (root / "nowhere").symlink_to("none")
    assert names(root) == ["nowhere", "self", "a/file", "b/deep/file", "c/file"]
    assert names(root, once=True) == ["nowhere", "self", "a/file", "b/deep/file"]


def test_many_links_to_the_same_are_quick_where_each_counts_once(tmp_path: Path) -> None:
    for i in range(40):
        (tmp_path / f"{i}").mkdir()
        for link in "ab":
            (tmp_path / f"{i}" / link).symlink_to(tmp_path / f"{i + 1}")
    (tmp_path / "40").mkdir()
    (tmp_path / "40" / "file").touch()
    assert len(names(tmp_path / "0", once=True)) == 1


def test_a_tree_deeper_than_recursion_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for _ in range(1200):
        os.mkdir("d")
        os.chdir("d")
    assert sum(1 for _ in walk(tmp_path)) > 1000
    for _ in range(1200):  # pytest cannot remove it
        os.chdir("..")
        os.rmdir("d")


def test_a_folder_that_cannot_be_read(tmp_path: Path) -> None:
    problems: list[OSError] = []
    assert list(walk(tmp_path / "none", on_error=problems.append)) == []
    assert len(problems) == 1
    with pytest.raises(FileNotFoundError):
        list(walk(tmp_path / "none"))


def test_files_are_read_up_to_a_limit(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"12345")
    assert read_limited(file, 5) == b"12345"
    with pytest.raises(OSError, match="larger than 4 bytes"):
        read_limited(file, 4)


def test_no_pipe_and_no_device_is_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(OSError, match="a pipe or a device"):
            read_limited(path, 5)
    with pytest.raises(IsADirectoryError):
        read_limited(tmp_path, 5)
