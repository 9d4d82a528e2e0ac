"""The tuned value of each method: the best of its trials on the validation split, kept in
``tuning.json``.
"""

import math
import statistics
from itertools import chain
from typing import Any

from bhfl.cli.reading import ConfigError
from bhfl.files import write_json
from bhfl.sweep.check import stored
from bhfl.sweep.plan import Cell, Job, Plan
from bhfl.sweep.results import Results

Outcomes = dict[Any, dict[str, float | None]]
"""What the trials of each value ended with, by their names; None for one that diverged."""


class Tuning:
    """The values that have been chosen so far, and what the trials came to.

    Args:
        plan: The runs of the sweep.
        results: What trials came to.

    Raises:
        ConfigError: What earlier sweeps have found cannot be read.
    """

    def __init__(self, plan: Plan, results: Results) -> None:
        self.plan = plan
        self.results = results
        self.tune = plan.matrix.tune
        self.path = plan.root / "tuning.json"
        self.chosen: dict[str, Any] = {}
        self.outcomes: dict[str, dict[str, Any]] = {}
        self._before = self._stored()

    def ended(self, job: Job) -> bool:
        """Whether a trial has its outcome."""
        return self.results.done(job) or self.results.diverged(job)

    def settled(self, cell: Cell) -> bool:
        """Whether the cell can be run."""
        return self.tune is None or self.plan.tuned_for(cell) in self.chosen

    def pending(self, cell: Cell) -> list[Job]:
        """The trials that come next for a cell that is not settled; none if all have ended."""
        return [] if self.settled(cell) else self._race(cell)[1]

    def choose(self, cell: Cell) -> str:
        """Choose the value of a cell whose trials have all ended.

        Returns:
            What to say of it; empty if it was chosen before.

        Raises:
            ConfigError: Every trial diverged, or the metric was not logged.
        """
        name = self.plan.tuned_for(cell)
        if self.tune is None or self.settled(cell):
            return ""
        found, _ = self._race(cell)
        means = _means(found)
        tried = [value for value in means if len(found[value]) == len(self.tune.seeds)]
        if not tried:
            raise ConfigError(
                f"{name}: no value of {self.tune.key} can be chosen: every trial diverged"
            )
        best = max(tried, key=means.__getitem__)
        # at the edge of numbers, a value that was not tried may be better; words have no edge
        numbers = [value for value in found if not isinstance(value, str)]
        edge = len(numbers) == len(found) > 2 and best in (min(numbers), max(numbers))
        trials: dict[str, float | None] = {}
        listed = []
        for value, got in found.items():
            trials |= got
            listed.append(f"{value}: {_mean(means.get(value), len(got))}")
        self.chosen[name] = best
        self.outcomes[name] = {"chosen": best, "at_edge": edge, "trials": trials}
        text = f"{name}: {self.tune.key} = {best} by {self.tune.metric} ({', '.join(listed)})"
        return text + _EDGE * edge

    def _race(self, cell: Cell) -> tuple[Outcomes, list[Job]]:
        """The outcomes of each value by trial, and the trials of the next seed that have not ended.

        A value that has diverged with any seed is out of the race from its beginning: no other is
        dropped for trailing it.
        """
        assert self.tune is not None
        of_seeds = self.plan.trials(cell)
        behind = math.inf if self.tune.margin is None else self.tune.margin
        found = {}
        racing = []
        for value in self.tune.values:
            trials = [of_seed[value] for of_seed in of_seeds]
            found[value] = {job.name: self._outcome(job) for job in trials if self.ended(job)}
            if None not in found[value].values():
                racing.append(value)
                # its outcomes count when their turn comes, seed by seed
                found[value] = {}
        for of_seed in of_seeds:
            if left := [of_seed[value] for value in racing if not self.ended(of_seed[value])]:
                return found, left
            for value in racing:
                found[value][of_seed[value].name] = self._outcome(of_seed[value])
            means = _means({value: found[value] for value in racing})
            least = max(means.values(), default=0.0) - behind
            racing = [value for value, mean in means.items() if mean >= least]
        return found, []

    def save(self) -> None:
        """Write what was tried and chosen to ``tuning.json``, beside what a sweep of other methods
        has found.
        """
        if self.tune is None or not self.outcomes:
            return
        # a sweep of --only some methods keeps what was found for others
        outcomes = self._before | self.outcomes
        write_json(self.path, {"tune": self.tune.written(), "outcomes": outcomes})

    def _stored(self) -> dict[str, Any]:
        """What earlier sweeps have found by the same trials."""
        if self.tune is None or not self.path.exists():
            return {}
        remedy = "remove it: a sweep of all methods finds it again from its trials"
        found = stored(self.path, remedy)
        outcomes = found.get("outcomes")
        if not isinstance(outcomes, dict):
            raise ConfigError(f"{self.path} is damaged; {remedy}")
        return outcomes if found.get("tune") == self.tune.written() else {}

    def _outcome(self, job: Job) -> float | None:
        """The metric that a trial ended with; None if it diverged."""
        assert self.tune is not None
        if not self.results.done(job):
            return None
        metric = self.tune.metric
        rows = self.results.rounds(job)
        values = [row[metric] for row in rows if metric in row]
        if not values:
            tags = {*chain.from_iterable(rows)}
            logged = ", ".join(sorted(tag for tag in tags if tag.startswith("val/")))
            raise ConfigError(
                f"tune.metric must be logged, got {metric!r}; {job.name} logged {logged}"
            )
        # a run that came to its end may have diverged all the same
        mean = statistics.fmean(values[-self.tune.last :])
        return mean if math.isfinite(mean) else None


_EDGE = "; it is at the edge of the values tried"


def _means(found: Outcomes) -> dict[Any, float]:
    """The mean outcome of each value that has a trial and of which no trial diverged."""
    means = {}
    for value, got in found.items():
        outcomes = [outcome for outcome in got.values() if outcome is not None]
        if outcomes and len(outcomes) == len(got):
            means[value] = statistics.fmean(outcomes)
    return means


def _mean(mean: float | None, num_seeds: int) -> str:
    if mean is None:
        return "diverged"
    return f"{mean:.4f}{f' over {num_seeds} seeds' * (num_seeds > 1)}"
