"""What options may be: checks of values, and words for messages.

A check is a function from a value to what is wrong with it, such as ``must be an integer from 1 to
9, got 0``, and to an empty text where nothing is: it stands where an option is declared. This
module needs the standard library alone.
"""

import difflib
import math
import re
import textwrap
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, TypeVar

T = TypeVar("T")
Check = Callable[[Any], str]
"""A function from a value to what is wrong with it, from "must" on; empty if nothing is."""

_LONGEST_PART = 255
_LONGEST_PATH = 3000
"""Bytes of a file's name and of a path, as Linux takes them, which leaves room for the files inside
of a run folder.
"""
LARGEST = 2**31
"""The largest count or size; a product of them may still be more than a machine has."""
LONGEST = 400
"""Characters of one problem at most."""
CONSOLE = 80
"""Columns of a report for people."""


def checked(key: str, value: T, check: Check) -> T:
    """The value of an option, as it is.

    Args:
        key: The name that messages call the option.
        value: Its value.
        check: What the value must be.

    Raises:
        ValueError: It is something else.

    >>> checked("threads", 3, count(1))
    3
    """
    if problem := check(value):
        raise ValueError(f"{key} {problem}")
    return value


def check_options(owner: str, options: object, checks: Mapping[str, Check]) -> None:
    """Check the attributes of a group of options; ValueError that names ``owner.key``."""
    for key, check in checks.items():
        checked(f"{owner}.{key}", getattr(options, key), check)


def refuse(problems: Iterable[str]) -> None:
    """Raise one ValueError with all problems that are not empty, one a line, if there are any."""
    if found := [problem for problem in problems if problem]:
        raise ValueError("\n".join(found))


# ---- checks --------------------------------------------------------------------------------------


