"""Checkpoints: durable to write, safe to read, refused when a bit of them changed."""

import hashlib
import math
import os
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor
from torch.serialization import get_crc32_options, set_crc32_options

from bhfl.comm.payload import row_major
from bhfl.engine.folder import round_checkpoints
from bhfl.files import durable

State = dict[str, Any]
"""What a checkpoint holds, by name."""

FORMAT = 7
MAX_DEPTH = 64
"""Containers in containers; more are refused, because they would exhaust Python's stack."""
MAX_INT_BITS = 8192
"""Bits of a whole number at most: Python refuses to print much larger ones."""
MAX_GROWTH = 64
"""Bytes that a file may stand for, for each of its own: a file can name one tensor many times."""


class CheckpointError(RuntimeError):
    """A checkpoint that is missing, damaged, of another format or of another run."""


# ---- what can be kept ----------------------------------------------------------------------------


def digest(state: Any) -> str:
    """SHA-256 of nested dicts, lists, tensors, numbers and strings: equal exactly where the content
    is.
    """
    sha = hashlib.sha256()
    _update(sha, state)
    return sha.hexdigest()


def _update(sha: Any, value: Any) -> None:
    if isinstance(value, Tensor):
        # kinds and sizes count too: what moves between containers, or is cut otherwise, shows
        sha.update(f"tensor {value.dtype} {tuple(value.shape)}".encode())
        sha.update(row_major(value))
    elif isinstance(value, Mapping):
        sha.update(f"dict {len(value)}".encode())
        for key, item in value.items():
            _update(sha, key)
            _update(sha, item)
    elif isinstance(value, list | tuple):
        sha.update(f"list {len(value)}".encode())
        for item in value:
            _update(sha, item)
    else:
        sha.update(f"{type(value).__name__} {value!r}".encode())


class _RefusedError(Exception):
    """What cannot be kept, and the way to it, from the inside out."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.way: list[str] = []


def check_storable(value: Any, name: str, most_bytes: float = math.inf) -> None:
    """Refuse what could not be read again: a checkpoint is loaded without executing anything.

    Args:
        value: What is to be saved, or was just read.
        name: What the error calls it.
        most_bytes: What all values and names may take together, each counted as often as it is
            reached.

    Raises:
        CheckpointError: Naming the entry.
    """
    try:
        _spend(value, most_bytes, 0)
    except _RefusedError as refused:
        raise CheckpointError(f"{name}{''.join(reversed(refused.way))} {refused}") from None


def _spend(value: Any, room: float, depth: int) -> float:  # noqa: C901  # kind by kind
    """What is left of `room` after `value`."""
    if depth > MAX_DEPTH:
        raise _RefusedError(f"must be nested at most {MAX_DEPTH} deep")
    kind = type(value)
    # by exact type, because torch's safe loader takes no subclasses of them
    if kind in (dict, OrderedDict):
        for key, item in value.items():
            room = _spend_in(key, item, _spend_in(key, key, room, depth), depth)
    elif kind in (list, tuple, torch.Size):
        for i, item in enumerate(value):
            room = _spend_in(i, item, room, depth)
    elif isinstance(value, Tensor):
        if value.layout is not torch.strided or value.is_quantized or value.is_meta:
            raise _RefusedError(
                f"must be a dense tensor with values to be kept in a checkpoint, got {value.layout}"
            )
        room -= value.numel() * value.element_size()
    elif kind is str:
        room -= len(value)
    elif kind is int and value.bit_length() > MAX_INT_BITS:
        raise _RefusedError(f"must be a whole number of at most {MAX_INT_BITS} bits")
    elif kind not in (bool, int, float, type(None)):
        raise _RefusedError(
            "must be a tensor, a number, text, None, or a dict or list of these to be kept in a "
            f"checkpoint, got {kind.__name__}"
        )
    # each value costs at least one: millions of empty containers take memory too
    if room < 1:
        raise _RefusedError("stands for more than its file can hold")
    return room - 1


def _spend_in(place: Any, value: Any, room: float, depth: int) -> float:
    try:
        return _spend(value, room, depth + 1)
    except _RefusedError as refused:
        told = f"{place!r:.60}" if isinstance(place, str | int) else f"a {type(place).__name__}"
        refused.way.append(f"[{told}]")
        raise


# ---- files ---------------------------------------------------------------------------------------


def save(path: Path, state: State) -> str:
    """Write `state` with its format number and digest; the old file or the whole new one, whatever
    happens.

    Returns:
        The digest.

    Raises:
        CheckpointError: It holds what `load` would refuse.
        OSError: It cannot be written, naming `path`.
    """
    for name, value in state.items():
        check_storable(value, name)
    sha256 = digest(state)
    with durable(path) as file:
        write(file, state, sha256)
    return sha256


def write(file: IO[bytes], state: State, sha256: str) -> None:
    """Write `state` and its digest to an open file, as `load` reads it."""
    try:
        torch.save({"format": FORMAT, "sha256": sha256, "state": state}, file)
    except RuntimeError as error:
        # a full disk, which torch may turn into an error of its own
        if isinstance(error.__context__, OSError):
            raise error.__context__ from None
        raise


@contextmanager
def without_crc() -> Iterator[None]:
    """Let `write` leave out the checksums that zip files have: torch never compares them, the
    digest tells more, and they take a tenth of what keeping a client's state takes.
    """
    usual = get_crc32_options()
    set_crc32_options(False)
    try:
        yield
    finally:
        set_crc32_options(usual)


def load(path: Path, expected: str | None = None, *, known: bool = False) -> State:
    """The state saved at `path`. Only tensors and plain values are read: nothing in the file is
    executed.

    Args:
        path: The file.
        expected: The digest that it must have, where it is known from elsewhere.
        known: Whether this process has written the file, and nobody has touched it since: its
            content is not compared again.

    Raises:
        CheckpointError: Naming the file and what is wrong with it.
    """
    # in memory of its own: the file may be replaced
    content = read(path, expected, mapped=False)
    state: State = content["state"]
    if known:
        return state
    # what a hostile file nests or repeats is bounded before the digest walks it
    check_storable(
        state, f"{path}: not a readable checkpoint: it", MAX_GROWTH * path.stat().st_size
    )
    try:
        found = digest(state)
    except (RuntimeError, TypeError) as error:
        raise CheckpointError(f"{path}: not a readable checkpoint: {_reason(error)}") from None
    if found != content["sha256"]:
        raise CheckpointError(f"{path}: damaged, its content does not match its SHA-256")
    return state


def read(path: Path, expected: str | None = None, mapped: bool = True) -> State:
    """A file's content, its values unchecked; where it is `mapped`, its tensors are read from disk
    when they are used.

    The digest that it claims to have must be `expected`, where that is given; whether its content
    has that digest, `load` alone tells.

    Raises:
        CheckpointError: As of `load`, but for what only its tensors tell.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint file")
    try:
        _check_archive(path)
        content: State = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    # torch raises many kinds of errors for a damaged or foreign file
    except Exception as error:
        raise CheckpointError(f"{path}: not a readable checkpoint: {_reason(error)}") from None
    found = content.get("format") if isinstance(content, dict) else None
    # of any other kind it may be long, or a tensor, which compares entry by entry
    told = found if type(found) is int else None
    if told != FORMAT:
        raise CheckpointError(f"{path}: checkpoint format must be {FORMAT}, got {told}")
    if not isinstance(content.get("state"), dict) or not isinstance(content.get("sha256"), str):
        raise CheckpointError(
            f"{path}: not a readable checkpoint: it holds no state with its SHA-256"
        )
    if expected is not None and content["sha256"] != expected:
        raise CheckpointError(
            f"{path}: another file than the one that was saved here: its SHA-256 differs"
        )
    return content


