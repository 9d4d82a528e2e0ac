"""What ``bhfl sweep`` does with a plan: it lists its runs, or runs what is missing, a few at a
time, and reports.
"""

import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from bhfl.cli.exits import TOO_FEW_CLIENTS, report
from bhfl.cli.reading import ConfigError
from bhfl.engine.ending import STANDING
from bhfl.report.command import write_report
from bhfl.report.reading import TRIALS
from bhfl.settings import Role
from bhfl.sweep import display
from bhfl.sweep.check import Configs
from bhfl.sweep.display import RUNNING, Display, Shown
from bhfl.sweep.plan import Cell, Job, Plan
from bhfl.sweep.processes import Processes, account, locked
from bhfl.sweep.rehearsal import rehearse
from bhfl.sweep.request import Request
from bhfl.sweep.survey import OVER, Survey

ENDING_SECONDS = 20.0
"""What a sweep needs to end: its runs close their files, and the report is written. It is a tenth
of the sweep's minutes if that is less.
"""
_POLL_SECONDS = 0.5


class Runner:
    """Goes on until nothing is left that can be run.

    Args:
        survey: What there is of the sweep.
        processes: The runs that are at work.
        num_jobs: How many runs are at work at a time.
    """

    def __init__(self, survey: Survey, processes: Processes, num_jobs: int) -> None:
        self.survey = survey
        self.processes = processes
        self.num_jobs = num_jobs
        self.failed: list[str] = []
        """Names of jobs that failed, and of methods that could not be tuned."""
        self.sizes: dict[str, int] = {}
        """The rounds that each job is to have."""
        for job in survey.jobs():
            length = survey.configs(job)[Role.LENGTH.value]
            self.sizes[job.name] = length["trainer.max_rounds"]
        self.states: dict[str, str] = {}
        """The state of each job, as `Survey.states` has it."""
        self.over: set[str] = set()
        """Names of jobs that are not run, or not again."""
        self.rounds: dict[str, int] = {}
        """The rounds of each job that are finished, or left out."""
        self._look()
        survey.tuning.save()
        self.display = Display(sum(self.sizes.values()), sum(self.rounds.values()))

    @property
    def left(self) -> int:
        """The number of jobs that are not over."""
        return len(self.sizes) - len(self.over)

    def run(self, until: float) -> None:
        """Run what is missing until `until`, as of ``time.monotonic``."""
        running = self.processes.running
        try:
            # an end comes before a start: it may settle a value that the next run takes
            while time.monotonic() < until:
                for job, code in self.processes.ended():
                    self._end(job, code)
                while len(running) < self.num_jobs and time.monotonic() < until:
                    if not (next_job := self._next()):
                        break
                    self.processes.start(next_job)
                if not running:
                    return
                for job, _ in running.values():
                    self._count(job)
                self._show()
                time.sleep(_POLL_SECONDS)
        finally:
            # out of time, interrupted or failed: no run is left behind
            self.processes.stop()
            self.display.close()

    def _next(self) -> Job | None:
        """The first job that can be run now."""
        for cell in self.survey.plan.cells:
            for job in self._open(cell):
                # a value that was settled just now may be that of a run that is over
                taken = (self.over, self.processes.running, self.failed)
                if not any(job.name in names for names in taken):
                    return job
        return None

    def _open(self, cell: Cell) -> list[Job]:
        """What a cell needs next: its trials, and then its own run."""
        tuning = self.survey.tuning
        name = self.survey.plan.tuned_for(cell)
        if not tuning.settled(cell):
            if name in self.failed:
                return []
            try:
                if pending := tuning.pending(cell):
                    return pending
                self.display.tell(tuning.choose(cell))
            except ConfigError as error:
                self._fail(name, str(error))
                return []
            self._settle(name)
        return [self.survey.job(cell)]

    def _settle(self, name: str) -> None:
        """Keep a tuned value that was just chosen, and look at the runs of cells that take it."""
        self.survey.tuning.save()
        for cell in self.survey.plan.cells:
            if self.survey.plan.tuned_for(cell) == name:
                job = self.survey.job(cell)
                # another value may have been chosen when the run was made
                if problem := self.survey.changed(job):
                    self._fail(job.name, problem)
        self._look()

    def _end(self, job: Job, code: int) -> None:
        """Take note of how a run ended."""
        done = code == 0 and job.done
        # a value too large for training is an outcome of its trial; anywhere else it is a failure
        diverged = code == TOO_FEW_CLIENTS and job.name.startswith(TRIALS)
        if diverged:
            self.survey.results.break_off(job)
        if not done and not diverged:
            self._fail(job.name, account(job, code))
            return
        self._look()
        self._show()
        how = f"done; {self.display.left()}" if done else "diverged: it is not chosen"
        self.display.tell(f"{job.name} {how}")
        # another sweep may have kept another run in its place
        if done and (problem := self.survey.changed(job)):
            self._fail(job.name, problem)

    def _fail(self, name: str, text: str) -> None:
        self.failed.append(name)
        self.display.tell(text)

    def _look(self) -> None:
        """Keep what is finished, see which jobs are over, and how many rounds all of them have."""
        self.survey.keep()
        self.states = self.survey.states()
        self.over = {name for name, state in self.states.items() if state in OVER}
        # a run that was made with other options may have come to its end
        self.over.difference_update(self.failed)
        for job in self.survey.jobs():
            self._count(job)

    def _show(self) -> None:
        """Show how far the sweep and each of its runs is."""
        runs = []
        for name, size in self.sizes.items():
            state = self.states[name]
            if name in self.processes.running:
                state = RUNNING
            elif name in self.failed:
                state = display.FAILED
            runs.append(Shown(name, state, self.rounds[name], size))
        done = sum(self.rounds.values())
        self.display.update(done, runs)
        STANDING.at(
            f"{len(self.processes.running)} of {self.left} runs go on, with {done} of "
            f"{sum(self.sizes.values())} rounds done"
        )

    def _count(self, job: Job) -> None:
        """Count the rounds of a job: all of them where it is over."""
        done = self.sizes[job.name]
        if job.name not in self.over:
            done = len(self.survey.results.rounds(job))
        self.rounds[job.name] = done


