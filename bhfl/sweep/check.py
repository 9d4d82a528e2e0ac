"""What each run of a sweep is to be: configurations, parsed before anything is started, and against
run folders.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import yaml

from bhfl.cli.federated_cli import WHERE, FederatedCLI
from bhfl.cli.parser import dumped
from bhfl.cli.reading import ConfigError, read_file
from bhfl.engine.resume import contradictions
from bhfl.sweep.plan import Job

_ELSEWHERE = (
    "accelerator",
    "devices",
    "num_nodes",
    "strategy",
    "timeout_seconds",
    "default_root_dir",
    "name",
)
"""Options of the trainer that say where a run is computed, not what it is."""


class Configs:
    """The configuration of each job, as its run folder will hold it.

    Args:
        machine: Refuse also what this machine cannot run, such as an accelerator that it lacks.
    """

    def __init__(self, machine: bool) -> None:
        self.machine = machine
        self._parsed: dict[tuple[str, ...], dict[str, Any]] = {}

    def __call__(self, job: Job) -> dict[str, Any]:
        """Of `job`; those that differ by seed and name alone are parsed once.

        Raises:
            ConfigError: With the problems of the configuration.
        """
        kind = replace(job, name="run", seed=0)
        key = tuple(kind.args)
        if key not in self._parsed:
            self._parsed[key] = _Parsed(kind, self.machine).values
        config = self._parsed[key]
        own = {"name": job.name, "default_root_dir": str(job.root)}
        return {**config, "seed_everything": job.seed, "trainer": {**config["trainer"], **own}}

    def check(self, jobs: Sequence[Job]) -> None:
        """Parse all `jobs`.

        Raises:
            ConfigError: With the problems of all, each told once, with the names of the jobs that
                have it.
        """
        found: dict[str, list[str]] = {}
        for job in jobs:
            try:
                self(job)
            except ConfigError as error:
                for problem in error.problems:
                    found.setdefault(problem, []).append(job.name)
        if found:
            raise ConfigError([f"{problem} ({_named(names)})" for problem, names in found.items()])

    def differences(self, job: Job) -> list[str]:
        """What the matrix says now and the job's run folder was not made with, as ``key: old ->
        new``.
        """
        run = job.run
        if run is None:
            return []
        stored = read_file(str(run / "config.yaml"), f"the configuration of {run}").values
        return self.compared(stored, job)

    def compared(self, stored: Mapping[str, Any], job: Job) -> list[str]:
        """What differs between a stored configuration and that of `job`, as ``key: old -> new``."""
        return contradictions(_shaping(stored), _shaping(self(job)))


class _Parsed(FederatedCLI):
    """Parses one run's configuration and builds its data, model and algorithm; nothing is run."""

    def __init__(self, job: Job, machine: bool) -> None:
        self.machine = machine
        super().__init__(job.args, job.layers)
        self.values: dict[str, Any] = yaml.safe_load(
            dumped(self._parser("fit"), self.config["fit"])
        )

    def _set_seed(self) -> None:
        """Leave this process's seeds alone."""

    def instantiate_trainer(self, **kwargs: Any) -> Any:
        """Only where this machine is to run it: it asks for its accelerator."""
        return super().instantiate_trainer(**kwargs) if self.machine else None

    def _run_subcommand(self, subcommand: str) -> None:
        """Nothing."""


def _shaping(config: Mapping[str, Any]) -> dict[str, Any]:
    """All of a configuration that its results depend on."""
    trainer = {key: value for key, value in config["trainer"].items() if key not in _ELSEWHERE}
    data = dict(config["data"])
    data["init_args"] = {
        key: value for key, value in data.get("init_args", {}).items() if key not in WHERE
    }
    clients = str(config["clients"])  # as text, because the order of the groups counts
    return {**config, "trainer": trainer, "data": data, "clients": clients}


def _named(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"
