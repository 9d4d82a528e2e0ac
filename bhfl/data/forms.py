"""The forms in which data come: data sets of torch and of Hugging Face, pairs of arrays, and lists
with one of these a client.

Shapes: n samples.
"""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset, IterableDataset, Subset, TensorDataset

from bhfl.checks import shown
from bhfl.data.source import Source, is_pair
from bhfl.data.tensors import as_tensor

_REMEDY = (
    "read it into a list or a TensorDataset first; of Hugging Face, load without streaming; of a "
    "DataLoader, give its .dataset"
)


def is_table(data: Any) -> bool:
    """Whether `data` is a `datasets.Dataset` of Hugging Face, whose rows are mappings."""
    # who has one has imported the package, which takes seconds
    package = sys.modules.get("datasets")
    return package is not None and isinstance(data, package.Dataset)


def is_list_of_sets(data: Any) -> bool:
    """Whether `data` is a list with one data set a client, and not one of samples."""
    if not isinstance(data, list) or not data:
        return False
    first = data[0]
    if isinstance(first, tuple):
        # a sample may be (input, soft targets), which hardly ever are of one length
        return _are_arrays(first) and len(first[0]) == len(first[1])
    return isinstance(first, Dataset | Source) or is_table(first)


def dataset_of(key: str, data: Any) -> Dataset[Any]:
    """One data set as torch's: a pair of arrays as a `TensorDataset`, and so a part of one; rows of
    a table as tensors, where its user has chosen nothing else.

    Args:
        key: The name that messages call it.
        data: What the user gave.

    Raises:
        ValueError: It is nothing that samples can be chosen from.
    """
    if isinstance(data, tuple) and len(data) == 2:
        return _pair(key, data)
    if isinstance(data, Subset):
        inner = dataset_of(key, data.dataset)
        if not is_pair(inner):
            return Subset(inner, data.indices)
        chosen = torch.as_tensor(np.asarray(data.indices, dtype=np.int64))
        return TensorDataset(*(tensor[chosen] for tensor in inner.tensors))
    if isinstance(data, ConcatDataset):
        return ConcatDataset([dataset_of(key, part) for part in data.datasets])
    if is_table(data):
        rows: Dataset[Any] = data if data.format["type"] else _shaded(data).with_format("torch")
        return rows
    if isinstance(data, Mapping):
        raise ValueError(
            f"{key} must be one data set, got a {type(data).__name__} of {shown(list(data))}: give "
            "one of them"
        )
    can_be_indexed = hasattr(data, "__getitem__") and hasattr(data, "__len__")
    if isinstance(data, IterableDataset | str) or not can_be_indexed:
        raise ValueError(
            f"{key} must be a data set with a length, of which any sample can be read, got a "
            f"{type(data).__name__}: {_REMEDY}"
        )
    found: Dataset[Any] = data
    return found


def _shaded(table: Any) -> Any:
    """A table without palettes, in which a place would pass for a shade of grey."""
    for name, value in table[0].items() if len(table) else ():
        if getattr(value, "mode", "") == "P":
            table = table.cast_column(name, type(table.features[name])(mode="RGB"))
    return table


def joined(key: str, sets: Sequence[Any]) -> tuple[Dataset[Any], list[int]]:
    """The data sets of all clients as one, client after client, and the number of samples of each.

    Args:
        key: The name that messages call the list.
        sets: One data set a client. Pairs of arrays are copied into one, so that a client's batch
            is read as fast as from a set that nobody has divided.

    Raises:
        ValueError: One of them is not of the form of the first.
    """
    parts = []
    for i, data in enumerate(sets):
        if isinstance(data, Source):
            raise ValueError(f"{key}[{i}] must be a data set, got a {type(data).__name__}")
        parts.append(dataset_of(f"{key}[{i}]", data))
    sizes = [len(part) for part in parts]  # type: ignore[arg-type]
    if not all(map(is_pair, parts)):
        return ConcatDataset(parts), sizes
    columns = []
    for place, what in enumerate(("inputs", "targets")):
        tensors = [part.tensors[place] for part in parts]  # type: ignore[attr-defined]
        _check_alike(key, what, tensors)
        columns.append(torch.cat(tensors))
    return TensorDataset(*columns), sizes


def _check_alike(key: str, what: str, tensors: Sequence[Tensor]) -> None:
    """Raise ValueError for the first tensor that is not of the kind of the one before all."""
    dtype, shape = tensors[0].dtype, tensors[0].shape[1:]
    for i, tensor in enumerate(tensors):
        if tensor.dtype != dtype or tensor.shape[1:] != shape:
            raise ValueError(
                f"{key}[{i}] must have {what} like those of {key}[0], {dtype} {list(shape)}, got "
                f"{tensor.dtype} {list(tensor.shape[1:])}"
            )


def _are_arrays(items: tuple[Any, ...]) -> bool:
    """Whether these are two arrays of at least one dimension."""
    kinds = Tensor | np.ndarray
    return len(items) == 2 and all(isinstance(one, kinds) and one.ndim > 0 for one in items)


def _pair(key: str, pair: tuple[Any, Any]) -> TensorDataset:
    """Inputs and targets; whole numbers as targets become int64, and others float32."""
    if not _are_arrays(pair):
        kinds = " and ".join(type(item).__name__ for item in pair)
        raise ValueError(
            f"{key} must hold two arrays (inputs, targets) where it is a tuple, got {kinds}; a "
            "list gives each client a data set of its own"
        )
    inputs = as_tensor(key, "inputs", pair[0])
    targets = as_tensor(key, "targets", pair[1])
    targets = targets.float() if targets.is_floating_point() else targets.long()
    if len(inputs) != len(targets):
        raise ValueError(
            f"{key} must have as many targets as inputs, got {len(targets)} and {len(inputs)}"
        )
    return TensorDataset(inputs, targets)
