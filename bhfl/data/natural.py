"""Natural splits: each sample belongs to whom it is of.

Shapes: ``n`` samples, ``K`` clients.
"""

import os
from collections.abc import Callable, Sequence

import numpy as np
from numpy.random import Generator

from bhfl.data.partition import Array, Indices, Partitioner, present
from bhfl.files import user_path


class ByColumn(Partitioner):
    """A natural split: samples with the same group id (a writer, a device) belong to one client.

    With as many groups as clients, client i has the i-th group in sorted order; with more, the
    groups are dealt out at random.
    """

    def __init__(self, column: str | Sequence[int]) -> None:
        """Keep the group ids.

        Args:
            column: A group id for each training sample: a sequence or array, the path of a .npy
                file of one, or else the name of a column of the training data.
        """
        self.column: Array | str
        """The ids, or the name of their column until the data are there."""
        if isinstance(column, str) and not column.endswith((".npy", ".npz")):
            if not column:
                raise ValueError(
                    "ByColumn.column must be ids, a .npy file or the name of a column, got ''"
                )
            self.column = column
            return
        ids = self._read(column) if isinstance(column, str | os.PathLike) else np.asarray(column)
        if ids.ndim != 1:
            raise ValueError(f"ByColumn.column must have one dimension, got shape {ids.shape}")
        self.column = present("ByColumn.column", ids)

    def of(self, column: Callable[[str], Array]) -> "ByColumn":
        """The partitioner with its ids.

        Args:
            column: A function from the name of a column to what it holds of each sample.
        """
        if not isinstance(self.column, str):
            return self
        return ByColumn(column(self.column))  # type: ignore[arg-type]  # an array is a sequence

    @staticmethod
    def _read(path: str | os.PathLike[str]) -> Array:
        """The array in a .npy file of hostile bytes; it is mapped before it is read, so that a size
        that the file merely claims takes no memory.
        """
        try:
            # a pickle inside could run code
            found = np.load(user_path(path), mmap_mode="r", allow_pickle=False)
            if isinstance(found, np.ndarray):
                return np.array(found)
            found.close()
            raise ValueError("it is an archive of several arrays")
        # the reader of headers raises whatever it likes
        except Exception as error:
            raise ValueError(
                f"ByColumn.column must be the path of a .npy file of ids, got {path!r}: {error}"
            ) from error

    def values(self, targets: Array) -> Array:
        """The group ids.

        Raises:
            ValueError: There are not as many ids as samples, or they are still to be looked up.
        """
        if isinstance(self.column, str):
            raise ValueError(f"ByColumn({self.column!r}) finds its ids in a data module alone")
        if len(self.column) != len(targets):
            raise ValueError(
                f"ByColumn.column must have one id for each of {len(targets)} samples, got "
                f"{len(self.column)}"
            )
        return self.column

    def assign(self, labels: Array, num_clients: int, rng: Generator) -> Indices:
        """See `Partitioner.assign`.

        Raises:
            ValueError: There are fewer groups than clients.
        """
        groups, group_of_sample = np.unique(labels, return_inverse=True)
        if len(groups) < num_clients:
            raise ValueError(
                f"clients must be at most {len(groups)}, the number of groups among "
                f"{len(labels)} samples that are left for clients, got {num_clients}"
            )
        order = np.arange(len(groups))
        if len(groups) > num_clients:
            order = rng.permutation(order)
        owner_of_group: Indices = order % num_clients
        return owner_of_group[group_of_sample]

    def __repr__(self) -> str:
        if isinstance(self.column, str):
            return f"ByColumn({self.column})"
        # with their counts, for which NumPy sorts: many ids take it several times as long to hash
        groups, _ = np.unique(self.column, return_counts=True)
        return f"ByColumn({len(groups)} groups)"
