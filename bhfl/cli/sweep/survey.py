"""What there is of a sweep, and what there is not."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from bhfl.cli.reading import ConfigError
from bhfl.cli.sweep.check import Configs
from bhfl.cli.sweep.plan import Cell, Job, Plan
from bhfl.cli.sweep.tuning import Tuning

DONE, CUT_OFF, MISSING, DIVERGED, UNTUNED = "done", "cut off", "missing", "diverged", "untuned"


class Survey:
    """The jobs of a plan against their run folders.

    Args:
        plan: What is to be run.
        configs: The configurations of its jobs.

    Raises:
        ConfigError: With all configurations that cannot be used, or all run folders that were made with others.
    """

    def __init__(self, plan: Plan, configs: Configs) -> None:
        self.plan, self.configs, self.tuning = plan, configs, Tuning(plan, configs)
        self.trials = list({job.name: job for cell in plan.cells for job in plan.trials(cell)}.values())
        configs.check([*self.trials, *map(self.job, plan.cells)])
        self._refuse_changed(self.trials)
        for cell in plan.cells:
            if not self.tuning.pending(cell):
                with suppress(ConfigError):  # nothing to choose from is no reason not to run the others
                    self.tuning.choose(cell)
        self._refuse_changed([self.job(cell) for cell in plan.cells if self.tuning.settled(cell)])

    def job(self, cell: Cell) -> Job:
        """The run of a cell, with its tuned value, or the first one that is tried where none is chosen yet."""
        tune = self.plan.matrix.tune
        first = tune.values[0] if tune else None
        return self.plan.job(cell, self.tuning.chosen.get(self.plan.tuned_for(cell), first))

    def jobs(self) -> list[Job]:
        """All jobs, trials first."""
        return [*self.trials, *map(self.job, self.plan.cells)]

    def states(self) -> dict[str, str]:
        """The state of each job, by its name."""
        states = {job.name: DIVERGED if self.tuning.diverged(job) else _state(job) for job in self.trials}
        for cell in self.plan.cells:
            job = self.job(cell)
            states[job.name] = _state(job) if self.tuning.settled(cell) else UNTUNED
        return states

    def finished(self) -> dict[Path, str]:
        """The run folders of the cells that are done and their methods, in the order of the matrix."""
        settings, methods = list(self.plan.matrix.settings), list(self.plan.matrix.methods)
        cells = sorted(self.plan.cells, key=lambda cell: (settings.index(cell.setting), methods.index(cell.method)))
        jobs = [(self.job(cell), cell.method) for cell in cells if self.tuning.settled(cell)]
        return {job.run: method for job, method in jobs if job.done and job.run}

    def changed(self, job: Job) -> str:
        """What is wrong with the run folder of a job, if it was made with other options."""
        found = self.configs.differences(job)
        remedy = "move it away, or give the matrix another name"
        return f"{job.run} was made with other options: {', '.join(found)}; {remedy}" if found else ""

    def _refuse_changed(self, jobs: Sequence[Job]) -> None:
        problems = [problem for job in jobs if (problem := self.changed(job))]
        if problems:
            raise ConfigError(problems)


def _state(job: Job) -> str:
    return DONE if job.done else CUT_OFF if job.run else MISSING
