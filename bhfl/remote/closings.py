"""Messages that closed rounds, kept until every client that is to hear of one has it."""

from collections.abc import Callable
from pathlib import Path

from bhfl.files import durable


class Closings:
    """Closing messages by round, in files: the server may be killed before a client heard one.

    Args:
        folder: Where they lie, which is made with the first.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(self, round: int, message: bytes | None) -> None:
        """Keep the message that closed a round, if there is one."""
        path = self._path(round)
        if message is None:
            # of a run that was killed in this very round and went on from the one before
            path.unlink(missing_ok=True)
            return
        self.folder.mkdir(exist_ok=True)
        with durable(path) as file:
            file.write(message)

    def of(self, round: int) -> bytes | None:
        """The message that closed a round; None where none did."""
        path = self._path(round)
        return path.read_bytes() if path.exists() else None

    def prune(self, asked: Callable[[int], bool]) -> None:
        """Drop the messages of rounds that nobody asks for any more."""
        for path in self.folder.glob("round=*.bin"):
            if not asked(int(path.stem.removeprefix("round="))):
                path.unlink()

    def _path(self, round: int) -> Path:
        return self.folder / f"round={round:05d}.bin"
