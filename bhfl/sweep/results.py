"""Finished runs that are kept apart from run folders, such as in a repository: the small files that
say what a run was told and what came of it, in the folder that the matrix calls ``results``.

A cell or trial whose settings are those of a kept run is finished. Only settings that make the run
count, as `bhfl.settings.MAKE_THE_RUN` has them: where it ran plays no part.
"""

import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bhfl.cli.reading import ConfigError
from bhfl.files import RoundsFile, naming, temporary_beside, walk, write_json
from bhfl.report.reading import Run, read_run
from bhfl.settings import MAKE_THE_RUN
from bhfl.sweep.check import Configs, stored
from bhfl.sweep.defaults import default_of
from bhfl.sweep.plan import Job
from bhfl.tags import CORRECT_JSON
from bhfl.told import SETTINGS, told_of

FILES = (f"{SETTINGS}.json", "rounds.jsonl", CORRECT_JSON, "summary.json")
"""What is kept of a run; some have no file of samples."""
DIVERGED_JSON = "diverged.json"
"""What is kept of a trial that diverged: what it was told."""
_COPY_SECONDS = 600.0
"""A copy of a run's small files takes less."""


class Results:
    """The kept runs of a matrix, and the run folders of what is not kept.

    Args:
        folder: Where runs are kept; None where the matrix keeps none.
        configs: The configurations of jobs.

    Raises:
        ConfigError: A kept run is damaged or not finished; all are named.
    """

    def __init__(self, folder: Path | None, configs: Configs) -> None:
        self.folder = folder
        self.configs = configs
        self._kept: dict[Path, Run] = {}
        self._found: dict[tuple[str, ...], Path | None] = {}
        """The kept run of each job, by what it is started with."""
        problems = []
        for place, _, files in walk(folder, once=True) if folder and folder.exists() else ():
            # a kill may leave a copy that was being made
            if FILES[0] not in files or place.name.startswith("."):
                continue
            run = self._take(place)
            if faults := [*run.faults, *filter(None, [run.missing])]:
                problems.append(f"{run.folder} is no finished run: {'; '.join(faults)}; {_REMEDY}")
        if problems:
            raise ConfigError(*problems)

    def kept(self, job: Job) -> Path | None:
        """The kept run whose settings are those of a job, if there is one."""
        key = tuple(job.args)
        if key not in self._found:
            # its own place comes first
            order = sorted(self._kept, key=lambda path: path != self._place(job))
            told = self.configs(job)
            alike = (path for path in order if not unlike(self._kept[path].told, told))
            self._found[key] = next(alike, None)
        return self._found[key]

    def run(self, job: Job) -> Path | None:
        """The folder of the job's run, kept or not; None where there is none to go on with."""
        return self.kept(job) or job.run

    def done(self, job: Job) -> bool:
        """Whether the job has been run."""
        return self.kept(job) is not None or job.done

    def rounds(self, job: Job) -> list[dict[str, Any]]:
        """The rows of its finished rounds; what was measured before the first is none of them."""
        run = self.run(job)
        rows = RoundsFile(run / "rounds.jsonl").read() if run else []
        return [row for row in rows if row["round"]]

    def changed(self, job: Job) -> str:
        """What is wrong with the run that is kept in the job's place, if it has other settings, or
        with what else is there.
        """
        place = self._place(job)
        there = {path.name for path in place.glob("*")} - {DIVERGED_JSON}
        run = self._kept.get(place)
        if self.folder and run is None and FILES[0] in there:
            # another sweep has kept it since this one began
            run = self._take(place)
        if self.folder and run is None and there:
            return f"{place} is in the way of a run that is to be kept; {_REMEDY}"
        found = unlike(run.told, self.configs(job)) if run else []
        if not found:
            return ""
        return f"{place} keeps a run of other settings: {', '.join(found)}; {_REMEDY}"

    def keep(self, job: Job) -> None:
        """Copy the small files of a finished run to the job's place, all or none; nothing where it
        is kept already.
        """
        run = job.run
        if self.folder is None or run is None or self.kept(job):
            return
        place = self._place(job)
        place.parent.mkdir(parents=True, exist_ok=True)
        for left in place.parent.glob(f".{place.name}.*.tmp"):
            # a kill left it, if it is not the copy that another sweep is just making
            if time.time() - left.stat().st_mtime > _COPY_SECONDS:
                shutil.rmtree(left, ignore_errors=True)
        temporary = temporary_beside(place)
        try:
            with naming(place):
                temporary.mkdir()
                for name in FILES:
                    if (run / name).exists():
                        shutil.copyfile(run / name, temporary / name)
                if (place / DIVERGED_JSON).exists():
                    # with other settings, or the job would not have been run
                    shutil.rmtree(place)
                os.replace(temporary, place)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        self._take(place)

    def diverged(self, job: Job) -> bool:
        """Whether it is written down that a trial of this configuration broke off because too few
        of its clients had usable updates.

        Raises:
            ConfigError: What is written cannot be read.
        """
        for place in dict.fromkeys([job.folder, self._place(job)]):
            path = place / DIVERGED_JSON
            if path.exists():
                told = stored(path, "remove it, and the trial is run again")
                if not unlike(told, self.configs(job)):
                    return True
        return False

    def break_off(self, job: Job) -> None:
        """Write down that a trial has diverged, so that it is not run again."""
        for place in dict.fromkeys([job.folder, self._place(job)]):
            place.mkdir(parents=True, exist_ok=True)
            write_json(place / DIVERGED_JSON, self.configs(job))

    def _take(self, place: Path) -> Run:
        """Count a run as kept."""
        self._found.clear()
        self._kept[place] = read_run(place)
        return self._kept[place]

    def _place(self, job: Job) -> Path:
        """Where the run of a job is kept, and its run folders where none are."""
        return (self.folder or job.root) / job.name


_REMEDY = "move it away, or name another folder by results"


def unlike(kept: Mapping[str, Any], told: Mapping[str, Any]) -> list[str]:
    """The settings that make a kept run another one than a job, as ``key: kept -> now``.

    An option that the kept run does not know, because it is newer, counts as its default. One that
    is not known any more, or not to this version of a library, must be off in the kept run.

    Args:
        kept: What the kept run was told.
        told: What the job is told.
    """
    before = told_of(kept, MAKE_THE_RUN)
    now = told_of(told, MAKE_THE_RUN)
    found = []
    for key in sorted(before.keys() | now.keys()):
        if key not in before:
            same = now[key] == default_of(key, now)
        elif key not in now:
            same = before[key] in (None, False)
        else:
            same = before[key] == now[key]
        if not same:
            old = repr(before[key]) if key in before else "absent"
            new = repr(now[key]) if key in now else "absent"
            found.append(f"{key}: {old} -> {new}")
    return found
