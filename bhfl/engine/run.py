"""One run on disk while it is written: its rows, its best round, its checkpoints, its summary."""

import sys
import warnings
from collections import ChainMap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import bhfl
from bhfl.engine import checkpoint
from bhfl.engine.best import ALL, Best, checkpoint_name, told, waited
from bhfl.engine.checkpoint import CheckpointError, State
from bhfl.engine.client.store import ClientStore
from bhfl.engine.contents import read_state
from bhfl.engine.correct import packed
from bhfl.engine.environment import environment
from bhfl.engine.folder import (
    CHECKPOINTS,
    CLIENTS,
    LOCK,
    REFERENCES,
    SUMMARY,
    find_link,
    remove_unfinished,
)
from bhfl.engine.history import PackedHistory
from bhfl.engine.loggers import Loggers
from bhfl.engine.per_client import COLUMNS
from bhfl.engine.records import Ledger
from bhfl.engine.references import References
from bhfl.engine.types import Row, ServerState
from bhfl.files import RoundsFile, TableFile, claim, write_json
from bhfl.files.lines import number_of
from bhfl.settings import Settings
from bhfl.tags import CLIENTS_CSV, CORRECT_JSON, STATUSES
from bhfl.told import SETTINGS, Told

MAX_FAILED = 2000
"""Characters that ``summary.json`` keeps of an error."""


