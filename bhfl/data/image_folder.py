"""The user's own pictures: a folder tree or an archive of one."""

from functools import cached_property
from pathlib import Path
from typing import Any

from bhfl.checks import checked, count, or_none
from bhfl.data.archive import ImageTree
from bhfl.data.cache import load_tree
from bhfl.data.datamodule import FederatedDataModule
from bhfl.data.source import TensorSource
from bhfl.files import user_option


class ImageFolder(FederatedDataModule):
    """Pictures laid out as ``train/<class>/*`` and ``test/<class>/*``, in a folder or a .tar,
    .tar.gz or .zip archive.

    They are decoded once, to a file in the user's cache folder (``~/.cache/bhfl``), and kept as
    uint8. Classes are numbered in the order of their names.
    """

    def __init__(
        self,
        archive: str | Path | None = None,
        root: str | Path | None = None,
        image_size: int | None = None,
        mean: tuple[float, float, float] = (0.485, 0.456, 0.406),
        std: tuple[float, float, float] = (0.229, 0.224, 0.225),
        **options: Any,
    ) -> None:
        """Check and keep the options; the pictures are read when first asked for.

        Args:
            archive: The archive file; give this or `root`.
            root: The folder that holds `train` and `test`.
            image_size: The number of rows and columns that all pictures are resized to; needed
                where they differ in size.
            mean: The mean of red, green and blue in [0, 1]; that of ImageNet by default.
            std: The standard deviation of the same.
            options: Those of `FederatedDataModule`.
        """
        super().__init__(**options)
        if (archive is None) == (root is None):
            raise ValueError(
                f"ImageFolder must have one of archive and root, got archive={archive!r}, "
                f"root={root!r}"
            )
        self._path = (
            user_option("ImageFolder.archive", archive)
            or user_option("ImageFolder.root", root)
            or Path()
        )
        self.image_size = checked("ImageFolder.image_size", image_size, or_none(count(1)))
        if min(std) <= 0:
            raise ValueError(f"ImageFolder.std must be positive, got {std}")
        self.mean, self.std = mean, std

    @cached_property
    def tree(self) -> ImageTree:
        """The decoded pictures."""
        return load_tree(self._path, self.image_size)

    @property
    def num_classes(self) -> int:
        """The number of classes of the training pictures."""
        return len(self.tree.classes)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """(3, rows, columns)."""
        return tuple(self.tree.train.images.shape[1:])

    def prepare_data(self) -> None:
        """Decode the pictures to the cache."""
        _ = self.tree

    def load(self, train: bool) -> TensorSource:
        """See `FederatedDataModule.load`."""
        split = self.tree.train if train else self.tree.test
        return TensorSource(split.images, split.targets, self.mean, self.std)
