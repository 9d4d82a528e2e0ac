"""What there is of a sweep: the state of each of its jobs, as its run folder shows it."""

from collections.abc import Sequence
from contextlib import suppress
from itertools import product
from pathlib import Path

from bhfl.cli.reading import ConfigError
from bhfl.sweep.check import Configs
from bhfl.sweep.plan import Cell, Job, Plan
from bhfl.sweep.results import Results
from bhfl.sweep.tuning import Tuning

DONE = "done"
CUT_OFF = "cut off"
MISSING = "missing"
DIVERGED = "diverged"
UNTUNED = "untuned"
DROPPED = "dropped"
OVER = (DONE, DIVERGED, DROPPED)
"""States of jobs that are not run, or not again."""


class Survey:
    """The jobs of a plan and their run folders.

    Args:
        plan: What is to be run.
        configs: The configurations of its jobs.

    Raises:
        ConfigError: Some configurations cannot be used, or some run folders were made with others;
            it lists all of them.
    """

    def __init__(self, plan: Plan, configs: Configs) -> None:
        self.plan = plan
        self.configs = configs
        self.results = Results(plan.matrix.results, configs)
        self.tuning = Tuning(plan, self.results)
        self.trials = list(plan.all_trials(plan.cells).values())
        configs.check([*self.trials, *map(self.job, plan.cells)])
        # trials first: what is chosen by them decides what the runs should be
        self._refuse_changed(self.trials)
        for cell in plan.cells:
            # where nothing can be chosen, the other methods are run nevertheless
            with suppress(ConfigError):
                if not self.tuning.pending(cell):
                    self.tuning.choose(cell)
        self._refuse_changed(list(map(self.job, self.settled)))

    @property
    def settled(self) -> list[Cell]:
        """The cells that can be run."""
        return list(filter(self.tuning.settled, self.plan.cells))

    def job(self, cell: Cell) -> Job:
        """The run of a cell, with its tuned value, or the first one that is tried where none is
        chosen yet.
        """
        tune = self.plan.matrix.tune
        first = tune.values[0] if tune else None
        return self.plan.job(cell, self.tuning.chosen.get(self.plan.tuned_for(cell), first))

    def jobs(self) -> list[Job]:
        """All jobs, trials first."""
        found = {job.name: job for job in (*self.trials, *map(self.job, self.plan.cells))}
        return list(found.values())

    def states(self) -> dict[str, str]:
        """The state of each job, by its name."""
        settled = self.settled
        states = {job.name: self._state(job) for job in self.trials}
        # the trials that a settled value did without are never run
        for name in self.plan.all_trials(settled):
            if states[name] not in OVER:
                states[name] = DROPPED
        for cell in self.plan.cells:
            job = self.job(cell)
            if cell in settled:
                states[job.name] = self._state(job)
            else:
                states.setdefault(job.name, UNTUNED)
        return states

    def finished(self) -> dict[Path, str]:
        """The run folders of the cells that are done and their methods, in the order of the
        matrix.
        """
        matrix = self.plan.matrix
        order = list(product(matrix.settings, matrix.methods))
        found = {}
        for cell in sorted(self.settled, key=lambda cell: order.index((cell.setting, cell.method))):
            job = self.job(cell)
            if self.results.done(job) and (run := self.results.run(job)):
                found[run] = cell.method
        return found

    def keep(self) -> None:
        """Keep what is finished among the results, where the matrix has such."""
        for job in (*self.trials, *map(self.job, self.settled)):
            if job.done and not self.changed(job):
                self.results.keep(job)

    def changed(self, job: Job) -> str:
        """What is wrong with the run folder of a job, or with what is kept in its place, if it was
        made with other options.
        """
        if self.results.kept(job):
            return ""
        if problem := self.results.changed(job):
            return problem
        try:
            self.results.diverged(job)
            found = self.configs.differences(job)
        except ConfigError as error:
            return "; ".join(error.problems)
        if not found:
            return ""
        return (
            f"{job.run} was made with other options: {', '.join(found)}; move it away, or give the "
            "matrix another name"
        )

    def _refuse_changed(self, jobs: Sequence[Job]) -> None:
        if problems := list(filter(None, map(self.changed, jobs))):
            raise ConfigError(*problems)

    def _state(self, job: Job) -> str:
        """The state of a job, apart from what is chosen."""
        if self.results.done(job):
            return DONE
        if self.results.diverged(job):
            return DIVERGED
        return CUT_OFF if job.run else MISSING
