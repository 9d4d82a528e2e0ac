"""What pages of the reference say that the code says already, as reStructuredText.

It needs no Sphinx, so that tests hold it where Sphinx is not installed.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import inspect
import io
import itertools
import os
import re
import textwrap
import typing
from collections.abc import Iterable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

COMMANDS = ("fit", "validate", "test", "analyze", "export", "sweep", "report")


class Option(NamedTuple):
    """A key of a configuration."""

    key: str
    kind: str
    default: str
    text: str


def named(path: str) -> Any:
    """The object that a dotted name means."""
    module, _, name = path.rpartition(".")
    return getattr(import_module(module), name)


def first_sentence(value: Any) -> str:
    """The first sentence of a docstring, as one line."""
    text = " ".join((inspect.getdoc(value) or "").split("\n\n")[0].split())
    return re.split(r"(?<=[.:;]) (?=[A-Z])", text)[0]


def cells(rows: Iterable[Iterable[str]], header: Iterable[str], widths: str) -> str:
    """A table of text."""
    lines = [".. list-table::", "   :header-rows: 1", f"   :widths: {widths}", "   :class: options", ""]
    for row in [header, *rows]:
        for number, cell in enumerate(row):
            mark = "   * - " if number == 0 else "     - "
            lines.append(mark + " ".join(cell.split()))
    return "\n".join(lines) + "\n"


def title(text: str, line: str) -> str:
    """A heading."""
    return f"{text}\n{line * len(text)}\n"


# ---- the Python API ------------------------------------------------------------------------------


def public_names(module: str) -> list[str]:
    """What a room calls public, by its ``__all__``: classes, functions, then values."""
    room = import_module(module)

    def order(name: str) -> tuple[int, str]:
        value = getattr(room, name)
        kind = 0 if inspect.isclass(value) else 1 if callable(value) else 2
        return kind, name.lower()

    return sorted(room.__all__, key=order)


def described(module: str, name: str) -> str:
    """The directive that documents one public name."""
    value = named(f"{module}.{name}")
    path = f"{module}.{name}"
    if inspect.isclass(value):
        lines = [f".. autoclass:: {path}"]
        own = [n for n, v in vars(value).items() if not n.startswith("_") and inspect.getdoc(v)]
        if own or dataclasses.is_dataclass(value):
            lines.append("   :members:")
        if issubclass(value, tuple):  # fields of a named tuple say nothing but their number
            lines.append("   :exclude-members: " + ", ".join(getattr(value, "_fields", ())))
        return "\n".join(lines) + "\n"
    if callable(value):
        return f".. autofunction:: {path}\n"
    return f".. py:data:: {path}\n\n" + textwrap.indent(text_of(module, name), "   ") + "\n"


def text_of(module: str, name: str) -> str:
    """The docstring below the assignment of a value, wherever in a room it is."""
    folder = Path(import_module(module).__file__ or "").parent
    for path in sorted(folder.rglob("*.py")):
        body = ast.parse(path.read_text()).body
        for assigned, text in itertools.pairwise(body):
            targets = getattr(assigned, "targets", [getattr(assigned, "target", None)])
            if name in [getattr(one, "id", "") for one in targets] and isinstance(text, ast.Expr):
                return inspect.cleandoc(ast.literal_eval(text.value))
    return f"A {type(named(f'{module}.{name}')).__name__} of values by name."


def at_home(module: str, name: str) -> bool:
    """Whether a name is public in no other room that is its own."""
    value = getattr(import_module(module), name)
    return module == "bhfl.engine" or value is not getattr(import_module("bhfl.engine"), name, None)


def public(module: str) -> str:
    """All public names of a room: a table, and each in full."""
    names = public_names(module)
    rows = []
    for name in names:
        value = getattr(import_module(module), name)
        plain = not inspect.isclass(value) and not callable(value)
        text = text_of(module, name).split("\n\n")[0] if plain else first_sentence(value)
        rows.append((f":soft:`{name} <{module}.{name}>`", text))
    parts = [f".. currentmodule:: {module}\n", cells(rows, ("Name", "What it is"), "30 70")]
    parts += [described(module, name) for name in names if at_home(module, name)]
    return "\n".join(parts)


def objects(*paths: str) -> str:
    """Some names in full, which are not public but which public ones take or give."""
    parts = []
    for path in paths:
        module, _, name = path.rpartition(".")
        parts.append(f".. currentmodule:: {module}\n\n" + described(module, name))
    return "\n".join(parts)


# ---- keys of a configuration ---------------------------------------------------------------------


def options(kind: Any, prefix: str = "", skip: Iterable[str] = ()) -> list[Option]:
    """The options of a class, as the parser of the command line reads them."""
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(kind, None, fail_untyped=False, sub_configs=False, skip={*skip})
    found = []
    for action in parser._actions:
        if action.dest == "help" or action.dest.endswith(".help") or not hasattr(action, "_typehint"):
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
    text = re.sub(r"Literal\[([^\]]*)\]", lambda m: " or ".join(re.split(", ?", m[1].replace("'", ""))), text)
    text = text.replace(" | ", " or ").replace("NoneType", "null").replace("None", "null")
    text = re.sub(r"\bbool\b", "true or false", text).replace("str or Path", "path")
    for name, words in {"int": "integer", "float": "number", "str": "text", "Module": "module"}.items():
        text = re.sub(rf"\b{name}\b", words, text)
    return text


def written(value: Any) -> str:
    """A default, as YAML would hold it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        return {float("inf"): "none (infinite)"}.get(value, str(value))
    if isinstance(value, str):
        return value if value else "''"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(written, value))}]"
    try:
        fields = dict(value) if isinstance(value, dict) else vars(value)
    except TypeError:
        return str(value)
    if "class_path" in fields:
        name = fields["class_path"].rpartition(".")[2]
        inner = fields.get("init_args") or {}
        inner = inner if isinstance(inner, dict) else vars(inner)
        return name if not inner else f"{name}({', '.join(f'{k}={written(v)}' for k, v in inner.items())})"
    return f"{{{', '.join(f'{k}: {written(v)}' for k, v in fields.items())}}}"


