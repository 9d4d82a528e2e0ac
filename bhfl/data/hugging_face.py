"""The data module of tables that Hugging Face's ``datasets`` reads."""

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from bhfl.data.datamodule import FederatedDataModule
from bhfl.data.given import FromDatasets
from bhfl.data.partition import Array
from bhfl.data.source import Source


class HuggingFace(FederatedDataModule):
    """A table of the hub, or files of CSV, JSON, Parquet or pictures, as ``datasets.load_dataset``
    reads them.
    """

    def __init__(  # noqa: PLR0913
        self,
        path: str,
        inputs: str | None = None,
        targets: str = "label",
        subset: str | None = None,
        data_files: Mapping[str, str] | None = None,
        train_split: str = "train",
        test_split: str = "test",
        **options: Any,
    ) -> None:
        """Keep the options; the table is read when first asked for.

        Args:
            path: The name of a data set on the hub, a folder of files, or the kind of the files
                that `data_files` names: csv, json, parquet.
            inputs: The column of the inputs, for batches (inputs, targets); None for batches that
                are mappings of all columns.
            targets: The column of the labels, for the split.
            subset: The part of a data set that has several, such as a language.
            data_files: The file, or pattern of files, of each split, by its name.
            train_split: The name of the training split, or a slice of it, such as ``train[:90%]``.
            test_split: The name of the test split.
            options: Those of `FederatedDataModule`.
        """
        super().__init__(**options)
        self.path = path
        self.inputs = inputs
        self.targets = targets
        self.subset = subset
        self.data_files = data_files
        self.train_split = train_split
        self.test_split = test_split

    def prepare_data(self) -> None:
        """Fetch or convert the files, to the package's own cache."""
        _ = self._given

    @cached_property
    def _given(self) -> FromDatasets:
        return FromDatasets(
            self._open(self.train_split),
            self._open(self.test_split),
            targets=self.targets,
            inputs=self.inputs,
            num_workers=self.num_workers,
        )

    def _open(self, split: str) -> Any:
        try:
            import datasets  # type: ignore[import-untyped, unused-ignore]
        except ImportError as error:
            raise ImportError(
                "data.class_path HuggingFace needs datasets: pip install 'bhfl[hf]'"
            ) from error
        files = self.data_files
        # a plain folder is named from where we are, as all paths are
        path = str(Path(self.path).expanduser()) if files is None else self.path
        try:
            return datasets.load_dataset(path, self.subset, data_files=files, split=split)
        # the readers of all kinds of files raise whatever they like
        except Exception as error:
            key = "test_split" if split == self.test_split else "train_split"
            raise ValueError(
                f"data.path and data.{key} must name a table that datasets can read, got "
                f"{self.path!r} and {split!r}: "
                f"{' '.join(str(error).split())}"
            ) from error

    @property
    def num_classes(self) -> int:
        """The largest target plus one."""
        return self._given.num_classes

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of the first training input."""
        return self._given.input_shape

    def load(self, train: bool) -> Source:
        """See `FederatedDataModule.load`."""
        return self._given.load(train)

    def column(self, name: str) -> Array:
        """See `FederatedDataModule.column`."""
        return self._given.column(name)
