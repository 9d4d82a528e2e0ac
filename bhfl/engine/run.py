"""One run on disk: its folder, its loggers, its checkpoints, and where a resumed one goes on."""

from __future__ import annotations

import json
import math
import platform
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import is_dataclass
from pathlib import Path
from typing import IO, Any

import torch
from lightning.fabric.loggers import CSVLogger, Logger, TensorBoardLogger

import bhfl
from bhfl.engine import checkpoint
from bhfl.engine.checkpoint import CheckpointError
from bhfl.engine.folder import RoundsFile, claim, newest_run, write_json
from bhfl.engine.records import Ledger
from bhfl.engine.server_optimizer import describe
from bhfl.engine.settings import FREE
from bhfl.engine.types import ServerState

CLIENTS = "clients"
"""Folder of a run folder: what its clients keep between rounds."""


def find_checkpoint(path: str | Path, root: Path) -> tuple[Path | None, dict[str, Any]]:
    """The run folder (None for a file outside any) and the state that `path` means.

    Args:
        path: A checkpoint file, a run folder, ``last`` or ``best`` of the newest run under `root`.
        root: ``<default_root_dir>/<name>``.

    Raises:
        CheckpointError: There is none, or it is unusable.
    """
    if not str(path).strip():
        raise CheckpointError(f"ckpt_path must be last, best, a run folder or a file, got {str(path)!r}")
    if str(path) in ("last", "best"):
        folder = root if (root / "checkpoints").is_dir() else newest_run(root)
        if folder is None:
            raise CheckpointError(f"ckpt_path: {path}: no run with a checkpoint under {root}")
        return folder, _load(folder, str(path))
    if "://" in str(path):
        raise CheckpointError(f"ckpt_path must be a local path, got {path}")
    path = Path(path)
    if path.is_dir():
        return path, _load(path, "last")
    folder = path.parent.parent if path.parent.name == "checkpoints" else None
    return folder, checkpoint.load(path)


def need_clients(folder: Path | None, state: Mapping[str, Any]) -> None:
    """Make sure that what the clients of a checkpoint's run keep is there too.

    Args:
        folder: The run folder, None for a checkpoint file outside any.
        state: Of the checkpoint.

    Raises:
        CheckpointError: It is not.
    """
    if state["clients_keep_state"] and not (folder and (folder / CLIENTS).is_dir()):
        place = f"there is no {folder / CLIENTS}" if folder else "the file lies in no run folder"
        raise CheckpointError(f"clients of this run keep state of their own, which the checkpoint lacks: {place}")


def warn_of_known(folder: Path, partition: Mapping[str, Any]) -> None:
    """Warn if a run's clients were trained on what now is to be validation samples, because its data were split else.

    Args:
        folder: The run folder.
        partition: The record of the split of now.
    """
    stored = folder / "partition.json"
    if not stored.exists():
        return
    try:
        trained = {index for part in json.loads(stored.read_text())["clients"] for index in part}
    except (ValueError, TypeError, KeyError):
        warnings.warn(f"{stored} cannot be read: who was trained on which samples is not known", stacklevel=2)
        return
    held = [*partition.get("val", ()), *(index for part in partition.get("client_val", ()) for index in part)]
    if known := sum(index in trained for index in held):
        warnings.warn(
            f"{known} of {len(held)} validation samples were trained on in {folder}, if its data are the same: they "
            "were split in another way; compare the options of the data, the fleet and the seed",
            stacklevel=2,
        )


def _load(folder: Path, which: str) -> dict[str, Any]:
    checkpoints = folder / "checkpoints"
    if which == "last":
        return checkpoint.load_last(checkpoints)
    if not (checkpoints / "best.ckpt").exists():
        why = "its best round is not kept, or the monitored metric has had no value"
        raise CheckpointError(f"{folder} has no best model: {why}; use last")
    return checkpoint.load(checkpoints / "best.ckpt")


