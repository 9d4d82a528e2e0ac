"""Bytes on a local socket: each message with its length before it, in eight bytes."""

import socket


def put(sock: socket.socket, data: bytes) -> None:
    """Send a message."""
    sock.sendall(len(data).to_bytes(8, "little"))
    sock.sendall(data)


def take(sock: socket.socket) -> bytes:
    """Wait for a message.

    Raises:
        ConnectionError: The other side has gone.
    """
    return _exactly(sock, int.from_bytes(_exactly(sock, 8), "little"))


def _exactly(sock: socket.socket, size: int) -> bytes:
    data = bytearray(size)
    left = memoryview(data)
    while left:
        got = sock.recv_into(left)
        if not got:
            raise ConnectionError("the other side has gone")
        left = left[got:]
    return bytes(data)
