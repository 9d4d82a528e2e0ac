"""How the training samples are shared out among the clients.

A partitioner is a pure function of (labels, number of clients, NumPy generator). It assigns one
owner, a client, to every sample: so each sample belongs to exactly one client by construction.

Shapes: ``n`` samples, ``K`` clients; labels and owners are ``[n]``.
"""

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from bhfl.checks import checked, count, positive

Array = NDArray[Any]
Indices = NDArray[np.int64]


def stable_order(values: Array) -> Indices:
    """The positions that sort `values`; equal ones stay in their order."""
    whole = np.issubdtype(values.dtype, np.integer) and len(values) > 0
    # sorted by counting, several times as fast
    if whole and values.min() >= 0 and values.max() < 2**15:
        values = values.astype(np.int16)
    return np.argsort(values, kind="stable")


def present(key: str, values: Array) -> Array:
    """The values, one for each sample, as they are; ValueError where one is None or NaN."""
    # NaN, which tables have among words too, differs from itself
    missing = (values == None) | (values != values)  # noqa: E711  # one by one
    if len(places := np.argwhere(missing)):
        raise ValueError(
            f"{key} must have a value for each sample, and sample {places[0][0]} has none"
        )
    return values


def label_order(labels: Array, rng: Generator) -> Indices:
    """All positions, label after label, in random order within each label."""
    shuffled = rng.permutation(len(labels))
    # a stable sort leaves the samples of a label in their random order
    return shuffled[stable_order(labels[shuffled])]


def stratified_sample(labels: Array, count: int, rng: Generator) -> Indices:
    """`count` positions, sorted; each label gets its share of them, rounded up or down.

    This is systematic sampling: places at even distances, from a random start, along the samples
    that are laid out label after label.
    """
    n = len(labels)
    # none and all are no choice, and to order the samples takes long
    if count in (0, n):
        return np.arange(count)
    places = (np.arange(count) * n + rng.integers(n)) // count
    return np.sort(label_order(labels, rng)[places])


def _cut(total: int, shares: Array) -> Indices:
    """`total` cut into whole parts in proportion to `shares`, which add up to one."""
    # bounds are rounded, not parts, so that these add up to the total
    bounds = (np.cumsum(shares)[:-1] * total).astype(np.int64)
    return np.diff(bounds, prepend=0, append=total)


class Partitioner(ABC):
    """Shares samples out among clients; subclasses define `assign`."""

    min_size: int = 1
    """The samples that each client gets at least."""

    def __call__(self, labels: Array, num_clients: int, rng: Generator) -> list[Indices]:
        """The positions of each client's samples, sorted.

        Args:
            labels: What `dealt` takes, and so are the others.
            num_clients: The number of clients.
            rng: The source of all draws.

        Raises:
            ValueError: `dealt` raises it.
        """
        positions, sizes = self.dealt(labels, num_clients, rng)
        return np.split(positions, np.cumsum(sizes)[:-1])

    def dealt(self, labels: Array, num_clients: int, rng: Generator) -> tuple[Indices, Indices]:
        """The positions of all samples, client after client and sorted within each, and the number
        of samples of each client.

        Args:
            labels: The value of each sample that the split goes by (see `values`).
            num_clients: The number of clients.
            rng: The source of all draws.

        Returns:
            int64 arrays: the positions, one for each sample, and the numbers, one for each client.

        Raises:
            ValueError: There are too few samples for every client to have `min_size`, or `assign`
                returns something else than an owner of each sample.
        """
        checked("num_clients", num_clients, count(1))
        # a partitioner of one's own may leave clients without any
        if num_clients * self.min_size > len(labels):
            raise ValueError(
                f"clients must be at most {len(labels) // self.min_size} for {self} to give "
                f"each client {self.min_size} of {len(labels)} samples, got {num_clients}"
            )
        owners = np.asarray(self.assign(labels, num_clients, rng))
        if owners.shape != labels.shape or not np.issubdtype(owners.dtype, np.integer):
            raise ValueError(
                f"{type(self).__name__}.assign must return integers [{len(labels)}], got "
                f"{owners.dtype} {list(owners.shape)}"
            )
        if len(owners) and not 0 <= owners.min() <= owners.max() < num_clients:
            raise ValueError(
                f"{type(self).__name__}.assign must return clients 0 to {num_clients - 1}, got "
                f"{owners.min()} to {owners.max()}"
            )
        sizes = np.bincount(owners, minlength=num_clients)
        return stable_order(owners), sizes

    @abstractmethod
    def assign(self, labels: Array, num_clients: int, rng: Generator) -> Indices:
        """The client of each sample.

        Args:
            labels: What `values` gave: one for each of the n samples.
            num_clients: The number of clients.
            rng: The only source of random draws.

        Returns:
            n integers of 0 to `num_clients` - 1.
        """

    def values(self, targets: Array) -> Array:
        """The values that the split goes by, one for each of the data set's `targets`; by default
        the targets themselves.
        """
        return targets

    def __repr__(self) -> str:
        options = ", ".join(f"{name}={value}" for name, value in vars(self).items())
        return f"{type(self).__name__}({options})"


