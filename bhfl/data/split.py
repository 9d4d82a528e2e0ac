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


@dataclass(frozen=True, kw_only=True)
class Split:
    """Disjoint, sorted positions in the training set, each an int64 tensor."""

    scheme: str
    """The partitioner and its options."""
    seed: int
    """The seed of all draws."""
    clients: list[Tensor]
    """The training samples of each client."""
    client_val: list[Tensor]
    """The validation samples of each client; empty tensors if none were asked for."""
    val: Tensor
    """The global validation samples, which no client has."""
    holdout: Tensor
    """The samples kept for the server, which no client has."""

    def record(self) -> dict[str, Any]:
        """The split as values for JSON; `sha256` is the digest of the four lists of positions as
        compact JSON with sorted keys.
        """
        lists = {
            "clients": [part.tolist() for part in self.clients],
            "client_val": [part.tolist() for part in self.client_val],
            "val": self.val.tolist(),
            "holdout": self.holdout.tolist(),
        }
        text = json.dumps(lists, sort_keys=True, separators=(",", ":"))
        return {
            "scheme": self.scheme,
            "seed": self.seed,
            "sha256": hashlib.sha256(text.encode()).hexdigest(),
            **lists,
        }


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
            f"targets must have one dimension for a split, got shape {targets.shape}; pass targets="
        )
    streams = np.random.SeedSequence(checked("seed", seed, count(0, 2**63 - 1))).spawn(5)
    rng_subset, rng_val, rng_holdout, rng_clients, rng_client_val = map(
        np.random.default_rng, streams
    )
    # before anything is taken away, since group ids are given for the whole set
    values = partition.values(targets)
    size = min(len(targets), shares.max_samples or len(targets))
    pool = stratified_sample(targets, size, rng_subset)
    val, pool = _take(targets, pool, round(shares.val_fraction * len(pool)), rng_val)
    if shares.holdout >= len(pool):
        raise ValueError(
            f"holdout must be below the {len(pool)} samples left after validation, got "
            f"{shares.holdout}"
        )
    kept, pool = _take(targets, pool, shares.holdout, rng_holdout)
    parts = [pool[part] for part in partition(values[pool], num_clients, rng_clients)]
    pairs = [_divide(part, shares.client_val_fraction, rng_client_val) for part in parts]
    return Split(
        scheme=repr(partition),
        seed=seed,
        clients=[torch.from_numpy(train) for train, _ in pairs],
        client_val=[torch.from_numpy(held) for _, held in pairs],
        val=torch.from_numpy(val),
        holdout=torch.from_numpy(kept),
    )


def _take(
    targets: Array, pool: Indices, count: int, rng: np.random.Generator
) -> tuple[Indices, Indices]:
    """`count` samples of the pool with its label mix, and what is left."""
    chosen = stratified_sample(targets[pool], count, rng)
    return pool[chosen], np.delete(pool, chosen)


def _divide(
    part: Indices, val_fraction: float, rng: np.random.Generator
) -> tuple[Indices, Indices]:
    """A client's samples as (training, validation); validation is rounded down, so that training
    is never empty.
    """
    shuffled = rng.permutation(part)
    num_val = int(val_fraction * len(part))
    return np.sort(shuffled[num_val:]), np.sort(shuffled[:num_val])
