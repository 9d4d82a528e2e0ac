"""What objects were made with, as plain values that can be written down and compared."""

import inspect
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from enum import Enum
from importlib import import_module
from os import PathLike
from typing import Any

_MOST_ITEMS = 100
_MOST_BYTES = 2**12
"""Only the class and the length are written down where a list or an array is larger."""
UNWRITTEN = "unwritten"
"""The key under which the configuration of a run that was made in Python names what it lacks."""
FROM_DATA = ("num_classes", "input_shape")
"""Arguments of a model that a configuration leaves to the data, which have attributes of these
names.
"""


class Recorded:
    """A base of classes whose objects know the arguments that they were made with.

    The arguments are taken before the constructor runs, so that nothing that happens to an object
    later changes what is known of it. A wrapper of ``__init__`` would miss classes whose
    constructor is made by a decorator, such as dataclasses.
    """

    file_digests: Mapping[str, str] = {}  # never changed
    """The SHA-256 of the files that an object was made of, by argument: what they hold counts, and
    not where they lie.
    """

    def __new__(cls, /, *args: Any, **kwargs: Any) -> Any:
        """An object whose constructor is about to be called with these arguments."""
        if cls.__init__ is object.__init__ and (args or kwargs):
            raise TypeError(f"{cls.__name__}() takes no arguments")
        made = super().__new__(cls)
        vars(made)["_made_with"] = plain(arguments(cls, args, kwargs))
        return made


def arguments(cls: type, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """All arguments of ``cls(*args, **kwargs)`` by name, those left to their defaults too.

    Raises:
        ValueError: Nothing tells what the constructor takes, as of some in C.
        TypeError: The constructor is nothing that can be called.
    """
    defaults: dict[str, Any] = {}
    given: dict[str, Any] = {}
    for _, known in constructors(cls):
        defaults = {one.name: one.default for one in known} | defaults
        given = given or {one.name: value for one, value in zip(known, args, strict=False)}
    found = {**defaults, **given, **kwargs}
    return {key: value for key, value in found.items() if value is not inspect.Parameter.empty}


def constructors(cls: type) -> Iterator[tuple[Any, list[inspect.Parameter]]]:
    """The constructor of a class, and those of its bases that ``**options`` are handed on to, each
    with its parameters.
    """
    # all but object, whose constructor takes nothing
    for owner in cls.__mro__[:-1]:
        if init := vars(owner).get("__init__"):
            known = list(inspect.signature(init).parameters.values())[1:]
            yield init, known
            if not any(one.kind is one.VAR_KEYWORD for one in known):
                return


def described(thing: Any) -> dict[str, Any]:
    """The class of an object and what it was made with, as a configuration says it.

    Of an object that is not `Recorded`, its public attributes and its length say what it is.
    """
    if isinstance(thing, Recorded):
        return spelled(type(thing), vars(thing)["_made_with"])
    attributes = getattr(thing, "__dict__", {})
    public = {key: plain(value, deep=False) for key, value in attributes.items() if key[0] != "_"}
    if hasattr(type(thing), "__len__"):
        public["len"] = len(thing)
    return spelled(type(thing), public)


def spelled(cls: type, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """A class and what it is made with, as a configuration says them."""
    return {"class_path": public_path(cls), "init_args": plain(arguments)}


def plain(value: Any, deep: bool = True) -> Any:
    """`value` as JSON can hold it: numbers, text, lists, and mappings from text.

    Args:
        value: Anything. A dataclass is its fields, as a switch that is on.
        deep: Whether to say of other objects what they were made with; else it is their class.
    """
    if hasattr(value, "tolist") and getattr(value, "nbytes", math.inf) <= _MOST_BYTES:
        value = value.tolist()  # a number of NumPy's too, which is no number of JSON's
    odd = isinstance(value, float) and not math.isfinite(value)
    if odd or isinstance(value, Enum | PathLike):
        return str(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return {str(key): plain(item, deep) for key, item in value.items()}
    if isinstance(value, list | tuple | set) and len(value) <= _MOST_ITEMS:
        return [plain(item, deep) for item in value]
    return _plain_object(value, deep)


def _plain_object(value: Any, deep: bool) -> Any:
    if isinstance(value, type) or inspect.isroutine(value):
        return public_path(value)
    if is_dataclass(value) and not isinstance(value, Recorded):
        shown = {one.name: getattr(value, one.name) for one in fields(value) if one.name[0] != "_"}
        return {"class_path": True, "init_args": plain(shown, deep)}
    return described(value) if deep else public_path(type(value))


def public_path(thing: Any) -> str:
    """The shortest path that a class or function can be imported by.

    >>> public_path(Recorded)
    'bhfl.recorded.Recorded'
    """
    name = thing.__qualname__
    packages = str(thing.__module__).split(".")
    for length in range(1, len(packages)):
        package = sys.modules.get(".".join(packages[:length]))
        if getattr(package, name, None) is thing:
            return ".".join([*packages[:length], name])
    return f"{thing.__module__}.{name}"


def class_at(path: str) -> type | None:
    """The class of a dotted path; None where there is none."""
    module, _, name = path.rpartition(".")
    try:
        found = getattr(import_module(module), name, None)
    # the last two: of paths with too many dots, and with none
    except (ImportError, TypeError, ValueError):
        return None
    return found if isinstance(found, type) else None


def flatten(value: Any, key: str = "") -> dict[str, Any]:
    """All values of a configuration by dotted key; a class stands under the key that it is the
    value of.

    >>> flatten({"model": {"class_path": "a.Net", "init_args": {"size": 3, "norm": None}}})
    {'model': 'a.Net', 'model.size': 3, 'model.norm': None}
    """
    if not isinstance(value, Mapping):
        return {key: value}
    found: dict[str, Any] = {}
    for name, item in value.items():
        inner = f"{key}.{name}" if key else name
        found |= flatten(item, key if name in ("class_path", "init_args") else inner)
    return found
