"""One round, a straight line: sample, send, train, receive, check, fold in, combine."""

from __future__ import annotations

import math
import time
import traceback
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from bhfl.comm import PayloadError, decode, encode, float_tensors, header_bytes
from bhfl.engine.advice import advice
from bhfl.engine.aggregate import MAX_TERM, MAX_TOTAL, Aggregator
from bhfl.engine.algorithm import Algorithm, Context, LocalRun
from bhfl.engine.buffers import Buffers, BufferSum
from bhfl.engine.checked import CheckedHooks
from bhfl.engine.checkpoint import CheckpointError
from bhfl.engine.client.store import ClientStore
from bhfl.engine.client.worker import Worker
from bhfl.engine.ending import STANDING, Terminated
from bhfl.engine.exchange import ClientLink
from bhfl.engine.failures import origin
from bhfl.engine.handed import ReturnError, ServerReturnError, check_server, name_of, tensors_in
from bhfl.engine.hooks import check_methods
from bhfl.engine.own import KEPT, Own
from bhfl.engine.random import RandomKeys
from bhfl.engine.records import NO_EXAMPLES, ClientRecord, gather, outliers
from bhfl.engine.refusal import Asked, RefusedError, admit
from bhfl.engine.sampling import cohort_size, sample_cohort
from bhfl.engine.timing import Timing
from bhfl.engine.types import Client, FederatedData, Params, ServerState
from bhfl.quant import BitSpec, layer_weights, set_spec_
from bhfl.settings import Settings


@dataclass
class Totals:
    """What a round's updates are folded into on this process."""

    updates: Aggregator
    buffers: BufferSum
    num_participants: int
    asked: Asked
    """What the updates must be."""
    own: set[str] = field(default_factory=set)
    """Tensors without which a client's round began."""


