"""The processes of a sweep: each run is one, and its output is kept beside its folders."""

import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import PIPE, Popen

from bhfl.engine.system import stop
from bhfl.files import claim, naming, queue, user_folder
from bhfl.sweep.forks import Forked, ForkServer
from bhfl.sweep.plan import Job

RUN = (sys.executable, "-m", "bhfl.sweep.child")
"""The command that runs the arguments of a job, where runs are not forked."""
FORKS = sys.platform == "linux"
"""Whether runs are forked, which the libraries of other systems do not bear."""
STOP_SECONDS = 10.0
"""The time that a run may take to end in order."""
_LAST_LINES = 8


@contextmanager
def locked(folder: Path) -> Iterator[int]:
    """Keep other sweeps out of a folder. Where a sweep was killed and its runs still go on, wait
    until they have ended.

    Yields:
        A file descriptor for the runs to inherit: while any of them lives, the next sweep waits.

    Raises:
        BlockingIOError: Another sweep is at work there.
        ValueError: The folder cannot be made or written to, naming the file that is in its way.
    """
    user_folder("--root", folder)
    # where the report is written when all runs have ended
    user_folder("--root", folder / "report")
    folder.mkdir(parents=True, exist_ok=True)
    # two locks: a sweep that is killed loses the first at once, and its runs hold the second
    sweep = claim(folder / ".sweep.lock", "another sweep is at work here, process {}")
    with sweep, queue(folder / ".runs.lock") as runs:
        yield runs


Run = Popen[bytes] | Forked


class Processes:
    """The runs that are at work.

    Args:
        lock: A file descriptor that the runs inherit.
    """

    def __init__(self, lock: int) -> None:
        self.lock = lock
        self.running: dict[str, tuple[Job, Run]] = {}
        self._server: ForkServer | None = None
        """What runs are forked from, once there is one to run."""

    def start(self, job: Job) -> None:
        """Begin a run, or go on with one that was cut off."""
        job.folder.mkdir(parents=True, exist_ok=True)
        args = [*job.args, *(["--ckpt_path=last"] if job.run else [])]
        with naming(log_of(job)), open(log_of(job), "ab") as log:
            log.write(f"$ bhfl {shlex.join(args)}\n".encode())
            log.flush()
            self.running[job.name] = job, self._begin(args, log.fileno())
        # the log is open in the run alone from here on

    def _begin(self, args: list[str], log: int) -> Run:
        """A process for the words that follow ``bhfl``, whose output goes to the file `log`."""
        if FORKS:
            self._server = self._server or ForkServer(self.lock)
            return self._server.start(args, log)
        return Popen(
            [*RUN, *args],
            stdin=PIPE,
            stdout=log,
            stderr=log,
            pass_fds=[self.lock],
            # in a session of its own Ctrl-C does not reach it: the sweep ends it in order
            start_new_session=True,
        )

    def ended(self) -> list[tuple[Job, int]]:
        """The jobs that have ended since the last call, and their exit codes."""
        over = []
        for job, process in list(self.running.values()):
            code = process.poll()
            if code is not None:
                over.append((job, code))
                del self.running[job.name]
                _close(process)
        return over

    def stop(self) -> None:
        """End all runs; each has the checkpoint of its last round."""
        processes = [process for _, process in self.running.values()]
        stop(processes, STOP_SECONDS)
        for process in processes:
            _close(process)
        self.running.clear()
        if self._server:
            self._server.close()
            self._server = None


def log_of(job: Job) -> Path:
    """The file that the output of a job goes to."""
    return job.folder / "log.txt"


def account(job: Job, code: int) -> str:
    """What is to be said of a job that failed: how it ended, and its last lines."""
    how = "failed with exit code" if code >= 0 else "was ended by signal"
    log = log_of(job)
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-_LAST_LINES:]
    # the first line is the command, which says nothing of the failure
    told = [f"  {line}" for line in lines if not line.startswith("$ ")]
    return "\n".join([f"{job.name} {how} {abs(code)}; {log} ends with", *told])


def _close(process: Run) -> None:
    if process.stdin:
        process.stdin.close()
