"""Messages between the two halves of a round as bytes: a head of JSON, and payloads behind it.

A packed message is four bytes with the length of its head, little-endian, the head, and its
payloads. The head names the wire version, the kind of the message and each of its fields; of a
field that is bytes it has the length, and the bytes stand behind it in the order of the fields.
Nothing is unpickled, and what does not have the form of a message to the last field is refused with
one kind of error.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from bhfl.checks import clipped
from bhfl.engine.exchange import Measured, Reply, Task, Verdict
from bhfl.settings import Group

WIRE = 1
"""The version of this format; both sides must speak the same."""
MAX_HEAD = 64 << 20
"""Bytes of a head at most: a task's holds all rows of its run."""
MAX_TOLD = 4 << 20
"""Bytes of the head of what a client says at most, without a digit a sample: as objects, they are
many times as long.
"""
MAX_NAMES = 1000
"""Entries of a mapping of numbers, or of a list of names."""
MAX_TEXT = 100_000
"""Characters of a text, such as the traceback of an error."""
_LONG = {"Measured.correct": MAX_HEAD}
"""The fields that may be longer: a digit a sample."""
_LENGTH = 4
SIZES = "sizes"
"""Key of a hello's configuration under which stands what the server's model has from its data."""


class MessageError(ValueError):
    """Bytes that are no message of ours; it says why."""


@dataclass(frozen=True, kw_only=True)
class Hello:
    """What the server tells a client first."""

    run: str
    """The run's own name, by which a client finds what it kept of it: 32 hexadecimal digits."""
    config: Mapping[str, Any]
    """The fleet, the algorithm and the trainer's options, as a configuration says them."""
    backends: Mapping[str, Any]
    """The backends that the run computes with, by group, where they are not `fake`."""
    client: int | None = None
    """The id that the client's key stands for; None where it has no key, and says its own."""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a client answers."""

    client: int
    group: str
    num_examples: int
    facts: Mapping[str, Any]
    """What would make bits differ where it differs: versions, threads, the first weights."""


@dataclass(frozen=True, kw_only=True)
class Order:
    """What stands before a task: what of its state the client must still have."""

    rounds: Sequence[int] = ()
    """The rounds that the server may go back to: what they need is not to be dropped."""
    closing: bytes | None = None
    """The message that closed the round whose state the task goes on with."""
    facts: str = ""
    """The digest of the client's `Facts` as the server has heard them."""


@dataclass(frozen=True, kw_only=True)
class Refused:
    """Why a client does not do what it was asked."""

    reason: str
    changed: bool = False
    """Whether the client is not what it was when it joined, and is to be greeted anew."""


KINDS: Mapping[str, type] = {
    kind.__name__: kind for kind in (Task, Reply, Measured, Verdict, Hello, Facts, Order, Refused)
}
"""The kinds of messages, by name."""


# ---- writing -------------------------------------------------------------------------------------


def pack(message: Any) -> bytes:
    """A message of one of `KINDS` as bytes."""
    payload = b""
    head: dict[str, Any] = {"wire": WIRE, "kind": type(message).__name__}
    for one in fields(message):
        value = getattr(message, one.name)
        if isinstance(value, bytes):
            payload += value
            value = len(value)
        head[one.name] = _plain(value)
    text = json.dumps(head).encode()
    return len(text).to_bytes(_LENGTH, "little") + text + payload


def _plain(value: Any) -> Any:
    """A value of plain types; dataclasses inside become mappings."""
    if is_dataclass(value):
        return {one.name: _plain(getattr(value, one.name)) for one in fields(value)}
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def join(*parts: bytes) -> bytes:
    """Several packed messages as one: each with its length before it, in eight bytes."""
    return b"".join(len(part).to_bytes(8, "little") + part for part in parts)


# ---- reading -------------------------------------------------------------------------------------


def split(data: bytes) -> list[bytes]:
    """What `join` joined.

    Raises:
        MessageError: The lengths do not add up.
    """
    parts = []
    at = 0
    while at < len(data):
        start = at + 8
        at = start + int.from_bytes(data[at:start], "little")
        if at > len(data):
            raise MessageError("a message is cut off")
        parts.append(data[start:at])
    return parts


def unpack(
    data: bytes, *kinds: type, max_bytes: int | None = None, max_head: int = MAX_HEAD
) -> Any:
    """The message that was packed.

    Args:
        data: Its bytes, from anyone.
        kinds: The kinds that it may be of.
        max_bytes: Bytes of its payloads at most; any number by default.
        max_head: Bytes of its head at most.

    Raises:
        MessageError: It is none of these, of another wire version, or too long.
    """
    head, payload = _parts(data, max_head)
    if (wire := head.pop("wire", None)) != WIRE:
        raise MessageError(
            f"wire must be {WIRE}, the version of this bhfl, got {clipped(repr(wire))}: both sides "
            "need the same version of bhfl"
        )
    name = head.pop("kind", None)
    kind = KINDS.get(name) if isinstance(name, str) else None
    if kind is None or kind not in kinds:
        raise MessageError(
            f"kind must be {' or '.join(one.__name__ for one in kinds)}, got {clipped(repr(name))}"
        )
    if max_bytes is not None and len(payload) > max_bytes:
        raise MessageError(f"payloads must have at most {max_bytes} bytes, got {len(payload)}")
    message = _message(kind, head, name)
    at = 0
    for key in _binary(kind):
        if head.get(key) is not None:
            start, at = at, at + head[key]
            # nobody else has it yet
            object.__setattr__(message, key, payload[start:at])
    if at != len(payload):
        raise MessageError(f"payloads must have {at} bytes, as the head says, got {len(payload)}")
    return message


