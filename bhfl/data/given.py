"""The data module of data that are at hand."""

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch.utils.data import Dataset

from bhfl.checks import checked, count, or_none
from bhfl.data.columns import column_of, paired, target_column
from bhfl.data.datamodule import FederatedDataModule
from bhfl.data.forms import dataset_of, is_list_of_sets, joined
from bhfl.data.natural import ByColumn
from bhfl.data.partition import IID, Array, Indices, Partitioner, present
from bhfl.data.parts import Parts
from bhfl.data.source import Source, as_source, largest_target
from bhfl.recorded import spelled
from bhfl.settings import Role

if TYPE_CHECKING:
    Given = Any
else:
    # what a configuration can say of all the forms
    Given = Dataset | list[Dataset]


class FromDatasets(FederatedDataModule):
    """Data that are at hand.

    Each of `train`, `val` and `test` is one of:

    - a map-style data set of torch, of samples (input, target) or of any others that the module
      takes; parts of one, such as `torch.utils.data.random_split` gives, have its targets;
    - a pair (inputs, targets) of NumPy arrays or tensors;
    - a `datasets.Dataset` of Hugging Face, or another data set whose rows are mappings: `targets`
      and `inputs` name columns;
    - a list with one of these a client, which then are not divided: client i has the i-th.

    Pairs and a `TensorDataset` of two tensors are indexed directly, which is fast; any other data
    set is read through a `DataLoader`.
    """

    roles: ClassVar[Mapping[str, Role]] = {"pin_memory": Role.MACHINE}

    def __init__(  # noqa: PLR0913
        self,
        train: Given,
        test: Given,
        targets: Any = None,
        num_classes: int | None = None,
        val: Given | None = None,
        inputs: str | None = None,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        pin_memory: bool = False,
        **options: Any,
    ) -> None:
        """Keep the datasets.

        Args:
            train: The training split, or a list with that of each client.
            test: The test split, or a list with that of each client; all together are the test
                split.
            targets: The label of each training sample, for the split, or the name of their column;
                None to take the dataset's `targets`, `labels` or `y`, or the column `label` or
                `labels` of a table. Batches hold what the dataset gives.
            num_classes: The number of classes; None for the largest target plus one.
            val: The validation split, or a list with that of each client; None to hold
                `val_fraction` of the training samples out, which otherwise is not used.
            inputs: The column of the inputs, for batches (inputs, targets) of rows that are
                mappings; None for batches that are mappings of all columns.
            collate_fn: How a list of samples becomes a batch; None for torch's own way.
            pin_memory: Whether batches that are read through a `DataLoader` lie in pinned memory,
                where there is a GPU that takes them faster from there.
            options: Those of `FederatedDataModule`.

        Raises:
            ValueError: The data are of no such form, a list is not as long as `train`, or a column
                is not there.
        """
        super().__init__(**options)
        self._num_classes = checked("data.num_classes", num_classes, or_none(count(1)))
        self._columns = (targets, inputs)
        self._loading = {
            "num_workers": self.num_workers,
            "collate_fn": collate_fn,
            "pin_memory": pin_memory and torch.cuda.is_available(),
        }
        self._sources: dict[str, Source] = {}
        self._table: Any = None
        """The training set before its columns became pairs."""
        self._lists: dict[str, Parts] = {}
        """The samples of each client, of the splits that were given as lists."""
        # the training set first, whose columns are asked for
        for split, data in {"train": train, "val": val, "test": test}.items():
            if data is not None or split != "val":
                self._take(split, data)
        if val is not None:
            self.val_fraction = 0.0
        self._check_lists()

    def _take(self, split: str, data: Any) -> None:
        """Read one of the splits."""
        key = f"data.{split}"
        named = isinstance(data, list) and all(isinstance(one, Dataset) for one in data)
        made_with = vars(self)["_made_with"]
        # a class that derives from this one may have other arguments
        if isinstance(data, list | tuple) and not named and split in made_with:
            # no configuration holds arrays, however small they are
            made_with[split] = spelled(type(data), {"len": len(data)})
        if isinstance(data, Source):
            self._sources[split] = data
            self._table = data if self._table is None else self._table
            return
        if is_list_of_sets(data):
            dataset, sizes = joined(key, data)
            self._lists[split] = Parts(np.arange(sum(sizes)), np.array(sizes))
        else:
            dataset = dataset_of(key, data)
        self._table = dataset if self._table is None else self._table
        targets, inputs = self._columns
        targets = target_column(dataset) if targets is None else targets
        if isinstance(targets, str):
            name, targets = targets, column_of("data.targets", dataset, targets)
            present(f"data.targets of {key}", targets)
            dataset = dataset if inputs is None else paired(dataset, inputs, name)
        elif inputs is not None:
            raise ValueError(
                "data.targets must name a column where data.inputs does, got "
                f"{type(targets).__name__}"
            )
        elif split != "train":
            # those that are given are of the training samples
            targets = None
        self._sources[split] = as_source(dataset, targets, **self._loading)

    def _check_lists(self) -> None:
        """Raise ValueError for lists that do not fit each other, or options beside them."""
        clients = self._lists.get("train")
        for split, fraction in {
            "val": "client_val_fraction",
            "test": "client_test_fraction",
        }.items():
            if split not in self._lists:
                continue
            if clients is None or len(self._lists[split]) != len(clients):
                found = "no list" if clients is None else f"a list of {len(clients)}"
                raise ValueError(
                    f"data.{split} must be a list only where data.train is one of as many clients, "
                    f"got {len(self._lists[split])}, and data.train is {found}"
                )
            if getattr(self, fraction):
                raise ValueError(
                    f"data.{fraction} must be 0 where data.{split} has a set of each client, got "
                    f"{getattr(self, fraction):g}"
                )
        if clients is None:
            return
        if not isinstance(self.partition, IID):
            raise ValueError(
                "data.partition must be left out where data.train has a set of each client, got "
                f"{self.partition}"
            )
        if not clients.sizes.all():
            raise ValueError(
                f"data.train[{clients.sizes.argmin()}] must have samples, and has none"
            )

    @property
    def num_classes(self) -> int:
        """The number of classes; ValueError if it was not given and targets do not tell it."""
        if self._num_classes is not None:
            return self._num_classes
        # a class that training samples lack would end a run at its test
        return 1 + max(largest_target(split, source) for split, source in self._sources.items())

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of the first training input."""
        return self._train.input_shape

    def load(self, train: bool) -> Source:
        """See `FederatedDataModule.load`."""
        return self._sources["train" if train else "test"]

    def column(self, name: str) -> Array:
        """See `FederatedDataModule.column`."""
        return column_of("ByColumn.column", self._table, name)

    def val_batches(self, limit: int | None = None) -> Iterable[Any]:
        """See `FederatedDataModule.val_batches`; of `val`, where it was given."""
        if "val" not in self._sources:
            return super().val_batches(limit)
        source = self._sources["val"]
        return self._eval_batches(source, self._subset(source, torch.arange(len(source)), limit))

    def _held(self, split: str) -> tuple[Source, Parts]:
        """What each client brought, where the split was given as a list."""
        if split not in self._lists:
            return super()._held(split)
        return self._sources[split], self._lists[split]

    def _partition(self, num_clients: int) -> Partitioner:
        """Each client's own set, where there are such."""
        clients = self._lists.get("train")
        if clients is None:
            return super()._partition(num_clients)
        if len(clients) != num_clients:
            raise ValueError(
                f"data.train must have a data set for each of {num_clients} clients where it is a "
                f"list, got {len(clients)}"
            )
        ids = np.repeat(np.arange(num_clients), clients.sizes)
        return _OwnSets(ids)  # type: ignore[arg-type]  # an array is a sequence of ids


class _OwnSets(ByColumn):
    """Each client's own set, by the ids of the clients."""

    def assign(self, labels: Array, num_clients: int, rng: np.random.Generator) -> Indices:
        """See `Partitioner.assign`.

        Raises:
            ValueError: A client has no sample left.
        """
        if len(empty := np.setdiff1d(np.arange(num_clients), labels)):
            raise ValueError(
                f"data.train is a list, and none of the samples of data.train[{empty[0]}] is left: "
                "lower data.val_fraction or data.holdout, or raise data.max_train_samples"
            )
        return super().assign(labels, num_clients, rng)
