"""Paths as a user gives them, folders behind links, and files from elsewhere."""

import errno
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from glob import glob
from pathlib import Path

NO_WAIT = getattr(os, "O_NONBLOCK", 0)
"""The flag that opens a pipe without waiting for its other end, where a system knows such pipes."""


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
    if str(found).startswith("~"):
        # Path drops the ./ of ./~, and whoever reads it again would take it for the home folder
        return found.absolute()
    return found


def user_option(key: str, value: str | os.PathLike[str] | None) -> Path | None:
    """The path that a user means by the option `key`, see `user_path`; None stays None.

    Raises:
        ValueError: It is not a path, naming `key`.
    """
    if value is None:
        return None
    if not isinstance(value, str | os.PathLike):
        raise ValueError(f"{key} must be a path, got {value!r}")
    try:
        return user_path(value)
    except ValueError as error:
        raise ValueError(f"{key} must be a path: {error}") from error


def user_folder(key: str, value: str | os.PathLike[str] | None) -> Path | None:
    """The folder to write to that a user means by the option `key`, see `user_option`; it need not
    be there yet.

    Raises:
        ValueError: It is not a path, or no folder that can be written to, naming `key`.
    """
    folder = user_option(key, value)
    nearest = folder
    while nearest and not nearest.exists():
        nearest = nearest.parent
    if nearest and not (nearest.is_dir() and os.access(nearest, os.W_OK)):
        raise ValueError(
            f"{key} must be a folder that can be written to, got {str(folder)!r}, and "
            f"{str(nearest)!r} is none"
        )
    return folder


def walk(
    folder: Path, once: bool = False, on_error: Callable[[OSError], object] | None = None
) -> Iterator[tuple[Path, list[str], list[str]]]:
    """Walk a folder as ``os.walk`` does, sorted and through links; a link that leads back to a
    folder it lies in is not followed.

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
    # a stack of our own: a tree may be deeper than Python recurses
    waiting: list[tuple[Path, frozenset[tuple[int, int]]]] = [(folder, frozenset())]
    while waiting:
        place, above = waiting.pop()
        try:
            found = place.stat()
            with os.scandir(place) as entries:
                is_folder = {entry.name: _is_folder(entry) for entry in entries}
        except OSError as error:
            if on_error is None:
                raise
            on_error(error)
            continue
        # the device and the inode are the same under every name of a folder
        identity = found.st_dev, found.st_ino
        if identity in (entered if once else above):
            continue
        entered.add(identity)
        names = sorted(is_folder)
        folders = [name for name in names if is_folder[name]]
        yield place, folders, [name for name in names if not is_folder[name]]
        # the caller may have changed the list; the last to be put on the stack is entered first
        waiting += [(place / name, above | {identity}) for name in reversed(folders)]


def matching(pattern: Path) -> list[Path]:
    """What fits a pattern with ``*``, ``?``, ``[...]``, and ``**`` for folders at any depth, behind
    links too.
    """
    top = Path(pattern.anchor)
    return _matching(top, pattern.relative_to(top).parts)


def _matching(top: Path, parts: Sequence[str]) -> list[Path]:
    """What fits the parts of a pattern below `top`; ``**`` is walked here, because ``glob`` would
    go round and round in a loop of links.
    """
    plain = parts[: parts.index("**")] if "**" in parts else parts
    found = [top / name for name in glob(str(Path(*plain)), root_dir=top)] if plain else [top]
    if len(plain) == len(parts):
        return found
    matches = []
    for start in found:
        for folder, _, _ in walk(start, once=True, on_error=lambda error: None):
            matches += _matching(folder, parts[len(plain) + 1 :])
    return matches


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether it is a folder or a link to one, not a link that leads nowhere or to itself."""
    return os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir()


_GROWTH = 2**16
"""Bytes by which a file may grow while it is read; a buffer of all that is allowed would take as
much memory.
"""


def read_limited(path: Path, most: int) -> bytes:
    """The content of a regular file of at most `most` bytes. Other files are not read, and a pipe
    is not waited for.

    Raises:
        OSError: It cannot be read, is a pipe or a device, or is larger.
    """
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | NO_WAIT)) as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "it is a pipe or a device, not a file", str(path))
        content = b"" if found.st_size > most else file.read(min(most, found.st_size + _GROWTH) + 1)
    if found.st_size > most or len(content) > most:
        raise OSError(errno.EFBIG, f"it is larger than {most:,} bytes", str(path))
    return content