def _parts(data: bytes, max_head: int) -> tuple[dict[str, Any], bytes]:
    """The head, whose fields nobody has looked at, and the payload."""
    start = _LENGTH + int.from_bytes(data[:_LENGTH], "little")
    if not _LENGTH < start <= len(data):
        raise MessageError("a message is cut off, or is none")
    if start > max_head:
        raise MessageError(f"the head must have at most {max_head} bytes, got {start}")
    try:
        head = json.loads(data[_LENGTH:start])
    except (ValueError, RecursionError) as error:
        raise MessageError(f"the head must be JSON: {error}") from None
    if not isinstance(head, dict):
        raise MessageError("the head must be a mapping")
    return head, data[start:]


@cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


@cache
def _binary(kind: Any) -> list[str]:
    """The fields of a kind that may be bytes, in order."""
    return [one.name for one in fields(kind) if bytes in _members(_hints(kind)[one.name])]


def _members(hint: Any) -> tuple[Any, ...]:
    """The types of a union; any other type alone."""
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def _message(kind: type, plain: Any, key: str) -> Any:
    """A dataclass from its fields: all that it must have, and none that it has not."""
    if not isinstance(plain, Mapping):
        raise MessageError(f"{key} must be a mapping")
    hints = _hints(kind)
    if unknown := plain.keys() - hints.keys():
        raise MessageError(f"{key} has no field {clipped(repr(min(unknown)))}")
    values = {name: _value(hints[name], plain[name], f"{key}.{name}") for name in plain}
    try:
        message = kind(**values)
    except TypeError as error:
        raise MessageError(f"{key}: {error}") from None
    problems = message.problems() if isinstance(message, Group) else ()
    for problem in problems:
        raise MessageError(f"{key}.{problem}")
    return message


def _value(hint: Any, value: Any, key: str) -> Any:
    """A value that must be of a type, or of one of a union's."""
    members = [one for one in _members(hint) if one is not NoneType]
    if value is None and len(members) < len(_members(hint)):
        return None
    for member in members[:-1]:
        with suppress(MessageError):
            return _read(member, value, key)
    # the last one's own words: most unions are of a type and None
    return _read(members[-1], value, key)


def _read(hint: Any, value: Any, key: str) -> Any:
    if hint is Any:
        return value
    if is_dataclass(hint):
        return _message(hint, value, key)  # type: ignore[arg-type]  # a class, no object of one
    read = _READERS.get(get_origin(hint) or hint)
    found = read(value, get_args(hint), key) if read else None
    if found is None:
        raise MessageError(f"{key} is not of its type, got {clipped(repr(value))}")
    return found


def _literal(value: Any, options: tuple[Any, ...], key: str) -> Any:
    return value if isinstance(value, str) and value in options else None


def _list(value: Any, inner: tuple[Any, ...], key: str) -> list[Any] | None:
    if not isinstance(value, list):
        return None
    if inner[0] is str and len(value) > MAX_NAMES:
        raise MessageError(f"{key} must have at most {MAX_NAMES} names, got {len(value)}")
    return [_value(inner[0], item, f"{key}[{index}]") for index, item in enumerate(value)]


def _mapping(value: Any, inner: tuple[Any, ...], key: str) -> dict[str, Any] | None:
    if not isinstance(value, dict):
        return None
    if inner[1] is float and len(value) > MAX_NAMES:
        raise MessageError(f"{key} must have at most {MAX_NAMES} numbers, got {len(value)}")
    found = {}
    for name, item in value.items():
        found[name] = _value(inner[1], item, f"{key}[{clipped(repr(name))}]")
        if inner[1] is float and not math.isfinite(found[name]):
            raise MessageError(f"{key}[{clipped(repr(name))}] must be finite, got {item}")
    return found


def _number(value: Any, inner: tuple[Any, ...], key: str) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return None if math.isnan(number) else number


def _exactly(kind: type) -> _Reader:
    """A reader of values of one type, and of none that derives from it, as bool does from int."""
    return lambda value, inner, key: value if type(value) is kind else None


def _text(value: Any, inner: tuple[Any, ...], key: str) -> str | None:
    most = _LONG.get(key, MAX_TEXT)
    if isinstance(value, str) and len(value) > most:
        raise MessageError(f"{key} must have at most {most} characters, got {len(value)}")
    return value if isinstance(value, str) else None


_Reader = Callable[[Any, tuple[Any, ...], str], Any]
_READERS: Mapping[Any, _Reader] = {
    Literal: _literal,
    Sequence: _list,
    list: _list,
    Mapping: _mapping,
    dict: _mapping,
    float: _number,
    int: _exactly(int),
    bool: _exactly(bool),
    str: _text,
    # they come behind the head, which has their length
    bytes: lambda value, inner, key: b"" if type(value) is int and value >= 0 else None,
}
"""What reads a value of each type, given the types inside; None where it is of another one."""
