"""Checks of what the user wrote against the type hints of the constructors that will take it; and
its layers, one over the other, as one mapping that a parser reads once.

jsonargparse would do part of this, but stops at the first problem, suggests no names, turns 10.0,
"10" and null into what a hint asks for, and imports the module of any ``class_path`` before it
refuses the class.
"""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, is_dataclass
from itertools import chain
from typing import Any, Literal, get_args, get_origin

from bhfl.checks import shown, suggestion
from bhfl.cli.classes import indefinite, is_component, known, names_one, only, resolve, unambiguous
from bhfl.cli.hints import (
    LISTS,
    Checked,
    Instance,
    Section,
    accepts_text,
    alternatives,
    described,
    fits,
    instance_of,
    is_callable,
)
from bhfl.cli.naming import all_allowed, imported, is_standard, parameters
from bhfl.cli.reading import ConfigError, Keys, Layer, Text, read_text
from bhfl.recorded import arguments


@dataclass
class Merge:
    """Lays a layer over what earlier ones came to.

    What may be merged is found out while the layer is checked. Places are given without
    ``init_args``.

    Attributes:
        layer: The later settings, which win.
        meanings: Texts that were typed, to the values that they mean.
        sections: The places of mappings from options, which are merged key by key; any other
            mapping is a value, which replaces the earlier one.
        named: The places where the layer names a class, and the name by which it is the only one.
        other: Those of them where another class stood, whose options are not taken over.
        shorts: The places of mappings that a plain value may stand for, to the option that it is
            short for: the first one.
    """

    layer: Layer
    meanings: dict[Text, Any] = field(default_factory=dict)
    sections: set[Keys] = field(default_factory=set)
    named: dict[Keys, str] = field(default_factory=dict)
    other: set[Keys] = field(default_factory=set)
    shorts: dict[Keys, str] = field(default_factory=dict)

    def __call__(self, old: Any, new: Any, place: Keys = ()) -> Any:
        """`new` over `old`, which stand at `place`."""
        if isinstance(new, Text):
            new = self.meanings.get(new, str(new))
        if place in self.named and isinstance(new, str):
            new = {"class_path": self.named[place]}
        # what is typed as --a.b leads through mappings of any kind
        leads_on = len(place) < len(self.layer.path)
        if isinstance(new, list):
            items = [self(None, item, (*place, f"[{i}]")) for i, item in enumerate(new)]
            # in the place of the earlier ones, or after them where they are given by --a.b+
            added = self.layer.option.endswith("+") and place == self.layer.path
            return [*old, *items] if added and isinstance(old, list) else items
        merged = place in self.sections or place in self.named
        if not isinstance(new, dict) or not (leads_on or merged):
            return new
        if leads_on and isinstance(old, list) and old:
            return [*old[:-1], self(old[-1], new, place)]
        return self._mapping(old, new, place)

    def _mapping(self, old: Any, new: dict[Any, Any], place: Keys) -> dict[Any, Any]:
        """Options over the earlier ones of the same section or object."""
        if isinstance(old, str | int if place in self.shorts else str):
            old = {self.shorts.get(place, "class_path"): old}
        if not isinstance(old, dict) or place in self.other:
            old = {}
        # one of them may leave out the word init_args
        if is_spelled_out(old) and not is_spelled_out(new):
            new = {"init_args": new}
        if old and is_spelled_out(new) and not is_spelled_out(old):
            old = {"init_args": old}
        found = dict(old)
        for key, item in new.items():
            inner = place if key == "init_args" else (*place, key)
            found[key] = self(old.get(key), item, inner)
        if "class_path" in new and place in self.named:
            found["class_path"] = self.named[place]
        return found


def is_spelled_out(values: Mapping[Any, Any]) -> bool:
    """Whether an object is given by its class and ``init_args``, not by its options alone."""
    return "class_path" in values or "init_args" in values


