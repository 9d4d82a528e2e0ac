"""The runs of a sweep as forks of one process that has loaded the libraries, which take a small
run longer than its training.

The process that is forked loads modules and does nothing else: a fork has only the thread that made
it, and one of a process that has computed would wait for ever for the threads that computed there.
The sweep itself has, so the process is another one. It reads one request after the other from its
standard input, a socket to the sweep, and answers each:

- a list of words: fork a run with these arguments, whose standard input and output come with the
  request; the answer is its process id;
- a process id: the answer is the exit code of that run, or null while it is at work.
"""

import gc
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from importlib import import_module
from itertools import count
from subprocess import DEVNULL, Popen, TimeoutExpired
from typing import IO, Any

from bhfl.engine.ending import LostProcessError

SERVER = (sys.executable, "-m", "bhfl.sweep.child")
"""The command that starts the process."""
_LOADED = ("bhfl.cli.federated_cli", "torch.utils.tensorboard", "sklearn.datasets")
"""The modules that load what runs need: commands, the default logger and the default data."""
_MAX_BYTES = 1 << 20
_POLL_SECONDS = 0.02


class ForkServer:
    """The sweep's end of the process that is forked.

    Args:
        lock: A file descriptor that the process and all runs inherit.
    """

    def __init__(self, lock: int) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._numbers = count()
        with theirs:
            self._process = Popen(
                SERVER,
                stdin=theirs.fileno(),
                # what a run writes goes to its log, and is buffered as in a file
                stdout=DEVNULL,
                pass_fds=[lock],
                # in a session of its own Ctrl-C does not reach it
                start_new_session=True,
            )

    def start(self, args: Sequence[str], log: int) -> "Forked":
        """Begin a run.

        Args:
            args: The words that follow ``bhfl``.
            log: The file descriptor for its output.

        Raises:
            LostProcessError: The process that is forked has ended.
        """
        theirs, ours = os.pipe()
        with open(theirs, "rb"), ExitStack() as stack:
            # closed when a signal comes before the answer, which ends a run that is forked by then
            stdin = stack.enter_context(open(ours, "wb"))
            pid = self.ask(list(args), theirs, log)
            stack.pop_all()
            return Forked(self, pid, stdin)

    def ask(self, request: Any, *files: int) -> Any:
        """The answer to a request.

        Args:
            request: The words of a run, or the process id of one.
            files: File descriptors that go with it.

        Raises:
            LostProcessError: The process that is forked has ended.
        """
        number = next(self._numbers)
        try:
            socket.send_fds(self._socket, [json.dumps([number, request]).encode()], files)
            # the answer to an earlier request may wait there, if a signal cut its asker short
            while answer := self._socket.recv(_MAX_BYTES):
                of, value = json.loads(answer)
                if of == number:
                    return value
        except ConnectionError:
            pass
        raise LostProcessError("the process that runs are forked from has ended without a word")

    def close(self) -> None:
        """End the process; its runs go on."""
        self._socket.close()
        self._process.wait()


class Forked:
    """A run that was forked, with as much of `subprocess.Popen` as a sweep needs.

    Args:
        server: What it was forked from.
        pid: Its process id, which no other process has before its exit code is asked for.
        stdin: The other end of its standard input.
    """

    def __init__(self, server: ForkServer, pid: int, stdin: IO[bytes]) -> None:
        self.pid = pid
        self.stdin = stdin
        self._server = server
        self._code: int | None = None

    def poll(self) -> int | None:
        """Its exit code, or the negative number of the signal that ended it; None while it is at
        work.
        """
        if self._code is None:
            self._code = self._server.ask(self.pid)
        return self._code

    def wait(self, timeout: float | None = None) -> int:
        """Wait until it has ended; its exit code.

        Raises:
            TimeoutExpired: It has not ended after `timeout` seconds.
        """
        deadline = time.monotonic() + (float("inf") if timeout is None else timeout)
        while (code := self.poll()) is None:
            if time.monotonic() >= deadline:
                raise TimeoutExpired(f"run {self.pid}", timeout or 0.0)
            time.sleep(_POLL_SECONDS)
        return code

    def terminate(self) -> None:
        """Ask it to end."""
        self._send(signal.SIGTERM)

    def kill(self) -> None:
        """End it by force."""
        self._send(signal.SIGKILL)

    def _send(self, signum: signal.Signals) -> None:
        if self._code is None:
            # it may be gone with the process that it was forked from
            with suppress(ProcessLookupError):
                os.kill(self.pid, signum)


def serve() -> list[str]:
    """Load what a run needs, and fork this process for each run.

    Returns:
        The arguments of a run, in each fork.

    Raises:
        SystemExit: The sweep has gone, or needs no more runs.
    """
    for module in _LOADED:
        import_module(module)
    # a fork that looked for garbage among them would copy all memory that it shares
    gc.freeze()
    sweep = socket.socket(fileno=0)
    while True:
        message, files, _, _ = socket.recv_fds(sweep, _MAX_BYTES, 2)
        if not message:
            raise SystemExit(0)
        number, request = json.loads(message)
        if isinstance(request, int):
            pid, status = os.waitpid(request, os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if pid else None
        else:
            answer = os.fork()
            if answer == 0:
                # from here on 0 is another file, which is not to be closed with the socket
                sweep.detach()
                _become(*files)
                return list(request)
            for file in files:
                os.close(file)
        try:
            sweep.sendall(json.dumps([number, answer]).encode())
        except ConnectionError:
            raise SystemExit(0) from None


def _become(stdin: int, log: int) -> None:
    """Make a fork what it would be if it had been started by itself."""
    # in a session of its own Ctrl-C does not reach it: the sweep ends it in order
    os.setsid()
    for file, number in ((stdin, 0), (log, 1), (log, 2)):
        os.dup2(file, number)
    os.close(stdin)
    os.close(log)
