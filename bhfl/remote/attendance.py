"""Who of a fleet is there: nodes that come are greeted, and let in if they are what they say."""

import hashlib
import logging
import time
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from bhfl.checks import checked, count, or_none, said, within
from bhfl.engine.ending import STANDING
from bhfl.engine.environment import NEEDED, PACKAGES
from bhfl.engine.session import Session
from bhfl.remote.messages import MAX_TOLD, Facts, Hello, MessageError, Refused, join, pack, unpack
from bhfl.remote.relay import Answer
from bhfl.remote.resident import facts_of

_log = logging.getLogger(__name__)

FIRST_PAUSE = 0.1
"""Seconds between two looks for answers, which grow while none come."""
LONGEST_PAUSE = 2.0
TOGETHER = 32
"""Messages that are sent together, in fewer requests than one by one."""
_AGAIN_SECONDS = 60.0
"""Seconds until a client that was refused, or did not answer, is greeted again."""


class Grid(Protocol):
    """What carries messages; `bhfl.remote.relay.Relay` is one."""

    most_bytes: int
    """Bytes of an answer at most."""

    def nodes(self) -> list[int]:
        """The ids of the nodes that are there."""

    def push(
        self, messages: Sequence[tuple[int, bytes]], seconds: float, round: int
    ) -> list[str | None]:
        """Send messages to nodes; the id of each, or None where it is not taken."""

    def pull(self, ids: list[str]) -> list[Answer]:
        """The answers to some messages that are there."""

    def restore(self) -> None:
        """Begin anew, where a call has ended in ConnectionError: what was sent is lost."""


@dataclass(frozen=True)
class Terms:
    """How a server treats its clients."""

    wait_for: int | None = None
    """Clients that must be there before the run begins; None for the whole fleet."""
    round_seconds: float = 600.0
    """How long a round waits for a reply, which is late then."""
    wait_seconds: float = 3600.0
    """How long the server waits for clients that must be there."""
    strict: bool = False
    """Whether clients are refused where anything could make their bits differ."""

    def __post_init__(self) -> None:
        checked("wait_for", self.wait_for, or_none(count(1)))
        for name in ("round_seconds", "wait_seconds"):
            checked(name, getattr(self, name), within("(0, inf)"))


class Attendance:
    """The clients that are there.

    Args:
        session: What the run works with.
        grid: Carries the messages.
        keyed: Says which clients some nodes are, by their keys; nodes without one are left out.
        hello: What a client is told first, by its id.
        terms: How clients are treated.
    """

    def __init__(
        self,
        session: Session,
        grid: Grid,
        keyed: Callable[[Collection[int]], Mapping[int, int]],
        hello: Callable[[int], Hello],
        terms: Terms,
    ) -> None:
        self.session = session
        self.grid = grid
        self.keyed = keyed
        self.terms = terms
        self.nodes: dict[int, int] = {}
        """The node of each client that has joined, whether or not it is there now."""
        self.told: dict[int, str] = {}
        """The digest of what each client has said that it is."""
        self._hello = hello
        self._facts = facts_of(session)
        self._clients: Mapping[int, int] = {}
        """The client of each node that is there."""
        self._greeted: dict[str, int] = {}
        """The nodes that have been greeted and have not answered, by the message's id."""
        self._silent: dict[int, float] = {}
        """Until when a node that was greeted is left alone."""

    def absent(self, client: int) -> str:
        """Why a client cannot be asked."""
        there = self.nodes.get(client) in self._clients
        return "" if there else "the client is not connected"

    def forget(self, client: int) -> None:
        """Greet a client anew, which is not what it was when it joined."""
        self._silent.pop(self.nodes.pop(client, -1), None)

    def gather(self, wanted: int) -> None:
        """Greet whoever is new, and wait until so many clients are there."""
        until = time.monotonic() + self.terms.wait_seconds
        pause = FIRST_PAUSE
        told = -1
        while True:
            try:
                self._greet()
            except ConnectionError:
                self.restore()
            there = sum(node in self._clients for node in self.nodes.values())
            if there >= wanted or time.monotonic() > until:
                return
            if there != told:
                _log.info("%d of %d clients are there", there, wanted)
                told = there
            STANDING.at(f"waiting for {wanted - there} clients")
            time.sleep(pause)
            pause = min(1.5 * pause, LONGEST_PAUSE)

    def restore(self) -> None:
        """Go on with a Grid that was lost."""
        warnings.warn("Flower's SuperLink was lost; its messages are sent again", stacklevel=2)
        self._greeted.clear()
        self._silent.clear()
        self.grid.restore()

    def _greet(self) -> None:
        """Say hello to nodes that are new, and hear those that answer."""
        self._clients = clients = self.keyed(self.grid.nodes())
        now = time.monotonic()
        seconds = self.terms.round_seconds
        hellos = [
            (node, join(pack(self._hello(client))))
            for node, client in clients.items()
            if self.nodes.get(client) != node and now >= self._silent.get(node, 0.0)
        ]
        while hellos:
            some, hellos = hellos[:TOGETHER], hellos[TOGETHER:]
            for (node, _), id in zip(some, self.grid.push(some, seconds, 0), strict=True):
                self._silent[node] = now + seconds
                if id is not None:
                    self._greeted[id] = node
        for answer in self.grid.pull([*self._greeted]) if self._greeted else ():
            node = self._greeted.pop(answer.id)
            self._silent[node] = now + _AGAIN_SECONDS
            if node in clients:
                self._hear(node, clients[node], answer)

    def _hear(self, node: int, client: int, answer: Answer) -> None:
        """Let a client in, or say why not."""
        try:
            if answer.error:
                raise MessageError(answer.error)
            facts = unpack(answer.data, Facts, Refused, max_head=MAX_TOLD)
            if isinstance(facts, Refused):
                raise MessageError(said(facts.reason))
            self._check(client, facts)
        except MessageError as problem:
            warnings.warn(f"client {client} cannot take part: {problem}", stacklevel=2)
            return
        self.nodes[client] = node
        self.told[client] = hashlib.sha256(answer.data).hexdigest()
        _log.info("client %d (%s) is there", client, facts.group)

    def _check(self, client: int, facts: Facts) -> None:
        """Refuse a client that is not what the fleet has, and tell of what makes bits differ."""
        known = self.session.fleet[client]
        here = {
            "client": (client, facts.client),
            "group": (known.group, facts.group),
            "num_examples": (known.num_examples, facts.num_examples),
        }
        for name, (wanted, found) in here.items():
            if wanted != found:
                raise MessageError(
                    f"{name} must be {wanted}, as the server has it, got {said(found)}"
                )
        differing = []
        for name, value in self._facts.items():
            # where torch alone trains, no bit is of these
            spared = name in PACKAGES and name not in NEEDED and name not in facts.facts
            if facts.facts.get(name) != value and not spared:
                differing.append(f"{name} is {value} here and {said(facts.facts.get(name))} there")
        if not differing:
            return
        told = "; ".join(differing)
        if self.terms.strict:
            raise MessageError(f"its bits may differ: {told}")
        warnings.warn(
            f"client {client} may not come to the same bits as a simulation: {told}", stacklevel=2
        )
