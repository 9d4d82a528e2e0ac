"""Checkpoints: durable to write, safe to read, refused when a bit of them changed."""

from __future__ import annotations

import hashlib
import warnings
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bhfl.comm.payload import row_major
from bhfl.engine.folder import durable

FORMAT = 2


class CheckpointError(RuntimeError):
    """A checkpoint that is missing, damaged, of another format or of another run."""


def digest(state: Any) -> str:
    """SHA-256 of nested dicts, lists, tensors, numbers and strings: equal exactly where the content is."""
    sha = hashlib.sha256()
    _update(sha, state)
    return sha.hexdigest()


def _update(sha: Any, value: Any) -> None:
    if isinstance(value, Tensor):
        sha.update(f"tensor {value.dtype} {tuple(value.shape)}".encode())
        sha.update(row_major(value))
    elif isinstance(value, Mapping):
        sha.update(f"dict {len(value)}".encode())
        for key, item in value.items():
            _update(sha, key)
            _update(sha, item)
    elif isinstance(value, (list, tuple)):
        sha.update(f"list {len(value)}".encode())
        for item in value:
            _update(sha, item)
    else:
        sha.update(f"{type(value).__name__} {value!r}".encode())


def check_storable(value: Any, name: str) -> None:
    """Refuse what could not be read again: a checkpoint is loaded without executing anything.

    Args:
        value: To be saved.
        name: It is called in the error.

    Raises:
        CheckpointError: Naming the entry.
    """
    if type(value) in (dict, OrderedDict):
        for key, item in value.items():
            check_storable(key, f"a key of {name}")
            check_storable(item, f"{name}[{key!r}]")
    elif type(value) in (list, tuple, torch.Size):
        for i, item in enumerate(value):
            check_storable(item, f"{name}[{i}]")
    elif not isinstance(value, Tensor) and type(value) not in (bool, int, float, str, type(None)):
        raise CheckpointError(
            f"{name} must be a tensor, a number, text, None, or a dict or list of these to be kept in a checkpoint, "
            f"got {type(value).__name__}"
        )


def save(path: Path, state: dict[str, Any]) -> None:
    """Write `state` with its format number and digest; the old file or the whole new one, whatever happens.

    Raises:
        CheckpointError: It holds what `load` would refuse.
    """
    for name, value in state.items():
        check_storable(value, name)
    with durable(path) as file:
        torch.save({"format": FORMAT, "sha256": digest(state), "state": state}, file)


def load(path: Path) -> dict[str, Any]:
    """The state saved at `path`. Only tensors and plain values are read: nothing in the file is executed.

    Raises:
        CheckpointError: Naming the file and what is wrong with it.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint file")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a damaged or foreign file
        raise CheckpointError(f"{path}: not a readable checkpoint ({' '.join(str(error).split())[:200]})") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        found = content.get("format") if isinstance(content, dict) else None
        raise CheckpointError(f"{path}: checkpoint format must be {FORMAT}, got {found!r}")
    if digest(content.get("state")) != content.get("sha256"):
        raise CheckpointError(f"{path}: damaged, its content does not match its SHA-256")
    state: dict[str, Any] = content["state"]
    return state


def round_path(folder: Path, round: int) -> Path:
    """Where the checkpoint after `round` rounds lies."""
    return folder / f"round={round:05d}.ckpt"


def load_last(folder: Path) -> dict[str, Any]:
    """The newest checkpoint of `folder` that is whole; each damaged one before it costs a warning.

    Raises:
        CheckpointError: There is none.
    """
    paths = sorted(folder.glob("round=*.ckpt"), reverse=True)
    for path in paths:
        try:
            return load(path)
        except CheckpointError as error:
            warnings.warn(f"{error}; falling back to the checkpoint before it", stacklevel=2)
    raise CheckpointError(f"{folder}: no usable checkpoint" + (f" among {len(paths)}" if paths else ""))


def rewind(folder: Path, round: int) -> None:
    """Remove the checkpoints of later rounds: the run goes on from `round`, and they would pass for its own."""
    for path in folder.glob("round=*.ckpt"):
        if _round(path) > round:
            path.unlink()
    best = folder / "best.ckpt"
    with suppress(CheckpointError):  # a missing or damaged one passes for nothing
        if load(best)["server"]["round"] > round:
            best.unlink()


def _round(path: Path) -> int:
    return int(path.stem.split("=")[1])


def prune(folder: Path, keep: int) -> list[int]:
    """Remove all but the `keep` newest round checkpoints; the rounds that are kept."""
    paths = sorted(folder.glob("round=*.ckpt"))
    for path in paths[:-keep]:
        path.unlink()
    return [_round(path) for path in paths[-keep:]]
