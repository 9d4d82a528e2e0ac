"""Checks of what the user wrote against the type hints of the constructors that will take it.

jsonargparse would do part of this, but stops at the first problem, suggests no names, turns 10.0,
"10" and null into what a hint asks for, and imports the module of any ``class_path`` before it
refuses the class.
"""

from __future__ import annotations

import collections.abc
import math
import os
import sys
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, is_dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from torch import Tensor

from bhfl.checks import shown, suggestion
from bhfl.cli.classes import Kind, imported, is_component, names_one, parameters, resolve
from bhfl.cli.reading import ConfigError, Keys, Layer, Text, read_text

_PLAIN = {
    int: "an integer",
    float: "a number",
    bool: "true or false",
    str: "text",
    type(None): "null",
}
_LISTS = (list, tuple, set, collections.abc.Sequence, collections.abc.Iterable)
_MAPPINGS = (dict, collections.abc.Mapping)


@dataclass(frozen=True, eq=False)
class Section:
    """A hint for a mapping with exactly these keys.

    Attributes:
        fields: Key to type hint.
        reserved: Key to the reason why it is not the user's to set.
    """

    fields: Mapping[str, Any]
    reserved: Mapping[str, str] = field(default_factory=dict)
    owner: str = ""


@dataclass(frozen=True, eq=False)
class Checked:
    """A hint for a value that `check` takes, or refuses with a ValueError of one problem a line."""

    check: Callable[[Any], object]


@dataclass(frozen=True, eq=False)
class Instance:
    """A hint for an object of a class, and the keys of its constructor that are not the user's to
    set.
    """

    kind: Kind
    reserved: Mapping[str, str] = field(default_factory=dict)


