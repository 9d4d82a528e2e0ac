"""The runs of a matrix, in their order, and what each is started with."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from bhfl.cli.reading import Layer, nested, read_file
from bhfl.engine.folder import newest_run, read_summary
from bhfl.files import RoundsFile
from bhfl.sweep.matrix import EACH, Matrix
from bhfl.sweep.options import Option

TRIALS = "_tuning"
"""Folder of the runs that tune; names of settings and methods begin with a letter or digit."""


class Cell(NamedTuple):
    """One run of the matrix."""

    setting: str
    method: str
    seed: int


@dataclass(frozen=True)
class Job:
    """One run: of a cell, or a trial.

    Attributes:
        root: Folder of the sweep.
        name: Folder of the run's versions, in `root`.
        config: The method's configuration file.
        options: Those that follow it.
        seed: The seed of everything.
    """

    root: Path
    name: str
    config: str
    options: tuple[Option, ...]
    seed: int

    @property
    def folder(self) -> Path:
        """That holds ``version_N``, and the log."""
        return self.root / self.name

    @property
    def run(self) -> Path | None:
        """The newest run folder with a checkpoint, if any."""
        return newest_run(self.folder)

    @property
    def done(self) -> bool:
        """Whether the newest run has come to its end."""
        return (run := self.run) is not None and read_summary(run) is not None

    @property
    def args(self) -> list[str]:
        """The words that follow ``bhfl``."""
        own = [f"--seed_everything={self.seed}", f"--trainer.default_root_dir={self.root}"]
        words = [option.word for option in self.options]
        return ["fit", f"--config={self.config}", *words, *own, f"--trainer.name={self.name}"]

    @property
    def layers(self) -> list[Layer]:
        """What `args` say, with the places in the matrix for messages."""
        own = [{"seed_everything": self.seed}, nested("trainer.default_root_dir", str(self.root))]
        own += [nested("trainer.name", self.name)]
        return [
            read_file(self.config),
            *(option.layer for option in self.options),
            *map(Layer, own),
        ]

    def rounds(self) -> list[dict[str, Any]]:
        """The rows of its finished rounds."""
        return RoundsFile(run / "rounds.jsonl").read() if (run := self.run) else []


class Plan:
    """What is to be run.

    Args:
        matrix: What is to be run, and how.
        root: Folder of the sweep.
        only: Methods and settings to which the sweep is confined, each where any of its kind is
            named.
    """

    def __init__(self, matrix: Matrix, root: Path, only: Sequence[str] = ()) -> None:
        self.matrix = matrix
        self.root = root
        cells = [
            Cell(s, m, seed)
            for seed, s, m in product(matrix.seeds, matrix.settings, matrix.methods)
        ]
        chosen = [cell for cell in cells if self._within(cell, only)]
        self.cells = sorted(chosen, key=lambda cell: not self._within(cell, matrix.first))

    def _within(self, cell: Cell, names: Sequence[str]) -> bool:
        """Whether `names` select the cell: one of the methods among them, if there are any, and of
        the settings.
        """
        methods = self.matrix.methods.keys() & names
        settings = self.matrix.settings.keys() & names
        return (not methods or cell.method in methods) and (
            not settings or cell.setting in settings
        )

    def job(self, cell: Cell, value: Any = None) -> Job:
        """The run of a cell, with its tuned value where there is one: that trial, if it is one."""
        if (
            (tune := self.matrix.tune)
            and cell.seed in tune.seeds
            and cell.setting == self._tried(cell)
        ):
            return self._trial(cell, value)
        name = "/".join(filter(None, [cell.setting, cell.method, f"seed{cell.seed}"]))
        return self._job(cell, name, value)

    def trials(self, cell: Cell) -> list[dict[Any, Job]]:
        """The runs that tune for a cell by their values, for one seed after the other."""
        if (tune := self.matrix.tune) is None:
            return []
        trials = []
        for seed in tune.seeds:
            one = Cell(self._tried(cell), cell.method, seed)
            trials.append({value: self._trial(one, value) for value in tune.values})
        return trials

    def all_trials(self, cells: Iterable[Cell]) -> dict[str, Job]:
        """The runs that tune for any of some cells, by their names."""
        found: dict[str, Job] = {}
        for cell in cells:
            for of_seed in self.trials(cell):
                found |= {job.name: job for job in of_seed.values()}
        return found

    def _tried(self, cell: Cell) -> str:
        """The setting that the value of a cell is tuned on."""
        assert self.matrix.tune is not None
        return cell.setting if self.matrix.tune.setting == EACH else self.matrix.tune.setting

    def _trial(self, cell: Cell, value: Any) -> Job:
        return self._job(cell, f"{TRIALS}/{self.tuned_for(cell)}/{value}/seed{cell.seed}", value)

    def tuned_for(self, cell: Cell) -> str:
        """All cells of this name take the same tuned value."""
        each = self.matrix.tune is not None and self.matrix.tune.setting == EACH
        return f"{cell.setting}/{cell.method}" if each else cell.method

    def _job(self, cell: Cell, name: str, value: Any) -> Job:
        matrix = self.matrix
        options = [
            *matrix.base,
            *matrix.settings[cell.setting],
            *matrix.methods[cell.method],
            *matrix.typed,
        ]
        if matrix.tune:
            key = matrix.tune.key
            options.append(Option(key, value, Layer(nested(key, value))))
        return Job(self.root, name, matrix.configs[cell.method], tuple(options), cell.seed)
