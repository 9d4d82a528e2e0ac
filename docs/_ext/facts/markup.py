"""Pieces of reStructuredText, and the objects that they are about."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable
from importlib import import_module
from typing import Any


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
    lines = [
        ".. list-table::",
        "   :header-rows: 1",
        f"   :widths: {widths}",
        "   :class: options",
        "",
    ]
    for row in [header, *rows]:
        for number, cell in enumerate(row):
            mark = "   * - " if number == 0 else "     - "
            lines.append(mark + " ".join(cell.split()))
    return "\n".join(lines) + "\n"


def title(text: str, line: str) -> str:
    """A heading."""
    return f"{text}\n{line * len(text)}\n"
