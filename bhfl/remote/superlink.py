"""Flower's SuperLink: a process of its own that keeps messages for clients, beside the server.

It listens at 127.0.0.1 alone, for whoever reaches all of it may run code there: clients come
through `bhfl.remote.front.Front`, which lets them reach what they need.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from bhfl.remote.flower import environment, free_port, needs_flower, program
from bhfl.remote.keys import ServerKeys
from bhfl.remote.registry import Registry
from bhfl.remote.supervised import Running, Supervised

if TYPE_CHECKING:
    from flwr.supercore.control import ControlHttpClient

_ADDRESS = re.compile(r"(\[[0-9a-fA-F:]+\]|[^:/\s]+):([0-9]{1,5})")


@dataclass(frozen=True)
class Node:
    """A client as the SuperLink knows it."""

    node: int
    """Flower's id of it: the key has it for as long as the database lives."""
    client: int
    """Its position in the fleet."""
    group: str
    """The name of its group."""
    online: bool
    """Whether its SuperNode gave a sign of life in the last minute."""


class Control:
    """What a server asks a SuperLink for: who is registered, and who is there.

    Args:
        address: ``HOST:PORT`` of the SuperLink.
        keys: The server's files: the SuperLink's certificate must be of the same authority.
        registry: The clients that have a key.

    Raises:
        ImportError: Flower is not installed.
        ValueError: `address` is none.
    """

    def __init__(self, address: str, keys: ServerKeys, registry: Registry) -> None:
        needs_flower()
        if not _ADDRESS.fullmatch(address):
            raise ValueError(f"superlink must be HOST:PORT, got {address!r}")
        self.address = address
        self.registry = registry
        self._client = _control(address, keys.ca.read_bytes())

    def register(self) -> None:
        """Let all clients of the registry join that may not yet.

        Raises:
            ConnectionError: The SuperLink cannot be reached, or refuses, saying why.
        """
        from flwr.proto.control_pb2 import RegisterNodeRequest

        known = {info.public_key for info in self._listed()}
        for one in self.registry.clients:
            if one.pem not in known:
                request = RegisterNodeRequest(public_key=one.pem, name=f"client-{one.client}")
                self._asked(self._client.RegisterNode, request)

    def nodes(self) -> dict[int, Node]:
        """The clients that may join, by their positions in the fleet.

        Raises:
            ConnectionError: The SuperLink cannot be reached, or refuses, saying why.
        """
        found = {}
        for info in self._listed():
            one = self.registry.of_key.get(info.public_key)
            if one is not None and info.status != "unregistered":
                online = info.status == "online"
                found[one.client] = Node(info.node_id, one.client, one.group, online)
        return found

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def _listed(self) -> Any:
        from flwr.proto.control_pb2 import ListNodesRequest

        return self._asked(self._client.ListNodes, ListNodesRequest()).nodes_info

    def _asked(self, ask: Any, request: Any) -> Any:
        import httpx

        try:
            return ask(request)
        except (httpx.HTTPError, ValueError) as error:
            raise ConnectionError(f"the SuperLink at {self.address}: {error}") from error


def _control(address: str, ca: bytes) -> "ControlHttpClient":
    from flwr.supercore.control import ControlHttpClient
    from flwr.supercore.interceptors.http.runtime_version import RuntimeVersionHttpInterceptor

    versions = RuntimeVersionHttpInterceptor(component_name="bhfl")
    return ControlHttpClient.from_server_address(
        address, insecure=False, root_certificates=ca, interceptors=[versions]
    )


class SuperLink(Running):
    """A SuperLink of this process, which is started anew if it ends and which ends with it::

        with SuperLink(run_folder / "superlink", keys) as superlink:
            superlink.address

    What it is told stays in a database in its folder: clients find it again after it was killed.

    Args:
        folder: Its folder, for its database, its log and Flower's own files.
        keys: The server's files.
        port: The port of 127.0.0.1 that it listens at; 0 takes a free one.

    Raises:
        ImportError: Flower is not installed.
        OSError: The port is in use, or the folder cannot be made.
        ValueError: `port` is no port.
    """

    def __init__(self, folder: Path, keys: ServerKeys, port: int = 0) -> None:
        path = program("flower-superlink")
        self.port = free_port(port, "superlink port")
        # it holds what clients sent: for its owner alone
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        command = [path, "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--ssl-ca-certfile", str(keys.ca.absolute())]
        command += ["--ssl-certfile", str(keys.certificate.absolute())]
        command += ["--ssl-keyfile", str(keys.private.absolute())]
        command += ["--database", str((folder / "superlink.db").absolute())]
        command += ["--enable-supernode-auth", "--disable-runtime-dependency-installation"]
        self.process = Supervised(
            "the SuperLink",
            command,
            environment(folder / "flwr"),
            folder / "superlink.log",
            ready="Uvicorn running on",
        )

    @property
    def address(self) -> str:
        """``127.0.0.1:PORT``."""
        return f"127.0.0.1:{self.port}"

    def start(self, seconds: float = 120.0) -> Self:
        """Start it, and wait until it answers.

        Args:
            seconds: How long to wait at most.

        Raises:
            RuntimeError: It does not come up, saying what it said last.
        """
        self.process.start(seconds)
        return self

    def stop(self) -> None:
        """End it."""
        self.process.stop()
