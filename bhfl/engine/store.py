"""What stateful clients keep between rounds: on disk, one file a client and version, never all in memory."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bhfl.engine import checkpoint


class ClientStore:
    """State by (client, round). A version is never overwritten, so a resumed run finds what its round had.

    Args:
        folder: Made when the first state is written. Processes on several machines must share it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def _versions(self, client: int) -> list[tuple[int, Path]]:
        if not (shard := self._shard(client)).is_dir():  # much faster than to search it
            return []
        found = shard.glob(f"client={client}-round=*.pt")
        return sorted((int(re.findall(r"\d+", path.name)[1]), path) for path in found)

    def _shard(self, client: int) -> Path:
        return self.folder / f"{client // 100:04d}"

    def _path(self, client: int, round: int) -> Path:
        return self._shard(client) / f"client={client}-round={round:05d}.pt"

    def load(self, client: int, round: int) -> dict[str, Any] | None:
        """The newest state saved at or before `round` rounds; None where the client has none yet."""
        versions = [path for version, path in self._versions(client) if version <= round]
        return checkpoint.load(versions[-1]) if versions else None

    def save(self, client: int, round: int, state: dict[str, Any]) -> None:
        """Keep `state` as of `round` finished rounds."""
        path = self._path(client, round)
        path.parent.mkdir(parents=True, exist_ok=True)
        checkpoint.save(path, state)

    def forget(self, client: int, round: int) -> None:
        """Drop the state of `round`: its round came to nothing."""
        self._path(client, round).unlink(missing_ok=True)

    def prune(self, client: int, rounds: Sequence[int]) -> None:
        """Drop the versions that neither the checkpoints of `rounds` nor later ones can ask for."""
        versions = self._versions(client)
        asked = {max((version for version, _ in versions if version <= round), default=0) for round in rounds}
        for version, path in versions:
            if version not in asked and version < max(rounds):
                path.unlink()

    def rewind(self, round: int) -> None:
        """Drop versions written after `round` by a run that was killed before its checkpoint."""
        for path in self.folder.glob("*/client=*-round=*.pt"):
            if int(re.findall(r"\d+", path.name)[1]) > round:
                path.unlink()
