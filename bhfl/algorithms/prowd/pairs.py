"""Training pairs of the dequantizer: rows of float weights, quantised to every width of the ladder.

The range `A = scale * n` of the width at which a tensor comes in normalises all levels of it: `z_j
= round(w n_j / A) / n_j`, so that the grids compare. Only the first level is clipped, as the
client's codes are; the top is `w / A` itself.
"""

import itertools
import math
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypedDict

import lightning as L
import torch
from torch import Tensor

from bhfl.quant import BitSpec, quantize
from bhfl.quant.rounding import levels
from bhfl.quant.sending import sent_scale
from bhfl.quant.spec import FLOAT_BITS

_DRAWS = 16
"""Layers drawn for a batch."""
_NUMBERS = itertools.count()
"""A number for each state, so that none is taken for another."""


class RowPairs(TypedDict):
    """Rows of one weight tensor at all widths above the one at which it comes in.

    entry: Position on the ladder of the width that comes in.
    levels: The rows normalised by the range, one [R, L] for each width from there to the top.
    ranges: The range of each row, [R, 1].
    """

    entry: int
    levels: list[Tensor]
    ranges: Tensor


class WeightBatch(TypedDict):
    """What the dequantizer takes a step on.

    rows: The pairs.
    weights: A whole float state, for distillation.
    number: What no other state of this process is known by.
    scales: The scale of each of its weights at `bits`.
    bits: A width that comes in.
    seed: The seed of the random choices of the step.
    """

    rows: list[RowPairs]
    weights: Mapping[str, Tensor]
    number: int
    scales: dict[str, Tensor]
    bits: int
    seed: int


class WeightPairs(L.LightningDataModule):
    """Batches of rows from float weights; every one is a function of the seed and its number.

    A tenth of the rows of each tensor (a row is a slice of dimension 0) is held out for validation;
    a tensor of a single row serves for both.

    Args:
        states: Float32 states of high-bit clients, at least one.
        specs: What the low-bit clients of the fleet quantise with when they send, at least one.
        ladder: The widths of the dequantizer, all of the specs' below its top.
        num_steps: Batches in an epoch. Every epoch repeats them.
        seed: The seed of the draws. The held-out rows are the same for every seed, so that they
            stay held out.

    Raises:
        ValueError: There is nothing to learn from.
    """

    num_elements = 1 << 14
    """Weights in a batch, about; layers are drawn in proportion to the root of their size."""
    holdout = 0.1
    """Share of the rows held out, in (0, 1)."""

    def __init__(
        self,
        states: Sequence[Mapping[str, Tensor]],
        specs: Sequence[BitSpec],
        ladder: Sequence[int],
        *,
        num_steps: int = 500,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.states = states
        self.specs = specs
        self.ladder = ladder
        self.num_steps = num_steps
        self.seed = seed
        self.names = [
            name
            for name, value in states[0].items()
            if value.dim() > 1 and value.numel() and value.is_floating_point()
        ]
        if not self.names:
            raise ValueError("states must hold a float tensor of two or more dimensions")
        self._numbers = [next(_NUMBERS) for _ in states]
        self._scales: list[list[dict[str, Tensor]]] = []
        """The scale of each weight, by state and spec, as the clients of each spec choose it."""
        for state in states:
            self._scales.append([])
            for spec in specs:
                scales = {name: sent_scale(state[name], spec) for name in self.names}
                self._scales[-1].append(scales)

    def train_dataloader(self) -> "_Batches":
        """`num_steps` batches of random rows that are not held out."""
        generator = torch.Generator().manual_seed(self.seed)
        seeds = torch.randint(1 << 62, (self.num_steps,), generator=generator).tolist()
        return _Batches(self._training_batch, seeds)

    def val_dataloader(self) -> "_Batches":
        """One batch of held-out rows of the last state for each spec."""
        return _Batches(self._validation_batch, range(len(self.specs)))

    def _training_batch(self, seed: int) -> WeightBatch:
        generator = torch.Generator().manual_seed(seed)

        def draw(count: int) -> int:
            return int(torch.randint(count, (), generator=generator))

        sizes = torch.tensor([float(self.states[0][name].numel()) for name in self.names])
        drawn = torch.multinomial(sizes.sqrt(), _DRAWS, replacement=True, generator=generator)
        rows = []
        for layer in drawn.tolist():
            state = draw(len(self.states))
            spec = draw(len(self.specs))
            name = self.names[layer]
            _, train = self._split(name)
            order = torch.randperm(len(train), generator=generator)
            rows.append(self._pairs(state, spec, name, train[order], self.num_elements // _DRAWS))
        return self._batch(rows, draw(len(self.states)), draw(len(self.specs)), seed)

    def _validation_batch(self, spec: int) -> WeightBatch:
        share = self.num_elements // len(self.names)
        # the last state is the newest of the pool
        rows = [self._pairs(-1, spec, name, self._split(name)[0], share) for name in self.names]
        return self._batch(rows, -1, spec, seed=0)

    def _batch(self, rows: list[RowPairs], state: int, spec: int, seed: int) -> WeightBatch:
        return WeightBatch(
            rows=rows,
            weights=self.states[state],
            number=self._numbers[state],
            scales=self._scales[state][spec],
            bits=self.specs[spec].sent_bits,
            seed=seed,
        )

    def _split(self, name: str) -> tuple[Tensor, Tensor]:
        """Indices of the held-out rows of a tensor, and of the others."""
        num_rows = len(self.states[0][name])
        # not hash(), whose result for a name is another in each process
        generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
        order = torch.randperm(num_rows, generator=generator)
        num_held_out = math.ceil(num_rows * self.holdout)
        return order[:num_held_out], order[num_held_out:] if num_held_out < num_rows else order

    def _pairs(
        self, state: int, spec: int, name: str, order: Tensor, num_elements: int
    ) -> RowPairs:
        """The first rows of an order, at least one, up to a number of elements."""
        weight = self.states[state][name]
        scale = self._scales[state][spec][name]
        bits = self.specs[spec].sent_bits
        length = weight[0].numel()
        picked = order[: max(1, num_elements // length)].to(weight.device)
        rows = weight.detach()[picked].reshape(len(picked), length).float()
        scale = scale[picked] if scale.dim() else scale
        ranges = (scale * levels(bits)).view(-1, 1).expand(len(rows), 1)
        entry = self.ladder.index(bits)
        lowest = quantize(rows, bits, scale=scale).codes / levels(bits)
        higher = [_rounded(rows / ranges, width) for width in self.ladder[entry + 1 :]]
        return RowPairs(entry=entry, levels=[lowest, *higher], ranges=ranges)


def _rounded(z: Tensor, bits: int) -> Tensor:
    return z if bits == FLOAT_BITS else (z * levels(bits)).round() / levels(bits)


class _Batches:
    """Batches made when they are asked for, again at every pass."""

    def __init__(self, make: Callable[[int], WeightBatch], arguments: Sequence[int]) -> None:
        self._make = make
        self._arguments = arguments

    def __len__(self) -> int:
        return len(self._arguments)

    def __iter__(self) -> Iterator[WeightBatch]:
        return map(self._make, self._arguments)
