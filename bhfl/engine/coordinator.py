"""The server's half of a round: tasks go out, replies are taken, and what they hold is combined."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

from bhfl.comm import decode, float_tensors, header_bytes
from bhfl.engine.aggregate import Aggregator
from bhfl.engine.availability import WHOLE, Course, course_of
from bhfl.engine.buffers import BufferSum
from bhfl.engine.checkpoint import CheckpointError
from bhfl.engine.client.faults import fault_of
from bhfl.engine.ending import STANDING, Terminated
from bhfl.engine.exchange import ClientLink, Fault, Reply, Task
from bhfl.engine.frozen import holders
from bhfl.engine.handed import ServerReturnError, name_of
from bhfl.engine.hooks import check_methods
from bhfl.engine.outgoing import Message, Outgoing
from bhfl.engine.private import public_rows
from bhfl.engine.processes import Held, broadcast, check_agreement, gather
from bhfl.engine.random import RandomKeys
from bhfl.engine.records import ClientRecord, keeping, with_updates
from bhfl.engine.refusal import Asked, admit, most_bytes
from bhfl.engine.roster import group_sizes
from bhfl.engine.session import Session
from bhfl.engine.sums import MAX_TERM, MAX_TOTAL
from bhfl.engine.types import Client, Row, ServerState, Update, only

# Terminated is a SystemExit, which is a client's own failure where its code has called `sys.exit`.
_FATAL = (CheckpointError, ServerReturnError, Terminated)
"""What is no failure of a client's: it ends the run."""


