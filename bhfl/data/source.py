"""The source of batches that any map-style dataset is, through a DataLoader; tensors are one that
is faster.
"""

import random
from collections.abc import Iterator, Sequence
from typing import Any, TypeGuard

import numpy as np
import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset, TensorDataset

from bhfl.data.augment import Augmentation
from bhfl.data.partition import Array
from bhfl.data.tensors import TensorSource


class _Untouched:
    """Tells whether anybody else has drawn from the global generators of NumPy and Python.

    Both are seeded, so that what each is to give next is known.

    Args:
        num_times: How often it is asked, at most.
    """

    def __init__(self, num_times: int) -> None:
        self._seed()
        by_python = [random.random() for _ in range(num_times)]
        self._expected = zip(by_python, np.random.random_sample(num_times).tolist(), strict=True)
        self._seed()

    def __call__(self) -> bool:
        return (random.random(), np.random.random_sample()) == next(self._expected)

    def _seed(self) -> None:
        random.seed(0)
        np.random.seed(0)


class _KeyedSamples(Dataset[Any]):
    """Chosen samples of a dataset, each read under a seed of its own.

    Random transforms draw from the global generators. These are seeded for each sample, so that
    samples depend neither on the number of workers nor on what ran before; who reads samples puts
    the generators back, which takes ten times as long as to seed them. To seed those of NumPy and
    Python takes longer than to read many a sample: it is put off until one has drawn from them,
    which is then read again.
    """

    def __init__(self, dataset: Dataset[Any], indices: Tensor, generator: torch.Generator) -> None:
        self.dataset = dataset
        self.indices = indices.tolist()
        # NumPy's global generator takes seeds of 32 bits
        self.seeds = torch.randint(2**32, (len(indices),), generator=generator).tolist()
        self.draws = False
        """Whether a sample is known to have drawn from NumPy's or Python's generator."""

    def __len__(self) -> int:
        return len(self.indices)

    def __getitems__(self, places: Sequence[int]) -> list[Any]:
        """The samples of a batch, by which a DataLoader asks for them."""
        untouched = _Untouched(0 if self.draws else len(places))
        return [self[place] if self.draws else self._tried(place, untouched) for place in places]

    def _tried(self, place: int, untouched: _Untouched) -> Any:
        """A sample that is not expected to draw from NumPy's or Python's generator."""
        torch.default_generator.manual_seed(self.seeds[place])
        try:
            sample = self.dataset[self.indices[place]]
        except Exception:
            # it may be for what it has drawn that it fails
            if untouched():
                raise
        else:
            if untouched():
                return sample
        self.draws = True
        return self[place]

    def __getitem__(self, place: int) -> Any:
        seed = self.seeds[place]
        # torch.manual_seed would seed GPUs too
        torch.default_generator.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)
        return self.dataset[self.indices[place]]


