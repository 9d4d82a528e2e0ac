"""What the user wrote, as plain values with their lines: YAML files and the options of the command
line.

A file is refused where two readers could take it differently: a key given twice, ``yes`` for true,
``010`` for eight, tabs, tags, merge keys, infinities. This module needs PyYAML alone: such slips
are answered before torch is loaded.
"""

import math
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from bhfl.checks import shown
from bhfl.cli.packaged import find_config
from bhfl.plain import (
    MAX_BYTES,
    MAX_DEPTH,
    UNAMBIGUOUS,
    Loader,
    TooLargeError,
    Unfolded,
    check_depth,
)

_FLAGS = ("print_config", "dry_run", "list")
"""Options that take no value."""

Keys = tuple[Any, ...]
"""Where a value stands: keys of mappings, and ``[i]`` for items of lists, from the outermost in."""


def dotted(keys: Keys) -> str:
    """`keys` as messages call them, such as ``trainer.callbacks[0].every``."""
    return ".".join(str(key) for key in keys if key != "init_args").replace(".[", "[")


class ConfigError(Exception):
    """The configuration cannot be used; `problems` says why, one sentence each."""

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems = list(problems)


class Text(str):
    """A value as typed on the command line: YAML, or plain text where text is wanted."""

    __slots__ = ()


@dataclass
class Layer:
    """Settings from one source; later layers win over earlier ones."""

    values: Any
    file: str = ""
    """The file they come from; empty for the command line."""
    lines: dict[Keys, int] = field(default_factory=dict)
    option: str = ""
    """The option that gives the one value, such as ``a.b``, or ``a.b+`` where it is added to a
    list; empty for a whole file.
    """

    @property
    def path(self) -> Keys:
        """Where the option's value stands, but for ``init_args``."""
        parts = self.option.removesuffix("+").split(".")
        return tuple(part for part in parts if part not in ("", "init_args"))

    def name(self, keys: Keys) -> str:
        """What messages call the value at `keys`: ``data.batch_size``, or ``--data.batch_size``
        where it was typed.
        """
        return dotted(keys) if self.file else f"--{dotted(keys)}"

    def place(self, keys: Keys) -> str:
        """``file:line: ``, or nothing for the command line."""
        while keys and keys not in self.lines:
            keys = keys[:-1]
        return f"{self.file}:{self.lines.get(keys, 1)}: " if self.file else ""

    def gives(self, keys: Keys) -> bool:
        """Whether there is a value at `keys`, whether or not ``init_args`` are spelled out. A place
        inside a list counts as given: its items are not looked at.
        """
        values = self.values
        for key in keys:
            if isinstance(values, dict) and key not in values:
                values = values.get("init_args")
            if not isinstance(values, dict) or key not in values:
                return isinstance(values, list)
            values = values[key]
        return True


def read_layers(args: Sequence[str]) -> list[Layer]:
    """The layers of a command's options, in order.

    Raises:
        ConfigError: With the problems of all files and of arguments that are no options.
    """
    layers = []
    problems = []
    for name, value in () if asks_help(args) else options(args):
        try:
            layers += _layers_of(name, value)
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(*problems)
    return layers


def _layers_of(name: str, value: str | None) -> list[Layer]:
    """The layer that an option gives, if it gives any."""
    if name == "config":
        return [read_file(value)]
    if name == "print_config":
        return []
    if name == "":
        # of two dashes alone, no value is left
        why = f"unexpected argument {value or '--'!r}; options start with --, such as --config FILE"
    elif value is None:
        why = f"--{name} expected one argument, got none"
    elif why := unusable(value):
        why = f"--{name} {why}"
    else:
        return [Layer(nested(name, _meant(name, value)), option=name)]
    raise ConfigError(why)


def _meant(name: str, text: str) -> Any:
    """The value of an option as it was typed; several items where a list is added to a list."""
    with suppress(ConfigError):
        if name.endswith("+") and isinstance(items := read_text(text), list):
            return items
    # whether it is YAML or plain text depends on the hint, which is known when torch is loaded
    return Text(text)


