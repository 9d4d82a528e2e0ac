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
        path: The lock, which is made if it is missing; it will hold the id of this process.
        busy: What to say of the process that has it, with ``{}`` in place of its id.

    Raises:
        BlockingIOError: Another process has claimed it, naming both; or `path` is a file of another
            kind, and stays as it is.
        OSError: `path` is a link, or cannot be written.
    """
    from filelock import lock_descriptor

    file = open(path, "rb+", buffering=0, opener=_lock)  # noqa: SIM115  # the caller closes it
    try:
        # a hard link may have put somebody's notes here: they are not written over
        if not re.fullmatch(rb"\d{0,20}", owner := _owner(file)):
            raise BlockingIOError(
                f"{path} is not a lock that a run made: remove it, if nobody needs what it holds"
            )
        if not lock_descriptor(file.fileno(), blocking=False):
            raise BlockingIOError(f"{path.parent}: {busy.format(owner.decode() or '?')}")
        file.truncate(0)
        file.seek(0)
        file.write(b" " * _LOCKED + str(os.getpid()).encode())
    except BaseException:
        file.close()
        raise
    if not _LOCKED:
        # a fork, such as a worker of a DataLoader, may live a little longer than who is killed
        os.register_at_fork(after_in_child=file.close)
    return file


@contextmanager
def queue(path: Path) -> Iterator[int]:
    """Wait until no other process holds a lock, and then hold it for the block.

    Args:
        path: The lock, which is made if it is missing.

    Yields:
        A file descriptor: a process that inherits it holds the lock too, as long as it lives.

    Raises:
        OSError: `path` is a link, or cannot be written.
    """
    from filelock import lock_descriptor

    # not claimed: who waits here has nothing to say, and runs that inherit the lock hold it alike
    with open(path, "ab", opener=_lock) as file:
        lock_descriptor(file.fileno())
        yield file.fileno()


def _lock(path: str, flags: int) -> int:
    return no_link(path, flags | os.O_CREAT | NO_WAIT)


def _owner(file: IO[bytes]) -> bytes:
    """The id that a lock holds, or whatever else is in the file."""
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        return b"a pipe or a device"
    file.seek(_LOCKED)
    return file.read(30)
