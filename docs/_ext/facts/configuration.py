"""The keys of a configuration, with their kinds, defaults and roles."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import typing
from collections.abc import Iterable
from importlib import import_module
from typing import Any, NamedTuple

from facts.markup import cells, first_sentence, named, title


class Option(NamedTuple):
    """A key of a configuration."""

    key: str
    kind: str
    default: str
    text: str


def options(kind: Any, prefix: str = "", skip: Iterable[str] = ()) -> list[Option]:
    """The options of a class, as the parser of the command line reads them."""
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(kind, None, fail_untyped=False, sub_configs=False, skip={*skip})
    found = []
    for action in parser._actions:
        if (
            action.dest == "help"
            or action.dest.endswith(".help")
            or not hasattr(action, "_typehint")
        ):
            continue
        given = inspect.signature(kind).parameters.get(action.dest)
        required = given is not None and given.default is given.empty
        default = "(required)" if required else written(action.default)
        hint = action._typehint
        found.append(Option(prefix + action.dest, shown(hint), default, action.help or ""))
        for part in (hint, *typing.get_args(hint)):
            if dataclasses.is_dataclass(part) and isinstance(part, type):
                found += options(part, f"{prefix}{action.dest}.")
    return found


_WORDS = {"int": "integer", "float": "number", "str": "text", "Module": "module"}


def shown(hint: Any) -> str:
    """A type, in words of a configuration."""
    text = hint.__name__ if inspect.isclass(hint) else str(hint)
    if "Callable" in text:
        return "class" + (" or null" if "None" in text or "Optional" in text else "")
    text = re.sub(r"\b(?:[a-z_]+\.)+([A-Za-z_]+)", r"\1", text)
    while match := re.search(r"Optional\[((?:[^\[\]]|\[[^\[\]]*\])*)\]", text):
        text = text.replace(match[0], f"{match[1]} or null")
    while match := re.search(r"Union\[((?:[^\[\]]|\[[^\[\]]*\])*)\]", text):
        text = text.replace(match[0], re.sub(r", (?![^\[]*\])", " or ", match[1]))
    text = re.sub(
        r"Literal\[([^\]]*)\]", lambda m: " or ".join(re.split(", ?", m[1].replace("'", ""))), text
    )
    text = text.replace(" | ", " or ").replace("NoneType", "null").replace("None", "null")
    text = re.sub(r"\bbool\b", "true or false", text).replace("str or Path", "path")
    for name, words in _WORDS.items():
        text = re.sub(rf"\b{name}\b", words, text)
    return text


def written(value: Any) -> str:
    """A default, as YAML would hold it; an object as a class with its options."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, (int, float, str)):
        return {float("inf"): "none (infinite)", "": "''"}.get(value, str(value))
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(written, value))}]"
    fields = fields_of(value)
    if fields is None:
        return str(value)
    if "class_path" not in fields:
        return f"{{{', '.join(f'{key}: {written(item)}' for key, item in fields.items())}}}"
    name = fields["class_path"].rpartition(".")[2]
    inner = fields_of(fields.get("init_args") or {}) or {}
    listed = ", ".join(f"{key}={written(item)}" for key, item in inner.items())
    return f"{name}({listed})" if listed else name


def fields_of(value: Any) -> dict[str, Any] | None:
    """The items of a mapping or the attributes of an object; None where it has neither."""
    return dict(value) if isinstance(value, dict) else getattr(value, "__dict__", None)


def table(found: Iterable[Option], roles: dict[str, str] | None = None) -> str:
    """A table of options."""
    rows = []
    for option in found:
        row = [f"``{option.key}``", option.kind, f"``{option.default}``", option.text]
        if roles is not None:
            row.append(roles[option.key.split(".")[1]])
        rows.append(row)
    header = ["Key", "Type", "Default", "What it is"]
    widths = "22 16 14 48"
    if roles is not None:
        header, widths = [*header, "Role"], "20 15 12 43 10"
    return cells(rows, header, widths)


def trainer_options() -> list[Option]:
    """The options of ``trainer:``."""
    from bhfl.cli.parser import OUTSIDE
    from bhfl.engine import FederatedTrainer

    return options(FederatedTrainer, "trainer.", OUTSIDE)


def trainer() -> str:
    """The table of them, with their roles."""
    from bhfl.settings import Settings

    roles = {}
    for group in typing.get_type_hints(Settings).values():
        for field in dataclasses.fields(group):
            roles[field.name] = field.metadata["role"].value
    return table(trainer_options(), roles)


def roles() -> str:
    """What the roles of options mean."""
    from bhfl.settings import Role

    body = ast.parse(inspect.getsource(Role)).body[0].body  # type: ignore[attr-defined]
    rows = []
    for assigned, text in zip(body[1::2], body[2::2], strict=True):
        rows.append((f"``{assigned.value.value}``", text.value.value))
    return cells(rows, ("Role", "What an option of it does"), "20 80")


def kinds(room: str, base: str) -> str:
    """Tables of the options of a room's public classes that derive from `base`, each under its
    name, without those that every data module has.
    """
    parent = named(base)
    shared = [one.key for one in options(named("bhfl.data.Digits"))]
    parts = []
    for name in import_module(room).__all__:
        kind = named(f"{room}.{name}")
        if not (inspect.isclass(kind) and issubclass(kind, parent)) or kind is parent:
            continue
        parts.append(title(f"``{name}``", "~"))
        parts.append(f"{first_sentence(kind)} See :soft:`{room}.{name}`.\n")
        found = [one for one in options(kind) if room != "bhfl.data" or one.key not in shared]
        parts.append(table(found) if found else "It has no options of its own.\n")
    return "\n".join(parts)


def of(path: str, prefix: str = "") -> str:
    """The table of one class's options."""
    return table(options(named(path), prefix))


def presets() -> str:
    """The table of presets."""
    from bhfl.quant import PRESETS

    rows = []
    for name, spec in PRESETS.items():
        widths = [spec.weights, spec.activations, spec.errors, spec.gradients, spec.storage]
        rows.append((f"``{name}``", *map(str, widths), f"``{spec.range_rule}``"))
    header = ("Preset", "weights", "activations", "errors", "gradients", "storage", "range rule")
    return cells(rows, header, "20 12 14 12 14 12 16")


def profiles() -> str:
    """The table of links that have a name."""
    from bhfl.comm.network import PROFILES

    rows = []
    for name, one in PROFILES.items():
        rates = [f"{one.uplink_bps / 1e6:g}", f"{one.downlink_bps / 1e6:g}"]
        numbers = [
            f"{one.latency_seconds:g}",
            f"{one.compute_flops:g}",
            f"{one.spread:g}",
            f"{one.jitter:g}",
        ]
        rows.append((f"``{name}``", *rates, *numbers))
    header = ("Profile", "up, Mbit/s", "down, Mbit/s", "latency, s", "FLOP/s", "spread", "jitter")
    return cells(rows, header, "20 14 14 14 14 12 12")
