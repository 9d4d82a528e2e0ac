"""The fleet behind Flower: `bhfl.engine.exchange.Clients` whose messages go over a network."""

import math
import time
import uuid
import warnings
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from bhfl.checks import said
from bhfl.engine.client.plain import num_samples
from bhfl.engine.ending import STANDING
from bhfl.engine.exchange import Fault, Measured, Reply, Task, Verdict
from bhfl.engine.fingerprint import BACKENDS
from bhfl.engine.refusal import most_bytes
from bhfl.engine.roster import at
from bhfl.engine.session import Session
from bhfl.files import write_json
from bhfl.plain import read_json
from bhfl.remote.attendance import FIRST_PAUSE, LONGEST_PAUSE, TOGETHER, Attendance, Grid, Terms
from bhfl.remote.believe import Names, believed_measured, believed_reply
from bhfl.remote.closings import Closings
from bhfl.remote.messages import MAX_TOLD, Hello, MessageError, Order, Refused, join, pack, unpack
from bhfl.remote.relay import MOST_BYTES
from bhfl.remote.wire import Wire
from bhfl.settings import Role

NETWORK_JSON = "network.json"
"""File of a run folder: the run's own name, and what passed over the network in all."""
_LATE = "late"
_TOGETHER_BYTES = 2**22
"""Bytes of messages that are sent together, but for the last of them: Flower holds each of them
several times.
"""