def asks_help(args: Sequence[str]) -> bool:
    """Whether the command is only to explain itself: ``--help``, or ``--data.help CIFAR10``."""
    return any(word == "-h" or re.fullmatch(r"--([\w.]+\.)?help(=.*)?", word) for word in args)


def without_files(args: Sequence[str]) -> list[str]:
    """The arguments without ``--config FILE``, on which no help depends."""
    kept = []
    rest = iter(args)
    for word in rest:
        if word in ("-c", "--config"):
            next(rest, None)
        elif not word.startswith(("-c=", "--config=")):
            kept.append(word)
    return kept


def options(args: Sequence[str]) -> Iterator[tuple[str, str | None]]:
    """``(name, value)`` of each option; no name for an argument that is none, no value where none
    is given.
    """
    rest = list(args)
    while rest:
        word = rest.pop(0)
        if not _is_option(word):
            yield "", word
            continue
        # at the first sign alone: values may hold others
        name, equals, value = word.lstrip("-").partition("=")
        # one dash makes no option: -1 is a value
        if not equals and rest and not _is_option(rest[0]) and name not in _FLAGS:
            value, equals = rest.pop(0), "="
        yield ("config" if word == "-c" else name), (value if equals else None)


def _is_option(word: str) -> bool:
    return word.startswith("--") or word == "-c"


def nested(name: str, value: Any) -> dict[str, Any]:
    """The option ``a.b`` as ``{a: {b: value}}``; ``a.b+`` adds to a list."""
    values = value
    if name.endswith("+") and not isinstance(value, list):
        values = [value]
    for key in reversed(name.removesuffix("+").split(".")):
        values = {key: values}
    found: dict[str, Any] = values
    return found


def read_file(path: str | None, what: str = "--config") -> Layer:
    """The settings in a YAML file.

    Args:
        path: The file, or the name of one that comes with bhfl; see `find_config`.
        what: Its name in messages.

    Raises:
        ConfigError: With every problem of the file.
    """
    try:
        file = find_config(path or "", Path())
        size = file.stat().st_size
        if size > MAX_BYTES:
            raise ConfigError(f"{what} must be at most {MAX_BYTES:,} bytes, got {size:,} in {path}")
        text = file.read_text(encoding="utf-8")
    except (UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"{what} {path} cannot be read: {error}") from error
    except ValueError as error:
        raise ConfigError(f"{what} {error}") from error
    reader = _Reader(text, str(file))
    values = reader.values
    problems = reader.problems
    if not problems and not isinstance(values, dict):
        rule = f"{what} must hold a mapping of options such as trainer: {{max_rounds: 5}}"
        found = "is empty" if values is None else f"holds {type(values).__name__}"
        problems = [f"{rule}; {file} {found}"]
    if problems:
        raise ConfigError(*problems)
    return Layer(values, str(file), reader.lines)


def read_text(text: str) -> Any:
    """The value that `text` of the command line means as YAML.

    Raises:
        ConfigError: With every problem of it.
    """
    reader = _Reader(str(text), "")
    if reader.problems:
        raise ConfigError(*reader.problems)
    return reader.values


_ANYTHING = re.compile("(?s).*")
# merge keys, sets, binary data and objects of Python are not among them
_KINDS = ("bool", "int", "float", "null", "str")


