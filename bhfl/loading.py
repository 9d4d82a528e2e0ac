"""Finished runs from their folders: what they came to, and their models."""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import bhfl
from bhfl.checks import checked, choice
from bhfl.engine.algorithm import Algorithm
from bhfl.engine.best import Best
from bhfl.engine.deployed import Deployed
from bhfl.engine.fleet import Fleet
from bhfl.engine.result import FitResult
from bhfl.engine.resume import find_checkpoint
from bhfl.engine.roster import Roster, behind, group_sizes, one_of_each
from bhfl.engine.types import ServerState
from bhfl.files import read_limited, user_path
from bhfl.plain import MAX_BYTES, read_json
from bhfl.report.reading import MARKERS, Run, read_run
from bhfl.report.settings import short
from bhfl.settings import Role
from bhfl.told import told_of

if TYPE_CHECKING:
    from torch import Tensor, nn

CONFIG = "config.yaml"


def load_run(folder: str | Path) -> FitResult:
    """What a finished run came to, from its folder.

    Args:
        folder: The run folder, ``<default_root_dir>/<name>/version_N``.

    Returns:
        What `FederatedTrainer.fit` returned; its weights are read when they are asked for.

    Raises:
        ValueError: The folder is none of a run, or of one that was cut off, has failed, is damaged
            or of a version that this one cannot read; where weights are asked for, those of its
            last round are not there.
    """
    path = _run_folder(folder)
    run = read_run(path)
    if not run.finished:
        raise ValueError(
            f"{path}: the run has not come to its end ({run.missing}): go on with it by ckpt_path, "
            "or take the model of its last checkpoint by bhfl.load_model(folder, 'last')"
        )
    if run.faults:
        raise ValueError(f"{path}: {'; '.join(run.faults)}{_written_by(path)}")
    try:
        return _result(path, run)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path}: its files lack what this version reads, {type(error).__name__}: {error}"
            f"{_written_by(path)}"
        ) from error


def _result(path: Path, run: Run) -> FitResult:
    told = told_of(run.told, Role)
    summary = run.summary

    @cache
    def server() -> ServerState:
        found = ServerState(**find_checkpoint(path, path)[1]["server"])
        # a round before it would pass for what the run came to
        if found.round != run.num_rounds:
            raise ValueError(
                f"{path}: its last usable checkpoint is of round {found.round} of "
                f"{run.num_rounds}: bhfl.load_model(folder, 'last') takes the model of that"
            )
        return found

    def weights(group: str | None) -> "dict[str, Tensor]":
        # refuses where the last round's are gone
        server()
        return load_model(path, "last", group).state_dict()

    return FitResult(
        folder=path,
        method=short(told["algorithm"]),
        groups=group_sizes(_clients(told)),
        metrics=dict(summary["metrics"]),
        bytes={group: dict(sent) for group, sent in summary["bytes"].items()},
        seconds=float(summary["seconds"]),
        best=Best(**summary["best"]),
        best_by_group={
            group: Best(**best) for group, best in summary.get("best_by_group", {}).items()
        },
        history=[dict(row) for row in run.rounds],
        first=dict(run.first),
        _server=server,
        _weights=weights,
    )


def load_model(
    folder: str | Path,
    which: str = "best",
    group: str | None = None,
    model: "nn.Module | None" = None,
) -> "nn.Module":
    """The model of a run, finished or not: a plain module of torch's layers, in evaluation mode.

    Classes that the run's ``config.yaml`` names are imported: of a folder from somebody else, give
    a `model`, and no `group`.

    Args:
        folder: The run folder.
        which: The checkpoint: of the ``best`` round, or the ``last`` one; or ``best-int8``, of the
            best round of a bit group, where the run looked for it.
        group: A bit group, whose weights lie on the grid of its bits; by default the server's
            float32 model, which has the first model's values of what stays with clients.
            Activations are those of a float model in either case, and running statistics of
            BatchNorm those that the run kept.
        model: A module of the run's architecture, which is given the weights. It is needed where
            the run's folder does not say its class and arguments, as for a class of a notebook.

    Raises:
        ValueError: The folder is none of a run, there is no such group, its model is not whole
            without its clients, or the run's classes cannot be made from ``config.yaml``.
        CheckpointError: The checkpoint is missing, damaged, of another version or another model.
    """
    path = _run_folder(folder)
    _, state = find_checkpoint(checked("which", which, _which), path)
    told = told_of(state["config"], Role)
    clients = _clients(told)
    parts = []
    if model is None:
        parts = ["algorithm", "data", "model"]
    elif group is not None:
        parts = ["algorithm"]
    made = _made(path, parts) if parts else {}
    algorithm = made.get("algorithm", Algorithm())
    module: nn.Module = model if model is not None else made["model"]
    if group is not None:
        algorithm.prepare(module, clients)
    server = ServerState(**state["server"])
    groups = [client.devices for client in one_of_each(behind(clients, server.round))]
    deployed = Deployed(server, groups, told["trainer.norm"], algorithm)
    return deployed.put_(module, group).eval()


def _which(value: object) -> str:
    """What is wrong with the name of a checkpoint; whether there is one of a group, files say."""
    return "" if str(value).startswith("best-") else choice("best", "last")(value)


def _clients(told: Mapping[str, Any]) -> Roster:
    """The fleet of a run, whose samples do not matter here."""
    fleet = Fleet(told["clients"])
    counts = fleet.counts(told["trainer.num_clients"])
    return Roster(fleet.groups, counts, [1] * sum(counts), "uniform")


def _made(path: Path, parts: list[str]) -> dict[str, Any]:
    """Objects that the run's configuration names."""
    from bhfl.cli.remade import remade

    try:
        return remade(path / CONFIG, parts)
    except ValueError as error:
        remedy = "give bhfl.load_model a model of the run's architecture as model="
        if "model" not in parts:
            remedy = "without group=, the server's float32 model needs no class"
        raise ValueError(
            f"{path}: its {', '.join(parts)} cannot be made again, {error}; {remedy}"
        ) from error


def _run_folder(folder: str | Path) -> Path:
    path = user_path(folder)
    if not path.is_dir():
        raise ValueError(f"{path}: no such folder; folder must be that of a run")
    if any((path / name).is_file() for name in MARKERS):
        return path
    below = sorted(str(file.parent) for file in path.glob("**/env.json"))[:3]
    hint = f"; there are {', '.join(below)}" if below else ""
    raise ValueError(f"{path}: no run, which has {' or '.join(MARKERS)}{hint}")


def _written_by(path: Path) -> str:
    """Which versions do not fit, as far as it is known."""
    try:
        version = read_json(read_limited(path / "env.json", MAX_BYTES))["bhfl"]
    except (OSError, ValueError, TypeError, KeyError):
        version = "an unknown version"
    return f"; it was written by bhfl {version}, and this is {bhfl.__version__}"