def is_integer(value: object) -> bool:
    """Whether it is an integer; true and false are none."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: object) -> bool:
    """Whether it is an integer or a float, perhaps infinite or NaN; true and false are none."""
    return is_integer(value) or isinstance(value, float)


def are_all(values: object, test: Callable[[Any], bool]) -> bool:
    """Whether it is a collection, such as a list, all of whose values pass a test."""
    return isinstance(values, Collection) and all(map(test, values))


def _such(rule: str, test: Callable[[Any], bool]) -> Check:
    """The check of a value that passes `test`; `rule` says in words which do, after "must"."""
    return lambda value: "" if test(value) else _must(rule, value)


def count(low: int, high: int = LARGEST) -> Check:
    """The check of an integer from `low` to `high`, both included.

    >>> count(1, 9)(0)
    'must be an integer from 1 to 9, got 0'
    """
    rule = f"be an integer from {low} to {high:,}"
    return _such(rule, lambda value: is_integer(value) and low <= value <= high)


def within(interval: str) -> Check:
    """The check of a number in an interval such as ``(0, 1]``, which leaves out the end at a round
    bracket.

    >>> within("(0, 1]")(0)
    'must be in (0, 1], got 0'
    """
    low, high = map(float, interval[1:-1].split(","))
    ends = {low} if interval.startswith("[") else set()
    ends |= {high} if interval.endswith("]") else set()

    def test(value: Any) -> bool:
        return is_number(value) and (low < value < high or value in ends)

    return _such(f"be in {interval}", test)


def choice(*words: str) -> Check:
    """The check of one of some words; a number stands for the word that it prints as.

    >>> choice("max", "min")("maxi")
    "must be one of max, min, got 'maxi'; did you mean 'max'?"
    """

    def check(value: Any) -> str:
        if str(value) in words:
            return ""
        return _must(f"be one of {', '.join(words)}", value) + suggestion(str(value), words, False)

    return check


def or_none(check: Check) -> Check:
    """The check of an option that may be unset, and else is what `check` takes."""
    return lambda value: "" if value is None else check(value)


def options(cls: type, optional: bool = False) -> Check:
    """The check of a group of options, an object of `cls`.

    Args:
        cls: The class of the group.
        optional: Whether it may be None (null in a configuration), which leaves out the part that
            the options are for.

    >>> options(dict, optional=True)(False)
    'must be a dict or None (null), got False'
    """
    rule = f"be a {cls.__name__}" + " or None (null)" * optional
    return _such(rule, lambda value: isinstance(value, cls) or (optional and value is None))


_MOST = math.nextafter(math.inf, 0)
"""The largest float: an integer may be larger, which no float can be computed with."""
positive = _such("be positive and finite", lambda value: is_number(value) and 0 < value <= _MOST)
"""The check of a number that must be positive and finite."""
not_negative = _such(
    "be finite and at least 0", lambda value: is_number(value) and 0 <= value <= _MOST
)
"""The check of a number that must be finite, and not below zero."""


def bits_or(*words: str) -> Check:
    """The check of a width, or of one of some words."""

    def test(value: Any) -> bool:
        return value in words or (is_integer(value) and (value == 32 or 2 <= value <= 16))

    return _such("be " + ", ".join([*words, "2..16 or 32"]), test)


true_or_false = _such("be true or false", lambda value: isinstance(value, bool))
"""The check of a switch."""


auto_or_switch = _such(
    "be auto, true or false", lambda value: isinstance(value, bool) or value == "auto"
)
"""The check of a switch that may be left to ``auto``."""


def text(value: Any) -> str:
    """Problems of text that is to say something."""
    if not isinstance(value, str) or not value.strip():
        return f"must not be empty, got {value!r}"
    if not value.isprintable() and re.search("[\0\ud800-\udfff]", value):
        return f"must be text without NUL that UTF-8 can write, got {value!r}"
    return ""


def folder_name(value: Any) -> str:
    """Problems of the name of a folder inside another one, which may hold slashes."""
    if problem := text(value) or too_long(value):
        return problem
    if value.startswith("/") or ".." in value.split("/"):
        return f"must stay inside default_root_dir, got {value!r}"
    return ""


def too_long(value: str) -> str:
    """Problems of a path that a file system may not take."""
    size = len(value.encode())
    longest_part = max(map(len, value.encode().split(b"/")))
    if size <= _LONGEST_PATH and longest_part <= _LONGEST_PART:
        return ""
    longest = f"{_LONGEST_PATH} bytes, and {_LONGEST_PART} between two slashes"
    return f"must have at most {longest}, got {size} bytes that begin with {value[:20]!r}"


def _must(rule: str, value: object) -> str:
    return f"must {rule}, got {clipped(repr(value))}"


# ---- words ---------------------------------------------------------------------------------------


def nearest(word: str, known: Iterable[str], most: int = 1, cutoff: float = 0.6) -> list[str]:
    """The known names that are nearest to `word`, case aside, the nearest first.

    Args:
        word: What was written.
        known: What could have been meant.
        most: How many to name at most.
        cutoff: How like it they must be, from 0, all names, to 1, the very same.
    """
    names = {name.lower(): name for name in sorted(known)}
    found = difflib.get_close_matches(word.lower(), names, n=most, cutoff=cutoff)
    return [names[name] for name in found]


def suggestion(word: str, known: Iterable[str], others: bool = True, most: int = 1) -> str:
    """``; did you mean 'x'?`` for the known name nearest to `word`, case aside.

    Args:
        word: What was written.
        known: What could have been meant.
        others: List all of `known` where none is near.
        most: How many names to suggest at most.

    >>> suggestion("fedproxx", ["FedAvg", "FedProx"])
    "; did you mean 'FedProx'?"
    >>> suggestion("zebra", ["FedAvg", "FedProx"])
    '; known: FedAvg, FedProx'
    """
    names = sorted(known)
    if meant := nearest(word, names, most):
        return f"; did you mean {' or '.join(map(repr, meant))}?"
    return f"; known: {', '.join(names)}" if names and others else ""


def shown(value: object) -> str:
    """`value` as in a configuration, its middle left out where it is long."""
    text = repr(value)
    if isinstance(value, bool | None):
        text = {None: "null", True: "true", False: "false"}[value]
    return text if len(text) <= 60 else f"{text[:45]} ... {text[-10:]}"


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of cells as lines: the first column to the left, all others to the right.

    >>> aligned([["layer", "bits"], ["a", "8"]])
    ['layer  bits', 'a         8']
    """
    first, *others = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join([cell.ljust(first), *map(str.rjust, rest, others)]) for cell, *rest in rows]


def labelled(label: str, text: str) -> str:
    """A line of a report for people: a word and what it is about, folded to `CONSOLE` columns.

    >>> labelled("cpu", "2 threads")
    '  cpu           2 threads'
    """
    return textwrap.fill(
        text,
        CONSOLE,
        initial_indent=f"  {label:<13} ",
        subsequent_indent=" " * 16,
        # a command is to be copied whole
        break_on_hyphens=False,
        break_long_words=False,
    )


def clipped(line: str) -> str:
    """`line` with at most `LONGEST` characters."""
    return line if len(line) <= LONGEST else line[: LONGEST - 4] + " ..."


def printable(text: object) -> str:
    r"""A text on one line that no terminal takes for a command: what cannot be printed is spelled
    out.

    >>> printable("red \x1b[31m")
    'red \\x1b[31m'
    """
    text = str(text)
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def said(text: object) -> str:
    """What a client, or its code, says: on one line that is not long, as it stands in logs, and in
    the rows that go to all clients with each task.
    """
    return clipped(printable(str(text)[: LONGEST + 1]))


def spoken(error: BaseException) -> str:
    """What an error says, for errors of anybody's code: of some, even that raises."""
    try:
        return str(error)
    except Exception as another:
        return f"its own text cannot be told, as __str__ raises {type(another).__name__}"