class Checker:
    """Checks layers one after the other, and lays each over the earlier ones.

    A class that is chosen in one layer holds for the options that are given in later ones.

    Args:
        schema: What the whole configuration may hold.
        defaults: A configuration whose classes are used where a layer names none.

    Attributes:
        merged: What the layers come to so far, without defaults.
        classes: The places of objects, to the classes that are chosen for them.
    """

    def __init__(self, schema: Section, defaults: Mapping[str, Any]) -> None:
        self.schema = schema
        self.merged: dict[str, Any] = {}
        self.classes: dict[Keys, type | None] = {}
        self._remember(defaults, ())

    def __call__(self, layer: Layer) -> list[str]:
        """Take a layer; its problems, one sentence each, where it has any."""
        self._layer = layer
        self._merge = Merge(layer)
        self._before = dict(self.classes)
        problems = self._value(self.schema, layer.values, ())
        if not problems:
            self.merged = self._merge(self.merged, layer.values)
        return problems

    def _problem(self, keys: Keys, text: str) -> list[str]:
        return [f"{self._layer.place(keys)}{self._layer.name(keys)} {text}"]

    def _value(self, hint: Any, value: Any, keys: Keys) -> list[str]:
        """Problems of a value; as typed, it is plain text where that fits, and YAML otherwise."""
        choices = alternatives(hint)
        if isinstance(value, Text):
            # where there is null, the word is no text
            is_null = value == "null" and type(None) in choices
            is_text = not is_null and any(map(accepts_text, choices))
            if is_text and not self._one_of(choices, str(value), keys):
                return []
            try:
                self._merge.meanings[value] = read_text(value)
            except ConfigError as error:
                return self._problem(keys, f"cannot be used: {error.problems[0]}")
            value = self._merge.meanings[value]
        return self._one_of(choices, value, keys)

    def _one_of(self, choices: list[Any], value: Any, keys: Keys) -> list[str]:
        """Problems of `value` where it fits none of the `choices`: those inside it, if it looks
        like one of them.
        """
        attempts = [self._fit(choice, value, keys) for choice in choices]
        if [] in attempts:
            return []
        for inside in filter(None, attempts):
            return inside
        words = " or ".join(dict.fromkeys(map(described, choices)))
        near = ""
        if isinstance(value, str):
            literals = [choice for choice in choices if get_origin(choice) is Literal]
            words_of_any = chain.from_iterable(map(get_args, literals))
            near = suggestion(value, map(str, words_of_any), others=False)
        if value is False and type(None) in choices:
            near = "; did you mean null?"
        return self._problem(keys, f"must be {words}, got {shown(value)}{near}")

    def _fit(self, hint: Any, value: Any, keys: Keys) -> list[str] | None:
        """Problems inside `value`, or None where it is not at all what `hint` asks for."""
        instance = instance_of(hint)
        if is_callable(hint) and isinstance(value, str) and "." in value:
            return self._callable(instance, value, keys)
        if instance is not None:
            # options alone have no name
            spellings = dict if is_dataclass(instance.base) else (str, dict)
            return self._object(instance, value, keys) if isinstance(value, spellings) else None
        if isinstance(hint, Section):
            return self._section(hint, value, keys) if isinstance(value, dict) else None
        if isinstance(hint, Checked):
            return self._checked(hint, value, keys)
        if (get_origin(hint) or hint) in LISTS:
            return self._list(hint, value, keys)
        return self._typed_inside(hint, value, keys) if fits(hint, value) else None

    def _typed_inside(self, hint: Any, values: Any, keys: Keys) -> list[str]:
        """Problems of what was typed inside of a mapping that is a value, as ``--options.a 1``."""
        # a file has no text of which it is not known whether it is YAML
        if not isinstance(values, dict) or len(_place(keys)) >= len(self._layer.path):
            return []
        of_values = (Any, *get_args(hint))[-1]
        problems = []
        for key, item in values.items():
            if of_values is Any and isinstance(item, Text):
                # as a file would say it, where there is no hint to tell text from others
                with suppress(ConfigError):
                    self._merge.meanings[item] = read_text(item)
            else:
                problems += self._value(of_values, item, (*keys, key))
        return problems

    def _checked(self, hint: Checked, value: Any, keys: Keys) -> list[str]:
        if len(keys) < len(self._layer.path):
            # a typed --clients.int8 is looked at with what it is a part of
            self._typed_inside(Any, value, keys)
            value = self._merge(self.merged.get(keys[0]), value, keys)
        try:
            hint.check(value)
        except ValueError as error:
            return [self._layer.place(keys) + line for line in str(error).splitlines()]
        return []

    def _list(self, hint: Any, values: Any, keys: Keys) -> list[str] | None:
        """Problems of the items of a list, each of which has a hint of its own in a tuple."""
        if not isinstance(values, list):
            # a typed --list.option is one of its last item
            is_inside = len(_place(keys)) < len(self._layer.path)
            return [] if is_inside and Layer(self.merged).gives(keys) else None
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
        self._merge.sections.add(_place(keys))
        problems = []
        # what is checked may be known by the names that the modules of classes register
        for key in sorted(values, key=lambda key: isinstance(section.fields.get(key), Checked)):
            inner = (*keys, key)
            if key in section.reserved:
                problems += self._problem(inner, section.reserved[key])
            elif key in section.fields:
                problems += self._value(section.fields[key], values[key], inner)
            else:
                problems += self._problem(
                    inner,
                    f"is an unknown option{section.owner}{self._meant(section, str(key), keys)}",
                )
        return problems

    def _meant(self, section: Section, key: str, keys: Keys) -> str:
        """What may have been meant by an unknown key, as a message ends."""
        parts = key.split(".")
        if parts[0] in section.fields:
            return f"; in a file it is written {': {'.join(parts)}: ...{'}' * (len(parts) - 1)}"
        holders = _holders(section, key)
        of_others = known(section.base) if section.base and not holders else {}
        if having := [name for name, cls in of_others.items() if key in parameters(cls)[0]]:
            # many methods share an option, and four of them are enough to be told
            return f"; name a class that has it: {', '.join(sorted(having)[:4])}"
        # files are no part of what files hold
        own = () if keys or self._layer.file else ("config", "print_config")
        return suggestion(key, [*(holders or section.fields), *own])

    def _object(self, hint: Instance, value: str | dict[Any, Any], keys: Keys) -> list[str]:
        """Problems of a class by name, or of ``{class_path: ..., init_args: {...}}`` with either
        part left out.
        """
        if isinstance(value, str):
            return [] if names_one(hint.base, value) else self._choose(hint.base, value, keys, keys)
        spelled_out = is_spelled_out(value)
        beside = [key for key in value if key not in ("class_path", "init_args")]
        if spelled_out and beside:
            return self._problem((*keys, beside[0]), "must stand under init_args")
        problems = []
        if "class_path" in value:
            named = (*keys, "class_path")
            problems = self._choose(hint.base, value["class_path"], keys, named)
        self._merge.sections.add(_place(keys))
        cls = self.classes.get(_place(keys)) or only(hint.base)
        if cls is None:
            return problems
        fields, is_open = parameters(cls)
        if fields and is_dataclass(cls):
            self._merge.shorts[_place(keys)] = next(iter(fields))
        if is_open:  # jsonargparse reads the source of such constructors
            return problems
        reserved = {key: why for key, why in hint.reserved.items() if key in fields}
        section = Section(fields, reserved, f" of {cls.__name__}", hint.base)
        if spelled_out:
            return problems + self._value(section, value.get("init_args", {}), (*keys, "init_args"))
        return problems + self._value(section, value, keys)

    def _callable(self, instance: Instance | None, path: str, keys: Keys) -> list[str]:
        """Problems of a dotted name where functions may be meant as well as classes."""
        if not is_standard(path) or not all_allowed():
            try:
                found = imported(path)
            except ValueError as error:
                what = indefinite(instance.base) if instance else "a function or class"
                return self._problem(keys, f"must name {what}, got {shown(path)}: {error}")
            if callable(found) and not isinstance(found, type):
                return []
        return [] if instance is None else self._object(instance, path, keys)

    def _choose(self, base: type, name: Any, keys: Keys, name_keys: Keys) -> list[str]:
        place = _place(keys)
        try:
            self.classes[place] = cls = resolve(name, base)
        except ValueError as error:
            self.classes[place] = None
            return self._problem(name_keys, str(error))
        self._merge.named[place] = unambiguous(name, base)
        if cls is not self._before.get(place):
            self._merge.other.add(place)
            for inner in [one for one in self.classes if one[: len(place)] == place != one]:
                del self.classes[inner]
            # of constructors in C nothing can be read
            with suppress(ValueError, TypeError):
                for option, default in arguments(cls, (), {}).items():
                    if is_component(type(default)):
                        self.classes[*place, option] = type(default)
        return []

    def _remember(self, value: Any, keys: Keys) -> None:
        """Take the classes of a complete configuration."""
        if isinstance(value, Mapping):
            if "class_path" in value:
                self.classes[_place(keys)] = imported(value["class_path"])
            for key, item in value.items():
                self._remember(item, (*keys, key))


def _place(keys: Keys) -> Keys:
    """Where an object stands, whether or not ``init_args`` are spelled out."""
    return tuple(key for key in keys if key != "init_args")


def _holders(section: Section, key: Any) -> list[str]:
    """The names that `key` has inside: in a section, or as an option of an option."""
    found = []
    for name, hint in section.fields.items():
        inner = hint.fields if isinstance(hint, Section) else {}
        for instance in filter(None, map(instance_of, alternatives(hint))):
            if is_dataclass(instance.base):
                inner = parameters(instance.base)[0]
        if key in inner:
            found.append(f"{name}.{key}")
    return found
