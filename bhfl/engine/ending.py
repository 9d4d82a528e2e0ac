"""How a process ends before its time: with one line on what is saved and the right exit code, at
any moment.

Python runs the handler of a signal in the main thread, between two instructions: while that thread
waits inside a library, as for another process, nothing is heard. A second thread therefore listens
too, and ends the process when the main thread does not.
"""

import atexit
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from types import FrameType
from typing import Any, NoReturn

PATIENCE_SECONDS = 5.0
"""A process that was told to end has this long to do so in order."""
_HOW = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}
LOST = 1
"""The exit code of a process that ends because another one of its run did."""


class LostProcessError(RuntimeError):
    """Another process of the run has died, frozen or failed; the message names it."""


# No Exception, so that no `except Exception` on the way out, a user's among them, takes it for an
# error of its own.
class Terminated(SystemExit):
    """SIGTERM came: what is open is closed on the way out, and the exit code is 143."""

    def __init__(self) -> None:
        super().__init__(128 + signal.SIGTERM)


class Standing:
    """Where this process stands: what it is doing, and what a user can go on from."""

    def __init__(self) -> None:
        self.begin("")
        self.last_acts: list[Callable[[], object]] = []
        """Called before the process is ended by force."""
        self.listeners: list[Callable[[], object]] = []
        """Called when something else is done."""
        self.erase = b""
        """What a terminal is sent before the last line of a process that is ended by force."""

    def begin(self, saved: str) -> None:
        """Take note that a command begins.

        Args:
            saved: What a user can go on from, as a whole sentence.
        """
        self.doing = "starting"
        """What is done now; it follows "while" in a sentence."""
        self.saved = saved
        self._said = False

    def last_line(self, why: str, speaks: bool) -> str:
        """What is said before the end; empty where it is said already, or by another process.

        Args:
            why: Why the process ends.
            speaks: Whether this process is the one to say it.
        """
        said, self._said = self._said, True
        return f"error: {why}; {self.saved}" if speaks and not said else ""

    def farewell(self, signum: int) -> str:
        """What is said of a signal, by the first process of a machine."""
        return self.last_line(f"{_HOW[signal.Signals(signum)]} while {self.doing}", speaks())

    def at(self, doing: str) -> None:
        """Take note of what is done from now on."""
        self.doing = doing
        for listener in self.listeners:
            listener()

    def writes(self, folder: object) -> None:
        """Take note that files which belong together are written to a folder from now on: an
        interrupted command says that there may be a part of them.
        """
        self.at("writing files")
        self.saved = f"{folder} may hold a part of them, and the same command writes them all"


STANDING = Standing()
"""This process's."""


def speaks() -> bool:
    """Whether this process tells the user what happens: the first of a machine, or one alone."""
    return os.environ.get("LOCAL_RANK", "0") == "0" or os.environ.get("WORLD_SIZE", "1") == "1"


PARENT = "BHFL_PARENT"
"""Environment variable: the id of the process that is about to start the others of a machine."""


@cache
def parent() -> int | None:
    """The process that has started this one to share a run, if one has; not what that passes on to
    its own children.
    """
    value = os.environ.pop(PARENT, "")
    return int(value) if value.isdecimal() and int(value) != os.getpid() else None


def speaks_of_others() -> bool:
    """Whether this process says that another one is lost: its parent does, unless that is gone."""
    # where the parent has gone, one of its children speaks for all
    orphan = parent() not in (None, os.getppid())
    return parent() is None or (orphan and os.environ.get("LOCAL_RANK") == "1")


@cache
def end_with_parent() -> None:
    """End this process soon after its parent has gone, however that came, from now on."""
    if parent() is not None:
        threading.Thread(target=_wait_for_parent, daemon=True, name="parent").start()


def _wait_for_parent() -> None:
    while os.getppid() == parent():
        time.sleep(0.5)
    # others may know more of it, and say so first
    time.sleep(PATIENCE_SECONDS)
    end_now(
        LOST,
        STANDING.last_line(
            "the process that started this one has ended without a word", speaks_of_others()
        ),
    )


def end_now(code: int, line: str) -> NoReturn:
    """End this process from any thread, whatever the main thread does.

    Args:
        code: The exit code.
        line: What is written to stderr, if anything.
    """
    # past sys.stderr, whose lock the main thread may hold
    text = STANDING.erase + f"{line}\n".encode() * bool(line)
    with suppress(OSError):
        os.write(2, text)
    for act in STANDING.last_acts:
        with suppress(Exception):
            act()
    flushing = threading.Thread(target=_flush, daemon=True)
    flushing.start()
    # it would wait for ever where nobody reads what was written
    flushing.join(1.0)
    # sys.exit would end the calling thread alone
    os._exit(code)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):
            stream.flush()


