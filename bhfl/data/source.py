"""Where batches come from: tensors that are indexed directly, or any map-style dataset through a
DataLoader.
"""

import random
from collections.abc import Iterator, Sequence
from typing import Any, Protocol, cast

import numpy as np
import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset

from bhfl.data.augment import Augmentation
from bhfl.data.partition import Array


class Source(Protocol):
    """Batches of chosen samples."""

    def __len__(self) -> int: ...

    @property
    def targets(self) -> Array:
        """What splits go by: the target of each sample, ``[n]``."""

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input."""

    def batches(
        self,
        indices: Tensor,
        batch_size: int,
        generator: torch.Generator,
        augment: Augmentation | None = None,
    ) -> Iterator[Any]:
        """The samples at `indices`, in that order, `batch_size` at a time; the last batch may be
        smaller.

        Args:
            indices: int64 positions, ``[m]``.
            batch_size: Samples a batch.
            generator: Source of every random draw, those of the dataset's own transforms included.
            augment: Applied to the inputs of each batch.
        """


class TensorSource:
    """Inputs and targets that are tensors: a batch is one `index_select`, then float32, then
    normalised.

    uint8 inputs are divided by 255 first; inputs of other integer types (tokens) are handed on as
    they are.
    """

    def __init__(
        self, inputs: Tensor, targets: Tensor, mean: Sequence[float] = (), std: Sequence[float] = ()
    ) -> None:
        """Keep both tensors (no copy).

        Args:
            inputs: ``[n, ...]``, pictures ``[n, C, H, W]``.
            targets: ``[n]``.
            mean: Mean of each channel (dimension 1), in the units of float32 inputs; () for none.
            std: Standard deviation of each channel; () for one.
        """
        if len(inputs) != len(targets):
            raise ValueError(
                f"targets must be as many as the {len(inputs)} inputs, got {len(targets)}"
            )
        self.inputs, self.labels = inputs, targets
        self.targets: Array = targets.numpy()
        channels = (-1, *[1] * (inputs.dim() - 2))
        deviation = torch.tensor([*std] or [1.0]).view(channels)
        unit = 255.0 if inputs.dtype == torch.uint8 else 1.0
        self._scale = 1.0 / (unit * deviation)
        self._shift = -torch.tensor([*mean] or [0.0]).view(channels) / deviation

    def __len__(self) -> int:
        return len(self.inputs)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input."""
        return tuple(self.inputs.shape[1:])

    def batches(
        self,
        indices: Tensor,
        batch_size: int,
        generator: torch.Generator,
        augment: Augmentation | None = None,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """See `Source.batches`; the tensors are new ones."""
        for chunk in torch.split(indices, batch_size) if len(indices) else ():
            inputs = self.inputs.index_select(0, chunk)
            if augment is not None:
                inputs = augment(inputs, generator)
            yield self._normalised(inputs), self.labels.index_select(0, chunk)

    def _normalised(self, inputs: Tensor) -> Tensor:
        if inputs.dtype != torch.uint8 and not inputs.is_floating_point():
            return inputs
        return inputs.to(torch.float32).mul_(self._scale).add_(self._shift)


class _KeyedSamples(Dataset[Any]):
    """Chosen samples of a dataset, each read under a seed of its own.

    Random transforms draw from the global generators; seeding these for each sample, and putting
    them back, makes the samples independent of the number of workers and of all that ran before.
    """

    def __init__(self, dataset: Dataset[Any], indices: Tensor, generator: torch.Generator) -> None:
        self.dataset, self.indices = dataset, indices.tolist()
        self.seeds = torch.randint(2**32, (len(indices),), generator=generator).tolist()

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, place: int) -> Any:
        seed = self.seeds[place]
        with isolate_rng(include_cuda=False):
            torch.default_generator.manual_seed(seed)
            np.random.seed(seed)
            random.seed(seed)
            return self.dataset[self.indices[place]]


class LoaderSource:
    """Any map-style dataset of (input, target) pairs, through a DataLoader with optional
    workers.
    """

    def __init__(self, dataset: Dataset[Any], targets: Any = None, num_workers: int = 0) -> None:
        """Keep the dataset.

        Args:
            dataset: Map-style.
            targets: What splits go by; None to take the dataset's `targets`, `labels` or `y`.
            num_workers: Worker processes; they change the speed, not the batches.
        """
        self.dataset, self.num_workers = dataset, num_workers
        self._targets = targets

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    @property
    def targets(self) -> Array:
        """The targets as an array; ValueError if the dataset has none of the known attributes."""
        return np.asarray(_find_targets(self.dataset) if self._targets is None else self._targets)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of the first input; ValueError if samples are no pairs that begin with it."""
        sample = _KeyedSamples(self.dataset, torch.tensor([0]), torch.Generator())[0]
        if not isinstance(sample, (tuple, list, Tensor, np.ndarray)) or not len(sample):
            what = f"samples of {type(self.dataset).__name__} must be pairs (input, target)"
            raise ValueError(
                f"{what} for a model that takes input_shape from the data, got a "
                f"{type(sample).__name__}"
            )
        return tuple(np.shape(sample[0]))

    def batches(
        self,
        indices: Tensor,
        batch_size: int,
        generator: torch.Generator,
        augment: Augmentation | None = None,
    ) -> Iterator[Any]:
        """See `Source.batches`."""
        samples = _KeyedSamples(self.dataset, indices, generator)
        # its own generator: the loader draws a seed for its workers, by default from the global one
        loader = DataLoader(
            samples, batch_size, num_workers=self.num_workers, generator=torch.Generator()
        )
        for batch in loader:
            if augment is None:
                yield batch
            else:
                inputs, targets = batch
                yield augment(inputs, generator), targets


def _find_targets(dataset: Dataset[Any]) -> Any:
    """The `targets`, `labels` or `y` of a dataset, or of that which it is a subset of; ValueError
    where it has none.
    """
    if isinstance(dataset, Subset):
        return np.asarray(_find_targets(dataset.dataset))[np.asarray(dataset.indices)]
    for name in ("targets", "labels", "y"):
        found = getattr(dataset, name, None)
        if found is not None:
            return found
    raise ValueError(
        f"targets must be given for a {type(dataset).__name__}, which has no .targets, .labels or "
        ".y"
    )


def as_source(dataset: Dataset[Any] | Source, targets: Any = None, num_workers: int = 0) -> Source:
    """The fast source for a pair of tensors, the general one otherwise; a source is handed back.

    Args:
        dataset: Map-style.
        targets: What splits go by, one a sample; None to take the dataset's own targets.
        num_workers: See `LoaderSource`.
    """
    if isinstance(dataset, (TensorSource, LoaderSource)):
        return dataset
    if isinstance(dataset, TensorDataset) and len(dataset.tensors) == 2:
        source = TensorSource(*dataset.tensors)
        if targets is not None:
            source.targets = np.asarray(targets)
        return source
    return LoaderSource(cast(Dataset[Any], dataset), targets, num_workers)
