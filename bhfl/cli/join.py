"""``bhfl join``: a client of a federation over a network, as one process that holds model and data.

It has an own configuration: where the server is, the client's key, and what of the server's
configuration is another thing on this machine, such as where the data lie.
"""

import socket
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any

from bhfl.cli.command import run_or_tell
from bhfl.cli.exits import say
from bhfl.cli.request import Request, read_request
from bhfl.files import claim, user_path

if TYPE_CHECKING:
    from bhfl.remote.resident import Open
    from bhfl.remote.supervised import Supervised

HELP = """usage: bhfl join --config FILE [--option value ...]

Takes part in a federation that `bhfl serve` holds on another machine, until it is stopped.

options, or keys of FILE:
  server       HOST:PORT of the server (required)
  key          the folder of this client's key, which `bhfl serve --make_keys` made (required)
  folder       where this client keeps what it must not lose (client)
  client       this client's id; its key says it too
  plain        train the model by torch alone, without Lightning, which takes less memory (false;
               always so with the package bhfl-client)
  allow        packages of your own that the server's configuration may name classes of
  data, model, trainer    what of the server's configuration is another thing here:
               `data.init_args.root: /data`, `trainer.threads: 2`
"""
_LOOK_SECONDS = 1.0
"""Seconds between two looks at the SuperNode."""


def main(args: Sequence[str]) -> int:
    """Run ``bhfl join``, given its options; the exit code."""
    return run_or_tell(_join, args, HELP)


def _join(args: Sequence[str]) -> int:
    request = read_request(args)
    from bhfl.engine.console import told
    from bhfl.remote.flower import needs_flower
    from bhfl.remote.keys import client_keys

    needs_flower()
    keys = client_keys(request.key)
    folder = user_path(request.folder)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with ExitStack() as stack:
        stack.enter_context(claim(folder / "lock", "process {} is this client already"))
        with told("loading PyTorch" if request.plain else "loading PyTorch and Lightning"):
            from bhfl.remote.resident import Resident
            from bhfl.remote.scratch import listening_at, scratch
            from bhfl.remote.supernode import start_supernode

            opener = _opener(request)
        resident = Resident(opener, folder, request.client)
        stack.callback(resident.close)
        own = stack.enter_context(scratch())
        door = stack.enter_context(listening_at(own / "client.sock"))
        node = start_supernode(
            folder / "flower",
            keys,
            request.server,
            node_config={"bhfl-socket": str(own / "client.sock")},
        )
        stack.callback(node.stop)
        print(f"joined {request.server}", flush=True)
        _serve(door, resident, node)
    return 0


def _opener(request: Request) -> "Open":
    """What opens a run, under Lightning or without."""
    if request.plain:
        from bhfl.cli.plain_client import open_plain

        return partial(open_plain, request)
    from bhfl.cli.opener import open_run

    return partial(open_run, request)


def _serve(door: socket.socket, resident: Any, node: "Supervised") -> None:
    """Answer whatever the SuperNode brings, as long as it is there."""
    from bhfl.engine.ending import STANDING
    from bhfl.remote.app.frames import put, take

    door.settimeout(_LOOK_SECONDS)
    while True:
        STANDING.at("waiting for the server")
        try:
            sock, _ = door.accept()
        except TimeoutError:
            if node.failure:
                raise ConnectionError(node.failure) from None
            continue
        with sock:
            sock.settimeout(None)
            try:
                put(sock, resident.answer(take(sock)))
            except ConnectionError as error:
                # the next one brings the message again, if anybody still wants an answer
                say(f"note: an answer did not reach Flower: {error}")
