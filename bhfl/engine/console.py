"""The terminal that a user watches, where standard error is one: rich judges that, and draws there.

rich is imported when it is first needed: a command that only prints does not wait for it.
"""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING

from bhfl.engine.ending import STANDING, speaks

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

REFRESHES = 5
"""Drawings a second."""
_ERASE = b"\r\x1b[J\x1b[?25h"
"""What clears the line of the cursor and all below it, and shows the cursor again."""


def terminal() -> "Console | None":
    """The terminal on standard error; None where that is a file, a pipe or a terminal without a
    cursor, and in a process that does not speak to the user.
    """
    console = _console()
    # where FORCE_COLOR asks for colours in a file too, rich takes that file for a terminal
    return console if console is not None and console.file.isatty() else None


def _console() -> "Console | None":
    """Standard error where it has a cursor or, by FORCE_COLOR, colours; None where it has not."""
    if not speaks():
        return None
    from rich.console import Console

    console = Console(stderr=True, highlight=False)
    return console if console.is_interactive else None


@contextmanager
def drawn(console: "Console", picture: "Callable[[], RenderableType]") -> Iterator[None]:
    """Keep a picture below all that is printed, drawn again and again; it goes when the block ends.

    Args:
        console: Where it is drawn.
        picture: Gives it as it is now.
    """
    from rich.live import Live

    _forget_in_forks()
    live = Live(
        console=console,
        get_renderable=picture,
        refresh_per_second=REFRESHES,
        transient=True,
        # what is printed goes to a file as ever, and else above the picture
        redirect_stdout=sys.stdout.isatty(),
    )
    STANDING.erase = _ERASE
    try:
        with live:
            yield
    finally:
        STANDING.erase = b""


@contextmanager
def told(text: str) -> Iterator[None]:
    """Say on the terminal, if there is one, what the block does while it does it."""
    console = terminal()
    if console is None:
        yield
        return
    from rich.spinner import Spinner

    spinner = Spinner("dots", f"{text} ...")
    with drawn(console, lambda: spinner):
        yield


def yellow(text: str) -> str:
    """Lines in yellow where standard error is a terminal that has it, or FORCE_COLOR wants it."""
    console = _console()
    if console is None:
        return text
    with console.capture() as captured:
        console.print(text, style="yellow", markup=False, soft_wrap=True, end="")
    return captured.get()


@cache
def _forget_in_forks() -> None:
    """Let forked processes, such as those of a DataLoader, write past the picture: the thread that
    draws it, which may have held its lock, is not among them.
    """

    def forget() -> None:
        for name in ("stdout", "stderr"):
            stream = getattr(sys, name)
            setattr(sys, name, getattr(stream, "rich_proxied_file", stream))

    os.register_at_fork(after_in_child=forget)
