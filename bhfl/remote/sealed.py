"""What comes back for what clients were asked: with the secret of its message, and no more bytes
than an answer may have.
"""

import secrets
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from hmac import compare_digest

from bhfl.remote.allowance import Allowance
from bhfl.remote.app.frames import SECRET
from bhfl.remote.relay import Answer, Relay

_QUIET_SECONDS = 0.5
"""Seconds after which a client that has brought nothing more has brought all of its answer."""
_ALL_SECONDS = 10.0
"""Seconds between two looks for answers of whoever has brought none."""


class Sealed:
    """A Grid, see `bhfl.remote.attendance.Grid`, that believes no answer to be a client's own
    which does not begin with what that client alone was told.

    Flower proves who sends a request, and not that the answer in it is the sender's. Each message
    therefore begins with a secret, which the ClientApp puts before its answer.

    Args:
        grid: Carries the messages.
        keyed: Says which clients some nodes are.
        allowance: Counts what clients send, if they come through a front of this server.
    """

    def __init__(
        self,
        grid: Relay,
        keyed: Callable[[Collection[int]], Mapping[int, int]],
        allowance: Allowance | None,
    ) -> None:
        self._grid = grid
        self._keyed = keyed
        self._allowance = allowance
        self._asked: dict[int, tuple[str, bytes]] = {}
        """The id of the last message to each node, and its secret: nobody waits for others."""
        self._all_at = 0.0
        """When all answers were last asked for."""
        self.nodes = grid.nodes
        self.restore = grid.restore

    @property
    def most_bytes(self) -> int:
        """Bytes of an answer at most."""
        return self._grid.most_bytes

    @most_bytes.setter
    def most_bytes(self, most: int) -> None:
        self._grid.most_bytes = most

    def push(
        self, messages: Sequence[tuple[int, bytes]], seconds: float, round: int
    ) -> list[str | None]:
        """Send messages; the id of each, or None where it is not taken."""
        clients = self._keyed([node for node, _ in messages])
        drawn = [secrets.token_bytes(SECRET) for _ in messages]
        if self._allowance is not None:
            for client in clients.values():
                # a piece of an answer that broke off is sent again
                self._allowance.grant(client, self.most_bytes + self.most_bytes // 4)
        sealed = [(node, new + data) for new, (node, data) in zip(drawn, messages, strict=True)]
        ids = self._grid.push(sealed, seconds, round)
        for (node, _), secret, id in zip(messages, drawn, ids, strict=True):
            if id is not None:
                self._asked[node] = id, secret
        return ids

    def pull(self, ids: list[str]) -> list[Answer]:
        """The answers to some messages that are there, and why there will be none."""
        secret_of = dict(self._asked.values())
        ready = self._ready(ids)
        answers = self._grid.pull(ready) if ready else []
        found = [_opened(answer, secret_of.get(answer.id, b"")) for answer in answers]
        asked = self._asked.items()
        over = [id for node, (id, _) in asked if id in ids and self._has_overdrawn(node)]
        kept = [answer for answer in found if answer.id not in over]
        told = "it sent more bytes than an answer may have"
        return kept + [Answer(id, b"", told) for id in over]

    def _ready(self, ids: list[str]) -> list[str]:
        """The messages whose answers may be whole by now: for one that is not, Flower waits for
        seconds, and those behind it with it. Now and then all, as Flower answers for clients that
        are gone.
        """
        if self._allowance is None:
            return ids
        now = time.monotonic()
        others = now - self._all_at > _ALL_SECONDS
        found = []
        for node, (id, _) in self._asked.items():
            brought = self._allowance.brought.get(self._keyed([node]).get(node, -1))
            whole = others if brought is None else now - brought > _QUIET_SECONDS
            if id in ids and whole:
                found.append(id)
        if others:
            self._all_at = now
        return found

    def _has_overdrawn(self, node: int) -> bool:
        client = self._keyed([node]).get(node)
        return self._allowance is not None and client in self._allowance.overdrawn


def _opened(answer: Answer, secret: bytes) -> Answer:
    """An answer without its secret."""
    if answer.error:
        return answer
    found, data = answer.data[:SECRET], answer.data[SECRET:]
    if not secret or not compare_digest(found, secret):
        return Answer(answer.id, b"", "the answer does not hold the secret of its message")
    return answer._replace(data=data)
