"""Only one sweep works in a folder."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bhfl.cli.reading import ConfigError


@contextmanager
def locked(folder: Path) -> Iterator[int]:
    """Keep other sweeps out of `folder`, and wait for runs that a sweep that was killed has left to end.

    Yields:
        A file descriptor for the runs to inherit: while any of them lives, the next sweep waits.

    Raises:
        ConfigError: A sweep is at work there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".sweep.lock", "a+") as sweep, open(folder / ".runs.lock", "a") as runs:
        try:
            fcntl.flock(sweep, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            sweep.seek(0)
            raise ConfigError([f"{folder}: another sweep is at work here, process {sweep.read() or '?'}"]) from None
        sweep.truncate(0)
        sweep.write(str(os.getpid()))
        sweep.flush()
        fcntl.flock(runs, fcntl.LOCK_EX)
        yield runs.fileno()
