"""The ServerApp: it lends Flower's Grid to the process of ``bhfl serve``, by a socket that only its
user can open. It reads nothing of what it carries.

Each order is a mapping in JSON, whose ``do`` says what is wanted: ``nodes``, the ids of who is
there; ``push``, whose bytes follow and for which the message's id comes back; ``pull``, for which
each reply that is there comes as a head and its bytes, and an empty head at last.
"""

import json
import socket
from typing import Any

from flwr.app import Context, Message
from flwr.serverapp import Grid, ServerApp

from .frames import put, take
from .records import unwrapped, wrapped

app = ServerApp()


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
                put(sock, json.dumps(_push(grid, order, take(sock))).encode())
            else:
                _pull(grid, order["ids"], sock)


def _push(grid: Grid, order: dict[str, Any], data: bytes) -> str | None:
    ttl, round = order["seconds"], order["round"]
    message = Message(wrapped(data), order["node"], "train", ttl=ttl, group_id=round)
    # one by one: each push holds one payload
    return next(iter(grid.push_messages([message])), None)


def _pull(grid: Grid, ids: list[str], sock: socket.socket) -> None:
    for reply in grid.pull_messages(ids):
        head: dict[str, Any] = {"id": reply.metadata.reply_to_message_id}
        if reply.has_error():
            head["error"] = f"{reply.error.reason} (code {reply.error.code} of Flower's)"
        put(sock, json.dumps(head).encode())
        put(sock, b"" if reply.has_error() else unwrapped(reply.content))
    put(sock, b"")
