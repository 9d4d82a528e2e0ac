"""A listening socket of which strangers can take no more than a part of the process's files."""

import asyncio
import contextlib
import resource
import socket
import weakref

HEAD_SECONDS = 15.0
"""Seconds that a connection has for the handshake of TLS and the head of its first request."""
_A_CLIENT = 8
_STRANGERS = 64
"""Connections at a time: for each client, and besides. A SuperNode has one or two."""


class Bounded(socket.socket):
    """Accepts connections up to a number, and cuts those that ask for nothing.

    What is beyond is closed at once. asyncio has neither bound: its own clock for a handshake is
    a minute, and has ended when a request begins.

    Args:
        listening: The socket that listens, which this one takes the place of.
        clients: The clients that there are.
        seconds: What a connection has until it is heard.
    """

    def __init__(self, listening: socket.socket, clients: int, seconds: float) -> None:
        super().__init__(fileno=listening.detach())
        self.most = _most_connections(clients)
        self._seconds = seconds
        self._open: weakref.WeakSet[socket.socket] = weakref.WeakSet()
        self._unheard: dict[tuple[str, int], socket.socket] = {}
        """The connections of which no request has come, by the address at their other end."""

    def accept(self) -> tuple[socket.socket, tuple[str, int]]:
        """The next connection.

        Raises:
            BlockingIOError: There is none, or the next one was too many.
        """
        one, address = super().accept()
        if sum(other.fileno() >= 0 for other in self._open) >= self.most:
            one.close()
            raise BlockingIOError("too many connections")
        self._open.add(one)
        self._unheard[address[:2]] = one
        asyncio.get_running_loop().call_later(self._seconds, self._cut, address[:2], one)
        return one, address

    def heard(self, address: tuple[str, int]) -> None:
        """A request has come from an address, whose connection is left alone from now on."""
        self._unheard.pop(address, None)

    def _cut(self, address: tuple[str, int], one: socket.socket) -> None:
        # another connection may have the address by now
        if self._unheard.get(address) is one:
            del self._unheard[address]
            with contextlib.suppress(OSError):
                # the transport sees an end, and closes
                one.shutdown(socket.SHUT_RDWR)


def _most_connections(clients: int) -> int:
    """Connections at a time: of the process's files a quarter at most, since each connection may
    need one to the SuperLink too.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _STRANGERS + _A_CLIENT * clients
    if soft < 4 * wanted:
        soft = 4 * wanted if hard == resource.RLIM_INFINITY else min(hard, 4 * wanted)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return max(1, min(wanted, soft // 4))
