"""A client's own process: it holds the model and the data, and answers what its server asks."""

import hashlib
import logging
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import torch

from bhfl.checks import spoken
from bhfl.comm import decode, float_tensors
from bhfl.engine.algorithm import Algorithm
from bhfl.engine.checkpoint import CheckpointError, digest
from bhfl.engine.client.common import COMMON
from bhfl.engine.client.local import LocalClients
from bhfl.engine.client.messages import split as split_common
from bhfl.engine.client.plain import PlainWorker
from bhfl.engine.environment import processor, versions
from bhfl.engine.exchange import Fault, Reply, Task, Verdict
from bhfl.engine.exits import no_exit_of_others
from bhfl.engine.fingerprint import BACKENDS
from bhfl.engine.own import KEPT, Own
from bhfl.engine.roster import Roster, behind
from bhfl.engine.types import FederatedData
from bhfl.remote.kept import KeptState
from bhfl.remote.messages import Facts, Hello, MessageError, Order, Refused, pack, split, unpack
from bhfl.settings import Role
from bhfl.told import Told

_log = logging.getLogger(__name__)

_TOLD = (MessageError, CheckpointError, ValueError, OSError, ImportError)
"""Errors whose message says what is wrong."""


class Opened(Protocol):
    """What a client works with in a run: a `bhfl.engine.session.Session`, or on a small device a
    `bhfl.engine.client.alone.Alone`.
    """

    @property
    def worker(self) -> PlainWorker:
        """The module, and what trains it."""

    fleet: Roster
    algorithm: Algorithm
    data: FederatedData
    own: Own

    def use_backends(self, told: Told) -> None:
        """Compute the layers by what the run was told."""


Open = Callable[[Hello, ExitStack], Opened]
"""Opens a run, which the stack closes."""


class Resident:
    """One client, from a message's bytes to its answer's bytes.

    The first message of a run opens a session, which lives until another run's comes. So it does
    not matter when this process was started, or started anew.

    Args:
        open: Opens the session of a run.
        folder: The client's own folder, where it keeps its state, by run.
        client: Its id; None for what the server knows by its key.
    """

    def __init__(self, open: Open, folder: Path, client: int | None) -> None:
        self._open = open
        self._folder = folder
        self._client = client
        self._stack = ExitStack()
        self._hello: Hello | None = None
        self._joined: _Joined | None = None

    def answer(self, data: bytes) -> bytes:
        """The answer to a message: what was asked for, or why it is refused."""
        try:
            with no_exit_of_others():
                return self._answer(data)
        # what cannot be done here is told there, in one sentence; the next message may be another
        except Exception as error:
            if not isinstance(error, _TOLD):
                # of somebody's own code, of which only a traceback says the place
                _log.exception("what the server asked for failed")
                # the next message opens another session, and closes this one
                self._joined = None
            return pack(Refused(reason=f"{type(error).__name__}: {spoken(error)}"))

    def _answer(self, data: bytes) -> bytes:
        parts = split(data)
        joined = self._join(unpack(parts[0] if parts else b"", Hello))
        if len(parts) == 1:
            return joined.facts
        if len(parts) != 3:
            raise MessageError("a task comes with what stands before it, and with nothing else")
        order, task = unpack(parts[1], Order), unpack(parts[2], Task)
        if order.facts not in ("", hashlib.sha256(joined.facts).hexdigest()):
            # by another version or with other data: its bits are not those that were agreed on
            return pack(
                Refused(reason="the client is not what it was when it joined", changed=True)
            )
        return joined.work(order, task)

    def close(self) -> None:
        """Close the session, if one is open."""
        self._hello = None
        self._joined = None
        self._stack.close()

    def _join(self, hello: Hello) -> "_Joined":
        if self._joined is not None and self._hello == hello:
            return self._joined
        self.close()
        client = self._id(hello)
        if not (len(hello.run) == 32 and hello.run.isalnum()):
            raise MessageError("the run's name must be 32 hexadecimal digits")
        session = self._open(replace(hello, client=client), self._stack)
        if client >= len(session.fleet):
            raise ValueError(f"client must be one of {len(session.fleet)}, got {client}")
        session.use_backends({Role.NUMERICS.value: {BACKENDS: hello.backends}})
        session.fleet.require(client)
        store = KeptState(self._folder / hello.run, client)
        self._hello = hello
        self._joined = _Joined(session, client, store)
        return self._joined

    def _id(self, hello: Hello) -> int:
        """The client's id, on which its configuration and its key must agree."""
        if self._client is not None and hello.client not in (None, self._client):
            raise ValueError(
                f"client is {self._client} in the configuration, and the key is that of client "
                f"{hello.client}"
            )
        client = hello.client if self._client is None else self._client
        if client is None or client < 0:
            raise ValueError("client is missing: the id of this client, from 0 on")
        return client