class Run:
    """What rank 0 writes. Other processes hold one too, but only its folder and verdicts.

    Args:
        options: Of the trainer.
        folder: The run folder, on every process the same.
        writes: Whether this process is rank 0.
    """

    def __init__(self, options: Mapping[str, Any], folder: Path, writes: bool) -> None:
        self.options, self.folder, self.writes = options, folder, writes
        self.rows = RoundsFile(folder / "rounds.jsonl")
        self.checkpoints = folder / "checkpoints"
        self.clients = folder / CLIENTS
        self.history: list[dict[str, Any]] = []
        self.ledger = Ledger()
        self.best: float | None = None
        self.best_round = 0
        self.failed_rounds = 0
        self.seconds = 0.0
        self.loggers: list[Logger] = []
        self._claim: IO[str] | None = None

    # ---- beginning and resuming -------------------------------------------------------------------------------

    def state(self, server: ServerState, config: Mapping[str, Any]) -> dict[str, Any]:
        """All that a resumed run needs."""
        return {
            "server": vars(server),
            "run": {
                "history": json.dumps(self.history), "ledger": self.ledger.by_group, "best": self.best,
                "best_round": self.best_round, "failed_rounds": self.failed_rounds, "seconds": self.seconds,
            },
            "clients_keep_state": self.clients.is_dir(),
            "config": dict(config),
            "threads": torch.get_num_threads(),
            "version": bhfl.__version__,
        }  # fmt: skip

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`."""
        run = state["run"]
        self.history = json.loads(run["history"])
        self.ledger = Ledger(run["ledger"])
        self.best, self.best_round = run["best"], run["best_round"]
        self.failed_rounds, self.seconds = run["failed_rounds"], run["seconds"]
        if state["threads"] != self.options["threads"]:
            warnings.warn(
                f"the run was computed with threads: {state['threads']}, now {self.options['threads']}: "
                "the last bits of its results will differ",
                stacklevel=2,
            )

    def begin(self, server: ServerState, records: Mapping[str, Any]) -> None:
        """Write the JSON files `records` and open the loggers; what came after the restored round is dropped.

        Raises:
            CheckpointError: Another process is training in this folder.
        """
        if not self.writes:
            return
        try:
            self._claim = claim(self.folder)
        except BlockingIOError as error:
            raise CheckpointError(str(error)) from error
        for path in self.folder.rglob(".*.tmp"):  # of a process that was killed while it wrote
            path.unlink()
        for name, value in records.items():
            write_json(self.folder / f"{name}.json", value)
        write_json(self.folder / "env.json", _environment(self.options))
        self.rows.truncate(server.round)
        checkpoint.rewind(self.checkpoints, server.round)
        self._open_loggers(server.round)

    def _open_loggers(self, round: int) -> None:
        chosen = self.options["logger"]
        if chosen is True:
            tensorboard = TensorBoardLogger(self.folder, name="", version="", purge_step=round + 1 if round else None)
            (self.folder / "metrics.csv").unlink(missing_ok=True)
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="Experiment logs directory")  # the folder is ours to share
                table = CSVLogger(self.folder, name="", version="", flush_logs_every_n_steps=1)
                _ = table.experiment
            for row in self.history:  # a CSV logger begins a new file: give it the rounds before
                table.log_metrics(_scalars(row), step=row["round"])
            self.loggers = [tensorboard, table]
        else:
            self.loggers = [] if not chosen else [chosen] if isinstance(chosen, Logger) else list(chosen)

    # ---- one round ----------------------------------------------------------------------------------------------

    def log(self, row: dict[str, Any]) -> None:
        """Take the row of a finished round: metrics by tag, and what is not a number for ``rounds.jsonl`` alone."""
        self.history.append({sys.intern(tag): value for tag, value in row.items()})  # one string a tag, not a round
        if self.writes:
            self.rows.append(row)
            self.each_logger(lambda logger: _log(logger, row))

    def each_logger(self, action: Callable[[Logger], object]) -> None:
        """Call `action` with every logger; one that cannot write is left out from then on, with a warning: curves are
        worth no run.
        """
        for logger in list(self.loggers):
            try:
                action(logger)
            except OSError as error:
                self.loggers.remove(logger)
                name = type(logger).__name__
                warnings.warn(f"{name} is left out from now on: {error}; {self.rows.path} goes on", stacklevel=3)

    def improved(self, row: Mapping[str, Any], complete: bool) -> bool:
        """Whether the monitored metric of `row` is the best so far.

        Args:
            row: Metrics of a round.
            complete: Whether clients trained, and the result was validated if that is what logs the metric.

        Raises:
            ValueError: It is not logged; the error lists what is.
        """
        monitor = self.options["monitor"]
        if monitor not in row:
            if not complete:
                return False
            tags = ", ".join(sorted(_scalars(row)))
            raise ValueError(f"trainer.monitor must be a logged metric, got {monitor!r}; logged: {tags}")
        value = row[monitor]
        better = self.best is None or (value > self.best if self.options["mode"] == "max" else value < self.best)
        if better and math.isfinite(value):
            self.best, self.best_round = value, row["round"]
            return True
        return False

    @property
    def out_of_patience(self) -> bool:
        """Whether `patience` validations have passed without a better monitored metric."""
        later = [row for row in self.history if row["round"] > self.best_round and self.options["monitor"] in row]
        return self.options["patience"] is not None and len(later) >= self.options["patience"]

    def save(self, server: ServerState, config: Mapping[str, Any], best: bool, last: bool) -> list[int]:
        """Write the checkpoints that are due; the rounds whose checkpoints are kept, the best one's too."""
        if not self.writes or not (best or last):
            return []
        state = self.state(server, config)
        if best:
            checkpoint.save(self.checkpoints / "best.ckpt", state)
        if last:
            checkpoint.save(checkpoint.round_path(self.checkpoints, server.round), state)
        return [*checkpoint.prune(self.checkpoints, self.options["keep_checkpoints"]), self.best_round]

    def finish(self, rounds: int, metrics: Mapping[str, float]) -> None:
        """Write ``summary.json``: what so many rounds came to, the metrics of the test first."""
        summary = {
            "metrics": metrics, "bytes": self.ledger.by_group, "rounds": rounds, "seconds": self.seconds,
            "simulated_seconds": self.history[-1].get("time/simulated_s") if self.history else None,
            "best": {"monitor": self.options["monitor"], "value": self.best, "round": self.best_round},
        }  # fmt: skip
        if self.writes:
            write_json(self.folder / "summary.json", summary)

    def close(self) -> None:
        """Flush and close the loggers, and leave the folder to others."""
        self.each_logger(lambda logger: logger.finalize("finished"))
        self.loggers = []
        if self._claim:
            self._claim.close()


def fitting(state: Mapping[str, Any], fresh: ServerState) -> ServerState:
    """The checkpoint's server state, if it fits the model and groups of `fresh`.

    Raises:
        CheckpointError: It has other tensors, or no running statistics of a group that needs them.
    """
    loaded = ServerState(**state["server"])
    ours, theirs = ({n: tuple(t.shape) for n, t in server.params.items()} for server in (fresh, loaded))
    for name in [*ours, *theirs]:
        here, there = ours.get(name, "absent"), theirs.get(name, "absent")
        if here != there:
            raise CheckpointError(f"the checkpoint is of another model: {name} is {there} there and {here} here")
    statistics = loaded.buffers["statistics"]
    for group, first in fresh.buffers["statistics"].items():
        if first and group not in statistics:
            known = ", ".join(statistics)
            raise CheckpointError(f"the checkpoint has running statistics of {known}, got clients of {group}")
        statistics.setdefault(group, first)
    return loaded


def contradictions(stored: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Options whose values differ between a checkpoint and the run that is to go on from it, as ``key: old -> new``."""
    old, new = _flat(stored), _flat(now)
    return [
        f"{key}: {old.get(key, 'absent')!r} -> {new.get(key, 'absent')!r}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
    ]


def shaping(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that shape the model, as plain values."""
    shaped = {key: value for key, value in options.items() if key not in (*FREE, "clients", "algorithm")}
    make, network = shaped.pop("server_optimizer"), shaped.pop("network")
    return {
        **shaped,
        "server_optimizer": describe(make) if make else None,
        "network": described(network) if network else None,
    }


def described(thing: Any) -> dict[str, Any]:
    """The class of an object and its public attributes that are plain values, in dicts and dataclasses too."""
    return {"class": type(thing).__name__, **_plain(vars(thing))}


_PLAIN = (bool, int, float, str)


def _exact(value: Any) -> Any:
    """A number or text without what a subclass, such as one of NumPy's, adds to it."""
    return next(kind(value) for kind in _PLAIN if isinstance(value, kind))


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        if key.startswith("_"):
            continue
        if isinstance(value, _PLAIN):
            found[key] = _exact(value)
        elif isinstance(value, (list, tuple)) and all(isinstance(item, _PLAIN) for item in value):
            found[key] = [_exact(item) for item in value]  # as it is now
        elif is_dataclass(value):
            found[key] = _plain(vars(value))
        elif isinstance(value, Mapping):
            found[key] = _plain(value)
    return found


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, Mapping) and value:
        return {
            k: v
            for key, item in value.items()
            for k, v in _flat(item, f"{prefix}.{key}" if prefix else str(key)).items()
        }
    return {prefix: value}


def _log(logger: Logger, row: Mapping[str, Any]) -> None:
    logger.log_metrics(_scalars(row), step=row["round"])
    if isinstance(logger, TensorBoardLogger):
        logger.experiment.flush()  # a thread of its own writes: what it still holds would be lost in a kill


def _scalars(row: Mapping[str, Any]) -> dict[str, Any]:
    return {tag: value for tag, value in row.items() if "/" in tag and isinstance(value, (int, float))}


def _environment(options: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "bhfl": bhfl.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "threads": options["threads"],
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
