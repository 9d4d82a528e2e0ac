"""Where a run goes on: the checkpoint that is meant, whether it fits, and what else it needs."""

import warnings
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bhfl.checks import suggestion
from bhfl.engine import checkpoint
from bhfl.engine.checkpoint import CheckpointError, State
from bhfl.engine.contents import lost_key, read_state
from bhfl.engine.devices import Devices
from bhfl.engine.fingerprint import noted_backends
from bhfl.engine.folder import CHECKPOINTS, newest_run
from bhfl.engine.types import Params, ServerState
from bhfl.files import read_limited, user_path
from bhfl.plain import read_json
from bhfl.settings import MUST_STAY, Role
from bhfl.told import Told, differences, told_of

_MAX_RECORD_BYTES = 2**30


def find_checkpoint(path: str | Path, root: Path) -> tuple[Path | None, State]:
    """The run folder (None for a file outside any) and the state that `path` means.

    Args:
        path: A checkpoint file, a run folder, ``last`` or ``best`` of the newest run under `root`,
            or ``best-<group>`` of it.
        root: ``<default_root_dir>/<name>``.

    Raises:
        CheckpointError: There is none, or it is unusable.
    """
    if is_word(path):
        # `root` is the run folder itself where this trainer has a run already
        folder = root if (root / CHECKPOINTS).is_dir() else newest_run(root)
        if folder is None:
            raise CheckpointError(f"ckpt_path: {path}: no run with a checkpoint under {root}")
        return folder, _load(folder, str(path))
    if "://" in str(path):
        raise CheckpointError(f"ckpt_path must be a local path, got {path}")
    try:
        path = user_path(path)
    except ValueError as error:
        raise CheckpointError(f"ckpt_path must be a local path: {error}") from error
    if path.is_dir():
        return path, _load(path, "last")
    # a link to a checkpoint means the run that it leads to
    return _run_of(path) or _run_of(path.resolve()), read_state(path)


def is_word(path: str | Path | None) -> bool:
    """Whether it is no path, but means the newest checkpoint or a best one."""
    text = str(path)
    return text in ("last", "best") or (text.startswith("best-") and not Path(text).exists())


def _run_of(file: Path) -> Path | None:
    """The run folder that a checkpoint lies in."""
    return file.parent.parent if file.parent.name == CHECKPOINTS else None


def warn_of_known(folder: Path, partition: Mapping[str, Any]) -> None:
    """Warn if a run's clients were trained on what now is to be validation samples, because its
    data were split else.

    Args:
        folder: The run folder.
        partition: The record of the split of now.
    """
    stored = folder / "partition.json"
    if not stored.exists():
        return
    try:
        record = read_json(read_limited(stored, _MAX_RECORD_BYTES))
        trained = set(chain.from_iterable(record["clients"]))
    except (OSError, ValueError, TypeError, KeyError):
        warnings.warn(
            f"{stored} cannot be read: who was trained on which samples is not known", stacklevel=2
        )
        return
    held = [*partition.get("val", ()), *chain.from_iterable(partition.get("client_val", ()))]
    if known := sum(index in trained for index in held):
        warnings.warn(
            f"{known} of {len(held)} validation samples were trained on in {folder}, if its data "
            "are the same: they were split in another way; compare the options of the data, the "
            "fleet and the seed",
            stacklevel=2,
        )


def warn_of_other(path: object, stored: Told, algorithm: str) -> None:
    """Warn if a checkpoint is used by another algorithm than its run's, which fits all the same.

    Args:
        path: The checkpoint, for the message.
        stored: What its run was told.
        algorithm: The class that uses it.
    """
    ran = algorithm_of(stored)
    if ran != algorithm:
        warnings.warn(
            f"{path}: its run was one of {ran}, and it is used by {algorithm}, whose models of "
            "groups and clients may be others: give the config.yaml of its run folder",
            stacklevel=2,
        )


def algorithm_of(told: Told) -> str:
    """The class of the algorithm of a run, by what the run was told."""
    # without its module: that of a script is ``__main__`` while it runs
    return str(told_of(told, Role).get("algorithm")).rpartition(".")[2]


def _load(folder: Path, which: str) -> State:
    checkpoints = folder / CHECKPOINTS
    if which == "last":
        return checkpoint.load_last(checkpoints, read_state)
    path = checkpoints / f"{which}.ckpt"
    if path.exists():
        return read_state(path)
    if which == "best":
        raise CheckpointError(
            f"{folder} has no best model: its best round is not kept, or the monitored metric has "
            "had no value; use last"
        )
    known = [file.stem for file in checkpoints.glob("best-*.ckpt")]
    near = suggestion(which, known) or "; trainer.best_by_group keeps one for each bit group"
    raise CheckpointError(f"{folder} has no checkpoint {which}{near}")