class Rounds:
    """Everything a round needs that does not change from round to round.

    Args:
        worker: This process's module.
        algorithm: Its hooks.
        clients: The fleet.
        data: Already split.
        settings: The trainer's settings.
        timing: The simulated network, if there is one.
    """

    def __init__(
        self,
        worker: Worker,
        algorithm: Algorithm,
        clients: list[Client],
        data: FederatedData,
        settings: Settings,
        timing: Timing | None = None,
    ) -> None:
        if (
            not worker.module.automatic_optimization
            and type(algorithm).client_gradients_ != Algorithm.client_gradients_
        ):
            raise ValueError(
                f"{type(algorithm).__name__} changes gradients, which needs automatic "
                f"optimization; {type(worker.module).__name__} optimises manually"
            )
        self.worker = worker
        self.algorithm = algorithm
        self.clients = clients
        self.data = data
        self.settings = settings
        self.fabric, self.timing = worker.fabric, timing
        self.context = Context(
            clients=clients,
            module=worker.module,
            data=data,
            fabric=worker.fabric,
            settings=settings,
            worker=worker,
            buffers=self.travelling,
            timing=timing,
        )
        for spec in (*dict.fromkeys(client.spec for client in clients), BitSpec()):
            # raises now, not in the first client, where the model cannot take it
            set_spec_(worker.module, spec)
        self.groups = list(dict.fromkeys(client.group for client in clients))
        state = worker.state()
        self.buffers = Buffers(worker.module, state, settings.aggregation.norm, self.groups)
        self.names = frozenset(state)
        self.layers = (
            []
            if all(client.spec.weights == 32 for client in clients)
            else layer_weights(worker.module)
        )
        self.own: Own  # set when the first model is known
        self.store: ClientStore  # set when the run folder is known
        self._sent: tuple[Any, str, bytes, dict[str, Tensor]] | None = None

    def init_server(self) -> ServerState:
        """The state before the first round: the worker's weights, as rank 0 has them."""
        state = {
            name: tensor.detach().cpu().clone() for name, tensor in self.worker.state().items()
        }
        params = {n: t.contiguous() for n, t in state.items() if not self.buffers.owns(n)}
        server = ServerState(params, buffers={**self.buffers.init(state), "first": {}})
        server = replace(server, extra=self.algorithm.init_server(params, self.clients))
        check_server(name_of(self.algorithm, "init_server"), server, server)
        server = self.fabric.broadcast(server)
        first = {**server.params, **self.buffers.of(server, self.groups[0])}
        self.own = Own(first, [name for name in first if self._stays(name)])
        self.hooks = CheckedHooks(self.algorithm, self.own.first, server.extra)
        return server

    def run(
        self,
        server: ServerState,
        history: list[dict[str, Any]],
        on_client: Callable[[Client, ClientRecord], None],
    ) -> tuple[ServerState, list[ClientRecord]]:
        """One round from `server`; its successor (the same model where too few updates were usable)
        and the records.
        """
        self.worker.layout.take_(server.channels_last)
        size = cohort_size(len(self.clients), self.settings.cohort.clients_per_round)
        cohort = sample_cohort(
            self.clients,
            size,
            self.settings.cohort.seed,
            server.round,
            self.settings.cohort.sampling,
        )
        self.worker.place.begin(server.round)
        started = self._begin(server, cohort)
        totals = self._totals(started, len(cohort))
        self._sent = None
        self.worker.place.begin(server.round)
        mine = []
        for client in cohort[self.fabric.global_rank :: self.fabric.world_size]:
            STANDING.at(f"training client {client.id} in round {server.round + 1}")
            record = self._client(started, client, totals, history)
            on_client(client, record)
            mine.append(record)
        STANDING.at(f"combining round {server.round + 1}")
        self.worker.place.begin(server.round)
        records = sorted(gather(self.fabric, mine), key=lambda record: record.client)
        asked = [record for record in records if record.reason != NO_EXAMPLES]
        if asked and all(record.broken_hook for record in asked):
            raise ServerReturnError(asked[0].reason)
        if sum(record.status == "ok" for record in records) < self.settings.cohort.min_clients:
            for record in mine:
                self.store.drop(record.client)
            self.fabric.barrier()  # before another process trains one of these clients
            return replace(server, round=server.round + 1, metrics={}), records
        following = self._combine(
            started, totals, [record.client for record in records if record.status == "ok"]
        )
        self._close(following, records)
        self.store.share(self.fabric)
        if self.fabric.is_global_zero:
            self._tell(server, following, records)
        return following, records

    def _tell(
        self, server: ServerState, following: ServerState, records: list[ClientRecord]
    ) -> None:
        """Warn of updates that nothing refuses and that outweigh all others, and of tensors that
        nobody measures.
        """
        if far := outliers(records):
            warnings.warn(f"round {following.round}: {far}", stacklevel=2)
        new = following.buffers["first"].keys() - server.buffers["first"].keys() - self.own.always
        if left := [
            name for name in new if name in self.algorithm.group_params(following, self.groups[0])
        ]:
            warnings.warn(
                f"{min(left)} ({len(left)} tensors) is not sent to clients, which go on with their "
                "own, but the model that is measured has the server's: where "
                f"{self.hooks.name('group_params')} leaves it out too, each client's own model is "
                "measured",
                stacklevel=2,
            )

    def _begin(self, server: ServerState, cohort: list[Client]) -> ServerState:
        """The state that the round is done with, the same in every process."""
        before = replace(server, metrics={})
        if type(self.algorithm).begin_round is Algorithm.begin_round:
            return before
        started = self.hooks.begin_round(before, cohort, self.context)
        known = {id(tensor) for _, tensor in tensors_in(server)}
        made = [tensor for _, tensor in tensors_in(started) if id(tensor) not in known]
        self._check_agreement(made, self.hooks.name("begin_round"))
        return started

    def _totals(self, server: ServerState, num_participants: int) -> Totals:
        """What this round's updates are to be, and what they are folded into."""
        aggregator = self.algorithm.aggregator(server, self.clients)
        expected = self.hooks.expected(server)
        check_methods(
            aggregator, Aggregator, f"{self.hooks.name('aggregator')} must return an Aggregator"
        )
        travelling = self.travelling(server, self.groups[0])
        counters = {
            name: tensor for name, tensor in travelling.items() if name in self.buffers.counters
        }
        limit = min(MAX_TERM, MAX_TOTAL / num_participants)
        return Totals(
            aggregator,
            BufferSum(self.buffers, server),
            num_participants,
            Asked({**expected, **travelling}, counters, limit),
        )

    def release(self, server: ServerState) -> None:
        """Make the module ready to be given back to its owner, with the global model in it."""
        self.load(server)
        self.worker.layout.take_(False)

    def load(self, server: ServerState) -> None:
        """Put the global model into the module, in float32."""
        group = next(
            (client.group for client in self.clients if client.spec.is_float), self.groups[0]
        )
        self.worker.load_global({**server.params, **self.buffers.of(server, group)}, BitSpec())

    # ---- one client ------------------------------------------------------------------------------

    def _client(
        self, server: ServerState, client: Client, totals: Totals, history: list[dict[str, Any]]
    ) -> ClientRecord:
        record = ClientRecord(client.id, client.group, client.weight, self.fabric.global_rank)
        start = time.perf_counter()
        keeps: dict[str, Any] = {}
        try:
            if client.num_examples:
                keeps = self._train(server, client, totals, history, record)
            else:
                record.status, record.reason = "rejected", NO_EXAMPLES
        except (
            CheckpointError,
            ServerReturnError,
        ):  # no failure of the client's: what it had kept is not there
            raise
        except ReturnError as error:
            record.status = "rejected"
            record.reason = str(error)
            record.broken_hook = True
        except (PayloadError, RefusedError) as error:
            if isinstance(error.__cause__, Exception):
                record.traceback, record.origin = traceback.format_exc(), origin(error.__cause__)
            record.status, record.reason = "rejected", str(error)
        except Terminated:
            raise
        except (
            Exception,
            SystemExit,
        ) as error:  # a client's failure, whatever it is, is not the round's
            hint = advice(error, self.worker.layout.channels_last)
            record.status, record.reason = "failed", f"{type(error).__name__}: {error}{hint}"
            record.traceback, record.origin = traceback.format_exc(), origin(error)
        # outside the try: a full disk is no client's failure
        if record.status == "ok" and any(keeps.values()):
            self.store.put(client.id, server.round + 1, keeps, final=not self.hooks.closes)
        record.seconds = time.perf_counter() - start
        return record

    def _train(
        self,
        server: ServerState,
        client: Client,
        totals: Totals,
        history: list[dict[str, Any]],
        record: ClientRecord,
    ) -> dict[str, Any]:
        """All of a client's round; what it is to keep."""
        kept = self.store.load(client.id, server.round) or {}
        payload, received = self._downlink(server, client)
        record.downlink_bytes = len(payload)
        record.header_bytes = header_bytes(payload) if payload else 0
        state = self.fabric.to_device(kept.get("algorithm")) or self.hooks.init_client(
            client, received
        )
        given = self.hooks.receive(received, state)
        missing = self.own.missing(given)
        totals.own.update(missing)
        start = self.fabric.to_device(self.own.whole(server, given, kept))
        link = (
            self.timing.link(server.round, client, totals.num_participants) if self.timing else None
        )
        run = self._local_run(server, client, start, received, state, link, record.downlink_bytes)
        self.worker.train(self.algorithm, run, self.data, history)
        record.num_examples = run.num_examples
        if self.settings.output.evaluate_clients:
            found = self.worker.evaluate(
                self.data.client_val_batches(client.id) or self.data.val_batches(), "val"
            )
            run.metrics.update(
                {f"val/{name}_local_{client.group}": value for name, value in found.items()}
            )
        own: Params = {}
        if names := dict.fromkeys([*missing, *kept.get(KEPT, {})]):
            values = self.worker.state()
            own = {name: values[name].cpu().clone() for name in names}
        record.metrics = run.metrics
        if self.algorithm.communicates:
            self._receive(server, run, totals, record)
        return {"algorithm": run.state, KEPT: own}

    def _local_run(
        self,
        server: ServerState,
        client: Client,
        start: Params,
        received: dict[str, Tensor],
        state: dict[str, Tensor],
        link: ClientLink | None,
        downlink_bytes: int,
    ) -> LocalRun:
        rng = RandomKeys(self.settings.cohort.seed, server.round, client.id)
        return LocalRun(
            client, server.round, self.worker.module, start, received, state, rng,
            partial(self._on_own_data, client, rng), link, downlink_bytes,
        )  # fmt: skip

    def _on_own_data(self, client: Client, rng: RandomKeys, num_examples: int) -> dict[str, float]:
        """Validation metrics of the module on some of a client's training examples, the same at
        every call.
        """
        batches = self.data.client_batches(client.id, rng, 0)
        size = self.data.num_batches(client.id)
        per_batch = math.ceil(client.num_examples / size)
        return self.worker.evaluate(islice(batches, math.ceil(num_examples / per_batch)), "val")

    def _receive(
        self, server: ServerState, run: LocalRun, totals: Totals, record: ClientRecord
    ) -> None:
        """An uplink, and the server's side of it: measure, decode, check, fold in."""
        payload, client = self._uplink(run), run.client
        record.num_examples = run.num_examples
        if payload is None:
            record.status, record.reason = "skipped", "nothing was sent"
            return
        record.uplink_bytes = len(payload)
        record.header_bytes += header_bytes(payload)
        if run.link and self.timing:
            after = run.link.seconds(run.downlink_bytes, len(payload), run.num_examples)
            if self.timing.network.is_late(after):
                record.status = "late"
                record.reason = f"its update would have arrived after {after:.3g} s"
                return
        update = decode(payload)
        coded = self.algorithm.coded(server, client, self.layers)
        record.largest = admit(update, totals.asked, coded, client)
        weights = {n: v for n, v in update.items() if not self.buffers.owns(n)}
        self.hooks.fold(weights, client, server, totals.updates)  # first: it may refuse
        totals.buffers.add(
            float_tensors({n: v for n, v in update.items() if self.buffers.owns(n)}), client
        )

    def _downlink(self, server: ServerState, client: Client) -> tuple[bytes, dict[str, Tensor]]:
        """The bytes a client is sent and what it decodes from them; the last message is not encoded
        again.
        """
        if not self.algorithm.communicates:
            return b"", {}
        tensors = self.algorithm.downlink(server, client)
        group = client.group if self.buffers.policy == "group" else ""
        if self._sent is None or self._sent[1] != group or not _same(tensors, self._sent[0]):
            self.hooks.check_downlink(tensors, server)
            payload = encode({**tensors, **self.travelling(server, client.group)})
            self._sent = (
                tensors,
                group,
                payload,
                self.fabric.to_device(float_tensors(decode(payload))),
            )
        return self._sent[2:]

    def _uplink(self, run: LocalRun) -> bytes | None:
        update = self.hooks.uplink(run)
        if update is None:
            return None
        away = {
            n: v
            for n, v in update.items()
            if n not in self.worker.tied and n not in self.own.always
        }
        try:
            return encode(away)
        except PayloadError as error:
            raise PayloadError(f"{self.hooks.name('uplink')}: {error}") from None

    def _stays(self, name: str) -> bool:
        """Whether a tensor of the model never leaves its client."""
        return not self.algorithm.communicates or (
            self.buffers.owns(name) and not self.buffers.sent(name)
        )

    def travelling(self, server: ServerState, group: str) -> Params:
        """The buffers that go with the parameters of a bit group, both ways."""
        return {
            n: tensor for n, tensor in self.buffers.of(server, group).items() if not self._stays(n)
        }

    # ---- the server ------------------------------------------------------------------------------

    def _combine(self, server: ServerState, totals: Totals, participants: list[int]) -> ServerState:
        aggregate = totals.updates.reduce(self.fabric)
        self._check_agreement(aggregate, name_of(totals.updates, "reduce"))
        buffers = totals.buffers.reduce(self.fabric)
        left_out = {name for names in gather(self.fabric, [sorted(totals.own)]) for name in names}
        following = server
        if self.fabric.is_global_zero and self.algorithm.communicates:
            rng = RandomKeys(self.settings.cohort.seed, server.round)
            following = self.hooks.server_update(following, aggregate, totals.updates, rng)
        buffers["first"] = self.own.following(server, left_out)
        following = replace(
            following, round=server.round + 1, buffers=buffers, participants=participants
        )
        following = replace(following, channels_last=server.channels_last)
        return self.fabric.broadcast(following)

    def _check_agreement(self, result: Any, hook: str) -> None:
        """ValueError where processes have come to other results, as of an aggregator that keeps to
        its own clients.
        """
        if self.fabric.world_size == 1:
            return
        sums = _sums(result)
        if any(other != sums for other in gather(self.fabric, [sums])):
            raise ValueError(
                f"{hook} must return the same in each of "
                f"{self.fabric.world_size} processes, got different values: bring together what "
                "each holds, as bhfl.engine.records.gather does"
            )

    def _close(self, following: ServerState, records: list[ClientRecord]) -> None:
        """Let the clients that took part keep what they came to, and send them what closes the
        round, where the algorithm has anything to say.
        """
        message = self.hooks.closing(following)
        ok = [record for record in records if record.status == "ok"]
        mine = [record.client for record in ok if record.rank == self.fabric.global_rank]
        if message is None:
            for client in mine:
                self.store.commit(client)
            return
        payload = encode(message)
        received = float_tensors(decode(payload))
        for record in ok:
            record.downlink_bytes += len(payload)
            record.closing_bytes = len(payload)
            record.header_bytes += header_bytes(payload)
        for client in mine:
            kept = self.store.pending(client) or self.store.load(client, following.round) or {}
            state = self.hooks.client_close(
                self.clients[client], kept.get("algorithm", {}), received
            )
            self.store.save(client, following.round, {**kept, "algorithm": state})
            self.store.drop(client)


def _same(tensors: Any, last: Mapping[str, Any]) -> bool:
    """Whether a message holds the very tensors of the last one."""
    if not isinstance(tensors, Mapping) or tensors.keys() != last.keys():
        return False
    return all(tensor is last[name] for name, tensor in tensors.items())


def _sums(value: Any) -> list[str]:
    """The sum of each tensor in a nest of containers; as text, because NaN is not equal to
    itself.
    """
    wide = (
        (tensor, torch.complex128 if tensor.is_complex() else torch.float64)
        for _, tensor in tensors_in(value)
    )
    return [str(tensor.sum(dtype=dtype).item()) for tensor, dtype in wide]
