"""Batches of tensors, and the order in which a client's samples come, by torch and NumPy alone."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bhfl.data.augment import AUGMENTATIONS, Augmentation
from bhfl.engine.random import RandomKeys


@dataclass(frozen=True)
class Epochs:
    """How a client's samples become the training batches of its epochs.

    Attributes:
        batch_size: Samples in a batch.
        drop_last: Whether the last batch of an epoch is left out where it is smaller.
        augment: The name of a change of each batch, in `bhfl.data.augment.AUGMENTATIONS`.
    """

    batch_size: int
    drop_last: bool = False
    augment: str = "none"

    def num_batches(self, size: int) -> int:
        """Batches in an epoch of so many samples."""
        whole, rest = divmod(size, self.batch_size)
        # an only batch stays, however small: without it the client would train on nothing
        return whole + (rest > 0 and not (self.drop_last and whole))

    def batches(self, source: Any, members: Tensor, rng: RandomKeys, epoch: int) -> Iterator[Any]:
        """The batches of one epoch, shuffled and augmented by draws from `rng` alone.

        Args:
            source: A `TensorSource`, or another one with its method `batches`.
            members: The places of the client's samples in it, int64 ``[m]``.
            rng: The client's random streams of this round; "shuffle" and "augment" are used.
            epoch: The local epoch, from 0; each has another order.
        """
        # all samples are ordered before some are left out, so that drop_last shifts no draw
        used = min(len(members), self.num_batches(len(members)) * self.batch_size)
        order = torch.randperm(len(members), generator=rng.torch("shuffle", epoch))[:used]
        generator = rng.torch("augment", epoch)
        batches: Iterator[Any] = source.batches(
            members[order], self.batch_size, generator, AUGMENTATIONS[self.augment]
        )
        return batches


class TensorSource:
    """Inputs and targets that are tensors: a batch is one `index_select`, which becomes float32 and
    is normalised.

    uint8 inputs are divided by 255 first; inputs of other integer types (tokens) stay as they are.
    """

    def __init__(
        self, inputs: Tensor, targets: Tensor, mean: Sequence[float] = (), std: Sequence[float] = ()
    ) -> None:
        """Keep both tensors (no copy).

        Args:
            inputs: ``[n, ...]``, pictures ``[n, C, H, W]``.
            targets: ``[n]``.
            mean: The mean of each channel (dimension 1), in the units of float32 inputs; () for 0.
            std: The standard deviation of each channel; () for 1.
        """
        if len(inputs) != len(targets):
            raise ValueError(
                f"targets must be as many as the {len(inputs)} inputs, got {len(targets)}"
            )
        self.inputs = inputs
        self.labels = targets
        self.targets: NDArray[Any] = targets.detach().numpy()
        self.columns: dict[str, NDArray[Any]] = {}
        """What else is known of each sample, by name."""
        channels = (-1, *[1] * (inputs.dim() - 2))
        deviation = torch.tensor([*std] or [1.0]).view(channels)
        unit = 255.0 if inputs.dtype == torch.uint8 else 1.0
        self._scale = 1.0 / (unit * deviation)
        self._shift = -torch.tensor([*mean] or [0.0]).view(channels) / deviation

    def __len__(self) -> int:
        return len(self.inputs)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape of one input."""
        return tuple(self.inputs.shape[1:])

    def batches(
        self,
        indices: Tensor,
        batch_size: int,
        generator: torch.Generator,
        augment: Augmentation | None = None,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """The samples at `indices`, in that order, `batch_size` at a time, as new tensors; the last
        batch may be smaller.

        Args:
            indices: int64 positions, ``[m]``.
            batch_size: The number of samples in a batch.
            generator: The source of every random draw.
            augment: A change of the inputs of each batch, before they are normalised.

        Returns:
            Inputs ``[b, ...]``, float32 unless they are tokens, and targets ``[b]``.
        """
        # torch.split makes one empty piece of no indices
        for chunk in torch.split(indices, batch_size) if len(indices) else ():
            inputs = self.inputs.index_select(0, chunk)
            if augment is not None:
                inputs = augment(inputs, generator)
            if inputs.dtype == torch.uint8 or inputs.is_floating_point():
                # (inputs - mean) / std, in place on a copy, which index_select has made
                inputs = inputs.to(torch.float32).mul_(self._scale).add_(self._shift)
            yield inputs, self.labels.index_select(0, chunk)


def as_tensor(key: str, what: str, array: Any) -> Tensor:
    """An array as a tensor, which shares its memory where torch can read it there and write.

    Args:
        key: The name that messages call the data.
        what: Whether they are ``inputs`` or ``targets``.
        array: An array of NumPy's; a tensor is returned as it is.

    Raises:
        ValueError: It holds no numbers.
    """
    if isinstance(array, Tensor):
        return array
    if array.dtype.kind not in "biuf":
        raise ValueError(
            f"the {what} of {key} must be numbers, got {array.dtype}; text is numbered by "
            "numpy.unique(text, return_inverse=True)"
        )
    # torch computes with no other unsigned integers than these
    if array.dtype.kind == "u" and array.dtype != np.uint8:
        array = array.astype(np.int64)
    # in this machine's order of bytes, and none of those that are read backwards
    return torch.from_numpy(np.require(array, array.dtype.newbyteorder("="), ["C", "W"]))