def fitting(state: State, fresh: ServerState) -> ServerState:
    """The checkpoint's server state, if it fits the model and groups of `fresh`.

    Raises:
        CheckpointError: It has other tensors, or no running statistics of a group that needs them.
    """
    loaded = ServerState(**state["server"])
    if fresh.buffers.keys() != loaded.buffers.keys():
        raise CheckpointError(
            f"the checkpoint must have buffers of {', '.join(fresh.buffers)}, got others"
        )
    _check_frozen(fresh, loaded)
    check_same(fresh.params, loaded.params)
    check_same(fresh.buffers["counters"], loaded.buffers["counters"])
    whole = {**fresh.params, **fresh.buffers["counters"]}
    for group in fresh.buffers["statistics"].values():
        whole |= group
    check_same(
        {name: whole[name] for name in loaded.buffers["first"] if name in whole},
        loaded.buffers["first"],
    )
    statistics = loaded.buffers["statistics"]
    for group, first in fresh.buffers["statistics"].items():
        if first and group not in statistics:
            raise CheckpointError(
                f"the checkpoint has running statistics of {', '.join(statistics)}, got clients "
                f"of {group}"
            )
        check_same(first, statistics.setdefault(group, first))
    if problem := lost_key(loaded.extra, fresh.extra):
        raise CheckpointError(
            f"the checkpoint is of another algorithm, or of a wrong content: {problem}"
        )
    return loaded


def _check_frozen(fresh: ServerState, loaded: ServerState) -> None:
    """Refuse a checkpoint of a run in which other parameters were frozen."""
    here: Params = fresh.buffers["frozen"]
    there: Params = loaded.buffers["frozen"]
    # what one of them does not have at all is of another model, which is told like others
    changed = [*(here.keys() & loaded.params.keys()), *(there.keys() & fresh.params.keys())]
    if changed:
        name = min(changed)
        was, now = ("frozen", "trained") if name in there else ("trained", "frozen")
        raise CheckpointError(
            f"the checkpoint is of a run with other frozen parameters: {name} is {was} there and "
            f"{now} here"
        )
    check_same(here, there)


def use_backends_(told: Told, groups: Sequence[Devices], module: nn.Module) -> None:
    """Let devices compute by what a run was told, on whatever machine that was.

    Args:
        told: What the run was told.
        groups: The devices of each group, to be changed in place.
        module: Whose layers are meant.

    Raises:
        CheckpointError: There is no such layer or backend.
    """
    for devices in groups:
        try:
            devices.use_(module, noted_backends(told, devices.key))
        except ValueError as error:
            raise CheckpointError(f"the checkpoint cannot be used: {error}") from error


def check_same(here: Mapping[str, Tensor], there: Mapping[str, Tensor]) -> None:
    """Refuse a checkpoint's tensors `there` that differ in name, shape or kind from those of the
    model `here`.
    """
    for name in [*here, *there]:
        mine = _told(here.get(name))
        its = _told(there.get(name))
        if mine != its:
            raise CheckpointError(
                f"the checkpoint is of another model: {name} is {its} there and {mine} here"
            )


def _told(tensor: Tensor | None) -> str:
    if tensor is None:
        return "absent"
    kind = "" if tensor.dtype == torch.float32 else f" of {tensor.dtype}"
    return f"{tuple(tensor.shape)}{kind}"


def check_told(path: object, stored: Told, now: Told) -> None:
    """Refuse to go on with a run that was told something else.

    Args:
        path: The checkpoint, for messages.
        stored: What the checkpoint's run was told.
        now: What the run that is to go on from it is told.

    Raises:
        CheckpointError: With all options that must stay as they are and have not.
    """
    before, after = _class_told_alike(stored, now)
    if changed := differences(before, after, MUST_STAY):
        listed = "\n  ".join(changed)
        raise CheckpointError(
            f"{path}: the checkpoint's run had other options (old -> new):\n  {listed}"
        )
    if changed := differences(stored, now, [Role.NUMERICS]):
        warnings.warn(
            f"the run was computed with other options (old -> new): {', '.join(changed)}; the last "
            "bits of its results may differ",
            stacklevel=2,
        )


def _class_told_alike(*both: Told) -> list[Told]:
    """What two runs were told, where one was made in Python and the other is of a configuration:
    the class of the model is IDENTITY in the first and TASK in the second.

    Its name alone is compared then, as the module of a script is ``__main__`` while it runs.
    """
    tasks = [told_of(told, [Role.TASK]) for told in both]
    if sum("model" in task for task in tasks) != 1:
        return [*both]
    found = []
    for told, task in zip(both, tasks, strict=True):
        path = str(told_of(told, [Role.TASK, Role.IDENTITY]).get("model"))
        found.append({**told, Role.TASK.value: {**task, "model": path.rpartition(".")[2]}})
    return found