class _Reader:
    """Turns YAML into plain values, collecting problems."""

    def __init__(self, text: str, file: str) -> None:
        self.file = file
        self.lines: dict[Keys, int] = {}
        self.problems: list[str] = []
        self.size = Unfolded()
        self.values: Any = None
        self.loader = Loader(text)
        try:
            # before the tree is built, which recursion in C does
            check_depth(text, Loader)
            node = self.loader.get_single_node()
            self.values = None if node is None else self._value(node, ())
        except yaml.YAMLError as error:
            self._syntax(error, text)
        except TooLargeError as error:
            self.problems = []
            self._problem(0, f"YAML {error}")
        finally:
            self.loader.dispose()

    def _problem(self, line: int, text: str) -> None:
        self.problems.append(f"{self.file}:{line + 1}: {text}" if self.file else text)

    def _syntax(self, error: yaml.YAMLError, text: str) -> None:
        what = str(getattr(error, "problem", None) or str(error).splitlines()[0])
        mark = getattr(error, "problem_mark", None)
        number = mark.line if mark else 0
        line = text.split("\n")[number] if number <= text.count("\n") else ""
        # libyaml does not say that the character which it cannot take is a tab
        if mark and "\t" in line[: mark.column + 1]:
            what = "indent with spaces, not with tabs"
        self._problem(number, f"not valid YAML: {what}")

    def _value(self, node: yaml.Node, keys: Keys) -> Any:
        # an alias is walked wherever it stands, so that a few lines may come to gigabytes
        self.size.add(node, len(keys))
        # the line of its key is known already, where it has one
        self.lines.setdefault(keys, node.start_mark.line + 1)
        if isinstance(node, yaml.MappingNode) and node.tag == "tag:yaml.org,2002:map":
            return self._mapping(node, keys)
        if isinstance(node, yaml.SequenceNode) and node.tag == "tag:yaml.org,2002:seq":
            return [self._value(item, (*keys, f"[{i}]")) for i, item in enumerate(node.value)]
        return self._scalar(node, keys)

    def _mapping(self, node: yaml.MappingNode, keys: Keys) -> dict[Any, Any]:
        # PyYAML would take the last of several in silence
        seen = set()
        for key, _ in node.value:
            if (key.tag, str(key.value)) in seen:
                self._problem(key.start_mark.line, f"{dotted((*keys, key.value))} is given twice")
            seen.add((key.tag, str(key.value)))
        values = {}
        for key_node, value in node.value:
            key = self._scalar(key_node, keys)
            self.lines[(*keys, key)] = key_node.start_mark.line + 1
            values[key] = self._value(value, (*keys, key))
        return values

    def _scalar(self, node: yaml.Node, keys: Keys) -> Any:
        name = f"{dotted(keys)}: " if keys else ""
        why, value = self._read(node)
        if why:
            self._problem(node.start_mark.line, name + why)
        return value

    def _read(self, node: yaml.Node) -> tuple[str, Any]:
        """What is wrong with a scalar, and its value where nothing is."""
        kind = node.tag.removeprefix("tag:yaml.org,2002:")
        if not isinstance(node, yaml.ScalarNode) or kind not in _KINDS:
            return f"the YAML tag {node.tag} is not allowed", None
        rule, remedy = UNAMBIGUOUS.get(kind, (_ANYTHING, ""))
        if not rule.fullmatch(node.value):
            return (
                f"{node.value} is read in different ways: write "
                f"{'a space after a colon, ' * (':' in node.value)}{remedy}, or quotes around text",
                None,
            )
        if kind == "str" and (why := unusable(node.value)):
            return why, None
        value = self.loader.construct_object(node)
        if isinstance(value, float) and not math.isfinite(value):
            return f"numbers must be finite, got {node.value}", None
        return "", value


def unusable(text: str) -> str:
    """Why `text` can be no value, neither as it is nor as YAML; empty if it can."""
    if "\0" in text:
        return "must not hold the character NUL"
    # so Python hands on arguments whose bytes are not UTF-8
    if re.search("[\ud800-\udfff]", text):
        return f"must be valid UTF-8, got {shown(text)}"
    # shorter text cannot be nested deeper
    if len(text) <= MAX_DEPTH:
        return ""
    try:
        check_depth(text, Loader)
    except TooLargeError as error:
        return str(error)
    except yaml.YAMLError:  # then it is no YAML, but text
        pass
    return ""
