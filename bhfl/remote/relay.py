"""Flower's Grid in this process: the ServerApp lends it over a socket that only its user can open.

Flower starts a ServerApp in a process of its own. That process only carries orders out, so that
the server's round loop stays where its user started it.
"""

import json
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from bhfl.remote.app.frames import TooLongError, put, take
from bhfl.remote.scratch import listening_at

_APP_SECONDS = 240.0
"""How long Flower may take to start the ServerApp."""
MOST_BYTES = 2**26
"""Bytes of an answer at most, besides the update in it."""
_CALL_SECONDS = 300.0
"""How long a call may take: one that hangs would hold the round beyond its end."""
_TRIES = 10
_PAUSE = 5.0
"""Seconds between two tries: a SuperLink that was lost takes a while to be back."""


class Answer(NamedTuple):
    """What came back for a message."""

    id: str
    """The id of the message that it answers."""
    data: bytes
    error: str
    """Why there is no answer; empty where there is one."""


class Relay:
    """The Grid, over a socket.

    Args:
        folder: Where the socket is made: a folder that no other user can enter.
        start: Has Flower start the ServerApp, given the socket; ConnectionError where it cannot.
        seconds: How long the ServerApp may be silent in a call, which is lost then.
    """

    def __init__(
        self, folder: Path, start: Callable[[Path], None], seconds: float = _CALL_SECONDS
    ) -> None:
        self.path = folder / "grid.sock"
        self._start = start
        self._seconds = seconds
        self.most_bytes = MOST_BYTES
        """Bytes of an answer at most: of a longer one nothing is held, and it is an error."""
        self._singly = False
        """Whether answers are pulled one by one: one of them may have been the last one's end."""
        self._door = listening_at(self.path)
        self._door.settimeout(_APP_SECONDS)
        self._sock: socket.socket | None = None

    def restore(self) -> None:
        """Have the ServerApp started, for the first time or anew, and wait for it.

        Raises:
            RuntimeError: It does not come.
        """
        if self._sock is not None:
            self._sock.close()
            self._singly = True
        for left in reversed(range(_TRIES)):
            try:
                self._start(self.path)
                break
            except ConnectionError as error:
                if not left:
                    raise RuntimeError(f"Flower does not start the ServerApp: {error}") from error
                time.sleep(_PAUSE)
        try:
            self._sock, _ = self._door.accept()
        except TimeoutError:
            raise RuntimeError(
                f"Flower has not started the ServerApp within {_APP_SECONDS:g} s: a SuperLink must "
                "be on this machine, and of this user"
            ) from None
        self._sock.settimeout(self._seconds)

    def nodes(self) -> list[int]:
        """The ids of the nodes that are there."""
        found: list[int] = self._said({"do": "nodes"})
        return found

    def push(
        self, messages: Sequence[tuple[int, bytes]], seconds: float, round: int
    ) -> list[str | None]:
        """Send messages; the id of each, or None where Flower does not take it.

        Args:
            messages: Who is to receive each one, and what.
            seconds: How long they, and their answers, are kept at most.
            round: The round that they belong to.
        """
        nodes = [node for node, _ in messages]
        order = {"do": "push", "nodes": nodes, "seconds": seconds, "round": str(round)}
        found: list[str | None] = self._said(order, *(data for _, data in messages))
        return found

    def pull(self, ids: Sequence[str]) -> list[Answer]:
        """The answers to some messages that are there."""
        found = []
        with self._connected() as sock:
            order = {"do": "pull", "ids": list(ids), "singly": self._singly}
            put(sock, json.dumps({**order, "most": self.most_bytes}).encode())
            while head := take(sock):
                told = json.loads(head)
                try:
                    answer = Answer(told["id"], take(sock, self.most_bytes), told.get("error", ""))
                except TooLongError as error:
                    answer = Answer(told["id"], b"", str(error))
                found.append(answer)
        return found

    def close(self) -> None:
        """Let the ServerApp end."""
        for sock in (self._sock, self._door):
            if sock is not None:
                sock.close()

    def _said(self, order: dict[str, Any], *parts: bytes) -> Any:
        with self._connected() as sock:
            put(sock, json.dumps(order).encode())
            for part in parts:
                put(sock, part)
            return json.loads(take(sock))

    @contextmanager
    def _connected(self) -> Iterator[socket.socket]:
        if self._sock is None:
            raise ConnectionError("the ServerApp is not there")
        try:
            yield self._sock
        except TimeoutError:
            # half an answer may be on its way: it is not to be taken for the next one
            self._sock.close()
            raise ConnectionError(
                f"the ServerApp has not answered within {self._seconds:g} s"
            ) from None
