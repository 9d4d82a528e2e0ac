"""What the processes of a run tell each other: lists, sums by which they agree, new states; and
what they must have in common: their options, and the run folder.
"""

import secrets
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from bhfl.engine.handed import tensors_in
from bhfl.engine.types import ServerState
from bhfl.settings import MAKE_THE_RUN, Role
from bhfl.told import Told, differences

if TYPE_CHECKING:
    from lightning.fabric import Fabric

T = TypeVar("T")


def gather(fabric: "Fabric", mine: list[T]) -> list[T]:
    """The lists of all processes as one, in the order of ranks; small objects only."""
    if fabric.world_size == 1:
        return mine
    # as pickles, because `all_gather` wants tensors of one shape from all processes
    parts: list[Any] = [None] * fabric.world_size
    torch.distributed.all_gather_object(parts, mine)
    return list(chain.from_iterable(parts))


def check_agreement(fabric: "Fabric", value: Any, hook: str) -> None:
    """Refuse results that differ between processes, as of an aggregator that keeps to its own
    clients.

    Args:
        fabric: The fabric of all processes.
        value: What this one has come to.
        hook: What the error calls the hook that came to it.

    Raises:
        ValueError: Another process has come to something else.
    """
    if fabric.world_size == 1:
        return
    sums = _sums(value)
    if any(other != sums for other in gather(fabric, [sums])):
        raise ValueError(
            f"{hook} must return the same in each of {fabric.world_size} processes, got different "
            "values: bring together what each holds, as bhfl.engine.processes.gather does"
        )


def _sums(value: Any) -> list[str]:
    """The sum of each tensor in a nest of containers; as text, because NaN is not equal to
    itself.
    """
    sums = []
    for _, tensor in tensors_in(value):
        wide = torch.complex128 if tensor.is_complex() else torch.float64
        sums.append(str(tensor.sum(dtype=wide).item()))
    return sums


def check_same_options(fabric: "Fabric", told: Told) -> None:
    """Compare what this process was told with what rank 0 was.

    Raises:
        ValueError: Those of a process differ; on all processes, with the first differences.
    """
    if fabric.world_size == 1:
        return
    # numerics too: with other threads, one process would come to other bits than the next
    different = differences(fabric.broadcast(told), told, (*MAKE_THE_RUN, Role.NUMERICS))
    for rank, found in enumerate(gather(fabric, [different])):
        if found:
            raise ValueError(
                f"all processes must be started with the same options, got others in rank {rank} "
                f"(rank 0 -> rank {rank}): {', '.join(found[:5])}"
            )


def check_common_folder(fabric: "Fabric", folder: Path) -> None:
    """Prove that all processes see one and the same run folder, because each keeps its clients'
    state there.

    Args:
        fabric: The fabric of all processes.
        folder: The run folder, which rank 0 has made or found.

    Raises:
        ValueError: Some do not; on all processes.
    """
    if fabric.world_size == 1:
        return
    token = fabric.broadcast(secrets.token_hex(16))
    # a random name, which no other folder has by chance; as of a temporary file, so that the next
    # run removes one that a kill leaves behind
    mark = folder / f".{token}.tmp"
    try:
        if fabric.is_global_zero:
            mark.touch(exist_ok=False)
        # nobody looks for the mark before it is there
        fabric.barrier()
        blind = [rank for rank, sees in enumerate(gather(fabric, [mark.exists()])) if not sees]
    finally:
        if fabric.is_global_zero:
            mark.unlink(missing_ok=True)
    if not blind:
        return
    if fabric.is_global_zero:
        for made in (folder / "checkpoints", folder):
            # it holds something where it is of an earlier run
            with suppress(OSError):
                made.rmdir()
    raise ValueError(
        f"all processes must share the run folder {folder}, got ranks {', '.join(map(str, blind))} "
        "that do not see what rank 0 writes there: set trainer.default_root_dir to a folder that "
        "all nodes have in common"
    )


# ---- what rank 0 has made ------------------------------------------------------------------------


class Held:
    """The tensors that all processes hold alike, as they are now.

    Args:
        value: A nest of containers, equal on every process.
    """

    def __init__(self, value: Any) -> None:
        # held, so that no identity is given to another tensor meanwhile
        self.tensors = dict(tensors_in(value))
        # torch counts changes in place, but for those through .data
        self._changes = {path: tensor._version for path, tensor in self.tensors.items()}

    def paths(self) -> dict[int, str]:
        """The path of each tensor by its identity, but for those that were changed since."""
        return {
            id(tensor): path
            for path, tensor in self.tensors.items()
            if tensor._version == self._changes[path]
        }


def broadcast(fabric: "Fabric", state: ServerState, held: Held) -> ServerState:
    """The `state` of rank 0, on every process.

    Args:
        fabric: The fabric of all processes.
        state: Its tensors lie in dicts, lists and tuples.
        held: What the processes hold alike. Where `state` has one of these very tensors, the other
            processes take their own.
    """
    if fabric.world_size == 1:
        return state
    leaves, form = tree_flatten(vars(state))
    paths = held.paths()
    marks = []
    for leaf in leaves:
        is_tensor = isinstance(leaf, Tensor)
        mark = _Mark(paths.get(id(leaf), ""), leaf.dtype, leaf.shape) if is_tensor else leaf
        marks.append(mark)
    marks, form = fabric.broadcast((marks, form))
    for index, mark in enumerate(marks):
        if not isinstance(mark, _Mark):
            continue
        if mark.path:
            marks[index] = held.tensors[mark.path]
        else:
            marks[index] = _sent(fabric, mark, leaves[index] if fabric.is_global_zero else None)
    return state if fabric.is_global_zero else ServerState(**tree_unflatten(marks, form))


class _Mark(NamedTuple):
    """Stands for a tensor: where every process holds it, or an empty string for one that is
    sent.
    """

    path: str
    dtype: torch.dtype
    shape: torch.Size


def _sent(fabric: "Fabric", mark: _Mark, tensor: Tensor | None) -> Tensor:
    """A tensor that rank 0 has; it travels as bytes, which every backend takes."""
    if tensor is None:
        tensor = torch.empty(mark.shape, dtype=mark.dtype)
    there = tensor.detach().cpu().reshape(-1).view(torch.uint8).to(fabric.device)
    if there.numel():
        torch.distributed.broadcast(there, 0)
    return there.cpu().view(mark.dtype).view(mark.shape)
