"""What stateful clients keep between rounds: on disk, one file a client and version, never all in
memory.

Which versions there are, and their digests, is known apart from the files and kept in the run's
checkpoints: a file that is gone, or is another one, is missed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
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
        table: What a checkpoint lists of it, see `table`.
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

    def _versions(self, client: str = "*", shard: str = "*") -> Iterator[tuple[int, Path]]:
        """The files of one client or all, each with its round."""
        for path in self.folder.glob(f"{shard}/client={client}-round=*.pt"):
            if match := _FILE.fullmatch(path.name):
                yield int(match[1]), path

    def _path(self, client: int, round: int) -> Path:
        return self.folder / _shard(client) / f"client={client}-round={round:05d}.pt"

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
        # first: what cannot be stored leaves an earlier state as it was
        for name, value in state.items():
            check_storable(value, name)
        self.drop(client)
        # beside its place, where settling is a rename, which is whole or not at all
        pending = Pending(round, temporary_beside(path), digest(state) if final else "")
        self._pending[client] = pending
        # "x" follows no link that somebody put there
        with naming(path), open(pending.path, "xb") as file:
            checkpoint.write(file, state, pending.sha256)

    def pending(self, client: int) -> dict[str, Any] | None:
        """What was put and has no verdict yet; its tensors are read when they are used."""
        pending = self._pending.get(client)
        return checkpoint.read(pending.path)["state"] if pending else None

    def commit(self, client: int) -> None:
        """Keep what was put, if anything was."""
        if (pending := self._pending.get(client)) is None:
            return
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
        # other processes learn of it after the round, and may train this client next
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
        # a shard that is not there is passed over at once: to search all of them takes long
        versions = dict(self._versions(str(client), _shard(client)))
        asked = set()
        for round in rounds:
            asked.add(max((one for one in versions if one <= round), default=0))
        for version, path in versions.items():
            # a later version belongs to a round whose checkpoint is still to be written
            if version not in asked and version < max(rounds):
                path.unlink()
                self.known.get(client, {}).pop(version, None)

    def rewind(self, round: int) -> None:
        """Drop versions written after `round` by a run that was killed before its checkpoint."""
        for version, path in self._versions():
            if version > round:
                path.unlink()
        for client, versions in self.known.items():
            self.known[client] = {one: sha for one, sha in versions.items() if one <= round}

    # ---- what a checkpoint needs -----------------------------------------------------------------

    def table(self) -> dict[str, Tensor]:
        """The newest version of each client and its digest: `ids` and `rounds`, int64, and
        `sha256`, uint8 n x 32.
        """
        # by id, whatever process trained whom: checkpoints are equal on any number of them
        newest = {client: max(rounds) for client, rounds in sorted(self.known.items()) if rounds}
        digests = [bytes.fromhex(self.known[client][round]) for client, round in newest.items()]
        sha256 = np.frombuffer(b"".join(digests), np.uint8).reshape(-1, DIGEST_BYTES)
        return {
            "ids": torch.tensor(list(newest), dtype=torch.int64),
            "rounds": torch.tensor(list(newest.values()), dtype=torch.int64),
            "sha256": torch.tensor(sha256),
        }

    def check(self) -> None:
        """Make sure that all that the checkpoint lists is there; contents are compared when they
        are used.

        Raises:
            CheckpointError: A file is gone or another one, naming it.
        """
        for client, versions in self.known.items():
            for round, sha256 in versions.items():
                checkpoint.read(self._found(client, round), sha256)

    def _found(self, client: int, round: int) -> Path:
        path = self._path(client, round)
        if not path.is_file():
            raise CheckpointError(
                "clients of this run keep state of their own, which the checkpoint lacks: there "
                f"is no {path}"
            )
        return path


def _shard(client: int) -> str:
    return f"{client // 100:04d}"


def client_store(folder: Path | None, state: Mapping[str, Any]) -> ClientStore:
    """What the clients of a checkpoint's run keep, which must be there.

    Args:
        folder: The run folder, None for a checkpoint file outside any.
        state: What the checkpoint holds.

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
