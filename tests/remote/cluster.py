"""Real processes of Flower on this machine, for tests: a SuperLink, a front, and SuperNodes.

All listen at 127.0.0.1, at ports that the system chooses, and end by the ids that were started.
"""

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from bhfl.remote.bundle import start_app
from bhfl.remote.front import Front
from bhfl.remote.keys import ClientKeys, ServerKeys, client_keys, make_keys, server_keys
from bhfl.remote.registry import Registry
from bhfl.remote.relay import Relay
from bhfl.remote.superlink import Control, SuperLink
from bhfl.remote.supernode import start_supernode
from bhfl.remote.supervised import Supervised

SECONDS = 90.0
"""What a process has for its start, on a machine that is busy."""


@dataclass
class Cluster:
    """What one server and its clients are."""

    folder: Path
    made: Path
    keys: ServerKeys
    registry: Registry
    superlink: SuperLink
    control: Control
    front: Front
    nodes: list[Supervised] = field(default_factory=list)

    @classmethod
    def begin(cls, folder: Path, groups: list[str]) -> "Cluster":
        made = make_keys(folder / "keys", groups, [])
        keys = server_keys(made)
        registry = Registry.read(keys.registry)
        superlink = SuperLink(folder / "superlink", keys).start(SECONDS)
        control = Control(superlink.address, keys, registry)
        control.register()
        front = Front(keys, registry, superlink.address, "127.0.0.1", 0).start()
        return cls(folder, made, keys, registry, superlink, control, front)

    def client(self, client: int) -> ClientKeys:
        return client_keys(self.made / "clients" / f"client-{client}")

    def node(self, keys: ClientKeys | int, address: str = "", **options: Any) -> Supervised:
        """A SuperNode that has joined."""
        own = self.client(keys) if isinstance(keys, int) else keys
        place = self.folder / f"node-{time.monotonic_ns()}"
        address = address or f"127.0.0.1:{self.front.port}"
        node = start_supernode(place, own, address, **{"seconds": SECONDS, **options})
        self.nodes.append(node)
        return node

    @contextmanager
    def grid(self) -> Iterator[tuple[Relay, Path]]:
        """Flower's Grid, and a folder whose path is short enough for sockets."""
        with tempfile.TemporaryDirectory(prefix="bhfl-") as made:
            place = Path(made)
            relay = Relay(place, partial(start_app, place, self.superlink.address, self.keys.ca))
            relay.restore()
            try:
                yield relay, place
            finally:
                relay.close()

    def end(self) -> None:
        for node in self.nodes:
            node.stop()
        self.front.stop()
        self.control.close()
        self.superlink.stop()


def until(true: Callable[[], object], seconds: float = SECONDS) -> None:
    """Wait until something is so."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.1)


def below(pid: int) -> set[int]:
    """The processes that a process started, and those that they started."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            children.setdefault(int(fields[1]), []).append(int(entry.name))
    found: set[int] = set()
    waiting = [pid]
    while waiting:
        for child in children.get(waiting.pop(), []):
            found.add(child)
            waiting.append(child)
    return found


def alive(pid: int) -> bool:
    """Whether a process runs; one that ended and was not waited for does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"
