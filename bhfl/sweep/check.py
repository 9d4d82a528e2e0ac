"""What each run of a sweep is told: configurations are parsed before anything is started, and
compared with what run folders were made with.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bhfl.checks import checked, folder_name
from bhfl.cli.federated_cli import FederatedCLI, trainer_options
from bhfl.cli.reading import ConfigError, Layer
from bhfl.engine.fingerprint import fingerprint
from bhfl.files import read_limited
from bhfl.plain import MAX_BYTES, read_json
from bhfl.report.settings import SEED
from bhfl.settings import MAKE_THE_RUN, Role, Settings
from bhfl.sweep.plan import Job
from bhfl.told import SETTINGS, Told, differences


class Configs:
    """Parses the configurations of jobs.

    Args:
        machine: Whether to refuse also what this machine cannot run, such as an accelerator that it
            lacks.
    """

    def __init__(self, machine: bool) -> None:
        self.machine = machine
        self._parsed: dict[tuple[str, ...], Told] = {}

    def __call__(self, job: Job) -> Told:
        """What the run of a job is told, as ``settings.json`` of its folder will hold it.

        Raises:
            ConfigError: The configuration cannot be used; it lists all problems.
        """
        checked("the name of a run's folder", job.name, folder_name)
        # jobs that differ by seed and name alone are parsed once
        kind = replace(job, name="run", seed=0)
        key = tuple(kind.args)
        if key not in self._parsed:
            self._parsed[key] = _Parsed(kind, self.machine).told
        told = self._parsed[key]
        result = {**told[Role.RESULT.value], SEED: job.seed}
        return {**told, Role.RESULT.value: result}

    def check(self, jobs: Sequence[Job]) -> None:
        """Parse the configurations of all jobs.

        Raises:
            ConfigError: Some cannot be used. Each problem is told once, with the names of the jobs
                that have it.
        """
        found: dict[str, list[str]] = {}
        # all methods on a setting share its problems: they are told once
        for job in jobs:
            try:
                self(job)
            except ConfigError as error:
                for problem in error.problems:
                    found.setdefault(problem, []).append(job.name)
        problems = []
        for problem, names in found.items():
            others = f" and {len(names) - 1} more" if len(names) > 1 else ""
            problems.append(f"{problem} ({names[0]}{others})")
        if problems:
            raise ConfigError(*problems)

    def differences(self, job: Job) -> list[str]:
        """The options that the job's run folder was made with and that are others now, as ``key:
        old -> new``.

        Raises:
            ConfigError: What the run was told cannot be read.
        """
        run = job.run
        # what has no checkpoint is begun anew, with the options of now
        if run is None:
            return []
        told = stored(run / f"{SETTINGS}.json", "move its run folder away")
        return differences(told, self(job), MAKE_THE_RUN)


class _Parsed(FederatedCLI):
    """Parses one run's configuration and builds its data, model and algorithm; nothing is run."""

    def __init__(self, job: Job, machine: bool) -> None:
        self.machine = machine
        super().__init__(job.args, job.layers)

    def _tell_of_no_effect(self, merged: Layer) -> None:
        """Say nothing here: the log of each run says it."""

    def _set_seed(self) -> None:
        """Leave this process's seeds alone."""

    def instantiate_trainer(self, **kwargs: Any) -> Any:
        """Take down what the run is told, and make its trainer if this machine is to run it: a
        trainer asks for its accelerator.
        """
        options = trainer_options(self.config_init[self.subcommand])
        self.told = fingerprint(Settings.of(options), self.datamodule, self.parts()["model"])
        return super().instantiate_trainer(**kwargs) if self.machine else None

    def _run_subcommand(self, subcommand: str) -> None:
        """Run nothing: the configuration is parsed, and that was all."""


def stored(path: Path, remedy: str) -> Mapping[str, Any]:
    """The mapping in a file of JSON, such as what a run was told.

    Args:
        path: The file.
        remedy: What is to be done where it cannot be used.

    Raises:
        ConfigError: The file is missing or damaged, or cannot be read.
    """
    try:
        found = read_json(read_limited(path, MAX_BYTES))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {error}; {remedy}") from error
    if not isinstance(found, dict) or not found:
        raise ConfigError(f"{path} is damaged; {remedy}")
    return found