class FlowerClients:
    """Clients behind a Grid, see `bhfl.engine.exchange.Clients`.

    Args:
        session: What the run works with.
        grid: Carries the messages.
        keyed: Says which clients some nodes are, by their keys; nodes without one are left out.
        config: The fleet, the algorithm, the options: what clients are told.
        terms: How clients are treated.
        folder: The run folder.
    """

    def __init__(
        self,
        session: Session,
        grid: Grid,
        keyed: Callable[[Collection[int]], Mapping[int, int]],
        config: Mapping[str, Any],
        terms: Terms,
        folder: Path,
    ) -> None:
        self.session = session
        self.grid = grid
        self.terms = terms
        self.attendance = Attendance(session, grid, keyed, self._hello, terms)
        self._run = _name(folder / NETWORK_JSON)
        self._config = config
        self._checkpoints = folder / "checkpoints"
        self._closings = Closings(folder / "closings")
        self._confirmed: dict[int, int] = {}
        """The version of each client whose closing message it has."""
        self._samples: dict[str, int] = {}
        self._names = Names()
        self.wire = Wire(folder / "wire.csv", session.server.round, session.trainer.links)
        fleet = len(session.fleet)
        self.attendance.gather(fleet if terms.wait_for is None else terms.wait_for)

    # ---- what is asked ---------------------------------------------------------------------------

    def train(self, tasks: Iterator[Task]) -> Iterator[Reply]:
        """A reply for each task, as they come; all tasks are sent at once."""
        session = self.session
        self.attendance.gather(session.settings.cohort.min_clients)
        expected = session.hooks.expected(session.server)
        travelling = session.travelling(session.server, session.bits[0])
        # of an update
        most = most_bytes({**expected, **travelling})
        self.grid.most_bytes = most + MOST_BYTES
        for task, data, error in self._asked(tasks):
            reply = self._reply(task, data, error, most)
            self.wire.received(task, reply, data)
            yield reply
        self.wire.write()

    def evaluate(self, tasks: Iterator[Task]) -> Iterator[Measured]:
        """What each client's own model is worth; who does not answer, or answers by other names
        than most, is left out.
        """
        found = list(self._measured(tasks))
        names = Counter(frozenset(one.metrics) for task, one in found if task.common)
        usual = max(names, key=names.__getitem__, default=frozenset())
        for task, one in found:
            if frozenset(one.metrics) == (usual if task.common else frozenset()):
                yield one
            else:
                told = f"client {one.client} was not measured: its metrics are not those of others"
                warnings.warn(told, stacklevel=2)

    def _measured(self, tasks: Iterator[Task]) -> Iterator[tuple[Task, Measured]]:
        """The answers that can be believed, each with its task."""
        for task, data, error in self._asked(tasks):
            try:
                if error:
                    raise MessageError(error)
                samples = self._num_samples(task.stage)
                found = unpack(data, Measured, Refused, max_head=MAX_TOLD + samples)
                if isinstance(found, Refused):
                    raise MessageError(said(found.reason))
                yield task, believed_measured(found, task, samples)
            except MessageError as problem:
                warnings.warn(
                    f"client {task.client} was not measured: {problem}; means are without it",
                    stacklevel=2,
                )

    def _num_samples(self, stage: str) -> int:
        """The samples that all models are measured on."""
        if stage not in self._samples:
            data = self.session.data
            batches = data.val_batches() if stage == "val" else data.test_batches()
            self._samples[stage] = sum(num_samples(batch) for batch in batches)
        return self._samples[stage]

    def close(self, round: int, verdicts: Mapping[int, Verdict]) -> None:
        """Keep what closes the round, to go with the next task of each client that hears of it."""
        kept = [client for client, verdict in verdicts.items() if verdict.keep]
        accepted = self.session.server.accepted | dict.fromkeys(kept, round)
        closing = next((one.closing for one in verdicts.values() if one.closing is not None), None)
        self._closings.save(round, closing)
        # a run without checkpoints begins anew, and so do its clients
        oldest = min(self._rounds(), default=math.inf)
        self._closings.prune(lambda one: one >= oldest or one in accepted.values())

    # ---- messages --------------------------------------------------------------------------------

    def _asked(self, tasks: Iterable[Task]) -> Iterator[tuple[Task, bytes, str]]:
        """Each task with its answer, or with why there is none, as they come."""
        waiting: dict[str, Task] = {}
        seconds = self.terms.round_seconds
        until = time.monotonic() + seconds
        unsent: deque[Task] = deque()
        for task in tasks:
            if error := self.attendance.absent(task.client):
                yield task, b"", error
            else:
                unsent.append(task)
        pause = FIRST_PAUSE
        while (waiting or unsent) and time.monotonic() < until:
            STANDING.at(f"waiting for {len(waiting) + len(unsent)} clients")
            try:
                self._push(unsent, waiting)
                answers = self.grid.pull([*waiting])
            except ConnectionError:
                # what was on its way is lost with the run of Flower's: clients do it again
                unsent.extend(waiting.values())
                waiting.clear()
                self.attendance.restore()
                continue
            for answer in answers:
                # an answer that nobody waits for is passed over
                if (done := waiting.pop(answer.id, None)) is not None:
                    yield done, answer.data, answer.error
            pause = FIRST_PAUSE if answers else min(1.5 * pause, LONGEST_PAUSE)
            time.sleep(pause if waiting or unsent else 0.0)
        for task in (*waiting.values(), *unsent):
            yield task, b"", _LATE

    def _push(self, unsent: deque[Task], waiting: dict[str, Task]) -> None:
        """Send tasks; one that Flower does not take waits for the next try."""
        left = len(unsent)
        while left:
            some: list[tuple[int, bytes]] = []
            for task in islice(unsent, min(left, TOGETHER)):
                some.append((self.attendance.nodes[task.client], self._packed(task)))
                if sum(len(data) for _, data in some) > _TOGETHER_BYTES:
                    break
            left -= len(some)
            # where it raises, all of them are still unsent
            ids = self.grid.push(some, self.terms.round_seconds, unsent[0].round)
            for (_, data), id in zip(some, ids, strict=True):
                task = unsent.popleft()
                if task.stage == "train":
                    self.wire.sent(task, data)
                if id is None:
                    unsent.append(task)
                else:
                    waiting[id] = task

    def _packed(self, task: Task) -> bytes:
        version = task.version
        closing = None
        if self._confirmed.get(task.client) != version:
            closing = self._closings.of(version)
        facts = self.attendance.told.get(task.client, "")
        order = Order(rounds=self._rounds(), closing=closing, facts=facts)
        return join(pack(self._hello(task.client)), pack(order), pack(task))

    def _hello(self, client: int) -> Hello:
        numerics = self.session.told.get(Role.NUMERICS.value, {})
        backends = numerics.get(BACKENDS, {})
        return Hello(run=self._run, config=self._config, backends=backends, client=client)

    def _rounds(self) -> list[int]:
        """The rounds that the run could go on from."""
        names = [path.stem for path in self._checkpoints.glob("round=*.ckpt")]
        return sorted(int(name.removeprefix("round=")) for name in names)

    def _reply(self, task: Task, data: bytes, error: str, most: int) -> Reply:
        """What a client came to, of which nothing is believed yet."""
        fault = None
        if error == _LATE:
            fault = Fault("late", f"no reply came within {self.terms.round_seconds:g} s")
        elif error:
            fault = Fault("failed", said(error))
        else:
            try:
                found = unpack(data, Reply, Refused, max_bytes=most, max_head=MAX_TOLD)
                if isinstance(found, Reply):
                    communicates = self.session.algorithm.communicates
                    client = at(self.session.fleet, task.round)[task.client]
                    reply = believed_reply(found, task, client, communicates)
                    self._confirmed[task.client] = task.version
                    return self._bounded(reply)
                if found.changed:
                    self.attendance.forget(task.client)
                fault = Fault("failed", said(found.reason))
            except MessageError as problem:
                fault = Fault("rejected", f"its reply is none: {problem}")
        return Reply(client=task.client, round=task.round, fault=fault)

    def _bounded(self, reply: Reply) -> Reply:
        """A reply with no more than a client may bring into a run, and that took no longer than a
        round does.
        """
        return replace(
            reply,
            seconds=min(reply.seconds, self.terms.round_seconds),
            metrics=self._names.known(reply.client, reply.metrics),
            measured=self._names.known(reply.client, reply.measured),
        )


def _name(path: Path) -> str:
    """The run's own name, which is drawn when it begins and stays with its folder."""
    if not path.exists():
        write_json(path, {"run": uuid.uuid4().hex})
    return str(read_json(path.read_bytes())["run"])
