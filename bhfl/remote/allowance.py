"""How many bytes clients may bring to the server: in a request, and until they are asked again."""

import re
import threading
import time

_BRINGS = re.compile(rb"/v1/fleet/push-[a-z]+")
"""The paths by which clients bring what Flower's processes keep; others only ask."""
MOST_QUESTION = 2**16
"""Bytes of the body of a request that only asks."""
MOST_UNASKED = 2**26
"""Bytes that a client may bring before it is asked for the first time, such as an old answer."""


class TooManyBytesError(ValueError):
    """A request has more bytes than it may have."""


class Allowance:
    """Counts what clients bring, in one thread, while another grants it.

    Args:
        most_bytes: Bytes of the body of a request at most.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most = most_bytes
        self._left: dict[int, int] = {}
        # of a grant between two lines of `count` nothing would be left
        self._lock = threading.RLock()
        self.overdrawn: set[int] = set()
        """Clients that wanted to bring more than they may, since they were last asked."""
        self.brought: dict[int, float] = {}
        """When each client last brought anything, since it was last asked."""

    def grant(self, client: int, most: int) -> None:
        """Let a client bring so many bytes from now on, in all requests together.

        Args:
            client: Its position in the fleet.
            most: Those of an answer, with what Flower adds to it.
        """
        with self._lock:
            self._left[client] = most
            self.overdrawn.discard(client)
            self.brought.pop(client, None)

    def check(self, client: int, path: bytes, length: int, more: int) -> None:
        """Refuse a body, of which there is or will be so much.

        Args:
            client: Who sends it.
            path: Where to.
            length: Its bytes so far, or those that it is said to have.
            more: Those of them that are not counted yet.

        Raises:
            TooManyBytesError: They are too many.
        """
        brings = _BRINGS.fullmatch(path) is not None
        most = self._most if brings else MOST_QUESTION
        if length > most:
            raise TooManyBytesError(f"a body must have at most {most:,} bytes")
        with self._lock:
            if brings and more > self._left.get(client, MOST_UNASKED):
                self.overdrawn.add(client)
                told = f"client {client} has sent more bytes than an answer may have"
                raise TooManyBytesError(told)

    def count(self, client: int, path: bytes, length: int, more: int) -> None:
        """Count the next part of a body, where it is not refused, see `check`."""
        with self._lock:
            self.check(client, path, length, more)
            if _BRINGS.fullmatch(path):
                self._left[client] = self._left.get(client, MOST_UNASKED) - more
                self.brought[client] = time.monotonic()
