"""The run folder: ``<root>/<name>/version_N`` with everything a run leaves behind, each file whole
or absent.

The folder itself may be behind a link; inside it no link is followed when something is written.
"""

import errno
import os
import re
from collections.abc import Iterator
from pathlib import Path

from bhfl.files import user_folder

CHECKPOINTS = "checkpoints"
"""Folder of a run folder: its checkpoints."""
CLIENTS = "clients"
"""Folder of a run folder: what its clients keep between rounds."""
REFERENCES = "references"
"""Folder of a run folder: what each client was sent last."""
LOCK = ".lock"
"""File of a run folder: the process that trains there."""
SUMMARY = "summary.json"
"""File of a run folder: what its rounds came to."""

_ROUND = re.compile(r"round=(\d+)\.ckpt")
_TEMPORARY = re.compile(r"\..*\.tmp")


def new_run(root: Path) -> Path:
    """Create ``root/version_N`` with the lowest N above all that exist; two runs at once never get
    the same.

    Raises:
        ValueError: The folder cannot be made or written to, naming the file that is in its way.
        OSError: The system says so where it is tried.
    """
    user_folder("trainer.default_root_dir/trainer.name", root)
    root.mkdir(parents=True, exist_ok=True)
    while True:
        path = root / f"version_{max(_versions(root), default=-1) + 1}"
        try:
            path.mkdir()
        # another run has just taken the number
        except FileExistsError:
            continue
        (path / CHECKPOINTS).mkdir()
        return path


def own_entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    """What lies at the top of a run folder, and at any depth in the folders of checkpoints,
    clients and references.
    """
    with os.scandir(folder) as entries:
        found = list(entries)
    yield from found
    for entry in found:
        if entry.name in (CHECKPOINTS, CLIENTS, REFERENCES) and entry.is_dir(follow_symlinks=False):
            yield from _below(entry.path)


def _below(folder: str) -> Iterator[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        for entry in entries:
            yield entry
            if entry.is_dir(follow_symlinks=False):
                yield from _below(entry.path)


def find_link(folder: Path) -> Path | None:
    """A symbolic link where a run would write, if there is one."""
    return next((Path(entry.path) for entry in own_entries(folder) if entry.is_symlink()), None)


def remove_unfinished(folder: Path) -> None:
    """Remove the temporary files of a process that was killed while it wrote."""
    for entry in own_entries(folder):
        if _TEMPORARY.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
            os.unlink(entry.path)


def subfolder(run: Path, name: str) -> Path:
    """A folder in a run folder for what comes after the run; it need not be there yet.

    Raises:
        OSError: A file is in its place, or a link, which is not followed.
    """
    path = run / name
    if path.is_symlink() or path.is_file():
        raise OSError(
            errno.ENOTDIR,
            "it must be a folder, no file and no link: move it away, or name a folder by --out",
            str(path),
        )
    return path


def round_checkpoints(folder: Path) -> dict[int, Path]:
    """The files ``round=N.ckpt`` of a folder of checkpoints by N, the newest last; other names are
    left alone.
    """
    found = {
        int(match[1]): path
        for path in folder.glob("round=*.ckpt")
        if (match := _ROUND.fullmatch(path.name)) and path.is_file()
    }
    return dict(sorted(found.items()))


def newest_run(root: Path) -> Path | None:
    """The ``version_N`` with the highest N that holds the checkpoint of a round, if any. A lone
    ``best.ckpt`` is no such: it is written first, and a kill may come in between.
    """
    runs = {n: run for n, run in _versions(root).items() if round_checkpoints(run / CHECKPOINTS)}
    return runs[max(runs)] if runs else None


def _versions(root: Path) -> dict[int, Path]:
    """What is called ``version_N`` in a folder, by N."""
    return {
        int(match[1]): path
        for path in root.glob("version_*")
        if (match := re.fullmatch(r"version_(\d+)", path.name))
    }
