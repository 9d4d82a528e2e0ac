"""The process itself: threads, memory, and going down in order."""

import ctypes
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from subprocess import TimeoutExpired
from typing import Protocol

import torch

_KEEPING = {-1: 1 << 30, -2: 1 << 26, -3: 1 << 30}
"""M_TRIM_THRESHOLD, M_TOP_PAD and M_MMAP_THRESHOLD of <malloc.h>, and the bytes for each."""


@contextmanager
def computing_threads(count: int) -> Iterator[None]:
    """Compute with `count` CPU threads: sums inside a layer depend on it, so it must not depend on
    the launch.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def keep_freed_memory() -> None:
    """Let glibc keep freed memory: giving it back and faulting it in again costs up to 40% of a CPU
    step.
    """
    if sys.platform.startswith("linux"):
        libc = ctypes.CDLL(None)
        # musl, the C library of Alpine Linux, has no such function
        if hasattr(libc, "mallopt"):
            for option, value in _KEEPING.items():
                libc.mallopt(option, value)


class Process(Protocol):
    """What `stop` asks of a process; `subprocess.Popen` is one."""

    def terminate(self) -> None:
        """Ask it to end."""

    def kill(self) -> None:
        """End it by force."""

    def wait(self, timeout: float | None = None) -> int:
        """Wait until it has ended; its exit code. TimeoutExpired where it has not after so many
        seconds.
        """


def stop(processes: Sequence[Process], patience_seconds: float = 3.0) -> None:
    """End child processes: by SIGTERM, and by SIGKILL those that wait in a collective and cannot
    hear it.
    """
    for process in processes:
        process.terminate()
    # all have been told before one is waited for, so that the patience is for all of them together
    deadline = time.monotonic() + patience_seconds
    for process in processes:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except TimeoutExpired:
            process.kill()
            process.wait()
