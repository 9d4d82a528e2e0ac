"""What the clients of a round are sent: messages, of which equal ones are encoded once, and what is
frozen for those that do not hold it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bhfl.comm import encode
from bhfl.engine.algorithm import Algorithm
from bhfl.engine.devices import Devices
from bhfl.engine.downlink import Sent, kept_of, moves_to, sent_as
from bhfl.engine.references import NOTHING
from bhfl.engine.session import Session
from bhfl.engine.types import Client, Metrics, Params, ServerState


@dataclass(frozen=True)
class Message:
    """What was sent last, and to whom else it may be sent as it is."""

    tensors: Any
    group: tuple[str, Devices | None]
    before: Params
    payload: bytes
    sent: Sent
    moves: Params
    """The differences, where the method chooses their bits."""
    bits: Mapping[str, int]
    """The bits that it has chosen."""

    def metrics(self) -> Metrics:
        """The mean bits of a weight, where the method has chosen them."""
        if not self.bits:
            return {}
        sizes = {name: self.moves[name].numel() for name in self.bits}
        took = sum(self.bits[name] * size for name, size in sizes.items())
        return {"comm/bits_down": took / sum(sizes.values())}


SILENCE = Message({}, ("", None), NOTHING, b"", Sent({}, {}, whole=False), NOTHING, {})
"""Nothing at all."""


class Outgoing:
    """What clients are sent in a round.

    Args:
        session: What the run works with.
        server: The state that the round is done with.
    """

    def __init__(self, session: Session, server: ServerState) -> None:
        self.session = session
        self.server = server
        self._holders = set(server.holders)
        self._body = b""
        self._last: Message | None = None

    def is_told(self, client: Client) -> bool:
        """Whether a client is sent anything."""
        return self.session.algorithm.communicates and client.num_examples > 0

    def message(self, client: Client) -> Message:
        """What a client is sent; the last message is not encoded again."""
        session = self.session
        if not self.is_told(client):
            return SILENCE
        tensors = session.algorithm.downlink(self.server, client)
        before = session.references.held(client, self.server)
        # statistics travel along, and those of another group are another message, as other bits are
        devices = None if client.devices.downlink.bits == "float32" else client.devices
        group = (session.buffers.key(client.bits), devices)
        last = self._last
        same = (
            last is not None
            and last.group == group
            and last.before is before
            and _same(tensors, last.tensors)
        )
        moves = NOTHING
        if last is not None and same:
            moves = last.moves
        elif type(session.algorithm).bits_down is not Algorithm.bits_down:
            moves = moves_to(kept_of(tensors, devices, self.server.params), before)
        bits = session.algorithm.bits_down(self.server, client, moves) if moves else {}
        if last is None or not same or bits != last.bits:
            session.hooks.check_downlink(tensors, self.server)
            sent = sent_as(tensors, devices, self.server.params, before, bits)
            payload = encode({**sent.message, **session.travelling(self.server, client.bits)})
            last = self._last = Message(tensors, group, before, payload, sent, moves, bits)
        return last

    def frozen(self, client: Client) -> tuple[str, bytes]:
        """The digest of the frozen tensors that a client is to hold, and their payload where it
        does not; encoded once, and kept no longer than the round.
        """
        frozen = self.session.frozen
        if not (frozen.sha256 and self.is_told(client)):
            return "", b""
        if client.id in self._holders:
            return frozen.sha256, b""
        self._body = self._body or frozen.payload()
        return frozen.sha256, self._body

    def lost_by(self, client: int) -> bool:
        """Take note that a client lacks what is frozen; whether it was not sent it yet."""
        held = client in self._holders
        self._holders.discard(client)
        return held


def _same(tensors: Any, last: Mapping[str, Any]) -> bool:
    """Whether a message holds the very tensors of the last one."""
    if not isinstance(tensors, Mapping) or tensors.keys() != last.keys():
        return False
    return all(tensor is last[name] for name, tensor in tensors.items())
