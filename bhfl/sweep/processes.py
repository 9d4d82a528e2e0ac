"""The processes of a sweep: each run is one, and its output is kept beside its folders."""

import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import PIPE, Popen

from bhfl.cli.reading import ConfigError
from bhfl.engine.system import stop
from bhfl.files import claim, queue
from bhfl.sweep.plan import Job

RUN = (sys.executable, "-m", "bhfl.sweep.child")
"""What runs the arguments of a job."""
STOP_SECONDS = 10.0
"""How long a run may take to end in order."""
_LAST_LINES = 8


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
    try:
        sweep = claim(folder / ".sweep.lock", "another sweep is at work here, process {}")
    except BlockingIOError as error:
        raise ConfigError([str(error)]) from None
    with sweep, queue(folder / ".runs.lock") as runs:
        yield runs


class Processes:
    """Runs at work.

    Args:
        lock: A file descriptor that the runs inherit.
    """

    def __init__(self, lock: int) -> None:
        self.lock = lock
        self.running: dict[str, tuple[Job, Popen[bytes]]] = {}

    def start(self, job: Job) -> None:
        """Begin a run, or go on with it; a terminal's Ctrl-C is for the sweep to pass on."""
        job.folder.mkdir(parents=True, exist_ok=True)
        args = [*job.args, *(["--ckpt_path=last"] if job.run else [])]
        with open(log_of(job), "ab") as log:
            log.write(f"$ bhfl {shlex.join(args)}\n".encode())
            log.flush()
            process = Popen(
                [*RUN, *args],
                stdin=PIPE,
                stdout=log,
                stderr=log,
                pass_fds=[self.lock],
                start_new_session=True,
            )
        self.running[job.name] = (job, process)

    def ended(self) -> list[tuple[Job, int]]:
        """The jobs that have ended since the last call, and their exit codes."""
        over = [
            (job, code)
            for job, process in self.running.values()
            if (code := process.poll()) is not None
        ]
        for job, _ in over:
            _close(self.running.pop(job.name)[1])
        return over

    def stop(self) -> None:
        """End all; each has the checkpoint of its last round."""
        processes = [process for _, process in self.running.values()]
        stop(processes, STOP_SECONDS)
        for process in processes:
            _close(process)
        self.running.clear()


def log_of(job: Job) -> Path:
    """Where the output of a job goes."""
    return job.folder / "log.txt"


def account(job: Job, code: int) -> str:
    """What is to be said of a job that failed: how it ended, and its last lines."""
    how = f"was ended by signal {-code}" if code < 0 else f"failed with exit code {code}"
    lines = log_of(job).read_text(encoding="utf-8", errors="replace").splitlines()[-_LAST_LINES:]
    told = [line for line in lines if not line.startswith("$ ")]
    return "\n".join(
        [f"{job.name} {how}; {log_of(job)} ends with", *(f"  {line}" for line in told)]
    )


def _close(process: Popen[bytes]) -> None:
    if process.stdin:
        process.stdin.close()
