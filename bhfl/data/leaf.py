"""Data in LEAF's layout (Caldas et al. 2018, "LEAF: A Benchmark for Federated Settings"): FEMNIST,
Shakespeare and others, as its scripts write them.

Each of the folders ``train`` and ``test`` holds JSON files of a mapping: ``users`` is a list of
names, ``num_samples`` how many samples each has, and ``user_data`` maps each name to its inputs
``x`` and targets ``y``.

Shapes: n samples, T characters of a text.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bhfl.checks import checked, count, or_none
from bhfl.data.datamodule import FederatedDataModule
from bhfl.data.natural import ByColumn
from bhfl.data.partition import Array, Partitioner, stable_order
from bhfl.data.parts import Parts
from bhfl.data.source import Source, TensorSource, largest_target
from bhfl.files import user_option
from bhfl.plain import read_json


@dataclass(frozen=True)
class _Split:
    """The samples of one of the folders."""

    users: Array
    """The user of each sample, ``[n]``."""
    inputs: Array
    """float32 ``[n, ...]``, or one text for each sample."""
    targets: Array
    """``[n]``: numbers, or one character for each sample."""


class LEAF(FederatedDataModule):
    """Users with samples of their own, from LEAF's JSON files.

    Texts become int64 numbers of their characters, ``[n, T]``; a character that the training
    samples do not have is numbered after all others.
    """

    def __init__(
        self,
        root: str | Path,
        shape: tuple[int, ...] | None = None,
        num_classes: int | None = None,
        partition: Partitioner = ByColumn("user"),  # noqa: B008  # holds no state
        **options: Any,
    ) -> None:
        """Check and keep the options; the files are read when first asked for.

        Args:
            root: The folder that holds ``train`` and ``test``.
            shape: The shape of an input, such as (1, 28, 28) for FEMNIST, whose files hold rows of
                784 numbers; None for the shape that they have in the files.
            num_classes: The number of classes; None for the largest target plus one, and for
                texts the number of characters.
            partition: How the training samples are shared out. The column ``user`` makes each user
                a client, which then is tested on the user's own samples of ``test``, unless
                `client_test_fraction` says otherwise.
            options: Those of `FederatedDataModule`.
        """
        super().__init__(partition=partition, **options)
        self.root = user_option("data.root", root) or Path()
        self.shape = None if shape is None else tuple(shape)
        for size in self.shape or ():
            checked("LEAF.shape", size, count(1))
        self._num_classes = checked("LEAF.num_classes", num_classes, or_none(count(1)))

    @cached_property
    def _files(self) -> dict[str, _Split]:
        return {name: _read(self.root / name) for name in ("train", "test")}

    @cached_property
    def _characters(self) -> str:
        """The characters of the training samples in order; none where inputs are numbers."""
        train = self._files["train"]
        if train.inputs.dtype.kind != "U":
            return ""
        return "".join(sorted(set("".join(train.inputs.tolist())) | set(train.targets.tolist())))

    @property
    def num_classes(self) -> int:
        """The number of classes."""
        if self._num_classes is not None:
            return self._num_classes
        if self._characters:
            return len(self._characters) + 1
        return 1 + max(largest_target("train", self._train), largest_target("test", self._test))

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape of one input; (T,) for texts."""
        return self._train.input_shape

    def load(self, train: bool) -> TensorSource:
        """See `FederatedDataModule.load`.

        Raises:
            ValueError: The folder holds no such files, or their samples have another shape.
        """
        split = self._files["train" if train else "test"]
        inputs, targets = split.inputs, split.targets
        if self._characters:
            inputs = self._numbered(inputs)
            targets = self._numbered(targets)[:, 0]
        if self.shape is not None:
            try:
                inputs = inputs.reshape(-1, *self.shape)
            except ValueError:
                inputs = inputs[:0]
            if len(inputs) != len(targets):
                raise ValueError(
                    f"LEAF.shape must hold the {split.inputs[0].size} numbers of an input, got "
                    f"{self.shape}"
                )
        source = TensorSource(torch.from_numpy(inputs), torch.from_numpy(targets))
        source.columns["user"] = split.users
        return source

    def _numbered(self, texts: Array) -> Array:
        """The characters of texts as numbers, ``[n, T]``."""
        length = texts.dtype.itemsize // 4
        # NumPy keeps a text as the numbers of its characters in Unicode
        codes = np.ascontiguousarray(texts).view(np.uint32).reshape(len(texts), length)
        known = np.array([ord(character) for character in self._characters], np.uint32)
        places = np.searchsorted(known, codes).astype(np.int64)
        found = known[np.minimum(places, len(known) - 1)] == codes
        return np.where(found, places, len(known))

    def _held(self, split: str) -> tuple[Source, Parts]:
        """A client's own test is that of its users, where each user is one client's."""
        by_user = isinstance(self.partition, ByColumn) and self.partition.column == "user"
        if split != "test" or self.client_test_fraction or not by_user:
            return super()._held(split)
        return self._test, self._tests

    @property
    def _tests(self) -> Parts:
        """The test samples of each client's users."""
        if self._parts_of is not self.split:
            self._parts_of, self._parts = self.split, self._dealt_tests()
        return self._parts

    _parts_of: Any = None
    """The split of which `_parts` are."""

    def _dealt_tests(self) -> Parts:
        clients = self.split.clients
        positions, owners = clients.flat(len(clients))
        users, first = np.unique(self._files["train"].users[positions], return_index=True)
        tested = self._files["test"].users
        places = np.minimum(np.searchsorted(users, tested), len(users) - 1)
        # users that no client has come last, and are left out
        owner = np.where(users[places] == tested, owners[first][places], len(clients))
        sizes = np.bincount(owner, minlength=len(clients) + 1)[: len(clients)]
        return Parts(stable_order(owner)[: sizes.sum()], sizes)