class Signals:
    """SIGINT and SIGTERM as `KeyboardInterrupt` and `Terminated` in the main thread, or else the
    end of the process.

    Args:
        command: The process runs one command, and ends whatever the main thread makes of a signal.
            Else a user's own code may go on after it, and the process is ended only where the main
            thread hears nothing.
    """

    def __init__(self, command: bool) -> None:
        self.command = command
        self.in_order = not command
        """Whether there is anything to put in order on the way out; else the process ends at once.
        """
        self.code: int | None = None
        """The exit code, once the command is done: from then on a signal changes nothing."""
        self._first = 0
        self._attended = 0
        self._before: dict[signal.Signals, Any] = {}
        self._ending = threading.Lock()

    def listen(self) -> None:
        """Begin, in the main thread."""
        global _listening
        ear, self._mouth = socket.socketpair()
        # the interpreter writes each signal's number there at once, even while the main thread is
        # inside a library; it refuses a socket that could block
        self._mouth.setblocking(False)
        signal.set_wakeup_fd(self._mouth.fileno(), warn_on_full_buffer=False)
        for signum in _HOW:
            before = signal.getsignal(signum)
            # ignored as in a job that was started in the background
            if before is not signal.SIG_IGN:
                # Forks get it back. That of a command before it was here says "while starting", and
                # a fork has nothing to say.
                self._before[signum] = signal.SIG_DFL if self.command else before
                signal.signal(signum, self._handle)
        _listening = self
        _forget_in_forks()
        threading.Thread(target=self._wait, args=(ear,), daemon=True, name="signals").start()
        if self.command:
            sys.unraisablehook = self._unraised
            atexit.register(self._finish)  # the first that is registered is the last that is called

    def forget(self) -> None:
        """Put everything back as it was."""
        global _listening
        if _listening is self:
            _listening = None
            signal.set_wakeup_fd(-1)
            for signum, before in self._before.items():
                signal.signal(signum, before)
            # which ends the thread
            self._mouth.close()

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        # the listening thread may have heard of the first signal before this thread has
        again = self._attended > 0
        self._first = self._first or signum
        self._attended += 1
        if self.command and (again or self.code is not None or not self.in_order):
            self._end()
        if signum == signal.SIGTERM:
            raise Terminated
        raise KeyboardInterrupt

    def _unraised(self, error: Any) -> None:
        """End where a signal comes in the middle of what passes no error on, such as `__del__`."""
        if not self._first:
            sys.__unraisablehook__(error)
        elif error.exc_type in (KeyboardInterrupt, Terminated):
            self._end()

    def _wait(self, ear: socket.socket) -> None:
        """Hear what the main thread may not."""
        came = 0
        until = None
        while True:
            # the end of a child, which is a signal too, makes nobody wait longer
            ear.settimeout(until and max(0.01, until - time.monotonic()))
            try:
                byte = ear.recv(1)
            except TimeoutError:
                if self.command or self._attended < came:
                    self._end()
                # every signal has had its handler: the main thread hears, and ends by itself
                until = None
                continue
            if not byte:
                return
            if byte[0] in _HOW:
                self._first = self._first or byte[0]
                if came and (self.command or self._attended < came):
                    self._end()
                came += 1
                until = time.monotonic() + PATIENCE_SECONDS

    def _end(self) -> NoReturn:
        with self._ending:
            if self.code is not None:
                os._exit(self.code)
            end_now(128 + self._first, STANDING.farewell(self._first))

    def _finish(self) -> None:
        """The last moments, in which handlers are not called any more."""
        for signum in self._before:
            signal.signal(signum, signal.SIG_IGN)


_listening: Signals | None = None


@cache
def _forget_in_forks() -> None:
    """Let forked processes, such as a DataLoader's workers, handle signals as if bhfl had never
    listened to them.
    """

    def forget() -> None:
        if _listening:
            _listening.forget()

    os.register_at_fork(after_in_child=forget)


@contextmanager
def ended_in_order(deaf: bool) -> Iterator[None]:
    """Let a signal raise `KeyboardInterrupt` or `Terminated` in the block, so that it can close
    what it has opened.

    Args:
        deaf: The main thread may wait inside a library, where it hears no signal: it has
            `PATIENCE_SECONDS`.
    """
    if _listening:
        before, _listening.in_order = _listening.in_order, True
        try:
            yield
        finally:
            _listening.in_order = before
    # Python lets only the main thread set handlers
    elif threading.current_thread() is not threading.main_thread():
        yield
    elif deaf:
        signals = Signals(command=False)
        signals.listen()
        try:
            yield
        finally:
            signals.forget()
    else:
        # SIGINT raises KeyboardInterrupt by default already
        before_term = signal.signal(signal.SIGTERM, _terminate)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before_term)


def _terminate(signum: int, frame: FrameType | None) -> NoReturn:
    raise Terminated
