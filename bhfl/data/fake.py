"""Synthetic pictures, for tests and benchmarks."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from bhfl.checks import checked, count
from bhfl.data.datamodule import FederatedDataModule
from bhfl.data.limits import memory_bytes
from bhfl.data.source import TensorSource


class FakeImages(FederatedDataModule):
    """uint8 pictures that can be learned: a coarse pattern of the class plus noise of the same
    strength.

    They are a function of the arguments only; the classes are equally frequent.
    """

    num_classes: int = 10
    input_shape: tuple[int, ...] = (3, 32, 32)

    def __init__(
        self,
        num_train: int = 512,
        num_test: int = 128,
        shape: tuple[int, int, int] = (3, 32, 32),
        num_classes: int = 10,
        seed: int = 0,
        **options: Any,
    ) -> None:
        """Check and keep the options.

        Args:
            num_train: The number of training pictures.
            num_test: The number of test pictures.
            shape: (channels, rows, columns) of a picture.
            num_classes: The number of classes.
            seed: The seed of patterns and noise; the split among clients has another one.
            options: Those of `FederatedDataModule`.
        """
        super().__init__(**options)
        if len(shape) != 3:
            raise ValueError(f"FakeImages.shape must be (channels, rows, columns), got {shape}")
        for size in shape:
            checked("FakeImages.shape", size, count(1))
        self.num_train = checked("FakeImages.num_train", num_train, count(1))
        self.num_test = checked("FakeImages.num_test", num_test, count(1))
        self.input_shape = tuple(shape)
        self.num_classes = checked("FakeImages.num_classes", num_classes, count(1))
        self.seed = checked("FakeImages.seed", seed, count(0, 2**62 - 1))
        # while pictures are made, they and the patterns of their classes are in memory
        pictures = 2 * max(num_train, num_test) + num_classes
        # the 8 bytes beside each picture are its label
        if (size := pictures * (math.prod(shape) + 8)) > (most := memory_bytes() // 2):
            raise ValueError(
                f"FakeImages must take at most half of this machine's memory, {most:,} bytes, got "
                f"{size:,}: give smaller num_train, num_test, num_classes or shape"
            )

    def load(self, train: bool) -> TensorSource:
        """See `FederatedDataModule.load`."""
        generator = torch.Generator().manual_seed(self.seed)
        channels, *size = self.input_shape
        coarse = self._uniform((self.num_classes, channels, 4, 4), generator)
        patterns = interpolate(coarse, size=size)
        # the same patterns, but other noise than in the training pictures
        if not train:
            # seeds end below 2**62, so that no other set begins its noise here
            generator.manual_seed(generator.initial_seed() ^ 2**62)
        targets = torch.arange(self.num_train if train else self.num_test) % self.num_classes
        images = self._uniform((len(targets), *self.input_shape), generator).add_(patterns[targets])
        middle = (0.5,) * channels
        return TensorSource(images, targets, mean=middle, std=middle)

    @staticmethod
    def _uniform(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Draws from half the range of uint8, so that two of them add up without overflow."""
        return torch.randint(128, shape, dtype=torch.uint8, generator=generator)
