"""The loggers of a run. Its curves are worth no run: a logger that cannot write is left out, which
is said once.
"""

import re
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning.fabric.loggers import CSVLogger, Logger, TensorBoardLogger

from bhfl.engine.overview import layout, overview
from bhfl.engine.types import Row

EVENTS = re.compile(r"events\.out\.tfevents\.(\d{10})\.(.+)")
"""An event file of TensorBoard: the second in which it was begun, and the rest of its name."""


@dataclass
class Loggers:
    """The loggers of a run.

    Args:
        chosen: The trainer's option: True for TensorBoard and CSV in the run folder, False, or any
            loggers.
        folder: The run folder.
    """

    chosen: bool | Logger | Sequence[Logger]
    folder: Path
    options: Mapping[str, Any] = field(default_factory=dict)
    """What the run is told, by name."""
    active: list[Logger] = field(default_factory=list)
    """Those that still write."""
    _laid_out: bool = False

    def begin(self, history: Sequence[Row], options: Mapping[str, Any]) -> None:
        """Open the loggers, after the rounds of `history`.

        Args:
            history: What is logged already.
            options: What the run is told, by name.
        """
        self.options = options
        self._laid_out = False
        chosen = self.chosen
        if chosen is not True:
            self.active = [chosen] if isinstance(chosen, Logger) else list(chosen or [])
            self.each(self._tell_options)
            return
        step = history[-1]["round"] + 1 if history else None
        self.active = [
            # TensorBoard hides what a process that was killed has written from that step on
            TensorBoardLogger(self.folder, name="", version="", purge_step=step),
            # each row at once, so that a kill loses none
            CSVLogger(self.folder, name="", version="", flush_logs_every_n_steps=1),
        ]
        self.each(lambda logger: self._begin(logger, history))

    def _begin(self, logger: Logger, history: Sequence[Row]) -> None:
        if isinstance(logger, TensorBoardLogger):
            # Lightning begins the event file when the experiment is asked for, so right after this
            sort_before_now(self.folder)
            _ = logger.experiment
        if isinstance(logger, CSVLogger):
            (self.folder / "metrics.csv").unlink(missing_ok=True)
            with warnings.catch_warnings():
                # the folder is ours to share
                warnings.filterwarnings("ignore", message="Experiment logs directory")
                _ = logger.experiment
            # it begins a new file: give it the rounds before
            for row in history:
                logger.log_metrics(scalars(row), step=row["round"])

    def _tell_options(self, logger: Logger) -> None:
        # TensorBoard's comparison of runs wants options and results in one entry, at the end
        if isinstance(logger, TensorBoardLogger):
            return
        # a file of rows, such as Fabric's CSV, has no place for them
        with suppress(NotImplementedError):
            logger.log_hyperparams(dict(self.options))

    def log(self, row: Row) -> None:
        """Write the numbers of a finished round."""
        self.each(lambda logger: self._log(logger, row))

    def _log(self, logger: Logger, row: Row) -> None:
        logger.log_metrics(scalars(row), step=row["round"])
        if isinstance(logger, TensorBoardLogger):
            shown = overview(row)
            logger.log_metrics(shown, step=row["round"])
            # a row without a validation does not name all curves, nor does one before training
            named = row["round"] > 0 and any("accuracy" in tag for tag in shown)
            if not self._laid_out and named:
                self._laid_out = True
                logger.experiment.add_custom_scalars(layout(row))
            # a thread of its own writes: what it still holds would be lost in a kill
            logger.experiment.flush()

    def end(self, metrics: Row, round: int) -> None:
        """Write the metrics of the test, with the options of the run where loggers keep those.

        Args:
            metrics: Their values, by tag.
            round: The last round.
        """

        def write(logger: Logger) -> None:
            if isinstance(logger, TensorBoardLogger):
                logger.log_hyperparams(dict(self.options), dict(metrics), step=round)
            elif metrics:
                logger.log_metrics(scalars(metrics), step=round)

        self.each(write)

    def each(self, action: Callable[[Logger], object]) -> None:
        """Call `action` with every logger; one that fails is left out from then on, with a
        warning.
        """
        for logger in list(self.active):
            try:
                action(logger)
            # of any kind: Lightning and others turn a full disk into errors of their own
            except Exception as error:
                self.active.remove(logger)
                name, reason = type(logger).__name__, self._reason(logger, error)
                warnings.warn(
                    f"{name} is left out from now on: {reason}; rounds.jsonl goes on", stacklevel=3
                )

    def _reason(self, logger: Logger, error: Exception) -> str:
        """What went wrong, in words that name the file where the disk is to blame."""
        causes: list[BaseException] = [error]
        while (before := causes[-1].__cause__ or causes[-1].__context__) and before not in causes:
            causes.append(before)
        refused = next((cause for cause in causes if isinstance(cause, OSError)), None)
        if refused is None:
            return f"{type(error).__name__}: {' '.join(str(error).split())}"
        place = refused.filename or getattr(logger, "log_dir", None) or self.folder
        return f"it cannot write to {place}: {refused.strerror or refused}"

    def close(self) -> None:
        """Flush and close the loggers."""
        self.each(lambda logger: logger.finalize("finished"))
        self.active = []


def sort_before_now(folder: Path) -> None:
    """Name TensorBoard's event files in `folder` so that one that is begun now is read after them.

    TensorBoard reads event files in the order of their names, which begin with the time. Where the
    clock went back, or the last file was begun in this very second, all get the numbers from 0 on
    for a time.
    """
    names = filter(None, (EVENTS.fullmatch(path.name) for path in folder.iterdir()))
    files = sorted(names, key=lambda name: name[0])
    if not files or int(files[-1][1]) < int(time.time()):
        return
    for number, name in enumerate(files):
        (folder / name[0]).rename(folder / f"events.out.tfevents.{number:010d}.{name[2]}")


def scalars(row: Row) -> Row:
    """The metrics of a row: what has a tag and is a number."""
    return {
        tag: value for tag, value in row.items() if "/" in tag and isinstance(value, int | float)
    }
