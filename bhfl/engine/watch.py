"""Processes that look after each other: one that dies or freezes ends the others, with one line
that names it.

Each process has a thread with a connection to that of rank 0, over which both say twice a second
what they are doing. The end of a connection is known at once, silence after a while, whatever the
main threads wait for meanwhile. Nothing but short lines of JSON goes over these connections.
"""

import json
import os
import selectors
import socket
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from subprocess import Popen
from typing import Any

from torch.distributed import DistError, TCPStore

from bhfl.engine.ending import (
    LOST,
    STANDING,
    LostProcessError,
    Terminated,
    end_now,
    speaks_of_others,
)
from bhfl.engine.peer import GRACE_SECONDS, Peer

BEAT_SECONDS = 0.5
_LONGEST = 1 << 14
"""Bytes of one line."""


class Watch:
    """This process among the others of its run.

    Args:
        rank: Its rank.
        num_processes: The number of processes of the run.
        address: Host and port at which rank 0 is found; from the moment they have met, torch's.
        timeout_seconds: How long a process may be silent, or late.
        children: Processes that this one has started: the ranks right after its own.
    """

    def __init__(
        self,
        rank: int,
        num_processes: int,
        address: tuple[str, int],
        timeout_seconds: float,
        children: Sequence[Popen[bytes]] = (),
    ) -> None:
        self.rank = rank
        self.num_processes = num_processes
        self.address = address
        self.timeout_seconds = timeout_seconds
        others = range(1, num_processes) if rank == 0 else [0]
        started = {rank + 1 + i: child for i, child in enumerate(children)}
        self.peers = {other: Peer(other, started.get(other)) for other in others}
        self.lost = ""
        """Who is lost, in words; empty while all are well."""
        self._lost_at = 0.0
        self._inside = True
        self._error = ""
        self._met = threading.Event()
        self._go = False
        self._store: TCPStore | None = None  # it lives as long as this
        self._speaking = threading.Lock()
        self._next_beat = 0.0
        self._selector = selectors.DefaultSelector()
        self._listener: socket.socket | None = None

    # ---- for the main thread ---------------------------------------------------------------------

    def meet(self) -> None:
        """Wait until all processes are there.

        Raises:
            LostProcessError: One does not come, or has ended.
            OSError: The address cannot be used.
        """
        STANDING.at("waiting for the other processes")
        STANDING.listeners.append(self._speak)
        os.register_at_fork(after_in_child=self._forget)
        deadline = time.monotonic() + self.timeout_seconds
        port = self._open_door() if self.rank == 0 else self._find_door(deadline)
        threading.Thread(target=self._run, args=(port,), daemon=True, name="watch").start()
        while not self._met.wait(0.1):
            self._check(deadline)
        if self.rank == 0:
            # now that nobody else listens there: torch's, which the others will look for
            if not _agent_has_the_port():
                self._store = self._torch_store(serves=True)
            self._go = True
            self._speak()

    def _check(self, deadline: float) -> None:
        if time.monotonic() > deadline and not self.lost:
            self._lose(self._missing())
        if self.lost:
            self._inside = False
            raise LostProcessError(self.lost)

    @contextmanager
    def together(self) -> Iterator[None]:
        """What is done in the block needs all processes.

        Raises:
            LostProcessError: Another one has ended, frozen or failed, as far as the main thread
                notices it.
        """
        self._inside = True
        self._error = ""
        try:
            yield
        except LostProcessError:
            raise
        except BaseException as error:
            if isinstance(error, RuntimeError) and _of_a_collective(error):
                self._explain(error)
                raise LostProcessError(self.lost) from error
            words = {Terminated: "it was terminated", KeyboardInterrupt: "it was interrupted"}
            first_line = (str(error).splitlines() or [""])[0]
            self._error = words.get(type(error), f"{type(error).__name__}: {first_line:.400}")
            raise
        finally:
            self._inside = False
            self._speak()

    def _explain(self, error: RuntimeError) -> None:
        """Find out which process is behind a collective of torch that failed."""
        deadline = time.monotonic() + GRACE_SECONDS
        while not self.lost and time.monotonic() < deadline:
            time.sleep(0.05)
        self._look(GRACE_SECONDS)
        if self.lost:
            return
        peers = list(self.peers.values())
        others = [peer for peer in peers if peer.doing != STANDING.doing] or peers
        who = "another process"
        was = ""
        if len(others) == 1:
            who = self._name(others[0])
            was = f", since it was {others[0].doing}"
        if "time" in str(error).lower():
            self._lose(f"{who} has not answered within {self.timeout_seconds:g} s{was}")
        else:
            told = str(error).splitlines()[0]
            self._lose(f"{who} cannot be reached while {STANDING.doing}: {told}")

    def _missing(self) -> str:
        where = f"{self.address[0]}:{self.address[1]} within {self.timeout_seconds:g} s"
        if self.rank and self.peers[0].heard is not None:
            door = self.peers[0]
            return f"not all processes have come to {where}: {self._name(door)} is {door.doing}"
        missing = [self._name(peer) for peer in self.peers.values() if peer.heard is None]
        return f"{' and '.join(missing)} did not come to {where}, where the processes meet"

    def _name(self, peer: Peer) -> str:
        return f"rank {peer.rank} of {self.num_processes}{peer.place}"

    # ---- the thread ------------------------------------------------------------------------------

    def _run(self, port: int) -> None:
        if self.rank:
            self._connect(port)
        while True:
            for key, _ in self._selector.select(BEAT_SECONDS):
                if key.fileobj is self._listener:
                    self._accept()
                else:
                    self._read(key.data)
            if time.monotonic() >= self._next_beat:
                self._next_beat = time.monotonic() + BEAT_SECONDS
                self._speak()
            self._judge()

    def _open_door(self) -> int:
        """The port at which the others find this process."""
        host, port = self.address
        here = host if host in ("localhost", "127.0.0.1", "::1") else ""
        try:
            self._listener = socket.create_server(
                (here, 0 if _agent_has_the_port() else port), backlog=self.num_processes
            )
        except OSError as error:
            raise OSError(
                f"processes cannot meet at {host}:{port}: {error}; set MASTER_PORT to a free port"
            ) from error
        self._listener.setblocking(False)
        self._selector.register(self._listener, selectors.EVENT_READ)
        found: int = self._listener.getsockname()[1]
        if _agent_has_the_port():
            self._store = self._torch_store(serves=False)
            self._store.set(_key(), str(found))
        return found

    def _find_door(self, deadline: float) -> int:
        if not _agent_has_the_port():
            return self.address[1]
        self._store = self._torch_store(serves=False)
        while not self._store.check([_key()]):
            self._check(deadline)
            time.sleep(0.1)
        return int(self._store.get(_key()))

    def _torch_store(self, serves: bool) -> TCPStore:
        wait = timedelta(seconds=self.timeout_seconds)
        # several tenants: torch's own store joins at this port when it connects the processes
        return TCPStore(
            *self.address, None, serves, wait, wait_for_workers=False, multi_tenant=True
        )

    def _connect(self, port: int) -> None:
        """Find rank 0, however long it takes: the main thread has a deadline."""
        while True:
            with suppress(OSError):
                found = socket.create_connection((self.address[0], port), timeout=1.0)
                found.setblocking(False)
                self._add(found, self.peers[0])
                return
            self._judge()
            time.sleep(0.1)

    def _accept(self) -> None:
        assert self._listener
        with suppress(OSError):
            stranger, _ = self._listener.accept()
            stranger.setblocking(False)
            self._add(stranger, Peer(-1))

    def _add(self, connection: socket.socket, peer: Peer) -> None:
        peer.connection = connection
        self._selector.register(connection, selectors.EVENT_READ, peer)
        self._next_beat = 0.0

    def _read(self, peer: Peer) -> None:
        assert peer.connection
        try:
            data = peer.connection.recv(_LONGEST)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        *lines, peer.unread = (peer.unread + data).split(b"\n")
        try:
            for line in lines:
                self._hear(peer, json.loads(line))
        except (ValueError, KeyError, TypeError):  # nothing of ours
            data = b""
        if not data or len(peer.unread) > _LONGEST:
            peer.gone = True
            self._selector.unregister(peer.connection)
            peer.connection.close()
            peer.connection = None

    def _hear(self, peer: Peer, said: dict[str, Any]) -> None:
        if peer.rank < 0:  # somebody who has come to the door: is it one of us?
            known = self.peers[said["rank"]]
            if known.connection is None and said["of"] == self.num_processes:
                peer.rank, peer.child = known.rank, known.child
                self.peers[known.rank] = peer
        if peer.rank < 0 or said["rank"] != peer.rank:
            raise ValueError("not one of us")
        peer.take(said)
        if said["lost"] and not self.lost:
            self._lose(str(said["lost"])[:600])
        if said["go"] is True:
            self._met.set()
        if self._listener and all(peer.heard is not None for peer in self.peers.values()):
            self._selector.unregister(self._listener)
            self._listener.close()
            self._listener = None
            self._met.set()

    def _speak(self) -> None:
        words = {
            "rank": self.rank,
            "of": self.num_processes,
            "place": f"process {os.getpid()} on {socket.gethostname()}",
            "doing": STANDING.doing,
            "error": self._error,
            "left": not self._inside,
            "lost": self.lost,
            "go": self._go,
        }
        line = json.dumps(words).encode() + b"\n"
        # the main thread speaks too, and lines must not run into each other
        with self._speaking:
            for peer in list(self.peers.values()):
                if connection := peer.connection:
                    with suppress(OSError):  # who cannot be reached is noticed when reading
                        connection.send(line)

    def _judge(self) -> None:
        """End this process where another one is lost and the main thread has not noticed."""
        if self._inside:
            self._look(self.timeout_seconds + GRACE_SECONDS)
        if self._inside and self.lost and time.monotonic() > self._lost_at + GRACE_SECONDS:
            end_now(LOST, STANDING.last_line(self.lost, speaks_of_others()))

    def _look(self, silence_seconds: float) -> None:
        """See whether another process is lost, as one is that has said nothing for so long."""
        for peer in list(self.peers.values()):
            if not self.lost and (fault := peer.fault(silence_seconds)):
                self._lose(f"{self._name(peer)} {fault}")

    def _lose(self, line: str) -> None:
        self._lost_at, self.lost = time.monotonic(), line
        self._speak()

    def _forget(self) -> None:
        """Close the connections in a forked process, such as one of a DataLoader: they end with
        their owner.
        """
        STANDING.listeners.clear()
        for peer in self.peers.values():
            if peer.connection:
                peer.connection.close()


def _agent_has_the_port() -> bool:
    """Whether torchrun's agent serves a store at the address where rank 0 would else be found."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def _key() -> str:
    """Where the port of rank 0 stands in the agent's store, which outlives its processes."""
    return f"bhfl/watch/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"


def _of_a_collective(error: RuntimeError) -> bool:
    """Whether a collective of torch raised it, as when the other side of a connection has gone."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    module = str(frames[-1].f_globals.get("__name__", "")) if frames else ""
    return isinstance(error, DistError) or module.startswith("torch.distributed")
