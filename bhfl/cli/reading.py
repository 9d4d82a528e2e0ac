"""What the user wrote, as plain values with their lines: YAML files and the options of the command
line.

A file is refused where two readers could take it differently: a key given twice, ``yes`` for true,
``010`` for eight, tabs, tags, merge keys, infinities. This module needs PyYAML alone: such slips
are answered before torch is loaded.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from bhfl.checks import shown
from bhfl.cli.scalars import UNAMBIGUOUS, Loader
from bhfl.files import user_path
from bhfl.plain import MAX_BYTES, MAX_DEPTH, TooLargeError, Unfolded, check_depth

_CONFIG = ("--config", "-c")
_FLAGS = ("print_config", "dry_run")
"""Options that take no value."""

Keys = tuple[Any, ...]
"""Where a value stands: keys of mappings, and ``[i]`` for items of lists, from the outermost in."""


def dotted(keys: Keys) -> str:
    """`keys` as messages call them, such as ``trainer.callbacks[0].every``."""
    return ".".join(str(key) for key in keys if key != "init_args").replace(".[", "[")


class ConfigError(Exception):
    """The configuration cannot be used; `problems` says why, one sentence each."""

    def __init__(self, problems: Sequence[str]) -> None:
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
        """Whether there is a value at `keys`."""
        values = self.values
        for key in keys:
            if not isinstance(values, dict) or key not in values:
                return False
            values = values[key]
        return True


def read_layers(args: Sequence[str]) -> list[Layer]:
    """The layers of a command's options, in order.

    Raises:
        ConfigError: With the problems of all files and of arguments that are no options.
    """
    layers: list[Layer] = []
    problems: list[str] = []
    for name, value in () if asks_help(args) else options(args):
        try:
            if name == "config":
                layers.append(read_file(value))
            elif name == "":
                raise ConfigError(
                    [
                        f"{value!r} is no option; options begin with --, "
                        "such as --trainer.max_rounds 5"
                    ]
                )
            elif value is not None and name not in _FLAGS:
                if why := unusable(value):
                    raise ConfigError([f"--{name} {why}"])
                layers.append(Layer(nested(name, Text(value))))
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)
    return layers


def asks_help(args: Sequence[str]) -> bool:
    """Whether the command is only to explain itself: ``--help``, or ``--data.help CIFAR10``."""
    return any(word == "-h" or re.fullmatch(r"--([\w.]+\.)?help(=.*)?", word) for word in args)


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
        name, equals, value = word.lstrip("-").partition("=")
        if not equals and rest and not _is_option(rest[0]) and name not in _FLAGS:
            value, equals = rest.pop(0), "="
        yield ("config" if word == "-c" else name), (value if equals else None)


def _is_option(word: str) -> bool:
    return word.startswith("--") or word == "-c"


def nested(name: str, value: Any) -> dict[str, Any]:
    """The option ``a.b`` as ``{a: {b: value}}``; ``a.b+`` adds to a list."""
    values: Any = [value] if name.endswith("+") else value
    for key in reversed(name.removesuffix("+").split(".")):
        values = {key: values}
    found: dict[str, Any] = values
    return found


def read_file(path: str | None, what: str = "--config") -> Layer:
    """The settings in a YAML file.

    Args:
        path: Of the file.
        what: It is called in messages.

    Raises:
        ConfigError: With every problem of the file.
    """
    try:
        file = user_path(path or "")
        if not file.is_file():
            raise ConfigError([f"{what} must be a YAML file, and there is no file {path!r}"])
        size = file.stat().st_size
        if size > MAX_BYTES:
            raise ConfigError(
                [f"{what} must be at most {MAX_BYTES:,} bytes, got {size:,} in {path}"]
            )
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError([f"{what} {path} cannot be read: {error}"]) from error
    except ValueError as error:
        raise ConfigError(
            [f"{what} must be a YAML file, and there is no file {path or ''!r}: {error}"]
        ) from error
    except OSError as error:
        raise ConfigError([f"{what} {path} cannot be read: {error}"]) from error
    path = str(file)
    reader = _Reader(text, path)
    layer = Layer(reader.values, path, reader.lines)
    problems = reader.problems
    if not problems and not isinstance(layer.values, dict):
        given = "is empty" if layer.values is None else f"holds {type(layer.values).__name__}"
        problems = [
            f"{what} must hold a mapping of options such as trainer: {{max_rounds: 5}}; "
            f"{path} {given}"
        ]
    if problems:
        raise ConfigError(problems)
    return layer


def with_plain_paths(args: Sequence[str]) -> list[str]:
    """`args` with the files of ``--config`` as `user_path` reads them, for a parser with rules of
    its own.
    """
    found = list(args)
    for i, word in enumerate(found):
        name, equals, value = word.partition("=")
        if name in _CONFIG and equals:
            found[i] = f"{name}={user_path(value)}"
        elif i > 0 and found[i - 1] in _CONFIG and not _is_option(word):
            found[i] = str(user_path(word))
    return found


def read_text(text: str) -> Any:
    """The value that `text` of the command line means as YAML.

    Raises:
        ConfigError: With every problem of it.
    """
    reader = _Reader(str(text), "")
    if reader.problems:
        raise ConfigError(reader.problems)
    return reader.values


_ANYTHING = re.compile("(?s).*")
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
        if mark and "\t" in line[: mark.column + 1]:
            what = "indent with spaces, not with tabs"
        self._problem(number, f"not valid YAML: {what}")

    def _value(self, node: yaml.Node, keys: Keys) -> Any:
        self.size.add(node, len(keys))
        self.lines.setdefault(keys, node.start_mark.line + 1)
        if isinstance(node, yaml.MappingNode) and node.tag == "tag:yaml.org,2002:map":
            return self._mapping(node, keys)
        if isinstance(node, yaml.SequenceNode) and node.tag == "tag:yaml.org,2002:seq":
            return [self._value(item, (*keys, f"[{i}]")) for i, item in enumerate(node.value)]
        return self._scalar(node, keys)

    def _mapping(self, node: yaml.MappingNode, keys: Keys) -> dict[Any, Any]:
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
        kind, line = node.tag.removeprefix("tag:yaml.org,2002:"), node.start_mark.line
        name = f"{dotted(keys)}: " if keys else ""
        if not isinstance(node, yaml.ScalarNode) or kind not in _KINDS:
            self._problem(line, f"{name}the YAML tag {node.tag} is not allowed")
            return None
        rule, remedy = UNAMBIGUOUS.get(kind, (_ANYTHING, ""))
        if not rule.fullmatch(node.value):
            self._problem(
                line,
                f"{name}{node.value} is read in different ways: "
                f"write {remedy}, or quotes around text",
            )
            return None
        if kind == "str" and (why := unusable(node.value)):
            self._problem(line, f"{name}{why}")
            return None
        value = self.loader.construct_object(node)
        if isinstance(value, float) and not math.isfinite(value):
            self._problem(line, f"{name}numbers must be finite, got {node.value}")
        return value


def unusable(text: str) -> str:
    """Why `text` can be no value, neither as it is nor as YAML; empty if it can."""
    if "\0" in text:
        return "must not hold the character NUL"
    if re.search("[\ud800-\udfff]", text):
        return f"must be valid UTF-8, got {shown(text)}"
    if len(text) <= MAX_DEPTH:
        return ""
    try:
        check_depth(text, Loader)
    except TooLargeError as error:
        return str(error)
    except yaml.YAMLError:  # then it is no YAML, but text
        pass
    return ""
