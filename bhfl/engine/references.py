"""What each client was sent last, where it is sent differences to that: state of the server's,
listed in checkpoints and cut back on resume as what clients keep is.
"""

from collections.abc import Collection, Iterable

from bhfl.engine.client.common import COMMON
from bhfl.engine.client.store import ClientStore
from bhfl.engine.downlink import Sent, has_reference
from bhfl.engine.folder import REFERENCES
from bhfl.engine.types import Client, Params, ServerState

NOTHING: Params = {}


class References(ClientStore):
    """The weights that each client has received last, by the round in which its update was taken.

    Clients that were sent the same share one file of them, by hard links: it is gone with the last
    client that has it.

    Args:
        folder: Where the files lie; it is made when the first client is sent anything.
        table: What a checkpoint lists, see `ClientStore.table`.
    """

    place = REFERENCES
    lacks = "clients of this run are sent differences to what they were sent last"

    def held(self, client: Client, server: ServerState) -> Params:
        """The weights that a client has, which differences may be to; nothing where there are none,
        or they are too old.

        Raises:
            CheckpointError: Their file is gone, damaged or another one, naming it.
        """
        version = server.accepted.get(client.id, 0)
        # at other bits it may have been sent nothing that differences could be to
        if not has_reference(client, server) or version not in self.known.get(client.id, {}):
            return NOTHING
        kept = self.load(client.id, version) or {}
        found: Params = kept.get(COMMON, NOTHING)
        return found

    def send(self, client: int, round: int, sent: Sent) -> None:
        """Hold what a client is sent in a round until it is known whether its update was taken.

        Args:
            client: Its id.
            round: Rounds finished with this one.
            sent: The message.
        """
        if sent.weights:
            self.put(client, round, {COMMON: sent.weights})

    def received(self, client: int) -> Params:
        """What a client was sent in this round, as it has it; nothing where it was float32."""
        found: Params = (self.pending(client) or {}).get(COMMON, NOTHING)
        return found

    def settle(self, kept: Iterable[int], lost: Collection[int]) -> None:
        """End a round on this process.

        Args:
            kept: Clients whose updates were taken.
            lost: Clients that no longer have what they were sent before.
        """
        if self._pending:
            self.commit(kept)
            self.drop_all()
        for client in lost:
            self.known.pop(client, None)
