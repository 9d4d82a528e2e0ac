"""The samples that ``bhfl analyze`` measures on: held out of training, and never the test split."""

from collections.abc import Iterable
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from bhfl.engine.client.recorder import Recorder
from bhfl.engine.types import FederatedData, server_data

CHUNK = 128
"""Samples evaluated at once: as fast as larger batches, and the activations kept for reuse stay
small.
"""

Chunk = tuple[int, Any]
"""A number of samples, and the batch of them."""


def held_out(data: FederatedData, num_samples: int, seed: int) -> tuple[list[Chunk], str]:
    """The samples of an analysis, at most `num_samples`: those kept for the server, or else of the
    validation split, and which of them.

    Raises:
        ValueError: There are none.
    """
    held = server_data(data)
    sources = {
        "data.holdout": held.holdout_batches(),
        "the validation split": held.val_batches(num_samples),
    }
    for source, batches in sources.items():
        if chunks := pick(batches, num_samples, seed):
            return chunks, source
    raise ValueError(
        "analyze needs samples held out of training: data.holdout or data.val_fraction must be "
        "above 0"
    )


def pick(batches: Iterable[Any], num_samples: int, seed: int) -> list[Chunk]:
    """`num_samples` of all samples drawn at random, in chunks, or all where there are fewer.

    Batches that are not made of tensors with one row a sample are taken whole, until there are
    enough.
    """
    flat = [tree_flatten(batch) for batch in batches]
    columns = None
    # only of batches that are built alike can single samples be drawn
    if len({str(spec) for _, spec in flat}) == 1:
        columns = _columns([leaves for leaves, _ in flat])
    if columns is None:
        return _whole([tree_unflatten(leaves, spec) for leaves, spec in flat], num_samples)
    order = torch.randperm(len(columns[0]), generator=torch.Generator().manual_seed(seed))
    chunks = []
    for rows in torch.split(order[:num_samples].sort().values, CHUNK):
        leaves = [column[rows] for column in columns]
        chunks.append((len(rows), tree_unflatten(leaves, flat[0][1])))
    return chunks


def _columns(batches: list[list[Any]]) -> list[Tensor] | None:
    """All batches as one, if their leaves are tensors that agree in all sizes but the first."""
    for leaves in batches:
        if not leaves or not all(isinstance(leaf, Tensor) and leaf.ndim for leaf in leaves):
            return None
        if len({len(leaf) for leaf in leaves}) > 1:
            return None
        if [leaf.shape[1:] for leaf in leaves] != [leaf.shape[1:] for leaf in batches[0]]:
            return None
    return [torch.cat(parts) for parts in zip(*cast("list[list[Tensor]]", batches), strict=True)]


def _whole(batches: list[Any], num_samples: int) -> list[Chunk]:
    chunks: list[Chunk] = []
    for batch in batches:
        if sum(size for size, _ in chunks) >= num_samples:
            break
        recorder = Recorder()
        recorder.observe(batch)
        chunks.append((recorder.batch_size, batch))
    return chunks
