"""Type hints, and three of our own: what values they take, and how messages call those."""

import math
import os
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, is_dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from torch import Tensor

from bhfl.checks import is_integer, is_number, shown
from bhfl.cli.classes import indefinite, is_component

_PLAIN = {
    int: "an integer",
    float: "a number",
    bool: "true or false",
    str: "text",
    type(None): "null",
}
LISTS = (list, tuple, set, Sequence, Iterable)
_MAPPINGS = (dict, Mapping)


@dataclass(frozen=True, eq=False)
class Section:
    """A hint for a mapping with exactly these keys.

    Attributes:
        fields: Key to type hint.
        reserved: Key to the reason why the user cannot set it.
        owner: The end of a message about an unknown key, such as `` of FedProx``.
        base: What the class derives from whose options they are; None where they are of no class.
    """

    fields: Mapping[str, Any]
    reserved: Mapping[str, str] = field(default_factory=dict)
    owner: str = ""
    base: type | None = None


@dataclass(frozen=True, eq=False)
class Checked:
    """A hint for a value that `check` takes, or refuses with a ValueError of one problem a line."""

    check: Callable[[Any], object]


@dataclass(frozen=True, eq=False)
class Instance:
    """A hint for an object of a class.

    Attributes:
        base: The class, or one from which it derives.
        reserved: Key of its constructor to the reason why the user cannot set it.
    """

    base: type
    reserved: Mapping[str, str] = field(default_factory=dict)


def alternatives(hint: Any) -> list[Any]:
    """The members of a union, or the hint alone."""
    while get_origin(hint) is Annotated:
        hint = get_args(hint)[0]
    if get_origin(hint) not in (Union, types.UnionType):
        return [type(None) if hint is None else hint]
    found = []
    for member in get_args(hint):
        # float | Tensor: nobody writes tensors
        found += [] if member is Tensor else alternatives(member)
    return found


def instance_of(hint: Any) -> Instance | None:
    """What object `hint` asks for, if any: of the class that it is, or that a callable returns."""
    if isinstance(hint, Instance):
        return hint
    if is_callable(hint) and get_args(hint):
        returned = [choice for choice in alternatives(get_args(hint)[-1]) if choice is not Tensor]
        hint = next(filter(is_component, returned), None)
    return Instance(hint) if is_component(hint) else None


def is_callable(hint: Any) -> bool:
    """Whether `hint` asks for a function, or for what makes an object."""
    return Callable in (hint, get_origin(hint))


def _is_path(hint: Any) -> bool:
    return isinstance(hint, type) and get_origin(hint) is None and issubclass(hint, os.PathLike)


def accepts_text(hint: Any) -> bool:
    """Whether plain text can be a value of `hint`."""
    text = hint is str or hint is Any or get_origin(hint) is Literal
    return text or _is_path(hint) or instance_of(hint) is not None


def fits(hint: Any, value: Any) -> bool:
    """Whether `value` is one that a plain hint takes; what jsonargparse alone knows is left to
    it.
    """
    origin = get_origin(hint) or hint
    if origin is Literal:
        return _is_choice(get_args(hint), value)
    if origin in _MAPPINGS:
        return isinstance(value, dict)
    if origin is int:
        return is_integer(value)
    if origin is float:
        return is_number(value) and math.isfinite(value)
    if origin in _PLAIN:
        return isinstance(value, origin)
    return isinstance(value, str) or not _is_path(hint)


def _is_choice(choices: tuple[Any, ...], value: Any) -> bool:
    """Whether `value` is one of them; jsonargparse looks up the members of an enum by name."""
    # types are compared as well, since true equals 1
    plain = [(type(choice), choice) for choice in choices if type(choice) in _PLAIN]
    return (type(value), value) in plain or len(plain) < len(choices)


def described(hint: Any) -> str:
    """What messages call the values of `hint`."""
    origin = get_origin(hint) or hint
    instance = instance_of(hint)
    if instance is not None:
        if is_dataclass(instance.base):
            return f"a mapping of the options of {instance.base.__name__}"
        return f"{indefinite(instance.base)} (class_path and init_args)"
    if origin is Literal:
        words = [word if isinstance(word, str) else shown(word) for word in get_args(hint)]
        return f"one of {', '.join(words)}"
    if isinstance(hint, Section) or origin in _MAPPINGS:
        return "a mapping"
    return "a list" if origin in LISTS else _PLAIN.get(origin, "a path")
