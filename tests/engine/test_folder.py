"""Nothing outside a run folder is changed by what lies in it, and what is no file of ours is left
alone.
"""

from __future__ import annotations

import os
import shutil
import warnings
from pathlib import Path

import pytest

from bhfl.algorithms import FedCOMGATE
from bhfl.engine.checkpoint import CheckpointError, round_path
from bhfl.engine.folder import new_run, newest_run, round_checkpoints, subfolder
from bhfl.files import RoundsFile
from tests.engine.hand_made import HandMade, Module, points
from tests.federation import fit


def go(folder: Path, rounds: int, ckpt_path: object = None, **options):
    data = HandMade([points(6), points(6, seed=3)])
    settings = {"max_rounds": rounds, "monitor": "train/loss", "mode": "min", **options}
    return fit(
        folder,
        FedCOMGATE(4, allow_inexact=True),
        {8: 1, 32: 1},
        Module,
        data,
        ckpt_path,
        **settings,
    )


LINKS = [
    ".lock", "rounds.jsonl", "metrics.csv", "config.yaml", "partition.json", "env.json",
    "summary.json", "clients.csv", "events.out.tfevents.1800000000.host.1.0",
    "checkpoints/round=00009.ckpt", "checkpoints/best.ckpt",
    "clients/0000/client=0-round=00009.pt", "checkpoints", "clients", "clients/0000",
]  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of two rounds, to be copied."""
    return go(tmp_path_factory.mktemp("trained"), 2).run.folder


def copied(trained: Path, folder: Path) -> Path:
    run = folder / "bhfl" / "version_0"
    shutil.copytree(trained, run)
    return run


def content(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize("name", LINKS)
def test_no_link_in_a_run_folder_is_followed(tmp_path, trained, name):
    run, elsewhere = copied(trained, tmp_path), tmp_path / "elsewhere"
    place = run / name
    if place.is_dir():
        place.rename(elsewhere)
    else:
        elsewhere.write_text("a user's own\n")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.unlink(missing_ok=True)
    place.symlink_to(elsewhere)
    inside = content(run)
    outside = content(tmp_path) | {"elsewhere": elsewhere.is_file() and elsewhere.read_bytes()}
    with pytest.raises(
        CheckpointError,
        match=f"{name} is a symbolic link, and inside a run folder none is followed",
    ):
        go(tmp_path, 3, run)
    assert content(run) == inside
    assert (
        content(tmp_path) | {"elsewhere": elsewhere.is_file() and elsewhere.read_bytes()} == outside
    )


@pytest.mark.parametrize("name", ["best.ckpt", "round=00003.ckpt"])
def test_a_folder_in_the_place_of_a_checkpoint_is_missed_before_a_round(tmp_path, trained, name):
    run = copied(trained, tmp_path)
    place = run / "checkpoints" / name
    place.unlink(missing_ok=True)
    place.mkdir()
    inside = content(run)
    with pytest.raises(CheckpointError, match=f"{name} is a folder, where the run would write a"):
        go(tmp_path, 3, run)
    assert content(run) == inside


@pytest.mark.parametrize("above", ["runs", "bhfl", "version_0"])
def test_a_run_folder_behind_a_link_is_one_like_others(tmp_path, trained, above):
    run = copied(trained, tmp_path / "runs")
    link = tmp_path / "runs" if above == "runs" else run.parent if above == "bhfl" else run
    link.rename(tmp_path / "elsewhere")
    link.symlink_to(tmp_path / "elsewhere")
    assert go(tmp_path / "runs", 3, "last").server.round == 3
    assert round_path(run / "checkpoints", 3).is_file()


def test_hard_links_keep_what_they_share(tmp_path, trained):
    run, other = copied(trained, tmp_path), tmp_path / "other"
    other.mkdir()
    (run / ".lock").write_text("12")
    for path in sorted(run.rglob("*")):
        if path.is_file():
            os.link(path, other / str(path.relative_to(run)).replace("/", "-"))
    before = content(other)
    go(tmp_path, 3, "last", logger=True)
    after = content(other)
    # a number, as it was before
    assert {name for name in before if after[name] != before[name]} == {".lock"}


def test_only_names_that_a_run_gives_are_its_checkpoints(tmp_path):
    run = tmp_path / "version_0" / "checkpoints"
    run.mkdir(parents=True)
    for name in (
        "round=.ckpt",
        "round=x.ckpt",
        "round=-1.ckpt",
        "round=1.ckpt.bak",
        "round=²2.ckpt",
    ):
        (run / name).touch()
    (run / "round=00007.ckpt").mkdir()
    assert round_checkpoints(run) == {}
    assert newest_run(tmp_path) is None
    (run / "round=00010.ckpt").touch()
    (run / "round=9.ckpt").touch()
    assert list(round_checkpoints(run)) == [9, 10]
    assert newest_run(tmp_path) == tmp_path / "version_0"


@pytest.mark.parametrize(
    "rows", [b"", b"nonsense", b"[1]\n{}\n", b'{"round": "x"}\n', b"\xff\xfe\n", b"[" * 10**5]
)
def test_rounds_of_garbage_are_written_anew(tmp_path, trained, rows):
    run = copied(trained, tmp_path)
    good = (run / "rounds.jsonl").read_bytes()
    (run / "rounds.jsonl").write_bytes(rows)
    assert RoundsFile(run / "rounds.jsonl").read() == []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        go(tmp_path, 2, "last")
    assert (run / "rounds.jsonl").read_bytes() == good


def test_a_folder_of_a_run_for_what_comes_later(tmp_path):
    assert subfolder(tmp_path, "export") == subfolder(tmp_path, "export")
    (tmp_path / "link").symlink_to(tmp_path / "export")
    (tmp_path / "file").write_text("notes")
    for name in ("link", "file"):
        with pytest.raises(
            NotADirectoryError,
            match=f"must be a folder, no file and no link: .* by --out: '{tmp_path / name}'",
        ):
            subfolder(tmp_path, name)


@pytest.mark.parametrize("place", ["file", "file/name", "file/group/name"])
def test_a_file_where_run_folders_are_to_be_made_is_named(place: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("notes")
    told = (
        "trainer.default_root_dir/trainer.name must be a folder that can be written to, got "
        f"'{tmp_path / place}', and '{tmp_path / 'file'}' is none"
    )
    with pytest.raises(ValueError, match=told):
        new_run(tmp_path / place)
    assert (tmp_path / "file").read_text() == "notes"
