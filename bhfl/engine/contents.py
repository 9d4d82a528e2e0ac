"""What a run's checkpoint must hold. Its digest tells damage; this tells a whole file of another or
of a wrong content.

What it cannot tell is a wrong value of the right kind: a SHA-256 is no signature.
"""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bhfl.checks import is_integer
from bhfl.engine.best import ALL
from bhfl.engine.checkpoint import CheckpointError, State, load
from bhfl.engine.history import unpack
from bhfl.tags import BYTES

Check = Callable[[Any, str], None]
"""Raises a CheckpointError about a value, which it calls by the given name."""

# Ids and rounds stand in int64 tensors in the table of what clients keep.
LARGEST = 2**63
DIGEST_BYTES = 32


def read_state(path: Path) -> State:
    """The state in a run's checkpoint, each part of the kind that a run writes; its history
    unpacked, as rows.

    Raises:
        CheckpointError: It cannot be read, or is of another content, naming the file and the first
            wrong entry.
    """
    state = load(path)
    try:
        return check_contents(state)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: not a checkpoint of a run: {error}") from None


def check_contents(state: State) -> State:
    """`state` with its history unpacked; CheckpointError naming the first entry that no run
    writes.
    """
    _record(_STATE)(state, "")
    run, rounds = state["run"], state["server"]["round"]
    if run["first"] and run["first"].get("round") != 0:
        raise CheckpointError("run.first must be of round 0, which it is not")
    history = unpack(run["history"])
    if [row.get("round") for row in history] != list(range(1, rounds + 1)):
        raise CheckpointError(
            f"its history must have one row for each of {rounds} rounds, got {len(history)} rows"
        )
    if ALL not in run["bests"]:
        raise CheckpointError("run.bests must hold the best round of all clients")
    for group, best in run["bests"].items():
        if best["round"] > rounds or (best["value"] is None) != (best["round"] == 0):
            raise CheckpointError(
                f"run.bests[{group!r:.60}].round must be a round with a value, got {best['round']}"
            )
    for kept in ("clients", "references"):
        _check_clients(kept, state[kept], state["server"]["accepted"], rounds)
    return {**state, "run": {**run, "history": history}}


def check_kept(state: State, path: Path) -> None:
    """Refuse what is no state of a client.

    Raises:
        CheckpointError: Naming the file `path`, from which it comes, and the entry.
    """
    tensors = _each(_tensor)
    for key, part in {"algorithm": _mapping, "staying": tensors, "own_model": tensors}.items():
        part(state.get(key, {}), f"{path}: {key}")
    _kind("text", str)(state.get("common", ""), f"{path}: common")


def lost_key(extra: Mapping[str, Any], first: Mapping[str, Any]) -> str:
    """What `extra`, which an algorithm keeps on the server, lacks of what its `init_server` made;
    empty if nothing.

    A resumed run finds out here, not by an error in the middle of a round.

    Args:
        extra: `ServerState.extra`, made by `server_update` or read from a checkpoint.
        first: What `init_server` returned.
    """
    for key, made in first.items():
        if key not in extra:
            return (
                f"ServerState.extra must keep every key that init_server made, and {key!r} is gone"
            )
        kinds = next((kinds for kinds in _ALIKE if isinstance(made, kinds)), (object,))
        if not isinstance(extra[key], kinds):
            was, now = type(made).__name__, type(extra[key]).__name__
            return (
                f"ServerState.extra[{key!r}] must stay of the kind that init_server "
                f"made, {was}, and is {now}"
            )
    return ""


_ALIKE: tuple[tuple[type, ...], ...] = ((int, float, Tensor), (str,), (list, tuple), (Mapping,))
"""Kinds that may take each other's place; None may become anything."""


# ---- the parts -----------------------------------------------------------------------------------


def _refuse(name: str, rule: str, value: Any) -> None:
    told = type(value).__name__
    if isinstance(value, bool | int | float | str | None):
        told = f"{value!r:.60}"
    raise CheckpointError(f"{name or 'it'} must be {rule}, got {told}")


def _kind(rule: str, *kinds: type) -> Check:
    """A value of one of these kinds."""

    def check(value: Any, name: str) -> None:
        if not isinstance(value, kinds):
            _refuse(name, rule, value)

    return check


_tensor = _kind("a tensor", Tensor)
_number = _kind("a number", int, float)


