"""Flower's SuperNode: the process of a client that fetches messages and brings replies back."""

import json
import logging
import re
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from bhfl.files import write_text
from bhfl.remote import node
from bhfl.remote.flower import environment, free_port, program
from bhfl.remote.keys import ClientKeys
from bhfl.remote.supervised import Supervised

_log = logging.getLogger(__name__)

PATIENCE = 100.0
"""Seconds for which a key counts as still taken by this client's own last life: Flower waits for
two heartbeats of 30 s before it lets a client that was killed come back.
"""
_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")
_REASONS = {
    "Hostname mismatch": "its certificate is not for that name: its keys were made without it",
    "IP address mismatch": "its certificate is not for that address: its keys were made without it",
    "certificate verify failed": "its certificate is not of the authority of {ca}",
    "WRONG_VERSION_NUMBER": "it answers in clear text, and clients speak TLS alone",
    "RECORD_LAYER_FAILURE": "it answers in clear text, and clients speak TLS alone",
    "Unable to parse the private key": "{private} is no key that `bhfl serve --make_keys` made",
    "is not in the registry": "the key {private} is not in its registry: it is of other keys",
}
"""What a SuperNode says when it cannot go on, and what that means for a user."""
_CLOCK = re.compile(
    r"the clock of this client differs from the server's by [+-]\d+ s"
    "|certificate has expired|certificate is not yet valid"
)
"""What it says where this machine's clock may be wrong, as on one that was just switched on."""
_TAKEN = "Failed to activate SuperNode"


def start_supernode(  # noqa: PLR0913
    folder: Path,
    keys: ClientKeys,
    server: str,
    *,
    port: int = 0,
    node_config: Mapping[str, str | int | float | bool] | None = None,
    more: Mapping[str, str] | None = None,
    seconds: float | None = None,
    patience: float = PATIENCE,
) -> Supervised:
    """Start the SuperNode of a client, and wait until the server has let it in.

    It is started anew whenever it ends, after growing pauses, and ends with this process.

    Args:
        folder: Its folder, for its log and Flower's own files.
        keys: The client's files.
        server: ``HOST:PORT`` of the server's front.
        port: The port of 127.0.0.1 by which it speaks with its ClientApp; 0 takes a free one.
        node_config: What the ClientApp finds in ``context.node_config``.
        more: Environment variables that its ClientApp is told besides.
        seconds: How long to wait for the server at most; None waits for as long as it takes.
        patience: Seconds for which the key may be in use by another process before that counts as
            another client's.

    Returns:
        The running process; ``stop`` ends it, and ``failure`` says why it is not started again.

    Raises:
        ImportError: Flower is not installed.
        OSError: The port is in use, or the folder cannot be made.
        ValueError: `port` is no port, or a key of `node_config` is no name.
        RuntimeError: The server does not let it in, saying why.
    """
    program("flower-supernode")
    own = free_port(port, "port")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    # by its path, which does not become a place that modules are looked for in
    command = [sys.executable, "-P", node.__file__]
    command += ["--superlink", server, "--root-certificates", str(keys.ca.absolute())]
    command += ["--auth-supernode-private-key", str(keys.private.absolute())]
    command += ["--host", "127.0.0.1", "--port", str(own)]
    if node_config:
        # a file: on its command line a value cannot hold both kinds of quotes
        lines = []
        for key, value in node_config.items():
            if not _KEY.fullmatch(key):
                raise ValueError(f"node_config: {key!r} is no name")
            lines.append(f"{key} = {json.dumps(value, ensure_ascii=False)}\n")
        config = folder / "node.toml"
        write_text(config, "".join(lines))
        command += ["--node-config", str(config.absolute())]
    process = Supervised(
        "the SuperNode",
        command,
        environment(folder / "flwr", more),
        folder / "supernode.log",
        ready="SuperNode ID:",
        fatal=_Reasons(keys, server, patience),
    )
    process.start(seconds)
    return process


class _Reasons:
    """Why a SuperNode that ended need not be started again."""

    def __init__(self, keys: ClientKeys, server: str, patience: float) -> None:
        self._keys = keys
        self._server = server
        self._patience = patience
        self._taken_since: float | None = None

    def __call__(self, said: str) -> str:
        if wrong := _CLOCK.search(said):
            # clocks are put right while a client runs
            told = "the clock of this machine may be wrong"
            _log.warning("%s is not joined yet: %s; %s", self._server, wrong[0], told)
            self._taken_since = None
            return ""
        for text, reason in _REASONS.items():
            if text in said:
                told = reason.format(ca=self._keys.ca, private=self._keys.private)
                return f"the server at {self._server} is not joined: {told}"
        if _TAKEN not in said:
            self._taken_since = None
            return ""
        now = time.monotonic()
        if self._taken_since is None:
            self._taken_since = now
        if now - self._taken_since < self._patience:
            return ""
        return (
            f"the server at {self._server} is not joined: another client has been there with the "
            f"key {self._keys.private} for {self._patience:g} s, or the key is not registered"
        )
