"""Only one sweep works in a folder."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bhfl.cli.reading import ConfigError
from bhfl.files import no_link


@contextmanager
def locked(folder: Path) -> Iterator[int]:
    """Keep other sweeps out of `folder`, and wait for runs that a sweep that was killed has left to
    end.

    Yields:
        A file descriptor for the runs to inherit: while any of them lives, the next sweep waits.

    Raises:
        ConfigError: A sweep is at work there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    locks = (folder / ".sweep.lock", folder / ".runs.lock")
    with open(locks[0], "a+", opener=no_link) as sweep, open(locks[1], "a", opener=no_link) as runs:
        try:
            fcntl.flock(sweep, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            sweep.seek(0)
            raise ConfigError(
                [f"{folder}: another sweep is at work here, process {sweep.read() or '?'}"]
            ) from None
        sweep.truncate(0)
        sweep.write(str(os.getpid()))
        sweep.flush()
        fcntl.flock(runs, fcntl.LOCK_EX)
        yield runs.fileno()
