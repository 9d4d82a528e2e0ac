"""What of a model is frozen: the parameters that require no gradients when it is set up.

They are no part of any algorithm's model. A client is sent them once and keeps them; from then on a
task says by a digest which ones are meant. Who has said that it holds them is the server's to know
(``ServerState.holders``), and their values are in ``ServerState.buffers["frozen"]``.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from torch import Tensor

from bhfl.comm import encode, encoded_bytes
from bhfl.engine.checkpoint import digest
from bhfl.engine.client.local import LocalClients
from bhfl.engine.client.plain import PlainWorker
from bhfl.engine.exchange import Clients
from bhfl.engine.types import Client, ServerState

# A small device trains with torch alone, so Lightning is imported for type checks only.
if TYPE_CHECKING:
    from lightning.fabric import Fabric

    from bhfl.engine.records import ClientRecord


class Frozen:
    """The frozen tensors of a run, as its server hands them out.

    Args:
        tensors: They, by name; empty where nothing is frozen.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.tensors = tensors
        self.sha256 = digest(tensors) if tensors else ""
        """What a task calls them by; empty where there are none."""

    def payload(self) -> bytes:
        """What a client is sent that does not hold them."""
        return encode(self.tensors)


def bytes_due(server: ServerState, client: Client) -> int:
    """Bytes of frozen tensors that a client is sent in the next round, besides its downlink."""
    frozen = server.buffers["frozen"]
    return encoded_bytes(frozen) if frozen and client.id not in server.holders else 0


def held_by(worker: PlainWorker, server: ServerState) -> Frozen:
    """The frozen tensors of a state, with which a worker computes from now on."""
    worker.untrained = worker.to_device(server.buffers["frozen"])
    return Frozen(server.buffers["frozen"])


def holders(server: ServerState, records: "Iterable[ClientRecord]") -> list[int]:
    """Who holds the frozen tensors after a round: what a client said of it is believed whatever
    became of its update, and where it said nothing, nothing has changed.
    """
    found = set(server.holders)
    for record in records:
        if record.holds:
            found.add(record.client)
        elif record.holds is False:
            found.discard(record.client)
    return sorted(found)


def without_lost(
    server: ServerState, frozen: Frozen, clients: Clients, fabric: "Fabric"
) -> ServerState:
    """A state that a run goes on from, in which nobody holds the frozen tensors where their copy is
    gone. Clients that are elsewhere say by themselves what they have lost.

    Args:
        server: The state.
        frozen: Its frozen tensors.
        clients: Those of this process share one copy with all processes.
        fabric: The processes' own.
    """
    if not server.holders or not isinstance(clients, LocalClients):
        return server
    # by one process, before any other could write it anew
    lost = fabric.is_global_zero and not clients.frozen.find(frozen.sha256)
    return replace(server, holders=[]) if fabric.broadcast(lost) else server