class Coordinator:
    """One round, as the server sees it on this process.

    Args:
        session: What the run works with.
        server: The state that the round is done with.
        cohort: The clients of the round, on all processes.
    """

    def __init__(self, session: Session, server: ServerState, cohort: Sequence[Client]) -> None:
        self.session = session
        self.server = server
        self.fleet = session.fleet.at(server.round)
        self.cohort = cohort
        # who trains a client changes none of its draws, so that no result depends on it
        self.mine = session.dealer.deal(cohort)
        hooks = session.hooks
        self.updates = session.algorithm.aggregator(server, self.fleet)
        expected = hooks.expected(server)
        check_methods(
            self.updates, Aggregator, f"{hooks.name('aggregator')} must return an Aggregator"
        )
        self.buffers = BufferSum(session.buffers, server, session.algorithm)
        self.buffers.means.expect(cohort)
        if expect := getattr(self.updates, "expect", None):
            expect(cohort)
        travelling = session.travelling(server, session.bits[0])
        counters = only(travelling, session.buffers.counters)
        # neither a term nor the sum over the cohort may leave the range in which sums are exact
        limit = min(MAX_TERM, MAX_TOTAL / max(1, len(cohort)))
        self.asked = Asked({**expected, **travelling}, counters, limit)
        self.max_bytes = most_bytes(self.asked.tensors)
        self._unsent: list[ClientRecord] = []
        """Clients that no task could be made for."""
        self.outgoing = Outgoing(session, server)
        self._lacking: list[Client] = []
        """Clients that have lost what is frozen, and are to be asked again."""
        self._own: set[str] = set()
        self._waiting: dict[int, tuple[ClientRecord, ClientLink | None]] = {}
        """Clients that have a task, each with what is known of it and its link."""

    def records(self, history: Sequence[Row]) -> Iterator[ClientRecord]:
        """What became of each client of this process, as their replies come.

        Args:
            history: The server's metrics, a row for each past round.
        """
        session = self.session
        if session.algorithm.private:
            # what never travels, or is tuned, makes models of the clients' own
            apart = session.own.always or session.evaluator.training
            history = public_rows(history, () if apart else group_sizes(self.fleet))
        asked: Sequence[Client] = self.mine
        while asked:
            # by map, which holds no reply while the next client trains
            replies = session.clients.train(self._tasks(asked, history))
            yield from filter(None, map(self._hear, replies))
            asked, self._lacking = self._lacking, []
        yield from self._unsent

    # ---- what is sent ----------------------------------------------------------------------------

    def _tasks(self, clients: Sequence[Client], history: Sequence[Row]) -> Iterator[Task]:
        """The tasks of some clients, each made when it is asked for."""
        session = self.session
        for client in clients:
            STANDING.at(f"training client {client.id} in round {self.server.round + 1}")
            record = ClientRecord(
                client.id, client.group, client.weight, session.fabric.global_rank
            )
            record.course = self._course(client)
            # one that is asked again has been sent a message already
            record, _ = self._waiting.pop(client.id, (record, None))
            try:
                message = self.outgoing.message(client)
                task = self._task(client, message, record, history)
            except _FATAL:
                raise
            except (Exception, SystemExit) as error:
                record.become(fault_of(error, self.server.channels_last))
                self._unsent.append(record)
                continue
            record.metrics = message.metrics()
            if record.course.uploads:
                # no seconds are simulated of a link that was measured
                self._waiting[client.id] = (record, task.link if session.timing else None)
                # outside the try: a full disk is no client's failure
                session.references.send(client.id, self.server.round + 1, message.sent)
                yield task
                continue
            # it is not going to send anything, and its training is left out
            record.become(_absence(record.course))
            if task.link is not None and session.timing is not None:
                planned = session.timing.planned(client, session.data, self.server.round)
                record.simulated_seconds = _seconds(record, task.link, planned)
            self._unsent.append(record)

    def _course(self, client: Client) -> Course:
        """What happens to a client, besides what it does."""
        session = self.session
        if not client.num_examples:
            return WHOLE
        course = course_of(session.settings, self.server.round, client.id)
        return course if session.algorithm.communicates else course.unsent()

    def _task(
        self, client: Client, message: Message, record: ClientRecord, history: Sequence[Row]
    ) -> Task:
        session = self.session
        server = self.server
        links = session.context.timing
        payload, sent = message.payload, message.sent
        frozen, body = self.outgoing.frozen(client)
        times = record.course.downloads
        record.whole_bytes += times * len(payload) if sent.whole else 0
        for part in filter(None, (payload, body)):
            record.downlink_bytes += times * len(part)
            record.header_bytes += times * header_bytes(part)
        version = server.accepted.get(client.id, 0)
        return Task(
            client=client.id,
            round=server.round,
            downlink=payload,
            reference=version if sent.weights and not sent.whole else 0,
            keeps=list(sent.weights),
            frozen=frozen,
            body=body,
            version=version,
            channels_last=server.channels_last,
            seed=session.settings.cohort.seed,
            training=client.devices.training(session.settings.training),
            part=record.course.part,
            measures=session.settings.output.evaluate_clients,
            link=links.link(server.round, client, len(self.cohort)) if links else None,
            history=history,
        )

    # ---- what comes back -------------------------------------------------------------------------

    def _hear(self, reply: Reply) -> ClientRecord | None:
        """Take a reply; None for a client that lacks what is frozen, and is to be asked again."""
        record, link = self._waiting[reply.client]
        record.seconds += reply.seconds
        record.holds = reply.holds
        if reply.holds is False and self.outgoing.lost_by(reply.client):
            self._lacking.append(self.fleet[reply.client])
            record.ask_again()
            return None
        del self._waiting[reply.client]
        if reply.holds is False:
            fault = Fault("failed", "it does not hold the frozen tensors that it was sent")
            reply = replace(reply, payload=None, fault=fault)
        self._take(reply, record, link)
        if not record.course.arrives:
            # nor does what it says of itself
            record.holds = None
        return record

    def _take(self, reply: Reply, record: ClientRecord, link: ClientLink | None) -> None:
        """Believe nothing of a reply, and fold in the update that it holds, if it may be."""
        start = time.perf_counter()
        record.num_examples = reply.num_examples
        record.num_steps = reply.num_steps
        record.metrics |= reply.metrics
        record.measured = dict(reply.measured)
        record.anew = reply.anew
        if reply.payload is None:
            record.end_early()
        fault = reply.fault
        try:
            if reply.payload is not None and fault is None:
                fault = self._fold(reply.payload, record, link)
        except _FATAL:
            raise
        except (Exception, SystemExit) as error:
            fault = fault_of(error, self.server.channels_last)
        if fault:
            record.become(fault)
        else:
            # a client on another machine may name what the model lacks
            self._own.update(self.session.own.first.keys() & reply.own)
        if link is not None and record.status != "failed":
            record.simulated_seconds = _seconds(record, link, record.num_examples)
        record.seconds += time.perf_counter() - start

    def _fold(self, payload: bytes, record: ClientRecord, link: ClientLink | None) -> Fault | None:
        """Measure, decode, check, fold in; why an update comes too late, if it does."""
        session = self.session
        client = self.fleet[record.client]
        # counted before anything can refuse it: late and rejected updates have been sent as well
        times = record.course.uploads
        record.uplink_bytes = times * len(payload)
        record.header_bytes += times * header_bytes(payload)
        if not record.course.arrives:
            return _absence(record.course)
        if after := self._late_after(record, link):
            return Fault("late", f"its update would have arrived after {after:.3g} s")
        # a few bytes may claim to stand for more than fits into memory
        update = decode(payload, max_bytes=self.max_bytes)
        coded = session.algorithm.coded(self.server, client, session.layers)
        record.largest = admit(update, self.asked, coded, client)
        weights, buffers = session.buffers.split(update)
        weights = Update(weights, payload, session.references.received(client.id))
        # before the buffers, which could not be taken out of their sums where it is refused
        session.hooks.fold(weights, client, self.server, self.updates)
        if buffers:
            self.buffers.add(float_tensors(buffers), client)
        return None

    def _late_after(self, record: ClientRecord, link: ClientLink | None) -> float:
        """Seconds after which an update that is too late would have arrived; 0 for one in time."""
        timing = self.session.timing
        if link is None or timing is None:
            return 0.0
        after = _seconds(record, link, record.num_examples)
        return after if timing.network.is_late(after) else 0.0

    # ---- what comes of it ------------------------------------------------------------------------

    def combine(self, records: Sequence[ClientRecord]) -> ServerState:
        """The state after the round, the same on every process; a collective.

        Args:
            records: What became of all clients of the round.
        """
        session, server = self.session, self.server
        fabric = session.fabric
        aggregate = self.updates.reduce(fabric)
        check_agreement(fabric, aggregate, name_of(self.updates, "reduce"))
        buffers = self.buffers.reduce(fabric)
        buffers["first"] = session.own.following(server, set(gather(fabric, sorted(self._own))))
        following = server
        if session.algorithm.communicates:
            # before the hook runs: what it changes in place is not what the others hold any more
            held = Held((server, aggregate))
            # by one process: what is computed here may differ between machines in its last bits
            if fabric.is_global_zero:
                rng = RandomKeys(session.settings.cohort.seed, server.round)
                following = session.hooks.server_update(server, aggregate, self.updates, rng)
            following = broadcast(fabric, following, held)
        round = server.round + 1
        participants = [record.client for record in with_updates(records)]
        kept = [record.client for record in keeping(records)]
        # what is the engine's is the engine's, whatever a hook has put in its place
        return replace(
            following,
            round=round,
            buffers=buffers,
            participants=participants,
            holders=holders(server, records),
            accepted=server.accepted | dict.fromkeys(kept, round),
            channels_last=server.channels_last,
        )


def _absence(course: Course) -> Fault:
    """Why there is no update of a client that is kept from sending it."""
    what = "it dropped out" if course.status == "dropped" else "its update was lost on its way"
    last = f" in the last of {course.retries + 1} attempts" if course.retries else ""
    return Fault(course.status, what + last)


def _seconds(record: ClientRecord, link: ClientLink, num_examples: int) -> float:
    """Simulated seconds until the last attempt of a client is over."""
    course = record.course
    down = record.downlink_bytes // course.downloads
    up = record.uplink_bytes // max(1, course.uploads)
    seconds = replace(link, downloads=course.downloads).seconds(down, up, num_examples)
    # what was lost on its way was sent before
    return seconds + (course.uploads - 1) * link.link.upload_seconds(up)
