"""Sets of pictures, decoded to uint8 tensors once: the user's own, and those of torchvision."""

import os
from collections.abc import Mapping
from contextlib import nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch

from bhfl.checks import checked, count, or_none
from bhfl.data.archive import ImageTree
from bhfl.data.cache import load_tree
from bhfl.data.datamodule import FederatedDataModule
from bhfl.data.source import TensorSource
from bhfl.files import queue, user_option
from bhfl.settings import Role


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


class _Torchvision(FederatedDataModule):
    """A set that the class of the same name in `torchvision.datasets` reads."""

    num_classes: int = 10
    input_shape: tuple[int, ...] = (3, 32, 32)
    mean: tuple[float, ...]
    std: tuple[float, ...]

    remedy = ": give the folder that does, or fetch them once with data.download=true"
    """What the user can do about a set that is not there."""

    # the sets are the same in any folder
    roles: ClassVar[Mapping[str, Role]] = {"root": Role.MACHINE, "archive": Role.MACHINE}

    def __init__(self, root: str | Path = "data", download: bool = False, **options: Any) -> None:
        """Keep the options; nothing is read yet.

        Args:
            root: The folder of torchvision's files.
            download: Whether to fetch them into `root` if they are not there.
            options: Those of `FederatedDataModule`.
        """
        super().__init__(**options)
        self.root = str(user_option("data.root", root or ""))
        self.download = download

    def prepare_data(self) -> None:
        """Download, if asked to; processes that want the same files take turns."""
        if not self.download:
            return
        root = Path(self.root)
        root.mkdir(parents=True, exist_ok=True)
        # a folder that cannot be written to holds the files already, or the download fails
        turn = queue(root / ".bhfl.lock") if os.access(root, os.W_OK) else nullcontext()
        with turn:
            for train in (True, False):
                self._open(train, download=True)

    def load(self, train: bool) -> TensorSource:
        """See `FederatedDataModule.load`.

        Raises:
            ValueError: `root` does not hold the set.
        """
        dataset = self._open(train)
        images = torch.as_tensor(dataset.data)
        # grey pictures are [n, H, W]
        if images.dim() == 3:
            images = images.unsqueeze(1)
        # colours come last, but for SVHN, where they are first already
        elif images.shape[3] == 3:
            images = images.permute(0, 3, 1, 2).contiguous()
        # SVHN calls them labels, the others targets
        labels = dataset.labels if hasattr(dataset, "labels") else dataset.targets
        return TensorSource(images, torch.as_tensor(labels, dtype=torch.int64), self.mean, self.std)

    def _open(self, train: bool, download: bool = False) -> Any:
        """The set of torchvision; ValueError where it cannot be fetched or read."""
        try:
            return self._made(train, download)
        except (RuntimeError, OSError, ValueError, EOFError) as error:
            files = f"torchvision's files of {type(self).__name__}"
            if download:
                problem = f"data.download: {files} cannot be fetched to {self.root!r}"
            else:
                problem = f"data.root must hold {files}, and {self.root!r} does not{self.remedy}"
            raise ValueError(f"{problem} ({' '.join(str(error).split())})") from error

    def _made(self, train: bool, download: bool) -> Any:
        """The set of torchvision, with torchvision's own errors."""
        # here, since importing the package is to load no library of data
        from torchvision import datasets  # type: ignore[import-untyped, unused-ignore]

        return getattr(datasets, type(self).__name__)(self.root, train=train, download=download)


class MNIST(_Torchvision):
    """Handwritten digits: 60,000 + 10,000 grey pictures of 28x28 in 10 classes."""

    input_shape = (1, 28, 28)
    mean, std = (0.1307,), (0.3081,)


class FashionMNIST(_Torchvision):
    """Articles of clothing: 60,000 + 10,000 grey pictures of 28x28 in 10 classes."""

    input_shape = (1, 28, 28)
    mean, std = (0.2860,), (0.3530,)


class CIFAR10(_Torchvision):
    """Objects: 50,000 + 10,000 colour pictures of 32x32 in 10 classes."""

    mean, std = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)

    remedy = _Torchvision.remedy + ", or name an archive of pictures with data.archive"

    def __init__(self, archive: str | Path | None = None, **options: Any) -> None:
        """Keep the options; nothing is read yet.

        Args:
            archive: An archive (or folder) of the set as pictures, laid out as for `ImageFolder`,
                which is read instead of torchvision's files in `root`.
            options: `root`, `download`, and those of `FederatedDataModule`.
        """
        super().__init__(**options)
        self.archive = user_option("data.archive", archive)

    @cached_property
    def _tree(self) -> ImageTree:
        """The decoded pictures of the archive."""
        tree = load_tree(self.archive or Path())
        num_classes = len(tree.classes)
        shape = tuple(tree.train.images.shape[1:])
        if num_classes != self.num_classes or shape != self.input_shape:
            raise ValueError(
                f"data.archive must hold {self.num_classes} classes of {self.input_shape} "
                f"pictures, got {num_classes} of {shape} in {self.archive}"
            )
        return tree

    def prepare_data(self) -> None:
        """Decode the archive to the cache; without one, download if asked to."""
        if self.archive is None:
            super().prepare_data()
        else:
            _ = self._tree

    def load(self, train: bool) -> TensorSource:
        """See `FederatedDataModule.load`.

        Raises:
            ValueError: `root` does not hold the set, or `archive` holds another one.
        """
        if self.archive is None:
            return super().load(train)
        split = self._tree.train if train else self._tree.test
        return TensorSource(split.images, split.targets, self.mean, self.std)


class CIFAR100(_Torchvision):
    """Objects: 50,000 + 10,000 colour pictures of 32x32 in 100 classes."""

    num_classes = 100
    mean, std = (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)


class SVHN(_Torchvision):
    """House numbers: 73,257 + 26,032 colour pictures of 32x32 in 10 classes (torchvision reads them
    with scipy).
    """

    mean, std = (0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)

    def _made(self, train: bool, download: bool) -> Any:
        from torchvision import datasets  # type: ignore[import-untyped, unused-ignore]

        return datasets.SVHN(self.root, split="train" if train else "test", download=download)
