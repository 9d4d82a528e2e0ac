"""How far a sweep is: a bar on a terminal, lines elsewhere, and the time that is left."""

import sys
import time

from tqdm import tqdm

SELDOM_SECONDS = 600.0
"""The time between two lines while no run ends."""


class Display:
    """Shows the rounds of all runs together.

    Args:
        total: The rounds of the whole sweep.
        done: The rounds that were finished before this sweep began.
    """

    def __init__(self, total: int, done: int) -> None:
        self.total = total
        self.before = done
        self.done = done
        self.begun = self.spoken = time.monotonic()
        self.bar = None
        # in a log a bar would be one endless line
        if sys.stderr.isatty():
            self.bar = tqdm(total=total, initial=done, unit="round", dynamic_ncols=True)

    def tell(self, text: str) -> None:
        """Print a line, above the bar if there is one."""
        tqdm.write(text, file=sys.stdout)
        sys.stdout.flush()
        self.spoken = time.monotonic()

    def update(self, done: int) -> None:
        """Show how many rounds are finished."""
        self.done = done
        if self.bar is not None:
            self.bar.n = done
            self.bar.refresh()
        elif time.monotonic() - self.spoken > SELDOM_SECONDS:
            self.tell(self.left())

    def left(self) -> str:
        """What is left, in rounds and, once rounds have been timed, in time."""
        remaining = self.total - self.done
        rounds = f"{remaining:,} of {self.total:,} rounds left"
        # the rounds of earlier sweeps say nothing of how fast this one is
        timed = self.done - self.before
        if timed <= 0:
            return rounds
        seconds = remaining * (time.monotonic() - self.begun) / timed
        return f"{rounds}, about {_duration(seconds)}"

    def close(self) -> None:
        """End the bar, which stays on the terminal."""
        if self.bar is not None:
            self.bar.close()


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 3600 else f"{seconds / 3600:.1f} h"
