"""Words for error messages: the nearest known name, and values cut to a readable length."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

LONGEST = 400
"""Characters of one problem at most."""


def suggestion(word: str, known: Iterable[str], others: bool = True) -> str:
    """``; did you mean 'x'?`` for the known name nearest to `word`, case aside.

    Args:
        word: What was written.
        known: What could have been meant.
        others: List all of `known` where none is near.

    >>> suggestion("fedproxx", ["FedAvg", "FedProx"])
    "; did you mean 'FedProx'?"
    >>> suggestion("zebra", ["FedAvg", "FedProx"])
    '; known: FedAvg, FedProx'
    """
    names = {name.lower(): name for name in sorted(known)}
    nearest = difflib.get_close_matches(word.lower(), names, n=1)
    if nearest:
        return f"; did you mean '{names[nearest[0]]}'?"
    return f"; known: {', '.join(names.values())}" if names and others else ""


def shown(value: object, longest: int = 60) -> str:
    """`value` as in a configuration, its middle left out where it is long."""
    text = (
        {None: "null", True: "true", False: "false"}[value]
        if isinstance(value, (bool, type(None)))
        else repr(value)
    )
    return text if len(text) <= longest else f"{text[: longest - 15]} ... {text[-10:]}"


def clipped(line: str) -> str:
    """`line` with at most `LONGEST` characters."""
    return line if len(line) <= LONGEST else line[: LONGEST - 4] + " ..."
