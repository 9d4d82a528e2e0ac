"""What there is of a sweep, and what there is not."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from bhfl.cli.reading import ConfigError
from bhfl.sweep.check import Configs
from bhfl.sweep.plan import Cell, Job, Plan
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
    """The jobs of a plan against their run folders.

    Args:
        plan: What is to be run.
        configs: The configurations of its jobs.

    Raises:
        ConfigError: With all configurations that cannot be used, or all run folders that were made
            with others.
    """

    def __init__(self, plan: Plan, configs: Configs) -> None:
        self.plan = plan
        self.configs = configs
        self.tuning = Tuning(plan, configs)
        self.trials = list(plan.all_trials(plan.cells).values())
        configs.check([*self.trials, *map(self.job, plan.cells)])
        self._refuse_changed(self.trials)
        for cell in plan.cells:
            with suppress(ConfigError):  # nothing to choose from is no reason not to run the others
                if not self.tuning.pending(cell, self.tuning.ended):
                    self.tuning.choose(cell)
        self._refuse_changed([self.job(cell) for cell in plan.cells if self.tuning.settled(cell)])

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
        states = {
            job.name: DIVERGED if self.tuning.diverged(job) else _state(job) for job in self.trials
        }
        states |= dict.fromkeys(self.dropped(), DROPPED)
        for cell in self.plan.cells:
            job = self.job(cell)
            if self.tuning.settled(cell):
                states[job.name] = _state(job)
            else:
                states.setdefault(job.name, UNTUNED)
        return states

    def dropped(self) -> list[str]:
        """The names of trials that are not run, as their values are out of the race."""
        settled = filter(self.tuning.settled, self.plan.cells)
        trials = self.plan.all_trials(settled)
        return [name for name, job in trials.items() if not self.tuning.ended(job)]

    def finished(self) -> dict[Path, str]:
        """The run folders of the cells that are done and their methods, in the order of the
        matrix.
        """
        settings = list(self.plan.matrix.settings)
        methods = list(self.plan.matrix.methods)

        def place(cell: Cell) -> tuple[int, int]:
            return settings.index(cell.setting), methods.index(cell.method)

        found = {}
        for cell in sorted(filter(self.tuning.settled, self.plan.cells), key=place):
            job = self.job(cell)
            if job.done and job.run:
                found[job.run] = cell.method
        return found

    def changed(self, job: Job) -> str:
        """What is wrong with the run folder of a job, if it was made with other options."""
        found = self.configs.differences(job)
        remedy = "move it away, or give the matrix another name"
        return (
            f"{job.run} was made with other options: {', '.join(found)}; {remedy}" if found else ""
        )

    def _refuse_changed(self, jobs: Sequence[Job]) -> None:
        problems = [problem for job in jobs if (problem := self.changed(job))]
        if problems:
            raise ConfigError(problems)


def _state(job: Job) -> str:
    if job.done:
        return DONE
    return CUT_OFF if job.run else MISSING