def table(found: Iterable[Option], roles: dict[str, str] | None = None) -> str:
    """A table of options."""
    rows = []
    for option in found:
        row = [f"``{option.key}``", option.kind, f"``{option.default}``", option.text]
        if roles is not None:
            row.append(roles.get(option.key.rpartition(".")[2], ""))
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


def keys(*paths: str) -> str:
    """Tables of the options of some classes, each under its name; ``base`` options come once."""
    parts = []
    for path in paths:
        kind = named(path)
        parts.append(title(f"``{kind.__name__}``", "~"))
        parts.append(f"{first_sentence(kind)} See :soft:`{path}`.\n")
        found = options(kind)
        if kind.__module__.startswith("bhfl.data") and path not in ("bhfl.data.FromDatasets",):
            found = [one for one in found if one.key not in shared_by_data()]
        parts.append(table(found) if found else "It has no options of its own.\n")
    return "\n".join(parts)


def shared_by_data() -> list[str]:
    """Options that every data module has."""
    from bhfl.data import Digits

    return [one.key for one in options(Digits)]


def data_keys() -> str:
    """The table of the options that every data module has."""
    from bhfl.data import Digits

    return table(options(Digits, "data."))


def algorithm_keys() -> str:
    """The options of every algorithm."""
    import bhfl.algorithms

    return keys(*(f"bhfl.algorithms.{name}" for name in bhfl.algorithms.__all__))


def of(path: str, prefix: str = "") -> str:
    """The table of one class's options."""
    return table(options(named(path), prefix))


def spec_keys() -> str:
    """The fields of a `BitSpec`."""
    from bhfl.quant import BitSpec

    return table(options(BitSpec))


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
        numbers = [f"{one.latency_seconds:g}", f"{one.compute_flops:g}", f"{one.spread:g}", f"{one.jitter:g}"]
        rows.append((f"``{name}``", *rates, *numbers))
    header = ("Profile", "up, Mbit/s", "down, Mbit/s", "latency, s", "FLOP/s", "spread", "jitter")
    return cells(rows, header, "20 14 14 14 14 12 12")


# ---- the command line ----------------------------------------------------------------------------


def help_of(command: str) -> str:
    """What ``bhfl COMMAND --help`` prints, 100 columns wide; that of ``bhfl`` for ``bhfl``."""
    from bhfl.main import main

    output = io.StringIO()
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "100"
    try:
        with contextlib.redirect_stdout(output), contextlib.suppress(SystemExit):
            main(["--help"] if command == "bhfl" else [command, "--help"])
    finally:
        del os.environ["COLUMNS"]
        if before is not None:
            os.environ["COLUMNS"] = before
    return output.getvalue().rstrip()


def own_help(command: str) -> str:
    """The help of a command, without what it shares with ``fit``."""
    lines = help_of(command).splitlines()
    if command in ("validate", "test", "analyze", "export"):
        shared = set(help_of("fit").splitlines())
        start = max(i for i, line in enumerate(lines) if "--ckpt_path" in line)
        head = [line for line in lines[: lines.index("options:")] if line not in shared or not line]
        lines = [*head, "options, besides those of bhfl fit:", *lines[start:]]
    text = "\n".join(lines)
    return re.sub(r"\n{3,}", "\n\n", text)


def commands() -> str:
    """Every command, with its help."""
    parts = []
    for command in ("bhfl", *COMMANDS):
        name = "bhfl" if command == "bhfl" else f"bhfl {command}"
        parts.append(title(f"``{name}``", "-"))
        parts.append(".. code-block:: text\n\n" + textwrap.indent(own_help(command), "   ") + "\n")
    return "\n".join(parts)


def shipped() -> Iterator[str]:
    """The configurations that are shipped, by path."""
    root = Path(__file__).parents[2]
    for path in sorted((root / "configs").rglob("*.yaml")):
        yield str(path.relative_to(root))