class LoaderSource:
    """Any map-style dataset of (input, target) pairs, through a DataLoader with optional
    workers.
    """

    def __init__(
        self, dataset: Dataset[Any], targets: Any = None, num_workers: int = 0, **loading: Any
    ) -> None:
        """Keep the dataset.

        Args:
            dataset: A map-style dataset.
            targets: The target of each sample, which splits go by; None to take the dataset's
                `targets`, `labels` or `y`.
            num_workers: The number of worker processes, on which the speed depends, but no batch.
            loading: Further options of the DataLoader.
        """
        self.dataset = dataset
        self.loading = {"num_workers": num_workers, **loading}
        self._targets = targets

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    @property
    def targets(self) -> Array:
        """The targets as an array; ValueError if the dataset has none of the known attributes."""
        return np.asarray(_find_targets(self.dataset) if self._targets is None else self._targets)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape of the first input; ValueError if samples are not pairs that begin with it."""
        # keyed, so that a look at a sample leaves the global generators as they were
        with isolate_rng(include_cuda=False):
            sample = _KeyedSamples(self.dataset, torch.tensor([0]), torch.Generator())[0]
        if not isinstance(sample, tuple | list | Tensor | np.ndarray) or not len(sample):
            raise ValueError(
                f"samples of {type(self.dataset).__name__} must be pairs (input, target) for a "
                f"model that takes input_shape from the data, got a {type(sample).__name__}; of "
                "mappings, data.inputs names the column of the inputs"
            )
        return tuple(np.shape(sample[0]))

    def batches(
        self,
        indices: Tensor,
        batch_size: int,
        generator: torch.Generator,
        augment: Augmentation | None = None,
    ) -> Iterator[Any]:
        """See `TensorSource.batches`; the draws of the dataset's own transforms are keyed too, and
        `augment` gets what they give.
        """
        samples = _KeyedSamples(self.dataset, indices, generator)
        # The loader draws a seed for its workers: without a generator, from the global one.
        own = torch.Generator()
        loader = DataLoader(samples, batch_size, generator=own, **self.loading)
        read = iter(loader)
        for _ in range(len(loader)):
            # CUDA aside: nothing here draws from its generators
            with isolate_rng(include_cuda=False):
                batch = next(read)
            if augment is not None:
                inputs, *others = batch
                batch = augment(inputs, generator), *others
            yield batch


Source = TensorSource | LoaderSource
"""What gives batches of chosen samples, and knows their targets and the shape of an input."""


def is_pair(dataset: Dataset[Any]) -> TypeGuard[TensorDataset]:
    """Whether a data set is two tensors, inputs and targets."""
    return isinstance(dataset, TensorDataset) and len(dataset.tensors) == 2


def _find_targets(dataset: Dataset[Any]) -> Any:
    """The `targets`, `labels` or `y` of a dataset; those of a `Subset` are looked up in the dataset
    behind it, and so are those of several as one. ValueError if there are none.
    """
    if isinstance(dataset, Subset):
        return np.asarray(_find_targets(dataset.dataset))[np.asarray(dataset.indices)]
    if isinstance(dataset, ConcatDataset):
        return np.concatenate([np.asarray(_find_targets(part)) for part in dataset.datasets])
    if is_pair(dataset):
        return dataset.tensors[1]
    for name in ("targets", "labels", "y"):
        found = getattr(dataset, name, None)
        if found is not None:
            return found
    raise ValueError(
        f"targets must be given for a {type(dataset).__name__}, which has no .targets, .labels or "
        ".y"
    )


def as_source(dataset: Dataset[Any] | Source, targets: Any = None, **loading: Any) -> Source:
    """The fast source for a pair of tensors, and the general one for any other dataset.

    Args:
        dataset: A map-style dataset, or a source, which is returned.
        targets: The target of each sample, which splits go by; None to take the dataset's own.
        loading: See `LoaderSource`; with a `collate_fn` tensors are read through a DataLoader too.
    """
    if isinstance(dataset, Source):
        return dataset
    if loading.get("collate_fn") is not None or not is_pair(dataset):
        return LoaderSource(dataset, targets, **loading)
    source = TensorSource(dataset.tensors[0], dataset.tensors[1])
    if targets is not None:
        # splits go by these; batches still hold what the dataset has
        source.targets = np.asarray(targets)
    return source


def largest_target(split: str, source: Source) -> int:
    """The largest target of a split, or 0 where that of a test or validation cannot be told.

    Args:
        split: The name of the split, for messages.
        source: Its samples.

    Raises:
        ValueError: Its targets are no numbers of classes.
    """
    try:
        targets = source.targets
    except ValueError:
        if split == "train":
            raise
        return 0
    # NumPy's letters for signed and unsigned integers, floats and booleans
    words = targets.dtype.kind not in "iufb"
    if words and split != "train":
        # a data set may number its words only as they are read
        return 0
    odd = targets if words else targets[~((targets % 1 == 0) & (targets >= 0))]
    if odd.size:
        raise ValueError(
            "data.num_classes must be given for targets that are no numbers of classes, 0 and up, "
            f"got {odd.flat[0]} in data.{split}; where batches hold them, number them first"
        )
    return int(targets.max(initial=0))
