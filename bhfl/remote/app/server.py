"""The ServerApp: it lends Flower's Grid to the process of ``bhfl serve``, by a socket that only its
user can open. It reads nothing of what it carries.

Each order is a mapping in JSON, whose ``do`` says what is wanted: ``nodes``, the ids of who is
there; ``push``, whose messages follow, and for which their ids come back; ``pull``, for which
each reply that is there comes as a head and its bytes, and an empty head at last.

Replies are pulled together, of which one that cannot be read takes all others with it, and this
process. In the next one they are pulled ``singly``, and it is told whose that one is.
"""

import json
import resource
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
from flwr.app import Context, Message
from flwr.serverapp import Grid, ServerApp

from .frames import put, take
from .records import unwrapped, wrapped

app = ServerApp()
_ROOM = 2**29
"""Bytes of memory that a pull may take besides the replies."""
_COPIES = 6
"""How often Flower holds a reply while it puts its pieces together, at most."""


@app.main()
def lend(grid: Grid, context: Context) -> None:
    """Carry orders out until the server has gone."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(context.run_config["bhfl-socket"]))
        while True:
            try:
                order = json.loads(take(sock))
            except ConnectionError:
                return
            if order["do"] == "nodes":
                put(sock, json.dumps(list(grid.get_node_ids())).encode())
            elif order["do"] == "push":
                messages = [(node, take(sock)) for node in order["nodes"]]
                put(sock, json.dumps(_push(grid, order, messages)).encode())
            else:
                _pull(grid, order, sock)


def _push(grid: Grid, order: dict[str, Any], messages: list[tuple[int, bytes]]) -> list[str | None]:
    ttl, round = order["seconds"], order["round"]
    made = [
        Message(wrapped(data), node, "train", ttl=ttl, group_id=round) for node, data in messages
    ]
    # nothing of them where they are too much for the SuperLink
    return list(grid.push_messages(made)) or [None] * len(made)


def _pull(grid: Grid, order: dict[str, Any], sock: socket.socket) -> None:
    ids = order["ids"]
    groups = [[id] for id in ids] if order["singly"] else [ids]
    for group in groups:
        try:
            # a few bytes may stand for more than fits into memory
            with _bounded_memory(_ROOM + _COPIES * order["most"] * len(group)):
                replies = list(grid.pull_messages(group))
        except httpx.HTTPError:
            raise
        except Exception as error:
            if not order["singly"]:
                raise
            _say(sock, {"id": group[0], "error": f"it cannot be read: {type(error).__name__}"})
            continue
        for reply in replies:
            head: dict[str, Any] = {"id": reply.metadata.reply_to_message_id}
            if reply.has_error():
                head["error"] = f"{reply.error.reason} (code {reply.error.code} of Flower's)"
            _say(sock, head, b"" if reply.has_error() else unwrapped(reply.content))
    put(sock, b"")


def _say(sock: socket.socket, head: dict[str, Any], data: bytes = b"") -> None:
    put(sock, json.dumps(head).encode())
    put(sock, data)


@contextmanager
def _bounded_memory(more: int) -> Iterator[None]:
    """Let this process take so many bytes more than it has, where the system says what it has."""
    if sys.platform != "linux":
        yield
        return
    with open("/proc/self/statm") as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (now + more, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
