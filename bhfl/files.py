"""Paths as a user gives them, folders behind links, files from elsewhere, and the one way to write
a whole file.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from glob import glob
from pathlib import Path
from typing import IO

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What a disk, a quota or a limit of file sizes says that leaves no room."""


def user_path(path: str | os.PathLike[str]) -> Path:
    """The path that a user means, by which every option and command that takes one reads it.

    ``~`` is the home folder, a slash at the end means nothing, and a relative path begins in the
    current folder. Links are left as they are: the system follows them.

    Raises:
        ValueError: It is empty, holds a zero byte, or begins with the ``~name`` of an unknown user.
    """
    text = os.fspath(path)
    if not text.strip():
        raise ValueError(f"a path must not be empty, got {text!r}")
    if "\0" in text:
        raise ValueError(f"a path cannot hold a zero byte, got {text!r}")
    expanded = os.path.expanduser(text)
    if text.startswith("~") and expanded == text:
        raise ValueError(
            f"{text}: there is no such home folder; write ./{text} for a folder of that name"
        )
    found = Path(expanded)
    # ./~ means the same when it is read again
    return found.absolute() if str(found).startswith("~") else found


def walk(
    folder: Path, once: bool = False, on_error: Callable[[OSError], object] | None = None
) -> Iterator[tuple[Path, list[str], list[str]]]:
    """Like ``os.walk``, sorted and through links; a link that leads back to a folder it lies in is
    not followed.

    Args:
        folder: Where to begin. The caller may take names out of the list of folders, and they are
            not entered.
        once: Enter a folder that several links lead to once, instead of under each of its names.
        on_error: Called for a folder that cannot be read, which is then passed over; None raises
            the error.

    Yields:
        A folder, the names of the folders in it, and all its other names.
    """
    entered: set[tuple[int, int]] = set()
    waiting: list[tuple[Path, frozenset[tuple[int, int]]]] = [(folder, frozenset())]
    while waiting:
        place, above = waiting.pop()
        try:
            found = place.stat()
            with os.scandir(place) as entries:
                kinds = {
                    entry.name: _is_folder(entry)
                    for entry in sorted(entries, key=lambda entry: entry.name)
                }
        except OSError as error:
            if on_error is None:
                raise
            on_error(error)
            continue
        identity = found.st_dev, found.st_ino
        if identity in (entered if once else above):
            continue
        entered.add(identity)
        folders = [name for name, is_folder in kinds.items() if is_folder]
        yield place, folders, [name for name, is_folder in kinds.items() if not is_folder]
        waiting += [(place / name, above | {identity}) for name in reversed(folders)]


def matching(pattern: Path) -> list[Path]:
    """What fits a pattern with ``*``, ``?``, ``[...]``, and ``**`` for folders at any depth, behind
    links too.
    """
    top = Path(pattern.anchor)
    return _matching(top, pattern.relative_to(top).parts)


def _matching(top: Path, parts: Sequence[str]) -> list[Path]:
    """What fits the parts of a pattern below `top`; ``**`` is walked, as ``glob`` goes round in a
    loop of links.
    """
    plain = parts[: parts.index("**")] if "**" in parts else parts
    found = [top / name for name in glob(str(Path(*plain)), root_dir=top)] if plain else [top]
    if len(plain) == len(parts):
        return found
    folders = [
        place
        for start in found
        for place, _, _ in walk(start, once=True, on_error=lambda error: None)
    ]
    return [match for folder in folders for match in _matching(folder, parts[len(plain) + 1 :])]


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether it is a folder or a link to one; a link that leads nowhere, or to itself, is none."""
    return os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir()


_GROWTH = 2**16
"""Bytes by which a file may grow while it is read; a buffer of all that is allowed would take as
much memory.
"""


def read_limited(path: Path, most: int) -> bytes:
    """The content of a regular file of at most `most` bytes; nothing else is opened for long, or
    read.

    Raises:
        OSError: It cannot be read, is a pipe or a device, or is larger.
    """
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "it is a pipe or a device, not a file", str(path))
        content = b"" if found.st_size > most else file.read(min(most, found.st_size + _GROWTH) + 1)
    if found.st_size > most or len(content) > most:
        raise OSError(errno.EFBIG, f"it is larger than {most:,} bytes", str(path))
    return content


# ---- writing -------------------------------------------------------------------------------------


@contextmanager
def durable(path: Path) -> Iterator[IO[bytes]]:
    """Write `path` so that it is the old file or the new one whatever happens: temporary file,
    fsync, rename, fsync.

    A link at `path` is replaced, not followed, and so is a hard link: what it shared its content
    with stays as it was.

    Raises:
        OSError: It cannot be written, naming `path`.
    """
    temporary = temporary_beside(path)
    with naming(path):
        try:
            with open(temporary, "xb") as file:  # x: a file of its own, and through no link
                yield file
                file.flush()
                os.fsync(file.fileno())
            _replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def temporary_beside(path: Path) -> Path:
    """A name for what is to become `path`, which nothing has yet."""
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")


def settle(temporary: Path, path: Path) -> None:
    """Let a file that is written become `path`, as durably as by `durable`.

    Raises:
        OSError: It cannot be, naming `path`.
    """
    with naming(path):
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        _replace(temporary, path)


def _replace(temporary: Path, path: Path) -> None:
    os.replace(temporary, path)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Where a library that opens files by name is to write what becomes `path`, whole or not at
    all: see `durable`.
    """
    path = user_path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path} cannot be written: there is no folder {path.parent}")
    with durable(path) as file:
        yield Path(file.name)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Make an OSError while `path` is written name it, and say what to do where there is no room
    for it.
    """
    try:
        yield
    except OSError as error:
        if error.errno is not None:  # else it has a text of its own
            error.filename = str(path)
            if error.filename2 is not None:  # of a rename, whose two names say less
                del error.filename2
        if error.errno in FULL:
            error.add_note(
                "(make room there; --ckpt_path last goes on from a run's last checkpoint)"
            )
        raise


def append(path: Path, data: bytes) -> None:
    """Add `data` to the end of a file that is there, durably; a link in its place is not followed.

    Raises:
        OSError: It cannot be written, or is not there, naming `path`.
    """
    with naming(path), open(path, "ab", opener=_existing) as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def no_link(path: str, flags: int) -> int:
    """An opener for `open` that follows no link at the end of the path."""
    return os.open(path, flags | os.O_NOFOLLOW, 0o666)


def _existing(path: str, flags: int) -> int:
    return no_link(path, flags & ~os.O_CREAT)
