"""How far a sweep is: a live table of its runs on a terminal, lines elsewhere, and the time that is
left.
"""

import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, NamedTuple

from bhfl.engine.console import drawn, terminal

if TYPE_CHECKING:
    from rich.console import RenderableType

SELDOM_SECONDS = 600.0
"""The time between two lines while no run ends."""
RUNNING = "running"
FAILED = "failed"
_COLOURS = {RUNNING: "cyan", FAILED: "red", "done": "green", "diverged": "yellow"}
"""The colours of states; all others are dim."""
_BAR = 30
_AROUND = 6
"""Lines of a terminal that the rows of the table leave to other things."""


class Shown(NamedTuple):
    """A run of the table."""

    name: str
    state: str
    rounds: int
    """Those that are finished."""
    size: int
    """Those that it is to have."""


class Display:
    """Shows the rounds of all runs together, and on a terminal each run.

    Args:
        total: The rounds of the whole sweep.
        done: The rounds that were finished before this sweep began.
    """

    def __init__(self, total: int, done: int) -> None:
        self.total = total
        self.before = done
        self.done = done
        self.begun = self.spoken = time.monotonic()
        self._runs: Sequence[Shown] = ()
        self._open = ExitStack()
        self._console = terminal()
        # in a log a table would be drawn over and over
        if self._console is not None:
            self._open.enter_context(drawn(self._console, self.picture))

    def tell(self, text: str) -> None:
        """Print a line, above the table if there is one."""
        print(text, flush=True)
        self.spoken = time.monotonic()

    def update(self, done: int, runs: Sequence[Shown] = ()) -> None:
        """Show how many rounds are finished, and how far each run is."""
        self.done = done
        self._runs = runs
        if self._console is None and time.monotonic() - self.spoken > SELDOM_SECONDS:
            self.tell(self.left())

    def left(self) -> str:
        """What is left, in rounds and, once rounds have been timed, in time."""
        remaining = self.total - self.done
        rounds = f"{remaining:,} of {self.total:,} rounds left"
        # the rounds of earlier sweeps say nothing of how fast this one is
        timed = self.done - self.before
        if timed <= 0:
            return rounds
        return f"{rounds}, about {_duration(remaining * (time.monotonic() - self.begun) / timed)}"

    def close(self) -> None:
        """Take the table away."""
        self._open.close()

    def picture(self) -> "RenderableType":
        """The table as it is now: as many runs as the terminal has room for, those at work
        first.
        """
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table

        height = self._console.height if self._console else len(self._runs) + _AROUND
        shown = sorted(self._runs, key=_urgency)[: max(1, height - _AROUND)]
        table = Table(box=None, padding=(0, 1), header_style="bold")
        for name in ("run", "state", "rounds", ""):
            table.add_column(name, no_wrap=True, justify="right" if not name else "left")
        for run in shown:
            colour = _COLOURS.get(run.state, "dim")
            bar = ProgressBar(
                run.size, run.rounds, width=_BAR, complete_style=colour, finished_style=colour
            )
            state = f"[{colour}]{run.state}[/]"
            table.add_row(run.name, state, bar, f"{run.rounds}/{run.size}")
        counts = Counter(run.state for run in self._runs)
        told = [f"{count} {state}" for state, count in counts.items()]
        return Group(table, f"[dim]{', '.join([*told, self.left()])}[/]")


def _urgency(run: Shown) -> int:
    """Runs at work come first, then those that failed, those that wait, and those that are over."""
    first = (RUNNING, FAILED)
    return first.index(run.state) if run.state in first else 2 + (run.rounds >= run.size)


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 3600 else f"{seconds / 3600:.1f} h"