class Checker:
    """Checks layers one after the other; a class chosen in one layer holds for the options given in
    later ones.

    Args:
        schema: Of the whole configuration.
        defaults: A configuration whose classes are used where a layer names none.
    """

    def __init__(self, schema: Section, defaults: Mapping[str, Any]) -> None:
        self.schema = schema
        self.classes: dict[Keys, type | None] = {}
        self.named: dict[Keys, set[Any]] = {}
        """Where classes were named, and the options that were given to them."""
        self._given: dict[Keys, set[Any]] = {}
        self._remember(defaults, ())

    def __call__(self, layer: Layer) -> list[str]:
        """The problems of `layer`, one sentence each."""
        self._layer = layer
        return self._value(self.schema, layer.values, ())

    def _problem(self, keys: Keys, text: str) -> list[str]:
        return [f"{self._layer.place(keys)}{self._layer.name(keys)} {text}"]

    def _value(self, hint: Any, value: Any, keys: Keys) -> list[str]:
        """Problems of a value; as typed, it is plain text where that fits, and YAML otherwise."""
        if not isinstance(value, Text):
            return self._one_of(alternatives(hint), value, keys)
        if any(accepts_text(choice) for choice in alternatives(hint)):
            problems = self._one_of(alternatives(hint), str(value), keys)
            if not problems:
                return []
        try:
            loaded = read_text(value)
        except ConfigError as error:
            return self._problem(keys, f"cannot be used: {error.problems[0]}")
        return self._one_of(alternatives(hint), loaded, keys)

    def _one_of(self, choices: list[Any], value: Any, keys: Keys) -> list[str]:
        """Problems of `value` where it fits none of the `choices`: those inside it, if it looks
        like one of them.
        """
        attempts = [self._fit(choice, value, keys) for choice in choices]
        if [] in attempts:
            return []
        inside = [attempt for attempt in attempts if attempt]
        if inside:
            return inside[0]
        words = " or ".join(dict.fromkeys(map(described, choices)))
        known = [
            word for choice in choices if get_origin(choice) is Literal for word in get_args(choice)
        ]
        known = [word for word in known if isinstance(word, str)]
        near = suggestion(value, known, others=False) if isinstance(value, str) else ""
        if value is False and type(None) in choices:
            near = "; did you mean null?"
        return self._problem(keys, f"must be {words}, got {shown(value)}{near}")

    def _fit(self, hint: Any, value: Any, keys: Keys) -> list[str] | None:
        """Problems inside `value`, or None where it is not at all what `hint` asks for."""
        origin, args = get_origin(hint) or hint, get_args(hint)
        if isinstance(hint, Section):
            return self._section(hint, value, keys) if isinstance(value, dict) else None
        if isinstance(hint, Checked):
            return self._checked(hint, value, keys)
        if origin in _PLAIN:
            return [] if _is_plain(origin, value) else None
        if origin is Literal:
            return [] if _is_choice(args, value) else None
        if origin in _LISTS:
            if isinstance(value, dict) and not self._layer.file:  # --list.option: of its last item
                return []
            return self._items(hint, value, keys) if isinstance(value, list) else None
        if origin in _MAPPINGS:
            return [] if isinstance(value, dict) else None
        instance = instance_of(hint)
        if is_callable(hint) and isinstance(value, str) and "." in value:
            return self._callable(instance, value, keys)
        if instance is None:  # a kind of value that jsonargparse alone knows
            return [] if not is_path(hint) or isinstance(value, str) else None
        return self._object(instance, value, keys) if isinstance(value, (str, dict)) else None

    def _checked(self, hint: Checked, value: Any, keys: Keys) -> list[str]:
        try:
            hint.check(value)
        except ValueError as error:
            return [self._layer.place(keys) + line for line in str(error).splitlines()]
        return []

    def _items(self, hint: Any, values: list[Any], keys: Keys) -> list[str]:
        """Problems of the items of a list, each of which has a hint of its own in a tuple."""
        args = get_args(hint) or (Any,)
        if get_origin(hint) is not tuple or args[-1] is Ellipsis:
            args = args[:1] * len(values)
        if len(args) != len(values):
            return self._problem(keys, f"must be a list of {len(args)} items, got {shown(values)}")
        problems = []
        for i, (each, item) in enumerate(zip(args, values, strict=True)):
            problems += self._value(each, item, (*keys, f"[{i}]"))
        return problems

    def _section(self, section: Section, values: dict[Any, Any], keys: Keys) -> list[str]:
        problems = []
        late = sorted(
            values.items(), key=lambda pair: isinstance(section.fields.get(pair[0]), Checked)
        )
        # what is checked may be known by the names that the modules of classes register
        for key, item in late:
            if key in section.reserved:
                problems += self._problem((*keys, key), section.reserved[key])
            elif key in section.fields:
                problems += self._value(section.fields[key], item, (*keys, key))
            else:
                inner = {
                    f"{name}.{key}" for name, hint in section.fields.items() if _holds(hint, key)
                }
                near = suggestion(str(key), inner or section.fields)
                unknown = f"is no option{section.owner}{near}"
                problems += self._problem((*keys, key), unknown)
        return problems

    def _object(self, hint: Instance, value: str | dict[Any, Any], keys: Keys) -> list[str]:
        """Problems of a class by name, or of ``{class_path: ..., init_args: {...}}`` with either
        part left out.
        """
        if isinstance(value, str):
            return [] if names_one(hint.kind, value) else self._choose(hint.kind, value, keys, keys)
        spelled_out = "class_path" in value or "init_args" in value
        if spelled_out and (
            beside := [key for key in value if key not in ("class_path", "init_args")]
        ):
            return self._problem((*keys, beside[0]), "must stand under init_args")
        problems = []
        if "class_path" in value:
            problems = self._choose(hint.kind, value["class_path"], keys, (*keys, "class_path"))
        cls = self.classes.get(_slot(keys)) or hint.kind.only()
        fields, is_open = parameters(cls) if cls is not None else ({}, True)
        arguments, inner = (
            (value.get("init_args") or {}, (*keys, "init_args")) if spelled_out else (value, keys)
        )
        if isinstance(arguments, dict):
            self._given.setdefault(_slot(keys), set()).update(arguments)
        if is_open:  # jsonargparse reads the source of such constructors
            return problems
        taken = {key: why for key, why in hint.reserved.items() if key in fields}
        section = Section(fields, taken, f" of {cls.__name__}" if cls else "")
        return problems + self._value(section, arguments, inner)

    def _callable(self, instance: Instance | None, path: str, keys: Keys) -> list[str]:
        """Problems of a dotted name where functions may be meant as well as classes."""
        if path.split(".")[0] not in sys.stdlib_module_names:
            try:
                found = imported(path)
            except ValueError as error:
                what = instance.kind if instance else "a function or class"
                return self._problem(keys, f"must name {what}, got {shown(path)}: {error}")
            if callable(found) and not isinstance(found, type):
                return []
        return [] if instance is None else self._object(instance, path, keys)

    def _choose(self, kind: Kind, name: Any, keys: Keys, name_keys: Keys) -> list[str]:
        slot, before = _slot(keys), self.classes.get(_slot(keys))
        self.named[slot] = self._given.setdefault(slot, set())
        try:
            self.classes[slot] = resolve(name, kind)
        except ValueError as error:
            self.classes[slot] = None
            return self._problem(name_keys, str(error))
        if self.classes[slot] is not before:  # what its options are by default is not known here
            self.classes = {
                k: cls for k, cls in self.classes.items() if k == slot or k[: len(slot)] != slot
            }
        return []

    def _remember(self, value: Any, keys: Keys) -> None:
        """Take the classes of a complete configuration."""
        if isinstance(value, Mapping):
            if "class_path" in value:
                self.classes[_slot(keys)] = imported(value["class_path"])
            for key, item in value.items():
                self._remember(item, (*keys, key))


