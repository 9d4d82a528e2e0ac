"""One run on disk while it is written: its rows, its best round, its checkpoints, its summary."""

import math
import operator
import sys
from collections import ChainMap
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import bhfl
from bhfl.engine import checkpoint
from bhfl.engine.checkpoint import CheckpointError, State
from bhfl.engine.client.store import ClientStore
from bhfl.engine.contents import read_state
from bhfl.engine.environment import environment
from bhfl.engine.folder import (
    CHECKPOINTS,
    CLIENTS,
    LOCK,
    SUMMARY,
    find_link,
    remove_unfinished,
)
from bhfl.engine.history import PackedHistory
from bhfl.engine.loggers import Loggers, scalars
from bhfl.engine.records import Ledger
from bhfl.engine.types import Row, ServerState
from bhfl.files import RoundsFile, claim, write_json
from bhfl.settings import SETTINGS, Settings, Told

MAX_FAILED = 2000
"""Characters that ``summary.json`` keeps of an error."""


class Run:
    """What rank 0 writes. Other processes hold one too, but only its folder and verdicts.

    Args:
        settings: The trainer's settings.
        folder: The run folder, on every process the same.
        writes: Whether this process is rank 0.
    """

    def __init__(self, settings: Settings, folder: Path, writes: bool) -> None:
        self.settings = settings
        self.folder = folder
        self.writes = writes
        self.rows = RoundsFile(folder / "rounds.jsonl")
        self.checkpoints = folder / CHECKPOINTS
        self.store = ClientStore(folder / CLIENTS)
        self.history: list[Row] = []
        self._packed = PackedHistory()
        self.ledger = Ledger()
        self.best: float | None = None
        self.best_round = 0
        self.failed_rounds = 0
        self.seconds = 0.0
        self.loggers = Loggers(settings.output.logger, folder)
        self._claim: IO[bytes] | None = None

    # ---- beginning and resuming ------------------------------------------------------------------

    def state(self, server: ServerState, config: Told) -> State:
        """All that a resumed run needs."""
        return {
            "server": vars(server),
            "run": {
                "history": self._packed.tensor(),
                "ledger": self.ledger.by_group,
                "best": self.best,
                "best_round": self.best_round,
                "failed_rounds": self.failed_rounds,
                "seconds": self.seconds,
            },
            "clients": self.store.table(),
            "config": dict(config),
            "version": bhfl.__version__,
        }

    def restore(self, state: State) -> None:
        """Go on from `state`."""
        run = state["run"]
        self.store = ClientStore(self.store.folder, state["clients"])
        self.history = list(map(_interned, run["history"]))
        self.ledger = Ledger(run["ledger"])
        self.best = run["best"]
        self.best_round = run["best_round"]
        self.failed_rounds = run["failed_rounds"]
        self.seconds = run["seconds"]

    def begin(self, server: ServerState, records: Mapping[str, Any]) -> None:
        """Write the JSON files `records` and open the loggers; what came after the restored round
        is dropped.

        Raises:
            CheckpointError: Another process is training in this folder, or a link lies in it.
        """
        if not self.writes:
            return
        if link := find_link(self.folder):
            raise CheckpointError(
                f"{link} is a symbolic link, and inside a run folder none is followed when "
                "something is written: put what it leads to in its place, or remove it"
            )
        try:
            self._claim = claim(self.folder / LOCK, "process {} is training here")
        except BlockingIOError as error:
            raise CheckpointError(str(error)) from error
        remove_unfinished(self.folder)
        # it tells of an end that is none any more
        (self.folder / SUMMARY).unlink(missing_ok=True)
        self.store.rewind(server.round)
        checkpoint.rewind(self.checkpoints, server.round, read_state)
        for name, value in records.items():
            # the split of many clients is long, and nobody reads it by eye
            indent = None if name == "partition" else 1
            write_json(self.folder / f"{name}.json", value, indent)
        threads = self.settings.machine.threads
        found = environment(records[SETTINGS], threads, server.channels_last)
        write_json(self.folder / "env.json", found)
        self.rows.rewrite(self.history)
        for row in self.history:
            self._packed.append(row)
        told = records[SETTINGS].values()
        self.loggers.begin(self.history, dict(ChainMap(*map(dict, told))))

    # ---- one round -------------------------------------------------------------------------------

    def log(self, row: Row) -> None:
        """Take the row of a finished round: metrics by tag, and what is not a number for
        ``rounds.jsonl`` alone.
        """
        self.history.append(_interned(row))
        if self.writes:
            self.rows.append(row)
            self._packed.append(row)
            self.loggers.log(row)

    def improved(self, row: Row, complete: bool) -> bool:
        """Whether the monitored metric of `row` is the best so far.

        Args:
            row: Metrics of a round.
            complete: Whether clients trained, and the result was validated if that is what logs the
                metric.

        Raises:
            ValueError: It is not logged; the error lists what is.
        """
        monitor = self.settings.choice.monitor
        if monitor not in row:
            if not complete:
                return False
            tags = ", ".join(sorted(scalars(row)))
            raise ValueError(
                f"trainer.monitor must be a logged metric, got {monitor!r}; logged: {tags}"
            )
        value = row[monitor]
        better = operator.gt if self.settings.choice.mode == "max" else operator.lt
        if not math.isfinite(value) or not (self.best is None or better(value, self.best)):
            return False
        self.best = value
        self.best_round = row["round"]
        return True

    @property
    def out_of_patience(self) -> bool:
        """Whether `patience` validations have passed without a better monitored metric."""
        patience = self.settings.stopping.patience
        if patience is None:
            return False
        # rounds count from 1: the row after the best round's has its number as index
        later = self.history[self.best_round :]
        return sum(self.settings.choice.monitor in row for row in later) >= patience

    def save(self, server: ServerState, config: Told, best: bool, last: bool) -> list[int]:
        """Write the checkpoints that are due; the rounds whose checkpoints are kept, the best one's
        too.
        """
        if not self.writes or not (best or last):
            return []
        state = self.state(server, config)
        if best:
            # A kill may leave it later than the newest round's; `rewind` then removes it.
            checkpoint.save(self.checkpoints / "best.ckpt", state)
        if last:
            checkpoint.save(checkpoint.round_path(self.checkpoints, server.round), state)
        kept = checkpoint.prune(self.checkpoints, self.settings.output.keep_checkpoints)
        return [*kept, self.best_round]

    def finish(self, metrics: Mapping[str, float], failed: Exception | None = None) -> None:
        """Write ``summary.json``: what all rounds came to, the metrics of the test first, or with
        what the run failed.

        Args:
            metrics: The metrics of the test; none of a run that failed.
            failed: What ended it before its end.
        """
        last = self.history[-1] if self.history else {"round": 0}
        summary: dict[str, Any] = {
            "metrics": metrics,
            "bytes": self.ledger.by_group,
            "rounds": last["round"],
            "seconds": self.seconds,
            "simulated_seconds": last.get("time/simulated_s"),
            "best": {
                "monitor": self.settings.choice.monitor,
                "value": self.best,
                "round": self.best_round,
            },
        }
        if failed:
            summary["failed"] = f"{type(failed).__name__}: {failed}"[:MAX_FAILED]
        if self.writes:
            write_json(self.folder / SUMMARY, summary)

    def fail(self, error: Exception) -> None:
        """Write what the rounds came to all the same; where that fails too, `error` says more."""
        with suppress(OSError):
            self.finish({}, error)

    def close(self) -> None:
        """Close the loggers, drop what clients came to in a round without an end, and leave the
        folder to others.
        """
        self.loggers.close()
        self.store.drop_all()
        if self._claim:
            self._claim.close()


def _interned(row: Row) -> Row:
    """A row whose tags are one string each, not one a round."""
    return {sys.intern(tag): value for tag, value in row.items()}
