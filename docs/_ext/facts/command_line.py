"""The help of the command line."""

from __future__ import annotations

import contextlib
import io
import os
import re
import textwrap

from bhfl.main import COMMANDS, main
from facts.markup import title


def help_of(command: str) -> str:
    """What ``bhfl COMMAND --help`` prints, 100 columns wide; that of ``bhfl`` for ``bhfl``."""
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
    if command in ("validate", "test", "predict", "partition", "analyze", "profile", "export"):
        shared = set(help_of("fit").splitlines())
        own = "--ckpt_path" if "--ckpt_path" in "\n".join(lines) else "--out"
        start = max(i for i, line in enumerate(lines) if own in line)
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
