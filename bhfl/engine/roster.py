"""The clients of a fleet as arrays: a fleet of a million takes no more than their numbers of
samples.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Literal, overload

import numpy as np
from numpy.typing import NDArray

from bhfl.engine.devices import Devices, Group
from bhfl.engine.types import Client
from bhfl.settings import Downlink


class Roster(Sequence[Client]):
    """All clients by their ids, group after group. Each is made when it is asked for.

    Args:
        groups: What the fleet says of each group.
        counts: The number of clients of each group.
        sizes: Training samples of each client.
        weights: What each counts in averages; one without samples never counts.
        downlink: Bits at which all are sent the model.

    Raises:
        ValueError: There are more or fewer sizes than clients.
    """

    def __init__(
        self,
        groups: Sequence[Group],
        counts: Sequence[int],
        sizes: Sequence[int],
        weights: Literal["samples", "uniform"],
        downlink: Downlink = "float32",
    ) -> None:
        self.sizes: NDArray[np.int64] = np.asarray(sizes, np.int64)
        """Training samples of each client."""
        self.members: dict[Devices, range] = {}
        """The ids of the clients of each group."""
        self._uniform = weights == "uniform"
        end = 0
        for group, number in zip(groups, counts, strict=True):
            self.members[Devices(group, downlink)] = range(end, end + number)
            end += number
        if len(self.sizes) != end:
            raise ValueError(
                f"federate must return the number of samples of each of {end} clients, got "
                f"{len(self.sizes)} numbers"
            )

    def __len__(self) -> int:
        return len(self.sizes)

    @overload
    def __getitem__(self, index: int) -> Client: ...
    @overload
    def __getitem__(self, index: slice) -> list[Client]: ...
    def __getitem__(self, index: int | slice) -> Client | list[Client]:
        # a range knows what an index means, and raises IndexError beyond its end
        ids = range(len(self))[index]
        if isinstance(ids, range):
            return [self[id] for id in ids]
        for devices, members in self.members.items():
            if ids in members:
                return self._made(ids, devices)
        raise IndexError(index)

    def __iter__(self) -> Iterator[Client]:
        for devices, members in self.members.items():
            for id in members:
                yield self._made(id, devices)

    def _made(self, id: int, devices: Devices) -> Client:
        size = int(self.sizes[id])
        weight = float(size > 0) if self._uniform else float(size)
        return Client(id, devices.spec, size, weight, devices)


def one_of_each(clients: Sequence[Client]) -> list[Client]:
    """The first client of each group, in their order."""
    if isinstance(clients, Roster):
        return [clients[members[0]] for members in clients.members.values()]
    first: dict[Devices, Client] = {}
    for client in clients:
        first.setdefault(client.devices, client)
    return list(first.values())


def members(clients: Sequence[Client]) -> dict[str, Sequence[int]]:
    """The places of the clients of each group, by its name."""
    if isinstance(clients, Roster):
        return {devices.group.label: ids for devices, ids in clients.members.items()}
    found: dict[str, list[int]] = {}
    for place, client in enumerate(clients):
        found.setdefault(client.group, []).append(place)
    return dict(found)


def group_sizes(clients: Sequence[Client]) -> Counter[str]:
    """The number of clients of each group, by its name."""
    return Counter({group: len(places) for group, places in members(clients).items()})