def list_runs(plan: Plan) -> int:
    """Print each run with its state; the exit code."""
    survey = Survey(plan, Configs(machine=False))
    rehearse(survey)
    states = survey.states()
    for name, state in states.items():
        print(f"{state:<8}  {plan.root / name}")
    counts = ", ".join(f"{count} {state}" for state, count in Counter(states.values()).items())
    print(f"{len(states)} runs: {counts}")
    return 0


def run_missing(plan: Plan, request: Request, begun: float) -> int:
    """Run what is missing, and report what is finished; the exit code.

    Args:
        plan: The runs.
        request: What the command line asks for.
        begun: When the command began, as of ``time.monotonic``.

    Raises:
        ConfigError: A configuration cannot be used, a run folder was made with another one, or
            another sweep is at work; nothing has been run by then.
    """
    configs = Configs(machine=True)
    # what cannot be run leaves no folder behind
    rehearse(Survey(plan, configs))
    # all is read anew once other sweeps are kept out, as they change it
    with locked(plan.root) as lock:
        survey = Survey(plan, configs)
        runner = Runner(survey, Processes(lock), request.jobs)
        until = begun + 60 * request.minutes - min(ENDING_SECONDS, 6 * request.minutes)
        runner.run(until)
        if runs := survey.finished():
            _report(plan, runs)
        left = f"{runner.left} of {len(runner.sizes)} runs left"
        if runner.left and time.monotonic() >= until:
            print(
                f"stopped after {request.minutes:g} minutes: {left}, {runner.display.left()}; "
                "the same command goes on"
            )
        if runner.failed:
            report(f"failed: {', '.join(runner.failed)}; {left}")
            return 1
        return 0


def _report(plan: Plan, runs: Mapping[Path, str]) -> None:
    """Write the report of the runs that are finished, and print it.

    Raises:
        ConfigError: They have not what the matrix wants to be told.
    """
    out = plan.root / "report"
    asked = plan.report
    # an order may name methods that are still to come
    if len({*runs.values()}) < len(plan.matrix.methods):
        asked = {**asked, "order": None}
    try:
        text = write_report(list(runs), out, names=runs, **asked)
    except ValueError as error:
        # what are options of `bhfl report` are keys here
        raise ConfigError(
            f"no report is written: {str(error).replace('--', 'report.')}; the runs are kept"
        ) from error
    print(f"{text}\n{out / 'report.html'}")
