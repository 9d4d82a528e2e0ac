"""What a client on its own machine keeps between rounds: every version that its server may still go
back to, and the messages that closed their rounds.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bhfl.engine.client.store import ClientStore
from bhfl.files import durable, write_json
from bhfl.plain import read_json

Closed = Callable[[dict[str, Any], bytes, int], dict[str, Any]]
"""What a state becomes by the message that closed its round."""


class KeptState(ClientStore):
    """State of one client, by rounds.

    A round is kept before its reply is sent, as nobody knows what the server will make of it: the
    next task says which version the server took last. What comes after that version is dropped
    then. A closing message is kept beside the version that it closes, and changes it when it is
    loaded: so nothing that is on disk is ever written over, and to be told twice does no harm.

    Args:
        folder: The folder of the run on this machine, which is made.
        client: The client's id.
    """

    def __init__(self, folder: Path, client: int) -> None:
        super().__init__(folder / "clients")
        folder.mkdir(parents=True, exist_ok=True)
        self.client = client
        self.closed: Closed = lambda state, closing, round: state
        """What applies a closing message; whoever trains the client says it."""
        self._table = folder / "versions.json"
        self.versions: dict[int, str] = {}
        """The digest of each version; empty of a round in which nothing was kept."""
        if self._table.exists():
            found = read_json(self._table.read_bytes())
            self.versions = {int(round): str(sha256) for round, sha256 in found.items()}
        self._know_versions()

    def stand_at(self, version: int, rounds: Sequence[int], closing: bytes | None) -> None:
        """Go on from the version that the server took last.

        Args:
            version: That version; 0 where it never took any.
            rounds: The rounds that the server may go back to.
            closing: The message that closed the round, if there is one.
        """
        self.drop_all()
        self.rewind(version)
        asked = {version, *(self._newest(round) for round in rounds)}
        kept = {one: sha256 for one, sha256 in self.versions.items() if one in asked}
        if kept != self.versions:
            self.versions = kept
            self._note()
            for path in self.folder.parent.glob("closing-*.bin"):
                if int(path.stem.rpartition("-")[2]) not in kept:
                    path.unlink()
            for one, path in self._versions(str(self.client)):
                if one not in kept:
                    path.unlink()
        if closing is not None and not self._closing(version).exists():
            with durable(self._closing(version)) as file:
                file.write(closing)

    def keep(self, version: int) -> None:
        """Take down that a round has come to something, whatever was kept of it."""
        self.versions[version] = self.known.get(self.client, {}).get(version, "")
        self._note()

    def has(self, version: int) -> bool:
        """Whether what the client came to in a round is still here; nothing is missed at first."""
        return version == 0 or version in self.versions

    def load(self, client: int, round: int) -> dict[str, Any] | None:
        """What the client kept, as the message left it that closed its round; None where that is
        lost, whatever is left of rounds before: others have had what is in it by now.
        """
        if not self.has(round):
            return None
        kept = super().load(client, round)
        path = self._closing(round)
        return self.closed(kept or {}, path.read_bytes(), round) if path.exists() else kept

    def _newest(self, round: int) -> int:
        return max((one for one in self.versions if one <= round), default=0)

    def _closing(self, version: int) -> Path:
        return self.folder.parent / f"closing-{version:05d}.bin"

    def _note(self) -> None:
        write_json(self._table, {str(round): sha256 for round, sha256 in self.versions.items()})
        self._know_versions()

    def _know_versions(self) -> None:
        self.known = {self.client: {one: sha for one, sha in self.versions.items() if sha}}
