"""The ClientApp: it hands what came for this device to the process of ``bhfl join``, by a socket
that only its user can open, and takes the answer back. It reads and runs nothing of either.
"""

import socket

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from .frames import put, take
from .records import unwrapped, wrapped

app = ClientApp()


@app.train()
def carry(message: Message, context: Context) -> Message:
    """Bring a message to the device's own process, and its answer back."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(context.node_config["bhfl-socket"]))
        put(sock, unwrapped(message.content))
        answer = take(sock)
    return Message(wrapped(answer), reply_to=message)