class Run:
    """What rank 0 writes. Other processes hold one too, but only its folder and verdicts.

    Args:
        settings: The trainer's settings.
        folder: The run folder, on every process the same.
        writes: Whether this process is rank 0.
        bests: What is looked for, see `bhfl.engine.best.watched`.
    """

    def __init__(
        self, settings: Settings, folder: Path, writes: bool, bests: Mapping[str, Best]
    ) -> None:
        self.settings = settings
        self.bests = dict(bests)
        """The best rounds so far, by bit group; `bhfl.engine.best.ALL` is the monitored metric's.
        """
        self.folder = folder
        self.writes = writes
        self.rows = RoundsFile(folder / "rounds.jsonl")
        self.checkpoints = folder / CHECKPOINTS
        self.store = ClientStore(folder / CLIENTS)
        self.references = References(folder / REFERENCES)
        self.clients = TableFile(folder / CLIENTS_CSV, COLUMNS)
        self.first: Row = {}
        """What validation before the first round gave; empty where there was none. It is no part of
        the history, which schedules, algorithms, patience and the best round go by.
        """
        self.history: list[Row] = []
        self._packed = PackedHistory()
        self.ledger = Ledger()
        self.stopped = False
        """Whether a callback has asked for the end after the last round."""
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
                "first": self.first,
                "history": self._packed.tensor(),
                "ledger": self.ledger.by_group,
                "bests": {
                    group: {"value": best.value, "round": best.round}
                    for group, best in self.bests.items()
                },
                "stopped": self.stopped,
                "failed_rounds": self.failed_rounds,
                "seconds": self.seconds,
            },
            "clients": self.store.table(),
            "references": self.references.table(),
            "config": dict(config),
            "version": bhfl.__version__,
        }

    def restore(self, state: State) -> None:
        """Go on from `state`.

        Raises:
            CheckpointError: It tells of the best rounds of other bit groups.
        """
        run = state["run"]
        if run["bests"].keys() != self.bests.keys():
            raise CheckpointError(
                f"the checkpoint has best rounds of {list(run['bests'])}, got {list(self.bests)}"
            )
        self.store = ClientStore(self.store.folder, state["clients"])
        self.references = References(self.references.folder, state["references"])
        self.first = run["first"]
        self.history = list(map(_interned, run["history"]))
        self.ledger = Ledger(run["ledger"])
        for group, found in run["bests"].items():
            self.bests[group] = replace(self.bests[group], **found)
        self.stopped = run["stopped"]
        self.failed_rounds = run["failed_rounds"]
        self.seconds = run["seconds"]

    def begin(self, server: ServerState, records: Mapping[str, Any]) -> None:
        """Write the JSON files `records` and open the loggers; what came after the restored round
        is dropped.

        Raises:
            CheckpointError: Another process is training in this folder, or a link lies in it, or a
                folder in the place of a checkpoint.
        """
        if not self.writes:
            return
        if link := find_link(self.folder):
            raise CheckpointError(
                f"{link} is a symbolic link, and inside a run folder none is followed when "
                "something is written: put what it leads to in its place, or remove it"
            )
        for place in filter(Path.is_dir, self.checkpoints.glob("*.ckpt")):
            raise CheckpointError(
                f"{place} is a folder, where the run would write a checkpoint: move it away"
            )
        try:
            self._claim = claim(self.folder / LOCK, "process {} is training here")
        except BlockingIOError as error:
            raise CheckpointError(str(error)) from error
        remove_unfinished(self.folder)
        # it tells of an end that is none any more
        (self.folder / SUMMARY).unlink(missing_ok=True)
        (self.folder / CORRECT_JSON).unlink(missing_ok=True)
        # first: a kill in between leaves no checkpoint without what its clients keep
        checkpoint.rewind(self.checkpoints, server.round, read_state)
        self.store.rewind(server.round)
        self.references.rewind(server.round)
        # a kill may have come before the last round's were
        self.prune(self.store.known.keys() | self.references.known.keys())
        for name, value in records.items():
            # the split of many clients is long, and nobody reads it by eye
            indent = None if name == "partition" else 1
            write_json(self.folder / f"{name}.json", value, indent)
        threads = self.settings.machine.threads
        found = environment(records[SETTINGS], threads, server.channels_last)
        write_json(self.folder / "env.json", found)
        logged = [*filter(None, [self.first]), *self.history]
        self.rows.rewrite(logged)
        self._rewind_clients(server.round)
        for row in self.history:
            self._packed.append(row)
        options = records[SETTINGS].values()
        self.loggers.begin(logged, dict(ChainMap(*map(dict, options))))

    def _rewind_clients(self, round: int) -> None:
        """Drop the clients' rows of later rounds, and of a test that is no end any more."""
        left = self.clients.cut(
            lambda row: row["stage"] == "train" and 0 < number_of(row["round"]) <= round
        )
        # a row of the history counts what became of each client
        known = 0
        for row in self.history:
            known += int(sum(row.get(f"clients/{status}", 0) for status in STATUSES))
        if left < known:
            warnings.warn(
                f"{self.clients.path} has {left} of the {known} rows of rounds 1 to {round}: it "
                "was damaged, or this is another folder",
                stacklevel=2,
            )

    # ---- one round -------------------------------------------------------------------------------

    def log_first(self, measured: Row) -> None:
        """Take what validation before the first round gave, if it gave anything."""
        if not measured:
            return
        self.first = {"round": 0, **measured}
        if self.writes:
            self.rows.append(self.first)
            self.loggers.log(self.first)

    def log(self, row: Row) -> None:
        """Take the row of a finished round: metrics by tag, and what is not a number for
        ``rounds.jsonl`` alone.
        """
        self.history.append(_interned(row))
        if self.writes:
            self.rows.append(row)
            self._packed.append(row)
            self.loggers.log(row)

    def log_clients(self, rows: Iterable[Row]) -> None:
        """Take rows of ``clients.csv``, see `bhfl.engine.per_client`."""
        if self.writes:
            self.clients.append(list(rows))

    def log_correct(self, groups: Mapping[str, Sequence[str]]) -> None:
        """Write which test samples the models were right about, where they say so, see `packed`."""
        if self.writes and groups:
            write_json(self.folder / CORRECT_JSON, packed(groups), indent=None)

    def improved(self, row: Row) -> list[str]:
        """The bit groups whose monitored metric in `row`, of a round, is the best so far, `ALL`
        among them.
        """
        found = []
        for group, best in self.bests.items():
            self.bests[group] = best.after(row, self.settings.choice.mode)
            if self.bests[group] is not best:
                found.append(group)
        return found

    @property
    def best(self) -> float | None:
        """The best value of the monitored metric; None where it never had one."""
        return self.bests[ALL].value

    @property
    def best_round(self) -> int:
        """The round of that value, from 1; 0 where there is none."""
        return self.bests[ALL].round

    @property
    def out_of_patience(self) -> bool:
        """Whether `patience` validations have passed in which no metric that is looked at became
        better.
        """
        stopping = self.settings.stopping
        if stopping.patience is None:
            return False
        mode = self.settings.choice.mode
        return all(
            waited(self.history, best.monitor, mode, stopping.min_delta) >= stopping.patience
            for best in self.bests.values()
        )

    def save(
        self, server: ServerState, config: Told, best: list[str], last: bool, clients: list[int]
    ) -> None:
        """Write the checkpoints that are due, and drop what none of them can ask for.

        Args:
            server: The state after the round.
            config: What the run was told.
            best: The bit groups that have not had a better round, see `improved`.
            last: Whether the round's own checkpoint is due.
            clients: Those of the round.
        """
        if not self.writes or not (best or last):
            return
        state = self.state(server, config)
        for group in best:
            # A kill may leave it later than the newest round's; `rewind` then removes it.
            checkpoint.save(self.checkpoints / checkpoint_name(group), state)
        if last:
            checkpoint.save(checkpoint.round_path(self.checkpoints, server.round), state)
        self.prune(clients)

    def prune(self, clients: Iterable[int]) -> None:
        """Drop checkpoints that are too many, and what of these clients none of the others can ask
        for.
        """
        kept = checkpoint.prune(self.checkpoints, self.settings.output.keep_checkpoints)
        kept += [best.round for best in self.bests.values()]
        for client in clients:
            self.store.prune(client, kept)
            self.references.prune(client, kept)

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
            **told(self.bests),
        }
        if anew := sum(int(row.get("clients/anew", 0)) for row in self.history):
            summary["begun_anew"] = anew
        if failed:
            summary["failed"] = f"{type(failed).__name__}: {failed}"[:MAX_FAILED]
        if self.writes:
            write_json(self.folder / SUMMARY, summary)

    def close(self) -> None:
        """Close the loggers, drop what clients came to in a round without an end, and leave the
        folder to others.
        """
        self.loggers.close()
        self.store.drop_all()
        self.references.drop_all()
        if self._claim:
            self._claim.close()


def _interned(row: Row) -> Row:
    """A row whose tags are one string each, not one a round."""
    return {sys.intern(tag): value for tag, value in row.items()}
