"""A program that is started anew when it ends, and that ends with this process."""

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Self

from bhfl.remote import guard

_log = logging.getLogger(__name__)

FIRST_PAUSE = 0.5
"""Seconds before a program that ended is started anew; each further pause is twice as long."""
LONGEST_PAUSE = 60.0
STEADY_SECONDS = 60.0
"""Seconds after which a program counts as running well: the next pause is the first one again."""
_GRACE = 8.0
"""Seconds that a program has to end by itself, before it is killed."""
_LONG = 15.0
"""Seconds after which a program that is waited for is spoken of."""
_LOOK = 5.0
"""Seconds between two looks at the helpers of a program."""
_LAST_WORDS = 1.0
"""Seconds in which the last lines of a program that ended are read."""
_KEPT_LINES = 200
_NOISE = ('"POST /v1/', '"GET /health')
"""What marks the line that a server of Flower writes for each request."""


class Running(ABC):
    """What runs from `start` to `stop`, or for a ``with`` block."""

    @abstractmethod
    def start(self) -> Self:
        """Begin; what runs now."""

    @abstractmethod
    def stop(self) -> None:
        """End."""

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *error: object) -> None:
        self.stop()


class Supervised:
    """A program that runs until `stop`: one that ends by itself is started anew, after pauses that
    grow from half a second to a minute.

    The program is a child of this process alone, and ends with it even if it is killed. One whose
    helper has ended, which it started itself, is ended and started anew too: Flower's programs do
    not look after theirs. What it writes goes to a log, but for the lines of requests that were
    answered well.

    Args:
        name: What messages call it.
        command: Its path and its arguments.
        environment: Its environment variables.
        log: The file that it writes to, after what is there already.
        ready: Text in a line of its that says that it runs.
        fatal: Called with the lines since its start when it ended: why starting it anew is of no
            use, or an empty text.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        environment: Mapping[str, str],
        log: Path,
        *,
        ready: str,
        fatal: Callable[[str], str] = lambda said: "",
    ) -> None:
        self.name = name
        self.log = log
        self.starts = 0
        """How often it was started."""
        self.failure = ""
        """Why it is not started anew any more; empty as long as it is."""
        self._command = list(command)
        self._environment = dict(environment)
        self._ready_text = ready
        self._fatal = fatal
        self._lines: deque[str] = deque(maxlen=_KEPT_LINES)
        self._before: list[str] = []
        self._changed = threading.Condition()
        self._ready = False
        self._stopping = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        # the kernel ends the program with the thread that started it: one thread stays by it
        self._watcher = threading.Thread(target=self._watch, name=f"bhfl-{name}", daemon=True)

    def start(self, seconds: float | None = 120.0) -> None:
        """Start the program, and wait until it runs.

        Args:
            seconds: How long to wait for that; None waits for as long as it takes.

        Raises:
            RuntimeError: It failed for good, or does not run in that time; it is stopped then.
        """
        self._watcher.start()
        if seconds is None and not self.wait(_LONG) and not self.failure:
            _log.warning("%s waits: %s", self.name, self.said(1) or "it said nothing yet")
        if self.wait(seconds):
            return
        said = self.said()
        self.stop()
        raise RuntimeError(
            self.failure
            or f"{self.name} does not run after {seconds} s and {self.starts} starts: "
            f"{said or 'it said nothing'} ({self.log} tells more)"
        )

    def wait(self, seconds: float | None) -> bool:
        """Whether the program runs within some seconds from now on, or ever; it has failed for good
        otherwise, or is still on its way.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._ready or bool(self.failure), seconds)
            return self._ready

    @property
    def pid(self) -> int | None:
        """The id of its process now; None between two starts."""
        process = self._process
        return process.pid if process is not None and process.poll() is None else None

    def said(self, lines: int = 3) -> str:
        """The last lines that it wrote since it was started, or before that, joined."""
        with self._changed:
            return " ".join(line for line in (list(self._lines) or self._before)[-lines:] if line)

    def stop(self) -> None:
        """End the program, and start it no more."""
        with self._changed:
            self._stopping.set()
            process = self._process
        if process is not None:
            _end(process)
        if self._watcher.is_alive():
            self._watcher.join(_GRACE)

    def _watch(self) -> None:
        pause = FIRST_PAUSE
        while (process := self._begun()) is not None:
            began = time.monotonic()
            code = _ended(process)
            with self._changed:
                self._ready = False
            if self._stopping.is_set():
                return
            # its helpers may hold the pipe open for longer than its last words take
            self._reader.join(_LAST_WORDS)
            with self._changed:
                self.failure = self._fatal("\n".join(self._lines))
                self._changed.notify_all()
            if self.failure:
                return
            if time.monotonic() - began > STEADY_SECONDS:
                pause = FIRST_PAUSE
            _log.warning(
                "%s ended with %d and is started again in %g s; %s tells more",
                *(self.name, code, pause, self.log),
            )
            self._stopping.wait(pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    def _begun(self) -> subprocess.Popen[bytes] | None:
        """The process, started; None if nobody wants it any more."""
        watched = [str(os.getpid()), str(int(signal.SIGTERM))]
        with self._changed:
            if self._stopping.is_set():
                return None
            self._before = list(self._lines) or self._before
            self._lines.clear()
            self.starts += 1
            self._process = process = subprocess.Popen(
                [sys.executable, "-I", "-S", str(guard.__file__), *watched, *self._command],
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )
        # helpers of the program hold the pipe too: who reads it is not who waits for the program
        self._reader = threading.Thread(target=self._read, args=[process.stdout], daemon=True)
        self._reader.start()
        return process

    def _read(self, stream: IO[bytes]) -> None:
        with stream:
            with suppress(OSError), open(self.log, "a", encoding="utf-8") as log:
                for line in self._heard(stream):
                    log.write(f"{line}\n")
                    log.flush()
            # a full disk takes the log away, and not what is listened for
            deque(self._heard(stream), maxlen=0)

    def _heard(self, stream: IO[bytes]) -> Iterator[str]:
        """The lines that are worth to be kept, after what they say was taken note of."""
        for raw in stream:
            line = raw.decode(errors="replace").rstrip()
            if any(noise in line for noise in _NOISE) and " 200" in line:
                continue
            with self._changed:
                self._lines.append(line)
                if self._ready_text in line:
                    self._ready = True
                    self._changed.notify_all()
            yield line


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process politely, or else by force."""
    process.terminate()
    try:
        process.wait(_GRACE)
    except subprocess.TimeoutExpired:
        process.kill()


def _ended(process: subprocess.Popen[bytes]) -> int:
    """Wait for the end of a process, which is brought about where a helper of its has ended."""
    while True:
        try:
            return process.wait(_LOOK)
        except subprocess.TimeoutExpired:
            if _lost_helper(process.pid):
                _log.warning("process %d has lost a helper, and is ended", process.pid)
                _end(process)


def _lost_helper(pid: int) -> bool:
    """Whether a child of a process has ended without being asked after; False where the system does
    not say.
    """
    try:
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                fields = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()
                if fields[0] == "Z":
                    return True
    except OSError:
        return False
    return False
