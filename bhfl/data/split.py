"""The split of a training set for one federation: which samples belong to whom."""

import hashlib
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bhfl.checks import checked, count
from bhfl.data.partition import Array, Indices, Partitioner, stratified_sample
from bhfl.data.parts import Parts

_CHUNK = 10_000
"""Parts, or positions, whose text is made at a time."""


@dataclass(frozen=True, kw_only=True)
class Split:
    """Disjoint, sorted positions in the training set, as int64 tensors."""

    scheme: str
    """The partitioner and its options."""
    seed: int
    """The seed of all draws."""
    clients: Parts
    """The training samples of each client."""
    client_val: Parts
    """The validation samples of each client; empty tensors if none were asked for."""
    client_test: Parts
    """The test samples of each client, likewise."""
    val: Tensor
    """The global validation samples, which no client has."""
    holdout: Tensor
    """The samples kept for the server, which no client has."""

    def record(self) -> dict[str, Any]:
        """The split as values for JSON; `sha256` is the digest of the lists of positions as compact
        JSON with sorted keys. `client_test` is among them where a client has test samples.
        """
        lists = {
            "clients": self.clients.tolist(),
            "client_val": self.client_val.tolist(),
            "val": self.val.tolist(),
            "holdout": self.holdout.tolist(),
        }
        if self.client_test.sizes.any():
            lists["client_test"] = self.client_test.tolist()
        return {"scheme": self.scheme, "seed": self.seed, "sha256": _digest(lists), **lists}


def _digest(lists: dict[str, list[Any]]) -> str:
    """The digest of the lists as compact JSON with sorted keys, whose text is never whole: that of
    many clients is long.
    """
    digest = hashlib.sha256()
    before = "{"
    for key, values in sorted(lists.items()):
        digest.update(f'{before}"{key}":['.encode())
        for start in range(0, len(values), _CHUNK):
            text = json.dumps(values[start : start + _CHUNK], separators=(",", ":"))
            digest.update(f"{',' * (start > 0)}{text[1:-1]}".encode())
        before = "],"
    digest.update(b"]}")
    return digest.hexdigest()


@dataclass(frozen=True, kw_only=True)
class Shares:
    """What is taken from a training set, in this order; the clients get the rest. The first three
    keep the label mix.
    """

    max_samples: int | None
    """The size of the subset that is used at most; None uses all samples."""
    val_fraction: float
    """The part of the subset for global validation."""
    holdout: int
    """The number of samples for the server."""
    client_val_fraction: float
    """The part of each client's samples for its own validation."""
    client_test_fraction: float = 0.0
    """The part of each client's samples for its own test."""


def make_split(
    targets: Array, partition: Partitioner, num_clients: int, seed: int, shares: Shares
) -> Split:
    """Split a training set: a function of its arguments only.

    Each share draws from a random stream of its own, so that a change of one leaves the draws of
    the others as they are.

    Args:
        targets: The target of each sample, ``[n]``.
        partition: How the clients share the rest.
        num_clients: The number of clients.
        seed: The seed of all draws.
        shares: What is taken before.

    Raises:
        ValueError: There are too few samples.
    """
    if targets.ndim != 1:
        raise ValueError(
            f"targets must have one dimension for a split, got shape {targets.shape}: give a label "
            "for each sample to split by as data.targets"
        )
    streams = np.random.SeedSequence(checked("seed", seed, count(0, 2**63 - 1))).spawn(6)
    rng_subset, rng_val, rng_holdout, rng_clients, *rngs_held = map(np.random.default_rng, streams)
    # before anything is taken away, since group ids are given for the whole set
    values = partition.values(targets)
    size = min(len(targets), shares.max_samples or len(targets))
    pool = stratified_sample(targets, size, rng_subset)
    val, pool = _take(targets, pool, round(shares.val_fraction * len(pool)), rng_val)
    if shares.holdout >= len(pool):
        keys, given = "data.val_fraction", f"{shares.val_fraction:g}"
        if shares.holdout:
            keys += " and data.holdout"
            given += f" and {shares.holdout}"
        raise ValueError(f"{keys} must leave clients some of {size} training samples, got {given}")
    kept, pool = _take(targets, pool, shares.holdout, rng_holdout)
    positions, sizes = _dealt(partition, values[pool], num_clients, rng_clients, shares)
    positions = pool[positions]
    left = sizes
    held = []
    fractions = (shares.client_val_fraction, shares.client_test_fraction)
    for fraction, rng in zip(fractions, rngs_held, strict=True):
        # rounded down, so that training is never empty
        num_held = (fraction * sizes).astype(np.int64)
        positions, chosen = _divide(positions, left, num_held, rng)
        left = left - num_held
        held.append(_parts(chosen, num_held))
    return Split(
        scheme=repr(partition),
        seed=seed,
        clients=_parts(positions, left),
        client_val=held[0],
        client_test=held[1],
        val=torch.from_numpy(val),
        holdout=torch.from_numpy(kept),
    )


def _take(
    targets: Array, pool: Indices, count: int, rng: np.random.Generator
) -> tuple[Indices, Indices]:
    """`count` samples of the pool with its label mix, and what is left."""
    chosen = stratified_sample(targets[pool], count, rng)
    return pool[chosen], np.delete(pool, chosen)


def _dealt(
    partition: Partitioner,
    values: Array,
    num_clients: int,
    rng: np.random.Generator,
    shares: Shares,
) -> tuple[Indices, Indices]:
    """What `Partitioner.dealt` returns, also of a partitioner that makes the lists by itself."""
    try:
        if type(partition).__call__ is Partitioner.__call__:
            return partition.dealt(values, num_clients, rng)
        parts = partition(values, num_clients, rng)
    except ValueError as error:
        takers = f"data.val_fraction={shares.val_fraction:g}"
        if shares.max_samples:
            takers = f"data.max_train_samples={shares.max_samples}, {takers}"
        if shares.holdout:
            takers += f" and data.holdout={shares.holdout}"
        error.add_note(f"(samples left by {takers}: {len(values)})")
        raise
    return np.concatenate(parts), np.array([len(part) for part in parts])


def _divide(
    positions: Indices, sizes: Indices, num_held: Indices, rng: np.random.Generator
) -> tuple[Indices, Indices]:
    """The samples of the clients as (kept, held).

    Args:
        positions: Those of all clients, one client after the other.
        sizes: The number of each client's samples.
        num_held: The number of those that are held.
        rng: The source of all draws.
    """
    if not num_held.any():
        return positions, positions[:0]
    ends = np.cumsum(sizes)
    is_held = np.zeros(len(positions), bool)
    for end, size, count_held in zip(ends.tolist(), sizes.tolist(), num_held.tolist(), strict=True):
        chosen = rng.permutation(size)[:count_held]
        is_held[end - size + chosen] = True
    return positions[~is_held], positions[is_held]


def _parts(positions: Indices, sizes: Indices) -> Parts:
    """The parts, each sorted, as only a partitioner that makes lists by itself may not have it."""
    falls = positions[1:] < positions[:-1]
    # between two clients they may
    falls[np.cumsum(sizes[sizes > 0])[:-1] - 1] = False
    if falls.any():
        owners = np.repeat(np.arange(len(sizes)), sizes)
        positions = positions[np.lexsort((positions, owners))]
    return Parts(positions, sizes)
