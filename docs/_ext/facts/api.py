"""The Python API: what each room calls public."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
import textwrap
from importlib import import_module
from pathlib import Path

from facts.markup import cells, first_sentence, named


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
    """Whether a name is documented here: what bhfl.engine calls public too is documented there."""
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
    """Some names in full that no room's table lists, but which public ones take or give."""
    parts = []
    for path in paths:
        module, _, name = path.rpartition(".")
        parts.append(f".. currentmodule:: {module}\n\n" + described(module, name))
    return "\n".join(parts)