def _slot(keys: Keys) -> Keys:
    """Where an object stands, whether or not ``init_args`` are spelled out."""
    return tuple(key for key in keys if key != "init_args")


def _holds(hint: Any, key: Any) -> bool:
    return isinstance(hint, Section) and key in hint.fields


def alternatives(hint: Any) -> list[Any]:
    """The members of a union, or the hint alone."""
    while get_origin(hint) is Annotated:
        hint = get_args(hint)[0]
    if get_origin(hint) in (Union, types.UnionType):
        # float | Tensor: nobody writes tensors
        members = (member for member in get_args(hint) if member is not Tensor)
        return [choice for member in members for choice in alternatives(member)]
    return [type(None) if hint is None else hint]


def described(hint: Any) -> str:
    """What values of `hint` are called in a message."""
    origin = get_origin(hint) or hint
    if origin in _PLAIN:
        return _PLAIN[origin]
    if origin is Literal:
        return f"one of {', '.join(_spelled(choice) for choice in get_args(hint))}"
    if origin in _LISTS:
        return "a list"
    if origin in _MAPPINGS or isinstance(hint, Section):
        return "a mapping"
    if isinstance(hint, type) and is_dataclass(hint):
        return f"a mapping of the options of {hint.__name__}"
    instance = instance_of(hint)
    return f"{instance.kind} (class_path and init_args)" if instance else "a path"


def _spelled(choice: Any) -> str:
    return choice if isinstance(choice, str) else getattr(choice, "name", shown(choice))


def instance_of(hint: Any) -> Instance | None:
    """What object `hint` asks for, if any: of the class that it is, or that a callable returns."""
    if isinstance(hint, Instance):
        return hint
    if is_callable(hint):
        returned = alternatives(get_args(hint)[-1]) if get_args(hint) else []
        hint = next(
            (choice for choice in returned if is_component(choice) and choice is not Tensor), None
        )
    return Instance(Kind.of(hint)) if is_component(hint) else None


def is_callable(hint: Any) -> bool:
    """Whether `hint` asks for a function, or for what makes an object."""
    return collections.abc.Callable in (hint, get_origin(hint)) or hint is Callable


def is_path(hint: Any) -> bool:
    """Whether `hint` asks for a path."""
    return isinstance(hint, type) and get_origin(hint) is None and issubclass(hint, os.PathLike)


def accepts_text(hint: Any) -> bool:
    """Whether plain text can be a value of `hint`."""
    return (
        hint is str
        or hint is Any
        or is_path(hint)
        or get_origin(hint) is Literal
        or instance_of(hint) is not None
    )


def _is_choice(choices: tuple[Any, ...], value: Any) -> bool:
    """Whether `value` is one of them; members of an enum are chosen by name, which jsonargparse
    looks up.
    """
    plain = [choice for choice in choices if type(choice) in _PLAIN]
    return len(plain) < len(choices) or any(
        value == choice and type(value) is type(choice) for choice in plain
    )


def _is_plain(kind: type, value: Any) -> bool:
    if kind is float:
        return (
            isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        )
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
