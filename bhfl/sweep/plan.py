"""The runs of a matrix, in their order, and what each is started with."""

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from itertools import chain, product
from pathlib import Path
from typing import Any, NamedTuple

from bhfl.cli.reading import Layer, read_file
from bhfl.engine.folder import newest_run
from bhfl.report.reading import MARKERS, TRIALS, read_run
from bhfl.sweep.matrix import EACH, Matrix, Option, Tune


class Cell(NamedTuple):
    """One run of the matrix."""

    setting: str
    method: str
    seed: int


@dataclass(frozen=True)
class Job:
    """One run: of a cell, or a trial.

    Attributes:
        root: The folder of the sweep.
        name: The folder of the run's versions, in `root`.
        config: The method's configuration file.
        options: What the matrix and the command line say besides.
        seed: The seed of everything.
    """

    root: Path
    name: str
    config: str
    options: tuple[Option, ...]
    seed: int

    @property
    def folder(self) -> Path:
        """The folder of ``version_N`` and of the log."""
        return self.root / self.name

    @property
    def run(self) -> Path | None:
        """The newest run folder with a checkpoint, if there is one."""
        return newest_run(self.folder)

    @property
    def done(self) -> bool:
        """Whether the newest run has come to its end, and its rows are all there. One that lacks
        some goes on from its last checkpoint, which has them.
        """
        run = self.run
        return run is not None and _is_whole(run, *[_stamp(run / name) for name in MARKERS])

    @property
    def all_options(self) -> list[Option]:
        """What follows the configuration file; the last options are the sweep's to give."""
        return [
            *self.options,
            Option.of("seed_everything", self.seed),
            Option.of("trainer.default_root_dir", str(self.root)),
            Option.of("trainer.name", self.name),
        ]

    @property
    def args(self) -> list[str]:
        """The words that follow ``bhfl``."""
        return ["fit", f"--config={self.config}", *(option.word for option in self.all_options)]

    @property
    def layers(self) -> list[Layer]:
        """What `args` say, with the places in the matrix for messages."""
        return [read_file(self.config), *(option.layer for option in self.all_options)]


@cache
def _is_whole(run: Path, *stamps: tuple[int, ...]) -> bool:
    """Whether a run is finished as a report has it. It is asked at each look at the sweep, and read
    anew where a file has another stamp.
    """
    found = read_run(run)
    return found.finished and not found.faults


def _stamp(path: Path) -> tuple[int, ...]:
    """What changes with a file; nothing where there is none."""
    with suppress(OSError):
        found = path.stat()
        return found.st_mtime_ns, found.st_size
    return ()


class Plan:
    """What is to be run.

    Args:
        matrix: What is to be run, and how.
        root: The folder of the sweep.
        only: Methods and settings to which the sweep is confined; all methods where none of them
            is named, and all settings likewise.
    """

    def __init__(self, matrix: Matrix, root: Path, only: Sequence[str] = ()) -> None:
        self.matrix = matrix
        self.root = root
        # a part of the matrix goes without what is told of the whole
        self.report = matrix.report | dict.fromkeys(("order", "published") if only else ())
        cells = []
        seeds = dict.fromkeys([*matrix.seeds, *chain.from_iterable(matrix.seeds_of.values())])
        # seeds come last: the first results are those of all methods
        for seed, setting, method in product(seeds, matrix.settings, matrix.methods):
            cell = Cell(setting, method, seed)
            has_it = seed in matrix.seeds_of.get(method, matrix.seeds)
            if has_it and self._within(cell, only):
                cells.append(cell)
        self.cells = sorted(cells, key=lambda cell: not self._within(cell, matrix.first))

    def _within(self, cell: Cell, names: Sequence[str]) -> bool:
        """Whether `names` select the cell: one of the methods among them, if there are any, and of
        the settings.
        """
        methods = self.matrix.methods.keys() & names
        settings = self.matrix.settings.keys() & names
        right_method = not methods or cell.method in methods
        return right_method and (not settings or cell.setting in settings)

    def job(self, cell: Cell, value: Any = None) -> Job:
        """The run of a cell.

        Args:
            cell: The cell. It may be a trial too, which is then its run.
            value: The tuned value, where there is one.
        """
        tune = self.matrix.tune
        # a seed of the trials on the setting of the trials was run already
        if tune and cell in self._tried(tune, cell) and not tune.options:
            return self._trial(cell, value)
        name = "/".join(filter(None, [cell.setting, cell.method, f"seed{cell.seed}"]))
        return self._job(cell, name, value)

    def trials(self, cell: Cell) -> list[dict[Any, Job]]:
        """The runs that tune for a cell by their values, for one seed after the other."""
        if (tune := self.matrix.tune) is None:
            return []
        trials = []
        for one in self._tried(tune, cell):
            trials.append({value: self._trial(one, value) for value in tune.values})
        return trials

    def _tried(self, tune: Tune, cell: Cell) -> list[Cell]:
        """What is run with each value to choose that of a cell, for one seed after the other."""
        setting = cell.setting if tune.setting == EACH else tune.setting
        method = tune.like.get(cell.method, cell.method)
        return [Cell(setting, method, seed) for seed in tune.seeds]

    def all_trials(self, cells: Iterable[Cell]) -> dict[str, Job]:
        """The runs that tune for any of some cells, by their names."""
        found: dict[str, Job] = {}
        for cell in cells:
            for of_seed in self.trials(cell):
                found |= {job.name: job for job in of_seed.values()}
        return found

    def _trial(self, cell: Cell, value: Any) -> Job:
        assert self.matrix.tune is not None
        name = f"{TRIALS}/{self.tuned_for(cell)}/{value}/seed{cell.seed}"
        return self._job(cell, name, value, self.matrix.tune.options)

    def tuned_for(self, cell: Cell) -> str:
        """The name that all cells have in common which take the same tuned value."""
        if (tune := self.matrix.tune) is None:
            return cell.method
        method = tune.like.get(cell.method, cell.method)
        return f"{cell.setting}/{method}" if tune.setting == EACH else method

    def _job(self, cell: Cell, name: str, value: Any, more: Sequence[Option] = ()) -> Job:
        matrix = self.matrix
        options = [
            *matrix.base,
            *matrix.settings[cell.setting],
            *matrix.methods[cell.method],
            *matrix.typed,
            *more,
        ]
        # the last one wins
        if matrix.tune:
            options.append(Option.of(matrix.tune.key, value))
        return Job(self.root, name, matrix.configs[cell.method], tuple(options), cell.seed)
