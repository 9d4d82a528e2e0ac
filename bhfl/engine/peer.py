"""Another process of a run, as it was last heard of."""

import signal
import socket
import time
from dataclasses import dataclass
from subprocess import Popen
from typing import Any

GRACE_SECONDS = 2.0
"""How long the main thread has to end by itself when another process has ended, and how long a
process may be silent beyond the time-out.
"""


@dataclass
class Peer:
    """Another process, as it was last heard of.

    Args:
        rank: Its rank.
        child: The process itself, where this one has started it.
    """

    rank: int
    child: Popen[bytes] | None = None
    place: str = ""
    doing: str = "starting"
    error: str = ""
    left: bool = False
    """It has finished what the processes do together."""
    heard: float | None = None
    gone: bool = False
    connection: socket.socket | None = None
    unread: bytes = b""

    def take(self, said: dict[str, Any]) -> None:
        """Take note of what it says."""
        self.heard = time.monotonic()
        # cut, because whoever finds the door may say anything, and it ends in a message
        self.place = f" ({str(said['place'])[:100]})"
        self.doing = str(said["doing"])[:200]
        self.error = str(said["error"])[:400]
        self.left = said["left"] is True

    def fault(self, silence_seconds: float) -> str:
        """What is wrong with it, as a sentence without its subject; empty if nothing is."""
        if self.error:
            return f"failed while {self.doing}: {self.error}"
        if self.left:
            return ""
        code = self.child.poll() if self.child else None
        if code is not None:
            how = f"has ended with exit code {code}"
            if code < 0:
                how = f"was ended by {signal.Signals(-code).name}"
            return f"{how} while {self.doing}"
        silent = 0.0 if self.heard is None else time.monotonic() - self.heard
        # a child's exit code tells more, and may come a little later than its connection ends
        if self.gone and not (self.child and silent < GRACE_SECONDS):
            return f"has ended without a word while {self.doing}"
        if silent > silence_seconds:
            return f"has not been heard of for {silent:.0f} s, since it was {self.doing}"
        return ""
