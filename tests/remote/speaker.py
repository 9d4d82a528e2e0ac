"""Clients of a network without processes of their own: each speaks Flower's Fleet API in a thread.
They send back the model that they were sent, as if they had learned nothing, or what a test likes.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import httpx
from cryptography.hazmat.primitives import serialization
from flwr.app import Message, RecordDict
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    iterate_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_utils import (
    inflate_object_from_contents,
    pull_objects,
)
from flwr.supernode import fleet_http_connection

from bhfl.engine.exchange import Reply, Task
from bhfl.remote.app.frames import SECRET
from bhfl.remote.app.records import unwrapped, wrapped
from bhfl.remote.keys import ClientKeys
from bhfl.remote.messages import Facts, pack, split, unpack

POLL_SECONDS = 3.0
"""Seconds between two looks for a message, as a SuperNode makes them."""


def _no_exit(code: int, message: str = "", **more: object) -> None:
    """What Flower does in the place of ending this whole process."""
    raise ConnectionError(message)


fleet_http_connection.flwr_exit = _no_exit


class Speaker:
    """One client.

    Args:
        address: ``HOST:PORT`` of the server's front.
        keys: Its files.
        client: Its id.
        group: The name of its group, whose clients compute in float32.
        num_examples: What it says that it has.
    """

    def __init__(
        self, address: str, keys: ClientKeys, client: int, group: str, num_examples: int
    ) -> None:
        self.address = address
        self.keys = keys
        self.facts = Facts(client=client, group=group, num_examples=num_examples, facts={})
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._speak, daemon=True)

    def _speak(self) -> None:
        # as a SuperNode is started anew
        while not self.ended.is_set():
            try:
                self._connected()
            except (ConnectionError, httpx.HTTPError):
                self.ended.wait(1.0)

    def _connected(self) -> None:
        private = serialization.load_ssh_private_key(self.keys.private.read_bytes(), None)
        pair = private, private.public_key()
        ca = self.keys.ca.read_bytes()
        with fleet_http_connection.http_request_response(
            self.address, False, ca, pair
        ) as connection:
            _, receive, send, _, _, pull, push, confirm = connection
            while not self.ended.is_set():
                received = receive()
                if received is None:
                    self.ended.wait(POLL_SECONDS)
                    continue
                message, tree = received
                metadata = message.metadata
                ids = [one.object_id for one in iterate_object_tree(tree)]
                contents = pull_objects(ids, partial(pull, metadata.run_id))
                confirm(metadata.run_id, metadata.message_id)
                asked = inflate_object_from_contents(metadata.message_id, contents)
                asked.metadata.__dict__["_message_id"] = metadata.message_id
                for content in self.contents(unwrapped(asked.content)):
                    reply = Message(content, reply_to=asked)
                    with no_object_id_recompute():
                        reply.metadata.__dict__["_message_id"] = reply.object_id
                        parts = get_all_nested_objects(reply)
                        wanted, session = send(reply, get_object_tree(reply), 0.0)
                        for id in wanted:
                            push(metadata.run_id, session, id, parts[id].deflate())

    def contents(self, data: bytes) -> list[RecordDict]:
        """What it sends for a message, one after the other."""
        return [wrapped(data[:SECRET] + self.answer(data[SECRET:]))]

    def answer(self, data: bytes) -> bytes:
        """The answer to a message."""
        parts = split(data)
        if len(parts) == 1:
            return pack(self.facts)
        task = unpack(parts[2], Task)
        examples = self.facts.num_examples
        told = {"client": task.client, "round": task.round, "num_examples": examples}
        return pack(Reply(**told, num_steps=1, payload=task.downlink))


@contextmanager
def speaking(speakers: list[Speaker]) -> Iterator[None]:
    """Let clients speak for the block."""
    for one in speakers:
        one.thread.start()
        # a SuperNode takes a while to start, too
        time.sleep(0.1)
    try:
        yield
    finally:
        for one in speakers:
            one.ended.set()
        # one whose server is gone goes on trying: it ends with this process
        until = time.monotonic() + 10.0
        for one in speakers:
            one.thread.join(max(0.0, until - time.monotonic()))
