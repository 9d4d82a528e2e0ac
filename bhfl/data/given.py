"""The data module of data that are at hand."""

from typing import Any

from torch.utils.data import Dataset

from bhfl.checks import checked, count, or_none
from bhfl.data.datamodule import FederatedDataModule
from bhfl.data.source import Source, as_source


class FromDatasets(FederatedDataModule):
    """Any pair of map-style datasets of (input, target).

    A `TensorDataset` of two tensors is indexed directly, which is fast; any other dataset is read
    through a `DataLoader`.
    """

    def __init__(
        self,
        train: Dataset,  # type: ignore[type-arg]  # jsonargparse makes no Dataset[Any]
        test: Dataset,  # type: ignore[type-arg]
        targets: Any = None,
        num_classes: int | None = None,
        **options: Any,
    ) -> None:
        """Keep the datasets.

        Args:
            train: The training split.
            test: The test split.
            targets: The label of each training sample, for the split; None to take the dataset's
                `targets`, `labels` or `y` (of a `Subset`, those of its samples). Batches hold what
                the dataset gives.
            num_classes: The number of classes; None for the largest training target plus one.
            options: Those of `FederatedDataModule`.
        """
        super().__init__(**options)
        # in this order to be indexed by `train`, of which False is 0
        self._sources = (
            as_source(test, None, self.num_workers),
            as_source(train, targets, self.num_workers),
        )
        self._num_classes = checked("data.num_classes", num_classes, or_none(count(1)))

    @property
    def num_classes(self) -> int:
        """The number of classes; ValueError if it was not given and the targets are not numbers."""
        if self._num_classes is not None:
            return self._num_classes
        targets = self._train.targets
        # NumPy's letters for signed and unsigned integers, floats and booleans
        if targets.dtype.kind not in "iufb" or not targets.size:
            raise ValueError(
                "data.num_classes must be given for targets that are no numbers, got "
                f"{targets.dtype}"
            )
        return int(targets.max()) + 1

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of the first training input."""
        return self._train.input_shape

    def load(self, train: bool) -> Source:
        """See `FederatedDataModule.load`."""
        return self._sources[train]