def _check_archive(path: Path) -> None:
    """Refuse what would unpack to more than it is: `torch.save` packs nothing."""
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
    packed = any(member.compress_type != zipfile.ZIP_STORED for member in members)
    if packed or sum(member.file_size for member in members) > os.path.getsize(path):
        raise zipfile.BadZipFile("its parts are larger than the file")


def _reason(error: Exception) -> str:
    """Why a file could not be read, without what torch advises: to load it unsafely."""
    if isinstance(error, zipfile.BadZipFile):
        return "it is cut off, or another kind of file"
    if isinstance(error, OSError):
        return error.strerror or "it cannot be read"
    if type(error).__name__ == "UnpicklingError":
        return (
            "it is damaged, or holds what is neither a tensor nor a plain value, "
            "and such things are never loaded"
        )
    return f"it is damaged ({type(error).__name__})"


# ---- folders of checkpoints ----------------------------------------------------------------------


def round_path(folder: Path, round: int) -> Path:
    """Where the checkpoint after `round` rounds lies."""
    return folder / f"round={round:05d}.ckpt"


def load_last(folder: Path, read: Callable[[Path], State] = load) -> State:
    """The newest checkpoint of `folder` that `read` takes; each one before it that it refuses costs
    a warning.

    Raises:
        CheckpointError: There is none.
    """
    found = round_checkpoints(folder)
    for path in reversed(found.values()):
        try:
            return read(path)
        except CheckpointError as error:
            warnings.warn(f"{error}; falling back to the checkpoint before it", stacklevel=2)
    among = f" among {len(found)}" if found else ""
    raise CheckpointError(f"{folder}: no usable checkpoint{among}")


def rewind(folder: Path, round: int, read: Callable[[Path], State]) -> None:
    """Remove the checkpoints of later rounds: the run goes on from `round`, and they would pass for
    its own.
    """
    for number, path in round_checkpoints(folder).items():
        if number > round:
            path.unlink()
    for best in (folder / "best.ckpt", *folder.glob("best-*.ckpt")):
        # a missing or damaged one passes for nothing
        with suppress(CheckpointError):
            if read(best)["server"]["round"] > round:
                best.unlink()


def prune(folder: Path, keep: int) -> list[int]:
    """Remove all but the `keep` newest round checkpoints; the rounds that are kept."""
    found = round_checkpoints(folder)
    for round in list(found)[:-keep]:
        found.pop(round).unlink()
    return list(found)
