"""What stateful clients keep between rounds: on disk, one file a client and version, never all in
memory.

Which versions there are, and their digests, is known apart from the files and kept in the run's
checkpoints: a file that is gone, or is another one, is missed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bhfl.engine import checkpoint
from bhfl.engine.checkpoint import CheckpointError, check_storable, digest
from bhfl.engine.contents import DIGEST_BYTES, check_kept
from bhfl.engine.folder import CLIENTS
from bhfl.files import naming, settle, temporary_beside

_FILE = re.compile(r"client=\d+-round=(\d+)\.pt")


@dataclass(frozen=True)
class Pending:
    """What a client came to in a round that has no verdict yet."""

    round: int
    path: Path
    sha256: str
    """Its digest; empty where the verdict is to change it."""


class ClientStore:
    """State by (client, round). A version is never overwritten, so a resumed run finds what its
    round had.

    What a client comes to in a round is `put` first, where nothing loads it and no kill leaves it
    behind for long. The round's verdict then lets it `commit`, durably, or `drop`.

    Args:
        folder: Made when the first state is written. Processes on several machines must share it.
        table: Of a checkpoint, see `table`.
    """

    def __init__(self, folder: Path, table: Mapping[str, Tensor] | None = None) -> None:
        self.folder = folder
        self.known: dict[int, dict[int, str]] = {}
        """Client to round to digest, of all versions that a round or a later one may ask for."""
        self._new: list[tuple[int, int, str]] = []
        self._pending: dict[int, Pending] = {}
        if table is not None:
            rows = zip(
                table["ids"].tolist(),
                table["rounds"].tolist(),
                table["sha256"].numpy(),
                strict=True,
            )
            self.known = {client: {round: row.tobytes().hex()} for client, round, row in rows}

    def _versions(self, client: int) -> list[tuple[int, Path]]:
        if not (shard := self._shard(client)).is_dir():  # much faster than to search it
            return []
        found = (
            (_FILE.fullmatch(path.name), path) for path in shard.glob(f"client={client}-round=*.pt")
        )
        return sorted((int(match[1]), path) for match, path in found if match)

    def _shard(self, client: int) -> Path:
        return self.folder / f"{client // 100:04d}"

    def _path(self, client: int, round: int) -> Path:
        return self._shard(client) / f"client={client}-round={round:05d}.pt"

    def load(self, client: int, round: int) -> dict[str, Any] | None:
        """The newest state saved at or before `round` rounds; None where the client has none yet.

        Raises:
            CheckpointError: Its file is gone, damaged or another one, naming it.
        """
        versions = [version for version in self.known.get(client, ()) if version <= round]
        if not versions:
            return None
        newest = max(versions)
        path = self._found(client, newest)
        state = checkpoint.load(path, self.known[client][newest])
        check_kept(state, path)
        return state

    def save(self, client: int, round: int, state: dict[str, Any]) -> None:
        """Keep `state` as of `round` finished rounds."""
        self._know(client, round, checkpoint.save(self._made(client, round), state))

    def put(self, client: int, round: int, state: dict[str, Any], *, final: bool = True) -> None:
        """Hold `state` as of `round` finished rounds until the round's verdict.

        Args:
            client: Its id.
            round: Rounds finished with this one.
            state: What it is to keep.
            final: Whether the verdict comes without a message that changes it.
        """
        path = self._made(client, round)
        for name, value in state.items():
            check_storable(value, name)
        self.drop(client)
        pending = Pending(round, temporary_beside(path), digest(state) if final else "")
        self._pending[client] = pending
        with naming(path), open(pending.path, "xb") as file:
            checkpoint.write(file, state, pending.sha256)

    def pending(self, client: int) -> dict[str, Any] | None:
        """What was put and has no verdict yet; its tensors are read when they are used."""
        if client not in self._pending:
            return None
        state: dict[str, Any] = checkpoint.read(self._pending[client].path)["state"]
        return state

    def commit(self, client: int) -> None:
        """Keep what was put, if anything was."""
        if client not in self._pending:
            return
        pending = self._pending[client]
        if pending.sha256:
            settle(pending.path, self._path(client, pending.round))
            self._know(client, pending.round, pending.sha256)
        else:
            self.save(client, pending.round, checkpoint.read(pending.path)["state"])
        self.drop(client)

    def drop(self, client: int) -> None:
        """Forget what was put, if anything was: its round came to nothing."""
        if pending := self._pending.pop(client, None):
            pending.path.unlink(missing_ok=True)

    def drop_all(self) -> None:
        """Forget all that has no verdict."""
        for client in list(self._pending):
            self.drop(client)

    def _made(self, client: int, round: int) -> Path:
        """The path of a version, whose folder is there."""
        path = self._path(client, round)
        # but not the run folder: one that has vanished is an error
        for folder in (self.folder, path.parent):
            folder.mkdir(exist_ok=True)
        return path

    def _know(self, client: int, round: int, sha256: str) -> None:
        self._new.append((client, round, sha256))
        self.known.setdefault(client, {})[round] = sha256

    def news(self) -> list[tuple[int, int, str]]:
        """The versions that were saved since this was asked last: client, round and digest."""
        news, self._new = self._new, []
        return news

    def learn(self, news: Sequence[tuple[int, int, str]]) -> None:
        """Know what all processes have saved, so that this one can train any client next."""
        for client, round, sha256 in news:
            self.known[client] = {round: sha256}

    def prune(self, client: int, rounds: Sequence[int]) -> None:
        """Drop the versions that neither the checkpoints of `rounds` nor later ones can ask for."""
        versions = self._versions(client)
        asked = {
            max((version for version, _ in versions if version <= round), default=0)
            for round in rounds
        }
        for version, path in versions:
            if version not in asked and version < max(rounds):
                path.unlink()
                self.known.get(client, {}).pop(version, None)

    def rewind(self, round: int) -> None:
        """Drop versions written after `round` by a run that was killed before its checkpoint."""
        for path in self.folder.glob("*/client=*-round=*.pt"):
            if (match := _FILE.fullmatch(path.name)) and int(match[1]) > round:
                path.unlink()
        for versions in self.known.values():
            for version in [version for version in versions if version > round]:
                del versions[version]

    # ---- what a checkpoint needs -----------------------------------------------------------------

    def table(self) -> dict[str, Tensor]:
        """The newest version of each client and its digest: `ids` and `rounds`, int64, and
        `sha256`, uint8 n x 32.
        """
        newest = {client: max(rounds) for client, rounds in sorted(self.known.items()) if rounds}
        digests = b"".join(
            bytes.fromhex(self.known[client][round]) for client, round in newest.items()
        )
        sha256 = (
            torch.frombuffer(bytearray(digests), dtype=torch.uint8)
            if digests
            else torch.zeros(0).byte()
        )
        return {
            "ids": torch.tensor(list(newest), dtype=torch.int64),
            "rounds": torch.tensor(list(newest.values()), dtype=torch.int64),
            "sha256": sha256.view(-1, DIGEST_BYTES),
        }

    def check(self) -> None:
        """Make sure that all that the checkpoint lists is there; contents are compared when they
        are used.

        Raises:
            CheckpointError: A file is gone or another one, naming it.
        """
        for client, versions in self.known.items():
            for round in versions:
                checkpoint.check_is(self._found(client, round), self.known[client][round])

    def _found(self, client: int, round: int) -> Path:
        path = self._path(client, round)
        if not path.is_file():
            raise CheckpointError(
                "clients of this run keep state of their own, which the checkpoint lacks: there "
                f"is no {path}"
            )
        return path


def client_store(folder: Path | None, state: Mapping[str, Any]) -> ClientStore:
    """What the clients of a checkpoint's run keep, which must be there.

    Args:
        folder: The run folder, None for a checkpoint file outside any.
        state: Of the checkpoint.

    Raises:
        CheckpointError: Some of it is not.
    """
    if folder is None and len(state["clients"]["ids"]):
        raise CheckpointError(
            "clients of this run keep state of their own, which the checkpoint lacks: the file "
            "lies in no run folder"
        )
    store = ClientStore((folder or Path()) / CLIENTS, state["clients"])
    store.check()
    return store
