"""A wire of the test's own between a client and a server, which can be cut."""

import contextlib
import socket
import threading


class Wire:
    """A relay of TCP connections from a port of 127.0.0.1 to another one.

    Attributes:
        port: The port to connect to.
        whole: Whether it carries anything; a cut one closes what there is, and whatever comes.
    """

    def __init__(self, to: int) -> None:
        self.whole = True
        self._to = to
        self._ends: list[socket.socket] = []
        self._listens = socket.create_server(("127.0.0.1", 0))
        self.port = self._listens.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        self.whole = False
        for end in self._ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
        self._ends.clear()

    def mend(self) -> None:
        self.whole = True

    def close(self) -> None:
        self._listens.close()
        self.cut()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listens.accept()
            except OSError:
                return
            if not self.whole:
                near.close()
                continue
            try:
                far = socket.create_connection(("127.0.0.1", self._to))
            except OSError:
                near.close()
                continue
            self._ends += [near, far]
            for one, other in [(near, far), (far, near)]:
                threading.Thread(target=self._carry, args=[one, other], daemon=True).start()

    def _carry(self, one: socket.socket, other: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while part := one.recv(2**16):
                other.sendall(part)
        for end in (one, other):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
