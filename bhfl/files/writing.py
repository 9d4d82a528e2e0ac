"""The one way to write a file: whole or not at all, and on disk when it is written."""

import csv
import errno
import io
import json
import os
import secrets
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

from bhfl.files.paths import user_path

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What a disk, a quota or a limit of file sizes says that leaves no room."""
_NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0)
"""The flag that refuses a link, where a system has one."""


@contextmanager
def durable(path: Path, mode: int = 0o666) -> Iterator[IO[bytes]]:
    """Write `path` so that it is the old file or the new one whatever happens: temporary file,
    fsync, rename, fsync.

    A link at `path` is replaced, not followed, and so is a hard link: what it shared its content
    with stays as it was.

    Args:
        path: What is to be written.
        mode: Who may read and write it, less what the user's umask takes away.

    Raises:
        OSError: It cannot be written, naming `path`.
    """
    temporary = temporary_beside(path)
    with naming(path):
        try:
            # mode x makes a file of our own, where w would write through a link
            with open(temporary, "xb", opener=partial(os.open, mode=mode)) as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
            _sync_names(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


def temporary_beside(path: Path) -> Path:
    """A name for what is to become `path`, which nothing has yet."""
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")


def settle_all(files: Mapping[Path, Path]) -> None:
    """Let files that are written become others, each as durably as by `durable`: all are on disk
    before the first is renamed, and each folder is written once.

    Args:
        files: What each is to be called, in the order of renaming; the folder is the same.

    Raises:
        OSError: One cannot be, naming it.
    """
    for temporary, path in files.items():
        with naming(path), open(temporary, "rb+") as file:
            os.fsync(file.fileno())
    for temporary, path in files.items():
        with naming(path):
            os.replace(temporary, path)
    for folder in dict.fromkeys(path.parent for path in files.values()):
        _sync_names(folder)


def _sync_names(folder: Path) -> None:
    # Windows opens no folder, and its renaming is durable by itself
    if os.name == "nt":
        return
    # the name of a file is its folder's content
    directory = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(directory)
    except OSError as error:
        # some file systems, as of shares over a network, have no such thing for folders
        if error.errno != errno.EINVAL:
            raise
    finally:
        os.close(directory)


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Give a library that opens files by name a name to write to, whose file becomes `path` whole
    or not at all; see `durable`.

    Yields:
        The name to write to.

    Raises:
        OSError: `path` cannot be written, naming it.
    """
    path = user_path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path} cannot be written: there is no folder {path.parent}")
    with durable(path) as file:
        yield Path(file.name)
        # the library may have put a file of its own there, open to this user alone
        os.chmod(file.name, stat.S_IMODE(os.fstat(file.fileno()).st_mode))
        with open(file.name, "rb+") as written:
            os.fsync(written.fileno())


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Make an OSError while `path` is written name it, and say what to do where a disk is full or
    a folder is in the way.
    """
    try:
        yield
    except OSError as error:
        # one without a number has a text of its own
        if error.errno is not None:
            error.filename = str(path)
            # a rename names the temporary file too, which tells a user nothing
            if error.filename2 is not None:
                del error.filename2
        if error.errno in _FULL:
            error.add_note(
                "(make room there; --ckpt_path last goes on from a run's last checkpoint)"
            )
        if isinstance(error, IsADirectoryError):
            error.add_note("(a folder is in the place of this file: move it away)")
        raise


def no_link(path: str, flags: int) -> int:
    """An opener for `open` that follows no link at the end of the path."""
    if not _NO_FOLLOW and os.path.islink(path):
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
    return os.open(path, flags | _NO_FOLLOW, 0o666)


def _existing(path: str, flags: int) -> int:
    """An opener for `open` that makes no file, and follows no link."""
    return no_link(path, flags & ~os.O_CREAT)


def append(path: Path, content: bytes) -> None:
    """Add to a file that is there, durably; a link in its place is not followed.

    Raises:
        OSError: The file cannot be written, or has vanished, naming it.
    """
    with naming(path), open(path, "ab", opener=_existing) as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def write_text(path: Path, text: str) -> None:
    """Write `text` in UTF-8, durably."""
    with durable(path) as file:
        file.write(text.encode())


def write_rows(path: Path, rows: Iterable[Iterable[Any]]) -> None:
    """Write `rows` as CSV, durably."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    write_text(path, text.getvalue())


def write_json(path: Path, value: Any, indent: int | None = 1) -> None:
    """Write `value` as JSON, durably.

    Args:
        path: What is to be written.
        value: Plain values.
        indent: The spaces of a level; None for one line, which is written many times as fast.
    """
    write_text(path, f"{json.dumps(value, indent=indent)}\n")


@dataclass
class RoundsFile:
    """``rounds.jsonl``: one line of JSON for each round. A line is on disk when it is written, so
    that the file is valid after a kill.
    """

    path: Path

    def rewrite(self, rows: Iterable[dict[str, Any]]) -> None:
        """Begin with the rows of the rounds before, whatever was there."""
        with durable(self.path) as file:
            file.writelines(json.dumps(row).encode() + b"\n" for row in rows)

    def append(self, row: dict[str, Any]) -> None:
        """Add the row of one finished round, see `append`."""
        append(self.path, json.dumps(row).encode() + b"\n")

    def read(self) -> list[dict[str, Any]]:
        """All whole rows, up to the first line that is damaged, such as one that a kill cut off."""
        rows = []
        try:
            for line in self.path.read_bytes().splitlines():
                row = json.loads(line)
                if not isinstance(row, dict) or type(row.get("round")) is not int:
                    break
                rows.append(row)
        except (FileNotFoundError, ValueError, RecursionError):
            pass
        return rows
