"""The samples of many clients in two arrays: a million clients take little more than their samples'
positions.
"""

import gc
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_SMALL = 2**31


class Parts(Sequence[Tensor]):
    """Positions of samples, part after part; each part is an int64 tensor that is made when it is
    asked for.

    Args:
        positions: The positions of all parts, one part after the other.
        sizes: The number of positions in each part.
    """

    def __init__(self, positions: NDArray[np.int64], sizes: NDArray[np.int64]) -> None:
        # half the room, wherever a data set has fewer samples than that
        small = not len(positions) or positions.max() < _SMALL
        self._positions = positions.astype(np.int32) if small else positions
        self._bounds = np.concatenate([[0], np.cumsum(sizes)])

    @property
    def sizes(self) -> NDArray[np.int64]:
        """The number of positions in each part."""
        return np.diff(self._bounds)

    def size(self, index: int) -> int:
        """The number of positions in one part."""
        return int(self._bounds[index + 1] - self._bounds[index])

    def flat(self, num: int) -> tuple[NDArray[Any], NDArray[np.int64]]:
        """The positions of the first `num` parts, and the part of each."""
        sizes = self.sizes[:num]
        positions = self._positions[: self._bounds[len(sizes)]]
        return positions, np.repeat(np.arange(len(sizes)), sizes)

    def tolist(self) -> list[tuple[int, ...]]:
        """All parts as plain values. JSON writes tuples as lists, which take 16 bytes more each."""
        if not len(self._positions):
            return [()] * len(self)
        positions = tuple(self._positions.tolist())
        bounds = self._bounds.tolist()
        # with each thousand of new lists Python would look through all that there are
        collects = gc.isenabled()
        gc.disable()
        try:
            return [positions[start:end] for start, end in pairwise(bounds)]
        finally:
            if collects:
                gc.enable()

    def __len__(self) -> int:
        return len(self._bounds) - 1

    @overload
    def __getitem__(self, index: int) -> Tensor: ...
    @overload
    def __getitem__(self, index: slice) -> list[Tensor]: ...
    def __getitem__(self, index: int | slice) -> Tensor | list[Tensor]:
        # a range knows what an index means, and raises IndexError beyond its end
        places = range(len(self))[index]
        if isinstance(places, range):
            return [self[place] for place in places]
        part = self._positions[self._bounds[places] : self._bounds[places + 1]]
        return torch.from_numpy(part.astype(np.int64))
