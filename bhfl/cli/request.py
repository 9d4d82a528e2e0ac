"""What the own configuration of a client says that joins a federation over a network."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from bhfl.checks import count, suggestion, true_or_false
from bhfl.cli.installed import SMALL, WHOLE, is_whole
from bhfl.cli.reading import ConfigError, Layer, Text, read_layers, read_text

OWN = ("bhfl", "torch", "lightning")
"""Packages of which a server's configuration may name classes at every client."""
_SECTIONS = ("data", "model", "trainer")
"""What of the server's configuration may be another thing on this machine."""
_TEXTS = {
    "server": ("HOST:PORT", r"[^/]+:\d+"),
    "key": ("the folder of this client's key", ".+"),
    "folder": ("a path", ".+"),
}
"""Options that are text, and what it must be, in words and as a pattern."""


@dataclass
class Request:
    """What a client's own configuration says."""

    server: str = ""
    key: str = ""
    folder: str = "client"
    client: int | None = None
    plain: bool = False
    """Whether torch alone trains the model."""
    allow: Sequence[str] = ()
    layers: Sequence[Layer] = ()
    """What takes the place of the server's configuration."""

    @property
    def allowed(self) -> set[str]:
        """Packages that the server's configuration may name classes of."""
        return {*OWN, *self.allow}


def read_request(args: Sequence[str]) -> Request:
    """What the command line and its files ask for.

    Raises:
        ConfigError: It cannot be used; it lists everything that is wrong.
    """
    own = [one.name for one in fields(Request) if one.name != "layers"]
    layers = read_layers(args)
    given: dict[str, Any] = {"folder": Request.folder}
    problems = []
    for layer in layers:
        for key in [key for key in layer.values if key not in _SECTIONS]:
            value = layer.values.pop(key)
            try:
                # as typed, a text is what it is
                is_text = not isinstance(value, Text) or key in _TEXTS
                given[key] = value if is_text else read_text(value)
            except ConfigError as error:
                problems.append(f"--{key} cannot be used: {error}")
            if key not in own:
                problems.append(
                    f"{layer.name((key,))} is no option{suggestion(key, [*own, *_SECTIONS])}"
                )
    if not is_whole():
        given.setdefault("plain", True)
    problems += _problems(given)
    if problems:
        raise ConfigError(*problems)
    return Request(**given, layers=[layer for layer in layers if layer.values])


def _problems(given: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with the values of options."""
    for key, (what, form) in _TEXTS.items():
        value = given.get(key)
        if value is None:
            yield f"{key} is missing: {what}"
        elif not isinstance(value, str) or not re.fullmatch(form, value):
            yield f"{key} must be {what}, got {value!r}"
    if "client" in given and (problem := count(0)(given["client"])):
        yield f"client {problem}"
    allow = given.get("allow", [])
    if not isinstance(allow, list) or not all(isinstance(one, str) for one in allow):
        yield f"allow must be a list of packages, got {allow!r}"
    if problem := true_or_false(given.get("plain", False)):
        yield f"plain {problem}"
    elif not is_whole() and not given["plain"]:
        yield f"plain must be true in {SMALL}: Lightning needs the package {WHOLE}"


def packages(value: Any) -> Iterator[str]:
    """What may be packages in the client's own configuration, which names what it likes."""
    value = read_text(value) if isinstance(value, Text) else value
    if isinstance(value, str):
        yield value.partition(".")[0]
    value = list(value.values()) if isinstance(value, Mapping) else value
    for item in value if isinstance(value, list) else ():
        yield from packages(item)
