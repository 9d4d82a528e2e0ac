"""The ClientApp: it hands what came for this device to the process of ``bhfl join``, by a socket
that only its user can open, and takes the answer back. It reads and runs nothing of either, but
for the secret that a message begins with: the answer begins with it too.
"""

import select
import socket

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from .frames import SECRET, put, take
from .records import unwrapped, wrapped

app = ClientApp()
_LOOK = 1.0
"""Seconds between two looks for an answer."""


@app.train()
def carry(message: Message, context: Context) -> Message:
    """Bring a message to the device's own process, and its answer back."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(context.node_config["bhfl-socket"]))
        asked = unwrapped(message.content)
        put(sock, asked[SECRET:])
        # Flower ends an app whose SuperNode is gone by a signal, which is heard between two looks
        while not select.select([sock], [], [], _LOOK)[0]:
            pass
        answer = take(sock)
    return Message(wrapped(asked[:SECRET] + answer), reply_to=message)
