"""Locks: one process at a time works in a folder, and the next is told which one, or waits.

A lock is a file that the system locks, and unlocks when the last process that holds it open has
ended in whatever way. The file itself stays.
"""

import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from bhfl.files.paths import NO_WAIT
from bhfl.files.writing import no_link

_LOCKED = 1 if os.name == "nt" else 0
"""Bytes at the beginning of a lock that Windows keeps others from reading."""


def claim(path: Path, busy: str) -> IO[bytes]:
    """Keep other processes from a lock until the returned file is closed, or this process ends in
    any way.

    Args:
        path: The lock, made where there is none; it is to hold the id of this process.
        busy: What to say of the process that has it, with ``{}`` in place of its id.

    Raises:
        BlockingIOError: Another process has claimed it, naming both; or `path` is no lock of ours,
            and stays as it is.
        OSError: `path` is a link, or cannot be written.
    """
    from filelock import lock_descriptor

    file = open(path, "rb+", buffering=0, opener=_lock)  # noqa: SIM115  # the caller closes it
    try:
        if not re.fullmatch(rb"\d{0,20}", owner := _owner(file)):  # as a hard link may be
            raise BlockingIOError(
                f"{path} is no lock of a run: remove it, if nobody needs what it holds"
            )
        if not lock_descriptor(file.fileno(), blocking=False):
            raise BlockingIOError(f"{path.parent}: {busy.format(owner.decode() or '?')}")
        file.truncate(0)
        file.seek(0)
        file.write(b" " * _LOCKED + str(os.getpid()).encode())
    except BaseException:
        file.close()
        raise
    return file


@contextmanager
def queue(path: Path) -> Iterator[int]:
    """Wait until no other process holds a lock, and then hold it for the block.

    Args:
        path: The lock, made where there is none.

    Yields:
        A file descriptor: a process that inherits it holds the lock too, as long as it lives.

    Raises:
        OSError: `path` is a link, or cannot be written.
    """
    from filelock import lock_descriptor

    with open(path, "ab", opener=_lock) as file:
        lock_descriptor(file.fileno())
        yield file.fileno()


def _lock(path: str, flags: int) -> int:
    return no_link(path, flags | os.O_CREAT | NO_WAIT)


def _owner(file: IO[bytes]) -> bytes:
    """The id that a lock holds; other words where it is no file of our kind."""
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        return b"no file"
    file.seek(_LOCKED)
    return file.read(30)