def _record(parts: Mapping[str, Check]) -> Check:
    """A mapping with these keys and no others."""

    def check(value: Any, name: str) -> None:
        _mapping(value, name)
        if value.keys() != parts.keys():
            odd = ", ".join(sorted(f"{key!r:.60}" for key in value.keys() ^ parts.keys()))
            raise CheckpointError(
                f"{name or 'it'} must hold {', '.join(parts)}: {odd} is missing or unknown"
            )
        for key, part in parts.items():
            part(value[key], f"{name}.{key}" if name else key)

    return check


def _each(part: Check) -> Check:
    """A mapping from text to values that pass `part`."""

    def check(value: Any, name: str) -> None:
        _mapping(value, name)
        for key, item in value.items():
            part(item, f"{name}[{key!r:.60}]")

    return check


def _mapping(value: Any, name: str) -> None:
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        _refuse(name, "a mapping of names", value)


def _count(value: Any, name: str) -> None:
    if not is_integer(value) or not 0 <= value < LARGEST:
        _refuse(name, "a whole number from 0", value)


def _seconds(value: Any, name: str) -> None:
    _number(value, name)
    if not 0 <= value < math.inf:
        _refuse(name, "finite and not negative", value)


def _best(value: Any, name: str) -> None:
    if value is None:
        return
    _number(value, name)
    if not abs(value) < math.inf:
        _refuse(name, "finite", value)


def _buffers(value: Any, name: str) -> None:
    _mapping(value, name)
    for key, part in value.items():
        check = _each(_tensor)
        # those of each group, by its label
        if key == "statistics":
            check = _each(check)
        check(part, f"{name}.{key:.60}")


def _ids(value: Any, name: str) -> None:
    if not isinstance(value, list):
        _refuse(name, "a list of clients", value)
    for client in value:
        _count(client, name)


def _accepted(value: Any, name: str) -> None:
    if not isinstance(value, dict):
        _refuse(name, "a round for each client", value)
    for number in (*value, *value.values()):
        _count(number, name)


def _plain(value: Any, name: str) -> None:
    """Text, numbers, and lists and mappings of them."""
    if isinstance(value, Mapping):
        value = list(value.values())
    for item in value if isinstance(value, list | tuple) else ():
        _plain(item, name)
    if isinstance(value, Tensor):
        # options are compared with those of now by !=, which a tensor answers entry by entry
        _refuse(name, "options without tensors", value)


_STATE: dict[str, Check] = {
    "server": _record(
        {
            "params": _each(_tensor),
            "round": _count,
            "extra": _mapping,
            "metrics": _each(_number),
            "participants": _ids,
            "accepted": _accepted,
            "holders": _ids,
            "buffers": _buffers,
            "channels_last": _kind("true or false", bool),
        }
    ),
    "run": _record(
        {
            "history": _tensor,
            "first": _each(_number),
            "ledger": _each(_record(dict.fromkeys(BYTES, _count))),
            "bests": _each(_record({"value": _best, "round": _count})),
            "stopped": _kind("true or false", bool),
            "failed_rounds": _count,
            "seconds": _seconds,
        }
    ),
    "clients": _record(dict.fromkeys(("ids", "rounds", "sha256"), _tensor)),
    "references": _record(dict.fromkeys(("ids", "rounds", "sha256"), _tensor)),
    "config": _each(_plain),
    "version": _kind("text", str),
}


def _check_clients(
    key: str, clients: Mapping[str, Tensor], accepted: Mapping[int, int], rounds: int
) -> None:
    """A table of what clients keep, or were sent, see `ClientStore.table`, and the rounds of their
    updates.
    """
    ids = clients["ids"]
    versions = clients["rounds"]
    digests = clients["sha256"]
    kinds = [(tensor.dtype, tuple(tensor.shape)) for tensor in (ids, versions, digests)]
    n = ids.numel()
    if kinds != [(torch.int64, (n,)), (torch.int64, (n,)), (torch.uint8, (n, DIGEST_BYTES))]:
        raise CheckpointError(f"{key} must be a table of ids, rounds and sha256, which it is not")
    newest = dict(zip(ids.tolist(), versions.tolist(), strict=True))
    if len(newest) != n or (n and versions.min() < 1):
        raise CheckpointError(f"{key} must hold each client once, with a round from 1")
    # what a client keeps was kept when its update was taken
    if max(accepted.values(), default=0) > rounds or any(
        version > accepted.get(client, 0) for client, version in newest.items()
    ):
        raise CheckpointError(
            f"server.accepted must hold a round of at most {rounds} for each client, and none "
            "before what the client keeps"
        )