class _Joined:
    """A client in a session.

    Args:
        session: What it works with in its run.
        client: Its id.
        store: What it keeps.
    """

    def __init__(self, session: Opened, client: int, store: KeptState) -> None:
        self.session = session
        self.client = session.fleet[client]
        self.store = store
        self.clients = LocalClients(
            session.worker, session.algorithm, session.fleet, session.data, session.own, store
        )
        store.closed = self._closed
        self.facts = pack(self._facts())

    def _closed(self, kept: dict[str, Any], closing: bytes, round: int) -> dict[str, Any]:
        client = behind(self.session.fleet, round)[self.client.id]
        return self.clients.closed(client, kept, float_tensors(decode(closing)))

    def _facts(self) -> Facts:
        """Who this is, and what would make its bits differ from those of others."""
        return Facts(
            client=self.client.id,
            group=self.client.group,
            num_examples=self.client.num_examples,
            facts=facts_of(self.session),
        )

    def work(self, order: Order, task: Task) -> bytes:
        """Do what a task asks for."""
        if task.client != self.client.id:
            raise MessageError(f"this is client {self.client.id}, and not {task.client}")
        lost = not self.store.has(task.version)
        self.store.stand_at(task.version, order.rounds, order.closing)
        if task.stage != "train":
            if lost and self._measures_own(task):
                raise ValueError(self._lost(task))
            return pack(next(iter(self.clients.evaluate(iter([task])))))
        reply = next(iter(self.clients.train(iter([task]))))
        return pack(self._kept(reply, task, lost))

    def _kept(self, reply: Reply, task: Task, lost: bool) -> Reply:
        """Keep what the client came to until the server says what it makes of it."""
        algorithm = self.clients.algorithm
        told = f"{self._lost(task)}, and {type(algorithm).__name__} does not begin it anew"
        refused = Reply(client=reply.client, round=reply.round, fault=Fault("failed", told))
        carried = reply.fault is not None and reply.fault.carried
        if (reply.fault is not None and not carried) or reply.holds is False:
            # without what is lost, hooks may not get as far as to an update
            raised = reply.fault is not None and bool(reply.fault.traceback)
            return refused if lost and raised and not algorithm.begins_anew else reply
        version = task.round + 1
        if lost and (own := self._own(self.store.pending(self.client.id) or {})):
            if not algorithm.begins_anew and own != {"statistics"}:
                # it went on from nothing, which would be another algorithm
                self.store.drop_all()
                self.clients.close(version, {})
                return refused
            reply = replace(reply, anew=True)
        self.clients.close(version, {self.client.id: Verdict(keep=True)})
        self.store.keep(version)
        return reply

    def _own(self, kept: Mapping[str, Any]) -> set[str]:
        """What there is among all that a client keeps that is more than what it was sent; running
        statistics are told apart: some batches make them again.
        """
        parts = {**kept, COMMON: split_common(kept.get(COMMON, {}))[0]}
        found = {part for part, values in parts.items() if values}
        buffers = dict(self.session.worker.module.named_buffers())
        if KEPT in found and parts[KEPT].keys() <= buffers.keys():
            found = (found - {KEPT}) | {"statistics"}
        return found

    def _measures_own(self, task: Task) -> bool:
        """Whether a model that is measured has anything of the client's own in it."""
        sent = decode(task.downlink) if task.downlink else {}
        own = self.session.own.missing(float_tensors(sent))
        return bool(own) or self.clients.algorithm.own_model

    def _lost(self, task: Task) -> str:
        return f"what client {task.client} kept of round {task.version} is lost on its machine"


def facts_of(session: Opened) -> dict[str, Any]:
    """What equal bits need to be equal on both sides, by name."""
    found = processor()
    return {
        **versions(),
        "cpu capability": found["capability"],
        "cpu instructions": str(found["instructions"]),
        "threads": torch.get_num_threads(),
        "first weights": digest(session.own.first),
    }
