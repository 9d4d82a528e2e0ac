"""What many clients keep alike: once in memory, and once on disk under a name for each of them."""

import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from bhfl.engine import checkpoint
from bhfl.engine.checkpoint import digest

COMMON = "common"
"""Key of what a client keeps that others have too; in its file, the digest of it."""

_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32}
"""Types by size in bytes; what is larger is compared eight bytes at a time."""


@dataclass
class _Held:
    """Tensors with their digest, and a file of them if there is one."""

    tensors: dict[str, Tensor]
    sha256: str
    path: Path | None = None

    def __post_init__(self) -> None:
        self.counts = self._counts()

    def is_unchanged(self) -> bool:
        """Whether nobody has changed them in place."""
        return self.counts == self._counts()

    def _counts(self) -> list[int]:
        return [tensor._version for tensor in self.tensors.values()]


class Common:
    """Tensors that clients have in common: those that a round begins with, and those that it ends
    with.

    Each client's file is a hard link to the same content, where the file system has such links. So
    none of them asks who else has one: the content is gone with the last of them.
    """

    def __init__(self) -> None:
        self._last: list[_Held] = []

    def load(self, path: Path, sha256: str) -> dict[str, Tensor]:
        """The tensors of a file, which is read where they are not held already.

        Raises:
            CheckpointError: It is gone, damaged or another one, naming it.
        """
        held = self._find(lambda one: one.sha256 == sha256)
        return (held or self._take(checkpoint.load(path, sha256), sha256, path)).tensors

    def digest(self, tensors: Mapping[str, Tensor]) -> str:
        """The digest of some tensors, which is computed where they are not held already."""

        def equal(one: _Held) -> bool:
            if list(tensors) != list(one.tensors):
                return False
            return all(_same_bits(tensor, one.tensors[name]) for name, tensor in tensors.items())

        if held := self._find(equal):
            return held.sha256
        # copies: the client may go on with what it holds
        copies = {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}
        return self._take(copies, digest(copies)).sha256

    def write(self, path: Path, sha256: str) -> None:
        """Make a file of the tensors of which `digest` was this; it is written where none can be
        linked to.
        """
        held = next(one for one in self._last if one.sha256 == sha256)
        if held.path is not None:
            # it may be gone by now, or links may be unknown here
            with suppress(OSError):
                os.link(held.path, path)
                return
        with open(path, "xb") as file:
            checkpoint.write(file, held.tensors, sha256)
        held.path = path

    def moved(self, old: Path, new: Path) -> None:
        """Know that a file has another name now."""
        for held in self._last:
            if held.path == old:
                held.path = new

    def _find(self, wanted: Callable[[_Held], bool]) -> _Held | None:
        self._last = [held for held in self._last if held.is_unchanged()]
        return next((held for held in self._last if wanted(held)), None)

    def _take(self, tensors: dict[str, Tensor], sha256: str, path: Path | None = None) -> _Held:
        held = _Held(tensors, sha256, path)
        self._last = [*self._last, held][-2:]
        return held


def _same_bits(tensor: Tensor, other: Tensor) -> bool:
    if tensor is other:
        return True
    if tensor.dtype != other.dtype or tensor.shape != other.shape:
        return False
    # as integers: a zero has two signs, and what is not a number equals nothing
    kind = _INTEGERS.get(tensor.element_size(), torch.int64)
    mine, its = (one.detach().cpu().contiguous().view(-1).view(kind) for one in (tensor, other))
    return torch.equal(mine, its)
