"""Bytes on a local socket: each message with its length before it, in eight bytes."""

import socket

SECRET = 16
"""Bytes at the beginning of a message that only its receiver is told."""
_PART = 2**20


class TooLongError(ValueError):
    """A message has more bytes than it may have; it has been read, and nothing of it is kept."""


def put(sock: socket.socket, data: bytes) -> None:
    """Send a message."""
    sock.sendall(len(data).to_bytes(8, "little"))
    sock.sendall(data)


def take(sock: socket.socket, most: int | None = None) -> bytes:
    """Wait for a message.

    Args:
        sock: The socket.
        most: Its bytes at most; any number by default.

    Raises:
        ConnectionError: The other side has gone.
        TooLongError: The message has more bytes.
    """
    size = int.from_bytes(_exactly(sock, 8), "little")
    if most is None or size <= most:
        return _exactly(sock, size)
    for start in range(0, size, _PART):
        _exactly(sock, min(_PART, size - start))
    raise TooLongError(f"a message must have at most {most:,} bytes, got {size:,}")


def _exactly(sock: socket.socket, size: int) -> bytes:
    data = bytearray(size)
    left = memoryview(data)
    while left:
        got = sock.recv_into(left)
        if not got:
            raise ConnectionError("the other side has gone")
        left = left[got:]
    return bytes(data)
