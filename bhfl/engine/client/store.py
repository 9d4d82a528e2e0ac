"""What stateful clients keep between rounds: on disk, one file a client and version, never all in
memory, and a second one for what several clients keep alike.

Which versions there are, and their digests, is known apart from the files and kept in the run's
checkpoints: a file that is gone, or is another one, is missed.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from bhfl.engine import checkpoint
from bhfl.engine.checkpoint import CheckpointError, check_storable, digest
from bhfl.engine.client.common import COMMON, Common
from bhfl.engine.client.pending import Loaded, Pending
from bhfl.engine.contents import DIGEST_BYTES, check_kept
from bhfl.engine.folder import CLIENTS
from bhfl.files import naming, settle_all, temporary_beside

_Stamp = tuple[int, int, int, int]
_FILE = re.compile(r"client=\d+-round=(\d+)(-common)?\.pt")


class ClientStore:
    """State by (client, round). A version is never overwritten, so a resumed run finds what its
    round had.

    What a client comes to in a round is `put` first, where nothing loads it and no kill leaves it
    behind for long. The round's verdict then lets it `commit`, durably, or `drop`.

    Args:
        folder: Made when the first state is written. Processes on several machines must share it.
        table: What a checkpoint lists of it, see `table`.
    """

    place = CLIENTS
    """Where it lies in a run folder."""
    lacks = "clients of this run keep state of their own, which the checkpoint lacks"
    """What is wrong where a file is gone."""

    def __init__(self, folder: Path, table: Mapping[str, Tensor] | None = None) -> None:
        self.folder = folder
        self.known: dict[int, dict[int, str]] = {}
        """Client to round to digest, of all versions that a round or a later one may ask for."""
        self._new: list[tuple[int, int, str]] = []
        self._pending: dict[int, Pending] = {}
        self._common = Common()
        self._loaded: Loaded | None = None
        self._written: dict[int, tuple[Path, _Stamp]] = {}
        """The last file of each client that this process has written, as it was left."""
        if table is not None:
            rows = zip(
                table["ids"].tolist(),
                table["rounds"].tolist(),
                table["sha256"].numpy(),
                strict=True,
            )
            self.known = {client: {round: row.tobytes().hex()} for client, round, row in rows}

    @classmethod
    def listed(cls, run: Path | None, table: Mapping[str, Tensor]) -> Self:
        """What a checkpoint lists, all of which must be there.

        Args:
            run: The run folder, None for a checkpoint file outside any.
            table: What the checkpoint lists, see `table`.

        Raises:
            CheckpointError: Some of it is not, naming the file.
        """
        if run is None and len(table["ids"]):
            raise CheckpointError(f"{cls.lacks}: the file lies in no run folder")
        store = cls((run or Path()) / cls.place, table)
        store.check()
        return store

    def _versions(self, client: str = "*", shard: str = "*") -> Iterator[tuple[int, Path]]:
        """The files of one client or all, each with its round."""
        for path in self.folder.glob(f"{shard}/client={client}-round=*.pt"):
            if match := _FILE.fullmatch(path.name):
                yield int(match[1]), path

    def _path(self, client: int, round: int) -> Path:
        return self.folder / _shard(client) / f"client={client}-round={round:05d}.pt"

    def load(self, client: int, round: int) -> dict[str, Any] | None:
        """The newest state saved at or before `round` rounds; None where the client has none yet.

        What it has in common with others is not to be changed in place: they are given it too.

        Raises:
            CheckpointError: A file of it is gone, damaged or another one, naming it.
        """
        versions = [version for version in self.known.get(client, ()) if version <= round]
        if not versions:
            return None
        newest = max(versions)
        path = self._found(self._path(client, newest))
        untouched = self._written.get(client) == (path, _stamp(path))
        state = checkpoint.load(path, self.known[client][newest], known=untouched)
        check_kept(state, path)
        self._loaded = Loaded.of(client, path, state)
        if COMMON in state:
            state[COMMON] = self._common.load(self._found(_common(path)), state[COMMON])
        return state

    def put(self, client: int, round: int, state: dict[str, Any], *, final: bool = True) -> None:
        """Hold `state` as of `round` finished rounds until the round's verdict, in place of what
        was held of the client.

        Args:
            client: Its id.
            round: Rounds finished with this one.
            state: What it is to keep: mappings by name, of which that under `COMMON` holds tensors
                that other clients keep too.
            final: Whether the verdict comes without a message that changes it.
        """
        path = self._path(client, round)
        # but not the run folder: one that has vanished is an error
        for folder in (self.folder, path.parent):
            folder.mkdir(exist_ok=True)
        # first: what cannot be stored leaves an earlier state as it was
        for name, value in state.items():
            check_storable(value, name)
        own = {**state}
        files: dict[Path, Path] = {}
        if common := own.pop(COMMON, None):
            own[COMMON] = self._common.digest(common)
            # beside its place, where settling is a rename, which is whole or not at all
            files[temporary_beside(_common(path))] = _common(path)
        files[temporary_beside(path)] = path
        written, before = (own, None) if final else self._anew(client, own)
        self._loaded = None
        names = {part: list(values) for part, values in own.items() if part != COMMON}
        last = self._pending.get(client)
        pending = Pending(round, digest(own) if final else "", files, names, before)
        self._pending[client] = pending
        try:
            with naming(path), checkpoint.without_crc():
                self._write(pending, written)
        finally:
            # not earlier: what is written may come from there
            _remove(last)

    def _write(self, pending: Pending, own: dict[str, Any]) -> None:
        if COMMON in own:
            self._common.write(next(iter(pending.files)), own[COMMON])
        # "x" follows no link that somebody put there
        with open(pending.path, "xb") as file:
            checkpoint.write(file, own, pending.sha256)

    def _anew(self, client: int, own: dict[str, Any]) -> tuple[dict[str, Any], Path | None]:
        """What of a state its last file does not hold, and that file where it is needed."""
        loaded = self._loaded
        if loaded is None or loaded.client != client:
            return own, None
        anew = {
            part: values if part == COMMON else loaded.without(part, values)
            for part, values in own.items()
        }
        return anew, loaded.path

    def pending(self, client: int) -> dict[str, Any] | None:
        """What was put and has no verdict yet; its tensors are read when they are used."""
        if (pending := self._pending.get(client)) is None:
            return None
        anew = checkpoint.read(pending.path)["state"]
        # what was loaded from it in this round has its digest
        before = checkpoint.read(pending.before)["state"] if pending.before else {}
        state: dict[str, Any] = {}
        for part, names in pending.names.items():
            values = {**before.get(part, {}), **anew[part]}
            state[part] = {name: values[name] for name in names}
        if COMMON in anew:
            state[COMMON] = self._common.load(next(iter(pending.files)), anew[COMMON])
        return state

    def commit(self, clients: Iterable[int]) -> None:
        """Keep what each of these clients put, if anything was. All files wait for the disk
        together, which takes far less long than one after the other.
        """
        pending: dict[int, Pending] = {}
        for client in clients:
            if (one := self._pending.get(client)) and not one.sha256:
                # no message came that was to change it
                self.put(client, one.round, self.pending(client) or {})
            if client in self._pending:
                pending[client] = self._pending[client]
        files: dict[Path, Path] = {}
        for one in pending.values():
            files |= one.files
        settle_all(files)
        for client, one in pending.items():
            del self._pending[client]
            for old, new in one.files.items():
                self._common.moved(old, new)
            # other processes learn of it after the round, and may train this client next
            self._new.append((client, one.round, one.sha256))
            self.known.setdefault(client, {})[one.round] = one.sha256
            own = one.files[one.path]
            self._written[client] = own, _stamp(own)

    def drop(self, client: int) -> None:
        """Forget what was put, if anything was: its round came to nothing."""
        _remove(self._pending.pop(client, None))

    def drop_all(self) -> None:
        """Forget all that has no verdict."""
        for client in list(self._pending):
            self.drop(client)

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
        versions = list(self._versions(str(client), _shard(client)))
        asked = set()
        for round in rounds:
            asked.add(max((one for one, _ in versions if one <= round), default=0))
        for version, path in versions:
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
                path = self._found(self._path(client, round))
                state = checkpoint.read(path, sha256)["state"]
                check_kept(state, path)
                if COMMON in state:
                    checkpoint.read(self._found(_common(path)), state[COMMON])

    def _found(self, path: Path) -> Path:
        if not path.is_file():
            raise CheckpointError(f"{self.lacks}: there is no {path}")
        return path


def _stamp(path: Path) -> _Stamp:
    """What changes where anybody writes to a file, or puts another one in its place."""
    found = path.stat()
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _remove(pending: Pending | None) -> None:
    for path in pending.files if pending else ():
        path.unlink(missing_ok=True)


def _common(path: Path) -> Path:
    """The file of what a version has in common with others, beside that of its own."""
    return path.with_name(f"{path.stem}-common.pt")


def _shard(client: int) -> str:
    return f"{client // 100:04d}"
