"""Named columns: of tables, of rows that are mappings, and of data sets that have them as
attributes.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset

from bhfl.checks import suggestion
from bhfl.data.forms import is_table
from bhfl.data.partition import Array
from bhfl.data.source import LoaderSource, TensorSource
from bhfl.data.tensors import as_tensor


def column_of(key: str, data: Any, name: str) -> Array:
    """The values of a column, one for each sample.

    Args:
        key: The option that names the column, for messages.
        data: A data set or a source.
        name: The column of a table, the key in rows that are mappings, or an attribute that holds a
            value for each sample.

    Raises:
        ValueError: There is no such column, or a row lacks it.
    """
    data = data.dataset if isinstance(data, LoaderSource) else data
    if isinstance(data, Subset):
        chosen: Array = column_of(key, data.dataset, name)[np.asarray(data.indices)]
        return chosen
    if isinstance(data, ConcatDataset):
        return np.concatenate([column_of(key, part, name) for part in data.datasets])
    if is_table(data):
        if name in data.column_names:
            return np.asarray(data.select_columns([name]).with_format("numpy")[:][name])
        raise _unknown(key, name, data.column_names)
    found = _attributes(data)
    if name in found:
        return np.asarray(found[name])
    if isinstance(data, TensorSource):
        raise _unknown(key, name, found)
    return _of_rows(key, data, name)


def _of_rows(key: str, data: Any, name: str) -> Array:
    values = []
    # a transform of the user's may draw from the global generators
    with isolate_rng(include_cuda=False):
        for place in range(len(data)):
            row = data[place]
            if not isinstance(row, Mapping):
                raise _unknown(key, name, _attributes(data))
            if name not in row:
                raise _unknown(key, name, row, f"row {place} of the data")
            values.append(row[name])
    return np.asarray(values)


def target_column(data: Any) -> str | None:
    """The column that holds the labels of a table, if nobody has named another; None where `data`
    is no table.
    """
    table = _table(data)
    if table is None:
        return None
    return "labels" if "labels" in table.column_names else "label"


def _table(data: Any) -> Any:
    """The table that `data` is, or is of, or begins with; None where it is no table."""
    while isinstance(data, Subset | ConcatDataset):
        data = data.dataset if isinstance(data, Subset) else data.datasets[0]
    return data if is_table(data) else None


def _kind(data: Any, name: str) -> str:
    """What a table says that a column holds, such as ``uint8``; empty where its user makes the
    rows, and for data that are no table.
    """
    table = _table(data)
    if table is None or table.format["type"] == "custom":
        return ""
    kind = table.features[name]
    while hasattr(kind, "feature"):
        kind = kind.feature
    return str(getattr(kind, "dtype", ""))


def _attributes(data: Any) -> Mapping[str, Any]:
    """What the data set has of each sample, by name."""
    if isinstance(data, TensorSource):
        return data.columns
    found = {}
    for name, value in getattr(data, "__dict__", {}).items():
        arrays = isinstance(value, Tensor | np.ndarray) and value.ndim > 0
        if (arrays or isinstance(value, list | tuple)) and len(value) == len(data):
            found[name] = value
    return found


def _unknown(key: str, name: str, known: Iterable[str], where: str = "the data") -> ValueError:
    known = list(known)
    return ValueError(
        f"{key} must name a column of {where} (there are {', '.join(known) or 'none'}), got "
        f"{name!r}{suggestion(name, known, others=False)}"
    )


class Pairs(Dataset[Any]):
    """Rows that are mappings as samples (input, target).

    Args:
        dataset: A map-style data set of mappings.
        inputs: The key of the input; floats become float32, and uint8 is divided by 255.
        targets: The key of the target.
        pixels: Whether inputs are uint8 even where the rows have them as other integers.
    """

    def __init__(self, dataset: Any, inputs: str, targets: str, pixels: bool) -> None:
        self.dataset = dataset
        self.inputs = inputs
        self.targets_column = targets
        self.pixels = pixels

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, place: int) -> tuple[Any, Any]:
        row = self.dataset[place]
        entry = row[self.inputs]
        # as arrays and tensors are read that are not in rows
        if isinstance(entry, np.ndarray) and entry.dtype.kind in "biuf":
            entry = as_tensor("data", "inputs", entry)
        if isinstance(entry, Tensor):
            # only pictures have 16 bits as tensors
            largest = {torch.uint8: 255, torch.uint16: 65535}.get(entry.dtype, 255 * self.pixels)
            unit = 1 if entry.is_floating_point() else largest
            if unit:
                entry = entry.to(torch.float32) / unit
        return entry, row[self.targets_column]


def paired(table: Any, inputs: str, targets: str) -> Dataset[Any]:
    """Two columns as pairs: tensors where they are numbers of one shape, else read row by row.

    Args:
        table: A map-style data set of mappings; a table of Hugging Face may become tensors.
        inputs: The column of the inputs.
        targets: The column of the targets.

    Raises:
        ValueError: A row is no mapping, or has no such keys.
    """
    with isolate_rng(include_cuda=False):
        first = table[0]
    keys = first if isinstance(first, Mapping) else ()
    for option, name in (("inputs", inputs), ("targets", targets)):
        if name not in keys:
            raise _unknown(f"data.{option}", name, keys)
    kind = _kind(table, inputs)
    # the package's own formats make int64 of all integers
    pixels = kind == "uint8"
    pairs = Pairs(table, inputs, targets, pixels)
    if not is_table(table) or table.format["type"] != "torch":
        return pairs
    # pictures are decoded anew each time: all of them decoded may be more than there is memory
    if not kind.startswith(("int", "uint", "float", "bool")):
        return pairs
    columns = table.select_columns([inputs, targets])[:]
    values, labels = columns[inputs], columns[targets]
    if not isinstance(values, Tensor) or not isinstance(labels, Tensor):
        return pairs
    if pixels and not values.is_floating_point():
        values = values.to(torch.uint8)
    return TensorDataset(values, labels)
