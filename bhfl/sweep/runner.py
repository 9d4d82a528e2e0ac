"""Runs what is missing of a sweep, a few runs at a time."""

from __future__ import annotations

import time

from bhfl.cli.exits import TOO_FEW_CLIENTS
from bhfl.cli.reading import ConfigError
from bhfl.settings import Role
from bhfl.sweep.display import Display
from bhfl.sweep.plan import TRIALS, Cell, Job
from bhfl.sweep.processes import Processes, account
from bhfl.sweep.survey import CUT_OFF, OVER, Survey

_POLL_SECONDS = 0.5


class Runner:
    """Goes on until nothing is left that can be run.

    Args:
        survey: What there is.
        processes: Those of the runs.
        num_jobs: Runs at a time.
    """

    def __init__(self, survey: Survey, processes: Processes, num_jobs: int) -> None:
        self.survey = survey
        self.processes = processes
        self.num_jobs = num_jobs
        self.failed: list[str] = []
        """Names of jobs that failed, and of methods that could not be tuned."""
        states, jobs = survey.states(), survey.jobs()
        self.over = {name for name, state in states.items() if state in OVER}
        length = Role.LENGTH.value
        self.sizes = {job.name: survey.configs(job)[length]["trainer.max_rounds"] for job in jobs}
        self.rounds = {
            job.name: self._rounds(job) for job in jobs if states[job.name] in (*OVER, CUT_OFF)
        }
        survey.tuning.save()
        self.display = Display(sum(self.sizes.values()), sum(self.rounds.values()))

    @property
    def left(self) -> int:
        """Jobs that are not over."""
        return len(self.sizes) - len(self.over)

    def run(self, until: float) -> None:
        """Run what is missing until `until`, as of ``time.monotonic``."""
        try:
            while time.monotonic() < until:
                for job, code in self.processes.ended():
                    self._end(job, code)
                while len(self.processes.running) < self.num_jobs and time.monotonic() < until:
                    if not (next_job := self._next()):
                        break
                    self.processes.start(next_job)
                if not self.processes.running:
                    return
                self.rounds |= {
                    name: self._rounds(job) for name, (job, _) in self.processes.running.items()
                }
                self.display.update(sum(self.rounds.values()))
                time.sleep(_POLL_SECONDS)
        finally:
            self.processes.stop()
            self.display.close()

    def _next(self) -> Job | None:
        """The first job that can be run now."""
        jobs = (job for cell in self.survey.plan.cells for job in self._open(cell))
        return next((job for job in jobs if not self._taken(job.name)), None)

    def _taken(self, name: str) -> bool:
        return name in self.over or name in self.processes.running or name in self.failed

    def _open(self, cell: Cell) -> list[Job]:
        """What a cell needs next: its trials, and then its own run."""
        tuning, name = self.survey.tuning, self.survey.plan.tuned_for(cell)
        if not tuning.settled(cell):
            if name in self.failed:
                return []
            try:
                if pending := tuning.pending(cell, lambda job: job.name in self.over):
                    return pending
                self.display.tell(tuning.choose(cell))
            except ConfigError as error:
                self._fail(name, str(error))
                return []
            self._settle(name)
        return [self.survey.job(cell)]

    def _settle(self, name: str) -> None:
        """Keep a tuned value that was just chosen, and look at the runs of all cells that have
        it.
        """
        self.survey.tuning.save()
        for dropped in self.survey.dropped():
            self._over(dropped)
        for job in (
            self.survey.job(one)
            for one in self.survey.plan.cells
            if self.survey.plan.tuned_for(one) == name
        ):
            if problem := self.survey.changed(job):
                self._fail(job.name, problem)
            elif job.done:
                self._over(job.name)

    def _end(self, job: Job, code: int) -> None:
        """Take note of how a run ended."""
        if code == 0 and job.done:
            self._over(job.name)
            self.display.tell(f"{job.name} done; {self.display.left()}")
        elif code == TOO_FEW_CLIENTS and job.name.startswith(TRIALS):
            self.survey.tuning.break_off(job)
            self._over(job.name)
            self.display.tell(f"{job.name} diverged: it is not chosen")
        else:
            self._fail(job.name, account(job, code))

    def _over(self, name: str) -> None:
        """No round of a job is left to be run."""
        self.over.add(name)
        self.rounds[name] = self.sizes[name]
        self.display.update(sum(self.rounds.values()))

    def _fail(self, name: str, text: str) -> None:
        self.failed.append(name)
        self.display.tell(text)

    def _rounds(self, job: Job) -> int:
        """Finished rounds of a job, for the display: all of them where it is over."""
        return self.sizes[job.name] if job.name in self.over else len(job.rounds())
