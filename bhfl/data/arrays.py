"""The samples of one client as arrays in a file: what a device has of its own."""

import os
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from bhfl.checks import checked, choice, count
from bhfl.data.augment import AUGMENTATIONS
from bhfl.data.tensors import Epochs, TensorSource, as_tensor
from bhfl.engine.random import RandomKeys
from bhfl.files import user_path
from bhfl.recorded import Recorded

_SPLITS = ("train", "val", "test")


class Arrays(Recorded):
    """One client's samples, in an ``.npz`` file of NumPy's; for `bhfl join` alone, as it knows of
    no other client.

    The file holds ``train_inputs`` ``[n, ...]`` and ``train_targets`` ``[n]``, and where the client
    is measured on samples of its own, ``val_inputs`` and ``val_targets``, ``test_inputs`` and
    ``test_targets``. uint8 inputs are divided by 255; targets become int64 or float32, which losses
    take. Nothing in it is unpickled.

    Args:
        file: The file.
        shared: A file with the validation and test samples that all clients have in common, for
            methods whose models only clients hold; unset for others.
        mean: The mean of each channel, which inputs are normalised with.
        std: The standard deviation of each channel.
        batch_size: The number of samples in a training batch.
        eval_batch_size: The number of samples in a validation or test batch.
        augment: The changes of training pictures, see `FederatedDataModule`.
        drop_last: Whether to leave the last batch of an epoch out where it is smaller.

    Raises:
        ValueError: An option breaks its rule.
    """

    def __init__(  # noqa: PLR0913
        self,
        file: str | os.PathLike[str],
        shared: str | os.PathLike[str] | None = None,
        mean: Sequence[float] = (),
        std: Sequence[float] = (),
        batch_size: int = 32,
        eval_batch_size: int = 256,
        augment: Literal["none", "crop_flip"] = "none",
        drop_last: bool = False,
    ) -> None:
        self.file = user_path(file)
        self.shared = None if shared is None else user_path(shared)
        self.eval_batch_size = checked("data.eval_batch_size", eval_batch_size, count(1))
        self._normal = {"mean": tuple(mean), "std": tuple(std)}
        if not all(one > 0 for one in std):
            raise ValueError(f"data.std must be positive, got {list(std)}")
        self._epochs = Epochs(
            checked("data.batch_size", batch_size, count(1)),
            drop_last,
            checked("data.augment", augment, choice(*AUGMENTATIONS)),
        )
        self._own: Mapping[str, TensorSource] = {}
        self._common: Mapping[str, TensorSource] = {}

    def prepare_data(self) -> None:
        """The file is there, or `setup` says that it is not."""

    def setup(self, stage: str) -> None:
        """Read the files, once.

        Raises:
            ValueError: One is not there, or does not hold what it must.
        """
        if self._own:
            return
        self._own = self._read("data.file", self.file)
        if "train" not in self._own:
            raise ValueError(f"data.file must hold train_inputs and train_targets: {self.file}")
        if self.shared is not None:
            self._common = self._read("data.shared", self.shared)

    def _read(self, key: str, file: os.PathLike[str]) -> dict[str, TensorSource]:
        found = {}
        try:
            with np.load(file, allow_pickle=False) as arrays:
                held = {name: arrays[name] for name in arrays if name.startswith(_SPLITS)}
        # of a file of one array a TypeError, as it is nothing to be closed
        except (OSError, ValueError, TypeError, EOFError, BadZipFile, zlib.error) as error:
            raise ValueError(f"{key} must be an .npz file of numbers: {error}") from error
        for split in _SPLITS:
            names = sorted(name for name in held if name.startswith(split))
            if names and names != [f"{split}_inputs", f"{split}_targets"]:
                raise ValueError(
                    f"{key} must hold {split}_inputs and {split}_targets, got {', '.join(names)}"
                )
            if names:
                found[split] = self._source(key, held, split)
        return found

    def _source(self, key: str, held: Mapping[str, Any], split: str) -> TensorSource:
        """The samples of a split."""
        inputs = _tensor(key, held, f"{split}_inputs")
        targets = _tensor(key, held, f"{split}_targets")
        if len(inputs) != len(targets):
            raise ValueError(
                f"{key} must hold as many {split}_targets as {split}_inputs, got {len(targets)} "
                f"and {len(inputs)}"
            )
        targets = targets.float() if targets.is_floating_point() else targets.long()
        channels = inputs.shape[1] if inputs.dim() > 1 else 1
        for name, values in self._normal.items():
            if len(values) not in (0, 1, channels):
                raise ValueError(
                    f"data.{name} must have one number for each of {channels} channels, got "
                    f"{list(values)}"
                )
        return TensorSource(inputs, targets, *self._normal.values())

    def federate(self, num_clients: int, seed: int) -> list[int]:
        """The number of this client's samples, in the place of every client.

        Args:
            num_clients: The number of clients.
            seed: The run's, by which nothing is split here.

        Returns:
            So many equal numbers.
        """
        return [len(self._own["train"])] * num_clients

    def partition_record(self) -> dict[str, Any]:
        """Nothing is split here."""
        return {}

    def client_batches(self, client_id: int, rng: RandomKeys, epoch: int) -> Iterable[Any]:
        """One local epoch of training batches, in the order that `FederatedDataModule` has.

        Args:
            client_id: The client's position in the fleet.
            rng: The client's random streams of this round; "shuffle" and "augment" are used.
            epoch: The local epoch, from 0; each has another order.

        Returns:
            Inputs and targets, batch by batch.
        """
        source = self._own["train"]
        return self._epochs.batches(source, torch.arange(len(source)), rng, epoch)

    def num_batches(self, client_id: int) -> int:
        """Training batches in one local epoch."""
        return self._epochs.num_batches(len(self._own["train"]))

    def client_val_batches(self, client_id: int) -> Iterable[Any] | None:
        """The client's own validation batches; None where it has none."""
        return self._evaluated(self._own.get("val"))

    def client_test_batches(self, client_id: int) -> Iterable[Any] | None:
        """The client's own test batches; None where it has none."""
        return self._evaluated(self._own.get("test"))

    def val_batches(self) -> Iterable[Any]:
        """Validation batches that all clients have in common."""
        return self._in_common("val")

    def test_batches(self) -> Iterable[Any]:
        """Test batches that all clients have in common."""
        return self._in_common("test")

    def _in_common(self, split: str) -> Iterable[Any]:
        found = self._evaluated(self._common.get(split))
        if found is None:
            raise ValueError(
                f"data.shared must hold {split}_inputs and {split}_targets: this method's models "
                "are measured on the clients, which hold them"
            )
        return found

    def _evaluated(self, source: TensorSource | None) -> Iterable[Any] | None:
        if source is None:
            return None
        places = torch.arange(len(source))
        return source.batches(places, self.eval_batch_size, torch.Generator())


def _tensor(key: str, held: Mapping[str, Any], name: str) -> Tensor:
    if not held[name].ndim:
        raise ValueError(f"{key} must hold {name} of many samples, got one number")
    return as_tensor(key, name, held[name])
