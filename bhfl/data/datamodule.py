"""The data module: a data set that is split among clients, and the batches of each."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any, ClassVar, Literal

import lightning as L
import numpy as np
import numpy.typing as npt
import torch
from lightning.pytorch.core.hooks import DataHooks
from torch import Tensor
from torch.utils.data import Dataset

from bhfl.checks import checked, choice, count, or_none, within
from bhfl.data.augment import AUGMENTATIONS
from bhfl.data.columns import column_of
from bhfl.data.natural import ByColumn
from bhfl.data.partition import IID, Partitioner, present, stratified_sample
from bhfl.data.parts import Parts
from bhfl.data.source import Source, as_source
from bhfl.data.split import Shares, Split, make_split
from bhfl.data.tensors import Epochs
from bhfl.engine.hooks import Guard
from bhfl.engine.random import RandomKeys
from bhfl.engine.types import Client
from bhfl.recorded import Recorded
from bhfl.settings import Role

_MOST_COUNTS = 2**26
"""Numbers that a table of labels may have."""


class FederatedDataModule(Recorded, L.LightningDataModule, ABC):
    """Splits a map-style data set with targets among clients and hands out batches.

    Subclasses say how the two splits are loaded (`load`) and what they look like (`num_classes`,
    `input_shape`). Call order: `prepare_data`, `setup`, `federate`, then any of the batches.

    A client's last batch may be smaller than the others. BatchNorm cannot train on a batch of one
    sample: models with it need `drop_last` where one may be left.
    """

    roles: ClassVar[Mapping[str, Role]] = {}
    """The roles of options of a class that differ from those in `bhfl.settings.DATA_ROLES`."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Refuse a class with a method whose name is nearly that of a method of this class or of
        Lightning's.
        """
        super().__init_subclass__(**kwargs)
        _HOOKS.check_class(cls)

    def __init__(  # noqa: PLR0913
        self,
        *,
        partition: Partitioner = IID(),  # noqa: B008  # holds no state, and prints as a class in --print_config
        batch_size: int = 32,
        eval_batch_size: int = 256,
        val_fraction: float = 0.1,
        client_val_fraction: float = 0.0,
        client_test_fraction: float = 0.0,
        holdout: int = 0,
        max_train_samples: int | None = None,
        max_eval_samples: int | None = None,
        num_workers: int = 0,
        augment: Literal["none", "crop_flip"] = "none",
        drop_last: bool = False,
    ) -> None:
        """Check and keep the options.

        Args:
            partition: How the training samples are shared out among the clients.
            batch_size: The number of samples in a training batch.
            eval_batch_size: The number of samples in a validation or test batch.
            val_fraction: The part of the training split that is held out for global validation, in
                [0, 1).
            client_val_fraction: The part of each client's samples that is held out for its own
                validation, in [0, 1).
            client_test_fraction: The part of each client's samples that is held out for its own
                test, in [0, 1), beside its validation. The final test alone uses it.
            holdout: The number of training samples that are kept from all clients, for the server.
            max_train_samples: The most training samples that are used: a random subset with the
                label mix of all.
            max_eval_samples: The most samples that validation uses, and testing.
            num_workers: The number of worker processes, for data sets that are not tensors; no
                batch depends on it.
            augment: The changes of training pictures: none, or crop_flip (pad by 4, random crop,
                random mirror image).
            drop_last: Whether to leave a client's last batch of an epoch out where it is smaller
                than the others.
        """
        super().__init__()
        if not isinstance(partition, Partitioner):
            raise ValueError(f"data.partition must be a Partitioner, got {partition!r}")
        self.partition = partition
        self.batch_size = checked("data.batch_size", batch_size, count(1))
        self.eval_batch_size = checked("data.eval_batch_size", eval_batch_size, count(1))
        self.val_fraction = float(checked("data.val_fraction", val_fraction, within("[0, 1)")))
        self.client_val_fraction = float(
            checked("data.client_val_fraction", client_val_fraction, within("[0, 1)"))
        )
        self.client_test_fraction = float(
            checked("data.client_test_fraction", client_test_fraction, within("[0, 1)"))
        )
        if (held := self.client_val_fraction + self.client_test_fraction) >= 1:
            raise ValueError(
                "data.client_val_fraction and data.client_test_fraction must leave training "
                f"samples and sum to less than 1, got {held:g}"
            )
        self.holdout = checked("data.holdout", holdout, count(0))
        self.max_train_samples = checked(
            "data.max_train_samples", max_train_samples, or_none(count(1))
        )
        self.max_eval_samples = checked(
            "data.max_eval_samples", max_eval_samples, or_none(count(1))
        )
        self.num_workers = checked("data.num_workers", num_workers, count(0, 1024))
        self.augment = checked("data.augment", augment, choice(*AUGMENTATIONS))
        self.drop_last = drop_last
        self._split: Split | None = None

    @property
    @abstractmethod
    def num_classes(self) -> int:
        """Number of classes."""

    @property
    @abstractmethod
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input, for pictures (channels, rows, columns)."""

    @abstractmethod
    def load(self, train: bool) -> Dataset[Any] | Source:
        """The training split, or the test split; called once each."""

    @cached_property
    def _train(self) -> Source:
        return as_source(self.load(train=True), num_workers=self.num_workers)

    @cached_property
    def _test(self) -> Source:
        return as_source(self.load(train=False), num_workers=self.num_workers)

    def setup(self, stage: str) -> None:
        """Load what the stage needs: the test split for "test", the training split otherwise.

        Raises:
            ValueError: The data are missing, or not of the kind that the options need.
        """
        source = self._test if stage == "test" else self._train
        if self.augment != "none" and len(source.input_shape) != 3:
            raise ValueError(
                f"data.augment must be none for inputs of shape {source.input_shape}, got "
                f"{self.augment!r}"
            )

    def federate(self, num_clients: int, seed: int) -> list[int]:
        """Split the training set among clients; a function of the options and the arguments.

        Args:
            num_clients: The number of clients.
            seed: The run's.

        Returns:
            The number of training samples of each client.

        Raises:
            ValueError: The set cannot be split so.
        """
        targets = present("targets", self._train.targets)
        if targets.shape[:1] != (len(self._train),):
            raise ValueError(
                f"targets must be one for each of {len(self._train)} samples, got "
                f"{len(np.atleast_1d(targets))}"
            )
        # numbers in a column, as losses of regression take them
        if targets.shape[1:] == (1,):
            targets = targets[:, 0]
        shares = Shares(
            max_samples=self.max_train_samples,
            val_fraction=self.val_fraction,
            holdout=self.holdout,
            client_val_fraction=self.client_val_fraction,
            client_test_fraction=self.client_test_fraction,
        )
        self._split = make_split(targets, self._partition(num_clients), num_clients, seed, shares)
        sizes: list[int] = self._split.clients.sizes.tolist()
        return sizes

    def _partition(self, num_clients: int) -> Partitioner:
        """The partitioner, with the column of the training set that it goes by."""
        if not isinstance(self.partition, ByColumn):
            return self.partition
        return self.partition.of(self.column)

    def column(self, name: str) -> npt.NDArray[Any]:
        """The values of a column of the training set, one for each sample.

        Args:
            name: The column of a table, the key in rows that are mappings, or an attribute of the
                data set that holds a value for each sample.

        Raises:
            ValueError: There is no such column.
        """
        return column_of("ByColumn.column", self._train, name)

    @property
    def split(self) -> Split:
        """The split that `federate` made; RuntimeError before that."""
        if self._split is None:
            raise RuntimeError(
                "call federate(num_clients, seed) before asking for the split or its batches"
            )
        return self._split

    def partition_record(self) -> dict[str, Any]:
        """The split as JSON-able values: scheme, seed, sha256 and the sorted indices (see
        `Split.record`).
        """
        return self.split.record()

    def label_counts(self, num_clients: int) -> npt.NDArray[np.int64] | None:
        """The training samples of the first clients in each class, ``[clients, classes]``; None
        where targets are no numbers of classes, or so large that it would take over half a GiB.

        Args:
            num_clients: How many clients at most.
        """
        targets = np.asarray(self._train.targets)
        if targets.ndim != 1 or targets.dtype.kind not in "iu" or targets.min() < 0:
            return None
        size = max(self.num_classes, int(targets.max()) + 1)
        num = min(num_clients, len(self.split.clients))
        if num * size > _MOST_COUNTS:
            return None
        positions, owners = self.split.clients.flat(num_clients)
        # one number for each pair of a client and a class
        pairs = owners * size + targets[positions].astype(np.int64)
        return np.bincount(pairs, minlength=num * size).reshape(num, size)

    def client_batches(self, client_id: int, rng: RandomKeys, epoch: int) -> Iterable[Any]:
        """One local epoch of a client's training batches, shuffled and augmented by draws from
        `rng` alone.

        Args:
            client_id: The client's position in the fleet, from 0.
            rng: The client's random streams of this round; "shuffle" and "augment" are used.
            epoch: The local epoch, from 0; each has another order.

        Returns:
            Batches as the module's ``training_step`` takes them.
        """
        return self._epochs.batches(self._train, self.split.clients[client_id], rng, epoch)

    def num_batches(self, client_id: int) -> int:
        """Training batches in one local epoch of a client."""
        return self._epochs.num_batches(self.split.clients.size(client_id))

    @property
    def _epochs(self) -> Epochs:
        # made anew: the options are attributes that anybody may set
        return Epochs(self.batch_size, self.drop_last, self.augment)

    def client_batch_size(self, client: Client) -> int:
        """Samples in a training batch: `batch_size`, for each client alike."""
        return self.batch_size

    def client_val_batches(self, client_id: int) -> Iterable[Any] | None:
        """A client's own validation batches, or None where it has none."""
        return self._own_batches("val", client_id)

    def client_test_batches(self, client_id: int) -> Iterable[Any] | None:
        """A client's own test batches, or None where it has none. Nothing may be chosen by them."""
        return self._own_batches("test", client_id)

    def val_batches(self, limit: int | None = None) -> Iterable[Any]:
        """Batches of the global validation samples, held out of the training split; empty if
        `val_fraction` is 0.

        Args:
            limit: The most samples; with it or `max_eval_samples`, of the same subset in every run.
        """
        return self._eval_batches(self._train, self._subset(self._train, self.split.val, limit))

    def test_batches(self) -> Iterable[Any]:
        """Batches of the test split; with `max_eval_samples`, of the same subset in every run."""
        everything = torch.arange(len(self._test))
        return self._eval_batches(self._test, self._subset(self._test, everything))

    def num_holdout(self) -> int:
        """Samples kept for the server: the option `holdout`."""
        return self.holdout

    def holdout_batches(self, limit: int | None = None) -> Iterable[Any]:
        """Batches of the samples kept for the server, not augmented.

        Args:
            limit: The most samples, evenly spread over those that are kept.
        """
        kept = self.split.holdout
        return self._eval_batches(self._train, kept if limit is None else _spread(kept, limit))

    def held_sizes(self, split: Literal["val", "test"]) -> npt.NDArray[np.int64]:
        """The number of samples that each client holds out for its own validation, or test."""
        return self._held(split)[1].sizes

    def _held(self, split: str) -> tuple[Source, Parts]:
        """What clients hold out for their own validation, or test, and the source of that."""
        return self._train, self.split.client_val if split == "val" else self.split.client_test

    def _own_batches(self, split: str, client_id: int) -> Iterable[Any] | None:
        source, parts = self._held(split)
        indices = parts[client_id]
        return self._eval_batches(source, indices) if len(indices) else None

    def _eval_batches(self, source: Source, indices: Tensor) -> Iterable[Any]:
        # a new generator has the same seed each time, so that transforms draw alike for every model
        return source.batches(indices, self.eval_batch_size, torch.Generator())

    def _subset(self, source: Source, indices: Tensor, limit: int | None = None) -> Tensor:
        """The samples that are evaluated: `limit` or `max_eval_samples` where there are more, with
        the label mix of all, or evenly spread where nobody knows the labels.
        """
        caps = [cap for cap in (self.max_eval_samples, limit) if cap is not None]
        most = min([len(indices), *caps])
        if len(indices) <= most:
            return indices
        try:
            labels = source.targets
        except ValueError:
            labels = None
        if labels is None or labels.ndim != 1:
            return _spread(indices, most)
        # not of the run's seed: runs of several seeds are measured on the same samples
        chosen = stratified_sample(labels[indices.numpy()], most, np.random.default_rng(0))
        return indices[torch.from_numpy(chosen)]


def _spread(indices: Tensor, most: int) -> Tensor:
    """The indices, or so many of them, evenly spread."""
    if len(indices) <= most:
        return indices
    return indices[torch.arange(most) * len(indices) // most]


# after the class, whose methods it reads
_HOOKS = Guard(FederatedDataModule, others=(DataHooks, L.LightningDataModule), near=0.9)
