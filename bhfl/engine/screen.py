"""What a run shows on a terminal while it goes on: what is done, a bar of rounds and one of the
round's clients.
"""

import time
from collections.abc import Mapping
from contextlib import ExitStack
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from bhfl.engine.console import drawn
from bhfl.engine.ending import STANDING

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

_BAR = 40
"""Columns of a bar at most."""


class Screen:
    """The lines below all that is printed; green is the best round so far, red a client whose
    update does not count.

    Args:
        console: Where they are drawn.
    """

    def __init__(self, console: "Console") -> None:
        from rich.spinner import Spinner

        self.spinner = Spinner("dots", style="cyan")
        self.max_rounds = 0
        """The rounds in all; 0 while there is no bar."""
        self.first_round = 0
        """The rounds that were done before."""
        self.round = 0
        self.num_clients = 0
        """The clients of this process in the round that is trained."""
        self.done = 0
        self.lost = 0
        self.figures: Mapping[str, str] = {}
        self.best = False
        """Whether the last round is the best one."""
        self.begun = time.monotonic()
        self._open = ExitStack()
        self._open.enter_context(drawn(console, self.picture))

    def begin(self, round: int, max_rounds: int) -> None:
        """Show the bars, from a round that is done."""
        self.first_round = self.round = round
        self.max_rounds = max_rounds
        self.begun = time.monotonic()

    def count(self, counts: bool, num_clients: int) -> None:
        """Count a client that is done.

        Args:
            counts: Whether its update does.
            num_clients: The clients of this process in its round.
        """
        self.num_clients = num_clients
        self.done += 1
        self.lost += not counts

    def end_round(self, figures: Mapping[str, str], best: bool) -> None:
        """Show what a round came to, and begin the next.

        Args:
            figures: Texts by name.
            best: Whether it is the best round so far.
        """
        self.round += 1
        self.figures = figures
        self.best = best
        self.done = self.lost = 0

    def close(self) -> None:
        """Take the lines away."""
        self._open.close()

    # ---- drawing ---------------------------------------------------------------------------------

    def picture(self) -> "RenderableType":
        """The lines as they are now."""
        from rich.console import Group
        from rich.table import Table

        self.spinner.update(text=f"{STANDING.doing} ...")
        if not self.max_rounds:
            return self.spinner
        bars = Table.grid(padding=(0, 1))
        for justify in ("left", "left", "right", "left"):
            bars.add_column(justify=justify, no_wrap=True)
        bars.add_row("rounds", *_bar(self.round, self.max_rounds, "cyan"), self._left())
        lost = f"[red]{self.lost} without an update[/]" if self.lost else ""
        colour = "red" if self.lost else "cyan"
        bars.add_row("clients", *_bar(self.done, self.num_clients, colour), lost)
        return Group(bars, self._line(), self.spinner)

    def _left(self) -> str:
        """The time of the run, and what is left of it at the pace so far."""
        elapsed = time.monotonic() - self.begun
        done = self.round - self.first_round
        text = _clock(elapsed)
        if done:
            text += f", {_clock(elapsed / done * (self.max_rounds - self.round))} left"
        return f"[dim]{text}[/]"

    def _line(self) -> "RenderableType":
        """The figures of the last round."""
        from rich.text import Text

        line = Text()
        for name, text in self.figures.items():
            line.append(f"{name} ", style="dim")
            line.append(f"{text}  ", style="bold green" if self.best else "")
        if self.best:
            line.append("best so far", style="green")
        return line


def _bar(done: int, total: int, colour: str) -> tuple[Any, str]:
    """A bar, and its numbers."""
    from rich.progress_bar import ProgressBar

    bar = ProgressBar(total or 1, done, width=_BAR, complete_style=colour, finished_style=colour)
    return bar, f"{done}/{total}" if total else ""


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
