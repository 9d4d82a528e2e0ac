"""Folders for sockets and Flower's own files, which do not outlive their processes for long."""

import os
import shutil
import socket
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bhfl.files import claim

_PREFIX = "bhfl-net-"
# the paths of sockets have about a hundred characters
_LOCK = "lock"


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder with a short path that no other user can enter, for the block.

    A process that is killed leaves its own behind, and a server's holds updates of clients: those
    whose processes have ended are removed first.
    """
    for left in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        _remove_left(left)
    made = Path(tempfile.mkdtemp(prefix="bhfl-new-"))
    # nobody looks for it by this name before it has its lock
    lock = claim(made / _LOCK, "process {} has it")
    own = made.rename(made.with_name(made.name.replace("bhfl-new-", _PREFIX)))
    with lock:
        try:
            yield own
        finally:
            shutil.rmtree(own, ignore_errors=True)


def listening_at(path: Path) -> socket.socket:
    """A socket that this user alone can connect to.

    Args:
        path: Its place, in a folder that no other user can enter; what was there is removed.
    """
    path.unlink(missing_ok=True)
    door = socket.socket(socket.AF_UNIX)
    door.bind(str(path))
    os.chmod(path, 0o600)
    door.listen(4)
    return door


def _remove_left(folder: Path) -> None:
    """Remove a folder of this user's whose process has ended."""
    try:
        found = folder.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
            return
        with claim(folder / _LOCK, "process {} has it"):
            shutil.rmtree(folder, ignore_errors=True)
    # it is in use, or just being removed by another process
    except OSError:
        return