class IID(Partitioner):
    """A random split into equal parts, whose sizes differ by one at most."""

    def assign(self, labels: Array, num_clients: int, rng: Generator) -> Indices:
        """See `Partitioner.assign`."""
        return rng.permutation(np.arange(len(labels)) % num_clients)


class Dirichlet(Partitioner):
    """Label skew: each label's samples are shared out in proportions drawn from Dir(alpha).

    This is the scheme of Li et al. 2022, "Federated Learning on Non-IID Data Silos", section 4,
    with the size rule of its reference code: a client that already holds n/K samples draws no more,
    which keeps sizes near each other.
    """

    def __init__(self, alpha: float = 0.5, min_size: int = 1, max_tries: int = 100) -> None:
        """Check and keep the options.

        Args:
            alpha: The concentration, above 0: near 0 each client sees few labels, above 100 all see
                the same mix.
            min_size: The fewest samples of a client; a draw that leaves one with less is drawn
                again.
            max_tries: The number of draws before the split is given up with an error.
        """
        self.alpha = float(checked("Dirichlet.alpha", alpha, positive))
        self.min_size = checked("Dirichlet.min_size", min_size, count(1))
        self.max_tries = checked("Dirichlet.max_tries", max_tries, count(1))

    def values(self, targets: Array) -> Array:
        """The labels; ValueError for numbers that are not whole, each of which would be a label."""
        # NaN, which equals nothing, counts as odd by this way of asking
        if np.issubdtype(targets.dtype, np.floating) and (odd := targets[~(targets % 1 == 0)]).size:
            raise ValueError(
                f"{self} needs a label for each sample, a whole number for each kind, as targets, "
                f"got numbers such as {odd[0]:g}; IID and QuantitySkew need none"
            )
        return targets

    def assign(self, labels: Array, num_clients: int, rng: Generator) -> Indices:
        """See `Partitioner.assign`.

        Raises:
            ValueError: None of `max_tries` draws gave every client `min_size` samples.
        """
        for _ in range(self.max_tries):
            owners = self._draw(labels, num_clients, rng)
            if np.bincount(owners, minlength=num_clients).min() >= self.min_size:
                return owners
        raise ValueError(
            f"partition must give each of {num_clients} clients {self.min_size} of {len(labels)} "
            f"samples, and no draw of {self} did; raise alpha or max_tries, lower min_size, or "
            "have fewer clients"
        )

    def _draw(self, labels: Array, num_clients: int, rng: Generator) -> Indices:
        """One draw of the owners, whatever the sizes."""
        owners = np.empty(len(labels), np.int64)
        sizes = np.zeros(num_clients, np.int64)
        counts = np.unique(labels, return_counts=True)[1]
        groups = np.split(label_order(labels, rng), np.cumsum(counts)[:-1])
        # in random order, because the size rule favours the first labels
        for label in rng.permutation(len(groups)):
            # never empty: while samples are left, somebody holds fewer than n/K
            below = np.flatnonzero(sizes * num_clients < len(labels))
            parts = _cut(counts[label], rng.dirichlet(np.full(len(below), self.alpha)))
            owners[groups[label]] = np.repeat(below, parts)
            sizes[below] += parts
        return owners


class Shards(Partitioner):
    """Samples sorted by label, cut into equal shards, a few shards to each client (McMahan et al.
    2017, section 3).
    """

    def __init__(self, shards_per_client: int = 2) -> None:
        """Check and keep the options.

        Args:
            shards_per_client: The number of shards of a client, which is about the number of labels
                that it sees.
        """
        checked("Shards.shards_per_client", shards_per_client, count(1))
        # with as many samples as shards no shard is empty
        self.shards_per_client = self.min_size = shards_per_client

    def assign(self, labels: Array, num_clients: int, rng: Generator) -> Indices:
        """See `Partitioner.assign`."""
        num_shards = num_clients * self.shards_per_client
        # each client comes up equally often among as many numbers
        owner_of_shard = rng.permutation(num_shards) % num_clients
        shard_of_place = np.arange(len(labels)) * num_shards // len(labels)
        owners = np.empty(len(labels), np.int64)
        owners[label_order(labels, rng)] = owner_of_shard[shard_of_place]
        return owners


class QuantitySkew(Partitioner):
    """Equal label mix, unequal sizes: `min_size` for each client, the rest in proportions drawn
    from Dir(alpha).
    """

    def __init__(self, alpha: float = 0.5, min_size: int = 1) -> None:
        """Check and keep the options.

        Args:
            alpha: The concentration, above 0: near 0 few clients hold nearly all samples.
            min_size: The fewest samples of a client.
        """
        self.alpha = float(checked("QuantitySkew.alpha", alpha, positive))
        self.min_size = checked("QuantitySkew.min_size", min_size, count(1))

    def assign(self, labels: Array, num_clients: int, rng: Generator) -> Indices:
        """See `Partitioner.assign`."""
        spare = len(labels) - num_clients * self.min_size
        sizes = self.min_size + _cut(spare, rng.dirichlet(np.full(num_clients, self.alpha)))
        return rng.permutation(np.repeat(np.arange(num_clients), sizes))
