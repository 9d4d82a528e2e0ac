"""The clients of a fleet as arrays: a fleet of a million takes no more than their numbers of
samples.
"""

import copy
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Literal, overload

import numpy as np
from numpy.typing import NDArray

from bhfl.downlink import DownBits, Downlink
from bhfl.engine.devices import Devices, Group
from bhfl.engine.types import Client
from bhfl.quant.backends import get_backend


class Roster(Sequence[Client]):
    """All clients by their ids, group after group. Each is made when it is asked for.

    The bits of a group may change: its clients are those of the first round here, and those of
    another one in what `at` returns.

    Args:
        groups: What the fleet says of each group.
        counts: The number of clients of each group.
        sizes: Training samples of each client.
        weights: What each counts in averages; one without samples never counts.
        downlink: How all are sent the model.

    Raises:
        ValueError: There are more or fewer sizes than clients.
    """

    def __init__(
        self,
        groups: Sequence[Group],
        counts: Sequence[int],
        sizes: Sequence[int],
        weights: Literal["samples", "uniform"],
        downlink: DownBits | Downlink = "float32",
    ) -> None:
        self.sizes: NDArray[np.int64] = np.asarray(sizes, np.int64)
        """Training samples of each client."""
        self._uniform = weights == "uniform"
        self.stages: list[tuple[dict[int, Devices], range]] = []
        """The devices of each group, by the rounds that are done when it comes to them."""
        end = 0
        for group, number in zip(groups, counts, strict=True):
            stages = {at: Devices(stage, downlink, at) for at, stage in group.stages().items()}
            self.stages.append((stages, range(end, end + number)))
            end += number
        self.members = self._members(0)
        """The ids of the clients of each group."""
        if len(self.sizes) != end:
            raise ValueError(
                f"federate must return the number of samples of each of {end} clients, got "
                f"{len(self.sizes)} numbers"
            )

    @property
    def devices(self) -> list[Devices]:
        """What any client computes on in any round, group after group."""
        return list(chain.from_iterable(stages.values() for stages, _ in self.stages))

    @property
    def changes(self) -> list[int]:
        """See the function `changes`."""
        return sorted(set(chain.from_iterable(stages for stages, _ in self.stages)))

    def at(self, round: int) -> "Roster":
        """The fleet as it is in a round, for good.

        Args:
            round: The rounds that are done before it.
        """
        if self.changes == [0]:
            return self
        found = copy.copy(self)
        found.members = self._members(round)
        found.stages = [({0: devices}, ids) for devices, ids in found.members.items()]
        return found

    def of_each(self) -> list[Client]:
        """The first client of each group, with each of the bits that it comes to."""
        found = []
        for stages, ids in self.stages:
            found += [self._made(ids[0], devices) for devices in stages.values()]
        return found

    def require(self, client: int) -> None:
        """Make sure that a client's backends, as they were chosen, can be used on this machine.

        Args:
            client: Its id.

        Raises:
            ImportError: One needs a package that cannot be imported, saying which.
        """
        for stages, ids in self.stages:
            for devices in stages.values() if client in ids else ():
                for name in set(devices.backends.values()):
                    get_backend(name).require()

    def _members(self, round: int) -> dict[Devices, range]:
        found = {}
        for stages, ids in self.stages:
            found[stages[max(start for start in stages if start <= round)]] = ids
        return found

    def origins(self, round: int) -> dict[str, str]:
        """Where the bits come from that nobody had in the round before.

        Args:
            round: The rounds that are done before it.

        Returns:
            The bits of a group in the round before, by the bits that it has now; the first group
            of the fleet counts.
        """
        found: dict[str, str] = {}
        if round not in self.changes[1:]:
            return found
        before = list(self._members(round - 1))
        known = {devices.bits for devices in before}
        for old, new in zip(before, self._members(round), strict=True):
            if new.bits not in known:
                found.setdefault(new.bits, old.bits)
        return found

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


def at(clients: Sequence[Client], round: int) -> Sequence[Client]:
    """The clients as they are in a round; those of a mere list never change.

    Args:
        clients: All of a fleet.
        round: The rounds that are done before it.
    """
    return clients.at(round) if isinstance(clients, Roster) else clients


def changes(clients: Sequence[Client]) -> list[int]:
    """The rounds in which the bits of any group are others than before, the first among them."""
    return clients.changes if isinstance(clients, Roster) else [0]


def behind(clients: Sequence[Client], rounds: int) -> Sequence[Client]:
    """The clients as they were in the round that a state comes from; in the first, before any.

    Args:
        clients: All of a fleet.
        rounds: The rounds that are done, as in `ServerState.round`.
    """
    return at(clients, max(0, rounds - 1))


def one_of_each(clients: Sequence[Client]) -> list[Client]:
    """The first client of each group, in their order; once with each of the bits that it comes to
    where these change.
    """
    if isinstance(clients, Roster):
        return clients.of_each()
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
