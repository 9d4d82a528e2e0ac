"""One round, a straight line: draw, begin, train, combine, close."""

import warnings
from collections.abc import Sequence
from dataclasses import replace

from bhfl.comm import encode, header_bytes
from bhfl.engine.coordinator import Coordinator
from bhfl.engine.ending import STANDING
from bhfl.engine.exchange import Verdict
from bhfl.engine.frozen import holders
from bhfl.engine.handed import ServerReturnError
from bhfl.engine.processes import gather
from bhfl.engine.records import ClientRecord, asked_to_train, keeping, outliers, with_updates
from bhfl.engine.session import Session
from bhfl.engine.types import Client, Row, ServerState


def run_round(
    session: Session, server: ServerState, history: Sequence[Row]
) -> tuple[ServerState, list[ClientRecord]]:
    """One round from `server`; its successor and what became of each client, the same on every
    process.

    Args:
        session: What the run works with.
        server: The state before the round.
        history: The server's metrics, a row for each past round.

    Raises:
        ServerReturnError: A hook of the algorithm returns what cannot be used.
    """
    fabric = session.fabric
    clients = session.clients
    # kept also where the round fails: the next one has no change to make
    server = session.regrouped(server)
    cohort = session.cohort(server.round)
    private = session.algorithm.private
    # by chance, under poisson sampling: no other algorithm is to begin a round that nobody is in
    if not cohort and not private:
        return server.failed(), []
    started = session.begin_round(server, cohort)
    coordinator = Coordinator(session, started, cohort)
    mine = []
    for record in coordinator.records(history):
        session.call("on_client_end", client=coordinator.fleet[record.client], record=record)
        mine.append(record)
    STANDING.at(f"combining round {server.round + 1}")
    session.worker.begin(server)
    # in one order for any number of processes: the means of metrics are sums of floats
    records = sorted(gather(fabric, mine), key=lambda record: record.client)
    _check_dealt(cohort, records)
    session.dealer.learn(session.fleet, records)
    _check_hooks(records)
    ok = with_updates(records)
    if len(ok) < session.settings.cohort.min_clients and not private:
        clients.close(server.round + 1, _verdicts(records, []))
        _settle(session, records, [])
        # a client's files are in order before another process trains it
        fabric.barrier()
        # from the state before the round: what begin_round made is dropped with it
        return replace(server.failed(), holders=holders(server, records)), records
    following = coordinator.combine(records)
    closing = session.hooks.closing(following)
    message = None if closing is None else encode(closing)
    # not before there is a model: where that fails, no client has kept anything of the round
    clients.close(following.round, _verdicts(records, keeping(records), message))
    session.store.learn(gather(fabric, session.store.news()))
    _settle(session, records, keeping(records))
    if message is not None:
        _charge(ok, message)
    if fabric.is_global_zero:
        _tell(session, server, following, records)
    return following, records


def _check_dealt(cohort: Sequence[Client], records: Sequence[ClientRecord]) -> None:
    """RuntimeError unless each client of the cohort was trained by exactly one process."""
    if [record.client for record in records] != sorted(client.id for client in cohort):
        raise RuntimeError(
            f"the processes must train each of {len(cohort)} clients once, and came back with "
            f"{len(records)} records"
        )


def _check_hooks(records: Sequence[ClientRecord]) -> None:
    """ServerReturnError where what a hook of the algorithm returned has stopped every client."""
    asked = asked_to_train(records)
    if asked and all(record.broken_hook for record in asked):
        raise ServerReturnError(asked[0].reason)


def _verdicts(
    records: Sequence[ClientRecord], kept: Sequence[ClientRecord], closing: bytes | None = None
) -> dict[int, Verdict]:
    """What becomes of each client's round; only those with updates hear what closes it."""
    verdicts = {record.client: Verdict(keep=False) for record in records}
    for record in kept:
        verdicts[record.client] = Verdict(True, None if record.carried else closing)
    return verdicts


def _settle(
    session: Session, records: Sequence[ClientRecord], kept: Sequence[ClientRecord]
) -> None:
    """Know on every process what those clients have been sent now whose round counts."""
    references = session.references
    lost = [record.client for record in records if record.lost]
    references.settle([record.client for record in kept], lost)
    references.learn(gather(session.fabric, references.news()))


def _charge(records: Sequence[ClientRecord], closing: bytes) -> None:
    """Count the message that closed the round of these clients."""
    for record in records:
        record.downlink_bytes += len(closing)
        record.closing_bytes = len(closing)
        record.header_bytes += header_bytes(closing)


def _tell(
    session: Session, server: ServerState, following: ServerState, records: list[ClientRecord]
) -> None:
    """Warn of updates that nothing refuses and that outweigh all others, and of tensors that nobody
    measures.
    """
    far = "" if session.algorithm.withstands else outliers(records)
    if far:
        warnings.warn(f"round {following.round}: {far}", stacklevel=2)
    new = following.buffers["first"].keys() - server.buffers["first"].keys() - session.own.always
    bits = next(iter(session.evaluator.groups(following).values())).bits
    measured = session.algorithm.group_params(following, bits) if new else {}
    if left := [name for name in new if name in measured]:
        warnings.warn(
            f"{min(left)} ({len(left)} tensors) is not sent to clients, which go on with their "
            "own, but the model that is measured has the server's: where "
            f"{session.hooks.name('group_params')} leaves it out too, each client's own model is "
            "measured",
            stacklevel=2,
        )