def _read(folder: Path) -> _Split:
    """All users of a folder, in the order of its sorted files."""
    files = sorted(folder.glob("*.json"))
    if not files:
        raise ValueError(f"LEAF.root must hold train/*.json and test/*.json, and {folder} has none")
    users: list[Array] = []
    inputs: list[Array] = []
    targets: list[Array] = []
    seen: set[str] = set()
    for file in files:
        for name, x, y in _users(file):
            if name in seen:
                raise ValueError(f"{file} must hold users once, and {name!r} is there twice")
            seen.add(name)
            # with dtype object, so that a name takes the room of a pointer for each sample
            users.append(np.full(len(y), name, dtype=object))
            inputs.append(x)
            targets.append(y)
    _check_alike(folder, "x", inputs)
    _check_alike(folder, "y", targets)
    names = np.concatenate(users).astype(str)
    found = _Split(names, np.concatenate(inputs), np.concatenate(targets))
    # one character as the target of each text
    expected = np.dtype("U1") if found.inputs.dtype.kind == "U" else np.dtype(np.int64)
    if found.targets.dtype != expected:
        raise ValueError(f"{folder} must hold numbers as x and y, or texts and a character each")
    return found


def _users(file: Path) -> Iterator[tuple[str, Array, Array]]:
    """The name, inputs and targets of each user of a file that has samples."""
    try:
        content = read_json(file.read_bytes())
        users = content["users"]
        sizes = content["num_samples"]
        data = content["user_data"]
        samples = [(str(user), data[user]["x"], data[user]["y"]) for user in users]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{file} must be JSON of users, num_samples, and user_data with x and y of each user: "
            f"{type(error).__name__} {error}"
        ) from error
    if len(sizes) != len(users):
        raise ValueError(f"{file} must tell num_samples of {len(users)} users, got {len(sizes)}")
    for (name, x, y), size in zip(samples, sizes, strict=True):
        if not isinstance(x, list) or not isinstance(y, list) or not size == len(x) == len(y):
            raise ValueError(
                f"{file} must hold {size!r} samples of {name!r}, as num_samples says, got "
                f"{_length(x)} of x and {_length(y)} of y"
            )
        if x:
            yield name, _array(file, name, x), _array(file, name, y, whole=True)


def _length(value: Any) -> str:
    return str(len(value)) if isinstance(value, list) else type(value).__name__


def _array(file: Path, name: str, values: Sequence[Any], whole: bool = False) -> Array:
    """Samples as an array of numbers or texts."""
    try:
        found = np.asarray(values)
    except ValueError:
        found = np.empty(0, object)
    if found.dtype.kind == "U" and len(set(map(len, values))) == 1:
        return found
    if found.dtype.kind not in ("iub" if whole else "iufb"):
        what = (
            "whole numbers or characters as y"
            if whole
            else "numbers of one shape or texts of one length as x"
        )
        raise ValueError(f"{file} must hold {what}, and those of {name!r} are not")
    return found.astype(np.int64 if whole else np.float32)


def _check_alike(folder: Path, what: str, arrays: Iterable[Array]) -> None:
    """Raise ValueError for arrays whose samples differ in kind or shape."""
    kinds = {(array.dtype, array.shape[1:]) for array in arrays}
    if len(kinds) > 1:
        words = " and ".join(sorted(f"{dtype} {list(shape)}" for dtype, shape in kinds)[:2])
        raise ValueError(f"{what} must be alike for all users of {folder}, got {words}")
