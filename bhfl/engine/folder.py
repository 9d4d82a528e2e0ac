"""The run folder: ``<root>/<name>/version_N`` with everything a run leaves behind, each file whole or absent."""

from __future__ import annotations

import fcntl
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any


@contextmanager
def durable(path: Path) -> Iterator[IO[bytes]]:
    """Write `path` so that it is the old file or the new one whatever happens: temporary file, fsync, rename, fsync."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def new_run(root: Path) -> Path:
    """Create ``root/version_N`` with the lowest N above all that exist; two runs at once never get the same.

    Raises:
        OSError: The folder cannot be made or written, naming it.
    """
    root.mkdir(parents=True, exist_ok=True)
    while True:
        versions = [int(m[1]) for p in root.iterdir() if (m := re.fullmatch(r"version_(\d+)", p.name))]
        path = root / f"version_{max(versions, default=-1) + 1}"
        try:
            path.mkdir()
        except FileExistsError:
            continue
        (path / "checkpoints").mkdir()
        return path


def claim(folder: Path) -> IO[str]:
    """Keep other processes out of a run folder until the returned file is closed, or this process ends in any way.

    Raises:
        BlockingIOError: Another process has claimed it, naming both.
    """
    file = open(folder / ".lock", "a+", encoding="utf-8")  # noqa: SIM115  # it stays open
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        owner = file.read()
        file.close()
        raise BlockingIOError(f"{folder}: process {owner or '?'} is training here") from None
    file.truncate(0)
    file.write(str(os.getpid()))
    file.flush()
    return file


def newest_run(root: Path) -> Path | None:
    """The ``version_N`` with the highest N that holds the checkpoint of a round, if any: ``best.ckpt`` comes before."""
    folders = (p for p in root.glob("version_*") if re.fullmatch(r"version_\d+", p.name))
    runs = [p for p in folders if any(p.glob("checkpoints/round=*.ckpt"))]
    return max(runs, key=lambda p: int(p.name[8:]), default=None)


def write_json(path: Path, value: Any) -> None:
    """`value` as indented JSON, durably."""
    with durable(path) as file:
        file.write(json.dumps(value, indent=1, sort_keys=True).encode() + b"\n")


class RoundsFile:
    """``rounds.jsonl``: one line of JSON a round, flushed when written, so that it is valid after a kill."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, row: dict[str, Any]) -> None:
        """Add the row of one finished round."""
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def read(self) -> list[dict[str, Any]]:
        """All whole rows; a last line cut off by a kill is left out."""
        rows = []
        for line in self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else ():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                break
        return rows

    def truncate(self, rounds: int) -> list[dict[str, Any]]:
        """Keep the rows of the first `rounds` rounds, and return them."""
        rows = [row for row in self.read() if row["round"] <= rounds]
        with durable(self.path) as file:
            file.writelines(json.dumps(row).encode() + b"\n" for row in rows)
        return rows
