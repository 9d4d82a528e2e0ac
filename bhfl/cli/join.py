"""``bhfl join``: a client of a federation over a network, as one process that holds model and data.

It has an own configuration: where the server is, the client's key, and what of the server's
configuration is another thing on this machine, such as where the data lie.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from copy import deepcopy
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from bhfl.checks import count, suggestion
from bhfl.cli.command import run_or_tell
from bhfl.cli.exits import say
from bhfl.cli.reading import ConfigError, Layer, Text, asks_help, read_layers, read_text
from bhfl.files import claim, user_path

if TYPE_CHECKING:
    from bhfl.engine.session import Session
    from bhfl.remote.messages import Hello
    from bhfl.remote.supervised import Supervised

HELP = """usage: bhfl join --config FILE [--option value ...]

Takes part in a federation that `bhfl serve` holds on another machine, until it is stopped.

options, or keys of FILE:
  server       HOST:PORT of the server (required)
  key          the folder of this client's key, which `bhfl serve --make_keys` made (required)
  folder       where this client keeps what it must not lose (client)
  client       this client's id; its key says it too
  allow        packages of your own that the server's configuration may name classes of
  data, model, trainer    what of the server's configuration is another thing here:
               `data.init_args.root: /data`, `trainer.threads: 2`
"""
_OWN = ("bhfl", "torch", "lightning")
"""Packages that a server's configuration may name classes of."""
_SECTIONS = ("data", "model", "trainer")
"""What of the server's configuration may be another thing on this machine."""
_LOOK_SECONDS = 1.0
"""Seconds between two looks at the SuperNode."""


@dataclass
class _Request:
    server: str = ""
    key: str = ""
    folder: str = "client"
    client: int | None = None
    allow: Sequence[str] = ()
    layers: Sequence[Layer] = ()
    """What takes the place of the server's configuration."""


def main(args: Sequence[str]) -> int:
    """Run ``bhfl join``, given its options; the exit code."""
    return run_or_tell(_join, args)


def _join(args: Sequence[str]) -> int:
    if asks_help(args):
        print(HELP, end="")
        return 0
    request = _read(args)
    from bhfl.engine.console import told
    from bhfl.remote.flower import needs_flower
    from bhfl.remote.keys import client_keys

    needs_flower()
    keys = client_keys(request.key)
    folder = user_path(request.folder)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with ExitStack() as stack:
        stack.enter_context(claim(folder / "lock", "process {} is this client already"))
        with told("loading PyTorch and Lightning"):
            from bhfl.remote.relay import listening_at
            from bhfl.remote.resident import Resident
            from bhfl.remote.scratch import scratch
            from bhfl.remote.serve import POLLS
            from bhfl.remote.supernode import start_supernode
        resident = Resident(_Opener(request), folder, request.client)
        stack.callback(resident.close)
        own = stack.enter_context(scratch())
        door = stack.enter_context(listening_at(own / "client.sock"))
        node = start_supernode(
            folder / "flower",
            keys,
            request.server,
            node_config={"bhfl-socket": str(own / "client.sock")},
            more=POLLS,
        )
        stack.callback(node.stop)
        print(f"joined {request.server}", flush=True)
        _serve(door, resident, node)
    return 0


def _serve(door: socket.socket, resident: Any, node: Supervised) -> None:
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


def _read(args: Sequence[str]) -> _Request:
    """What the command line and its files ask for.

    Raises:
        ConfigError: It cannot be used; it lists everything that is wrong.
    """
    own = [one.name for one in fields(_Request) if one.name != "layers"]
    layers = read_layers(args)
    given: dict[str, Any] = {}
    problems = []
    for layer in layers:
        for key in [key for key in layer.values if key not in _SECTIONS]:
            value = layer.values.pop(key)
            given[key] = read_text(value) if isinstance(value, Text) else value
            if key not in own:
                known = [*own, *_SECTIONS]
                problems.append(f"{layer.name((key,))} is no option{suggestion(key, known)}")
    for key, what in {"server": "HOST:PORT", "key": "the folder of this client's key"}.items():
        if not isinstance(given.get(key), str):
            problems.append(f"{key} is missing: {what}")
    if "client" in given and (problem := count(0)(given["client"])):
        problems.append(f"client {problem}")
    if problems:
        raise ConfigError(problems)
    return _Request(**given, layers=[layer for layer in layers if layer.values])


class _Opener:
    """Makes model, data and trainer of a run by the server's configuration and the client's own.

    Args:
        request: What the client's own configuration says.
    """

    def __init__(self, request: _Request) -> None:
        self._request = request

    def __call__(self, hello: Hello, stack: ExitStack) -> Session:
        """A session, which the stack closes.

        Raises:
            ValueError: The configuration cannot be used here, saying why.
        """
        from bhfl.cli.classes import only_of
        from bhfl.cli.remade import made_here
        from bhfl.engine.session import Session

        foreign = sorted(set(_foreign(hello.config, [*_OWN, *self._request.allow])))
        if foreign:
            raise ValueError(
                f"the server's configuration names {foreign[0]}, and this client's `allow` does "
                "not name its package"
            )
        machine = {
            "devices": 1,
            "logger": False,
            "enable_progress_bar": False,
            "default_root_dir": self._request.folder,
        }
        layers = [
            Layer(deepcopy(dict(hello.config)), "the server's configuration"),
            Layer({"trainer": machine}, "bhfl join"),
            *deepcopy(list(self._request.layers)),
        ]
        own = _packages([layer.values for layer in self._request.layers])
        with only_of({*_OWN, *self._request.allow, *own}):
            trainer, model, data = made_here(layers)
        return stack.enter_context(Session.opened(trainer, model, data, "fit", "test"))


def _packages(value: Any) -> Iterator[str]:
    """What may be packages in the client's own configuration, which names what it likes."""
    value = read_text(value) if isinstance(value, Text) else value
    if isinstance(value, str):
        yield value.partition(".")[0]
    value = list(value.values()) if isinstance(value, Mapping) else value
    for item in value if isinstance(value, list) else ():
        yield from _packages(item)


def _foreign(value: Any, allowed: Sequence[str]) -> Iterator[str]:
    """Classes that a configuration names, of packages that are not allowed."""
    if isinstance(value, Mapping):
        path = value.get("class_path")
        if isinstance(path, str) and path.partition(".")[0] not in allowed:
            yield path
        value = list(value.values())
    for item in value if isinstance(value, list) else ():
        yield from _foreign(item, allowed)
