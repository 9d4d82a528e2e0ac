"""The run folder: ``<root>/<name>/version_N`` with everything a run leaves behind, each file whole
or absent.

The folder itself may be behind a link; inside it no link is followed when something is written.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from bhfl.files import append, durable, read_limited
from bhfl.plain import read_json

CHECKPOINTS = "checkpoints"
"""Folder of a run folder: its checkpoints."""
CLIENTS = "clients"
"""Folder of a run folder: what its clients keep between rounds."""
SUMMARY = "summary.json"
"""File of a run folder: what its rounds came to."""
MAX_SUMMARY_BYTES = 2**24

_ROUND = re.compile(r"round=(\d+)\.ckpt")


def new_run(root: Path) -> Path:
    """Create ``root/version_N`` with the lowest N above all that exist; two runs at once never get
    the same.

    Raises:
        OSError: The folder cannot be made or written, naming it.
    """
    root.mkdir(parents=True, exist_ok=True)
    while True:
        versions = [
            int(m[1]) for p in root.iterdir() if (m := re.fullmatch(r"version_(\d+)", p.name))
        ]
        path = root / f"version_{max(versions, default=-1) + 1}"
        try:
            path.mkdir()
        except FileExistsError:
            continue
        (path / CHECKPOINTS).mkdir()
        return path


def claim(folder: Path) -> IO[bytes]:
    """Keep other processes out of a run folder until the returned file is closed, or this process
    ends in any way.

    Raises:
        BlockingIOError: Another process has claimed it, naming both; or its ``.lock`` is no lock of
            ours.
        OSError: ``.lock`` is a link, or cannot be written.
    """
    path = folder / ".lock"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    try:
        owner = (
            os.read(descriptor, 30) if stat.S_ISREG(os.fstat(descriptor).st_mode) else b"no file"
        )
        # another file under this name, as by a hard link, is left as it is
        if not re.fullmatch(rb"\d{0,20}", owner):
            raise BlockingIOError(
                f"{path} is no lock of a run: remove it, if nobody needs what it holds"
            )
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BlockingIOError(
                f"{folder}: process {owner.decode() or '?'} is training here"
            ) from None
        os.truncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
    except BaseException:
        os.close(descriptor)
        raise
    return open(descriptor, "rb")


def own_entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    """What lies at the top of a run folder, and at any depth in the folders of checkpoints and
    clients.
    """
    with os.scandir(folder) as entries:
        found = list(entries)
    yield from found
    for entry in found:
        if entry.name in (CHECKPOINTS, CLIENTS) and entry.is_dir(follow_symlinks=False):
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
        if (
            entry.name.startswith(".")
            and entry.name.endswith(".tmp")
            and entry.is_file(follow_symlinks=False)
        ):
            os.unlink(entry.path)


def subfolder(run: Path, name: str) -> Path:
    """A folder in a run folder for what comes after the run, made where it is not there.

    Raises:
        OSError: A link is in its place, which is not followed, or it cannot be made.
    """
    path = run / name
    if path.is_symlink():
        raise OSError(
            errno.ELOOP,
            "a link in a run folder is not followed: remove it, or name a folder by --out",
            path,
        )
    path.mkdir(exist_ok=True)
    return path


def round_checkpoints(folder: Path) -> dict[int, Path]:
    """The files ``round=N.ckpt`` of a folder of checkpoints by N, the newest last; other names are
    left alone.
    """
    found = (
        (m, path) for path in folder.glob("round=*.ckpt") if (m := _ROUND.fullmatch(path.name))
    )
    return dict(sorted((int(m[1]), path) for m, path in found if path.is_file()))


def newest_run(root: Path) -> Path | None:
    """The ``version_N`` with the highest N that holds the checkpoint of a round, if any:
    ``best.ckpt`` comes before.
    """
    folders = (p for p in root.glob("version_*") if re.fullmatch(r"version_\d+", p.name))
    runs = [p for p in folders if round_checkpoints(p / CHECKPOINTS)]
    return max(runs, key=lambda p: int(p.name[8:]), default=None)


def write_json(path: Path, value: Any) -> None:
    """`value` as indented JSON, durably."""
    with durable(path) as file:
        file.write(json.dumps(value, indent=1, sort_keys=True).encode() + b"\n")


def read_summary(run: Path) -> dict[str, Any] | None:
    """``summary.json`` of a run; None where it has not come to its end, failed there, or the file
    cannot be read.
    """
    try:
        found = read_json(read_limited(run / SUMMARY, MAX_SUMMARY_BYTES))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and not found.get("failed") else None


class RoundsFile:
    """``rounds.jsonl``: one line of JSON a round, on disk when it is written, so that it is valid
    after a kill.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def rewrite(self, rows: Iterable[dict[str, Any]]) -> None:
        """Begin with the rows of the rounds before, whatever was there."""
        with durable(self.path) as file:
            file.writelines(json.dumps(row).encode() + b"\n" for row in rows)

    def append(self, row: dict[str, Any]) -> None:
        """Add the row of one finished round.

        Raises:
            OSError: The file cannot be written, or has vanished, naming it.
        """
        append(self.path, json.dumps(row).encode() + b"\n")

    def read(self) -> list[dict[str, Any]]:
        """All whole rows, up to the first line that is none, as one that a kill cut off."""
        rows: list[dict[str, Any]] = []
        try:
            for line in self.path.read_bytes().splitlines():
                row = json.loads(line)
                if not isinstance(row, dict) or type(row.get("round")) is not int:
                    break
                rows.append(row)
        except (FileNotFoundError, ValueError, RecursionError):
            pass
        return rows
