"""Clients that this process is, one after the other: from a task's bytes to a reply's bytes."""

import math
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from typing import Any

from torch import Tensor

from bhfl.comm import PayloadError, encode
from bhfl.engine.algorithm import Algorithm, LocalRun
from bhfl.engine.checkpoint import CheckpointError
from bhfl.engine.client.common import COMMON
from bhfl.engine.client.faults import fault_of
from bhfl.engine.client.frozen import FrozenCopy
from bhfl.engine.client.hooks import ClientHooks
from bhfl.engine.client.messages import Messages, has_reference, split
from bhfl.engine.client.plain import PlainWorker
from bhfl.engine.client.store import ClientStore
from bhfl.engine.ending import Terminated
from bhfl.engine.exchange import NO_EXAMPLES, Fault, Measured, Reply, Task, Verdict
from bhfl.engine.own import KEPT, MODEL, Own
from bhfl.engine.random import RandomKeys
from bhfl.engine.roster import at, behind
from bhfl.engine.types import Client, FederatedData, Metrics, Params, server_data, without

_LOST = Fault("failed", "it no longer has the weights that it was sent differences to", lost=True)


@dataclass
class _Work:
    """What a client has come to so far."""

    payload: bytes | None = None
    own: Sequence[str] = ()
    holds: bool | None = None
    num_examples: int = 0
    num_steps: int = 0
    metrics: Metrics = field(default_factory=dict)
    measured: Metrics = field(default_factory=dict)
    keeps: dict[str, Any] = field(default_factory=dict)
    fault: Fault | None = None


class LocalClients:
    """Clients that one module is in turn; see `bhfl.engine.exchange.Clients`.

    Args:
        worker: The module, and what trains and measures it.
        algorithm: Its client hooks are called; it is prepared.
        fleet: All clients, by id.
        data: Their samples.
        own: What they have of their own.
        store: What they keep between rounds.
    """

    def __init__(
        self,
        worker: PlainWorker,
        algorithm: Algorithm,
        fleet: Sequence[Client],
        data: FederatedData,
        own: Own,
        store: ClientStore,
    ) -> None:
        self.worker = worker
        self.algorithm = algorithm.client_half
        self.hooks = ClientHooks(self.algorithm, own.first)
        self.fleet = fleet
        self.data = data
        self.own = own
        self.store = store
        self.frozen = FrozenCopy(worker, store.folder)
        self._messages = Messages(worker.to_device, sum(map(Tensor.numel, own.first.values())))
        self._waiting: list[int] = []
        """Clients that came to something in this round."""
        self._told_untuned = False
        """Whether the warning of a client that could not be tuned was given."""

    def train(self, tasks: Iterator[Task]) -> Iterator[Reply]:
        """The reply to each task, when it is asked for."""
        for task in tasks:
            yield self._reply(task)
        self._messages.forget()

    def evaluate(self, tasks: Iterator[Task]) -> Iterator[Measured]:
        """What each client's own model is worth, when it is asked for."""
        for task in tasks:
            assert task.stage != "train"
            self.worker.begin(task)
            holds = self.frozen.take(task)
            if holds is False:
                yield Measured(client=task.client, stage=task.stage, holds=holds)
                continue
            kept = self.store.load(task.client, task.version) or {}
            sent = self._messages.read(task.downlink)
            whole = kept.get(MODEL) or self.own.whole(sent, kept)
            client = behind(self.fleet, task.round)[task.client]
            if task.training is None:
                self.worker.load_global(whole, client.devices)
            else:
                self._finetune(client, task, whole)
            metrics = {}
            own = {}
            correct = ""
            if task.common:
                batches = self.data.val_batches if task.stage == "val" else self.data.test_batches
                metrics = self.worker.evaluate(batches(), task.stage)
                correct = self.worker.correct
            if task.own:
                samples = server_data(self.data).client_test_batches(task.client)
                own = self.worker.evaluate(samples or (), task.stage)
            yield Measured(
                client=task.client, stage=task.stage, metrics=metrics, own=own, correct=correct
            )
        self._messages.forget()

    def _finetune(self, client: Client, task: Task, start: Params) -> None:
        """Leave the module as the client that has trained for a while, without its method, by
        schedules as they begin, not as they end; as it began where it cannot train.
        """
        run = replace(self._run(task, client, {}, start, {}), round=0)
        try:
            self.worker.train(Algorithm(), run, self.data)
        except (CheckpointError, Terminated):
            raise
        # as in a round, where it ends the client's own work and no more
        except (Exception, SystemExit) as error:
            if not self._told_untuned:
                self._told_untuned = True
                warnings.warn(
                    f"client {client.id} could not train for trainer.finetune_epochs, and its "
                    f"model is measured without: {fault_of(error, task.channels_last).reason}; it "
                    "is so with all such clients",
                    stacklevel=2,
                )
            self.worker.begin(task)
            self.worker.load_global(start, client.devices)
        # it is measured as all are, between the clients of a round
        self.worker.begin(task)

    def close(self, round: int, verdicts: Mapping[int, Verdict]) -> None:
        """Let each client keep what it came to, changed by the closing message if there is one, or
        drop it.
        """
        # what clients keep is read from disk to the CPU, and stays there
        closings = Messages(lambda tensors: tensors)
        for client in self._waiting:
            verdict = verdicts.get(client)
            if verdict is None or not verdict.keep:
                self.store.drop(client)
            elif verdict.closing is not None:
                its = behind(self.fleet, round)[client]
                self._close(its, round, closings.read(verdict.closing))
        self.store.commit(self._waiting)
        self._waiting = []

    def _close(self, client: Client, round: int, closing: Params) -> None:
        # a client that came to nothing new has nothing pending, but what it kept before
        kept = self.store.pending(client.id) or self.store.load(client.id, round) or {}
        # a version of its own, as the closing message changed what was put, and so its digest
        self.store.put(client.id, round, self.closed(client, kept, closing))

    def closed(self, client: Client, kept: Mapping[str, Any], closing: Params) -> dict[str, Any]:
        """What a client keeps after a closing message.

        Args:
            client: Who has received it.
            kept: What it kept before, of the round that is closed.
            closing: What the message holds.
        """
        state = self.hooks.client_close(client, _state(kept), closing)
        _, sent = split(kept.get(COMMON, {}))
        return {**kept, **self._kept(state, sent)}

    def _kept(self, state: dict[str, Tensor], sent: Params) -> dict[str, Any]:
        """What the algorithm keeps of a client, apart from what other clients keep too, and what
        the client was sent last.
        """
        parts: dict[str, Any] = {"algorithm": {}, COMMON: {**sent}}
        for name, value in state.items():
            part = COMMON if name.startswith(tuple(self.algorithm.common)) else "algorithm"
            parts[part][name] = value
        return parts

    # ---- one client ------------------------------------------------------------------------------

    def _reply(self, task: Task) -> Reply:
        start = time.perf_counter()
        client = at(self.fleet, task.round)[task.client]
        work = _Work()
        try:
            self.worker.begin(task)
            work.holds = self.frozen.take(task)
            if work.holds is not False:
                self._work(client, task, work)
        except (CheckpointError, Terminated):
            # no failure of the client's: what it had kept is not there, or the run is to end
            raise
        # whatever else it is ends the client's round and not the server's, sys.exit in a module too
        except (Exception, SystemExit) as error:
            work.fault = fault_of(error, task.channels_last)
            work.payload = None
        if (work.fault is None or work.fault.carried) and work.holds is not False:
            # outside the try: a full disk is no client's failure
            self._waiting.append(client.id)
            # who never kept anything writes no files; what was emptied is written, so as to be gone
            if any(work.keeps.values()) or self.store.known.get(client.id):
                final = not self.hooks.closes
                self.store.put(client.id, task.round + 1, work.keeps, final=final)
        return Reply(
            client=client.id,
            round=task.round,
            payload=work.payload,
            num_examples=work.num_examples,
            num_steps=work.num_steps,
            seconds=time.perf_counter() - start,
            metrics=work.metrics,
            measured=work.measured,
            own=work.own,
            holds=work.holds,
            fault=work.fault,
        )

    def _work(self, client: Client, task: Task, work: _Work) -> None:
        """All of a client's round."""
        kept = self.store.load(client.id, task.version) or {}
        common = kept.get(COMMON, {})
        if not client.num_examples or not has_reference(task, common):
            work.fault = _LOST if client.num_examples else Fault("rejected", NO_EXAMPLES)
            return
        received = self._messages.receive(task, common)
        state = self.worker.to_device(_state(kept))
        # in the first round of a client, and in each of one that keeps nothing
        state = state or self.hooks.init_client(client, received)
        given = self.hooks.receive(received, state)
        work.own = self.own.missing(given)
        run = self._run(task, client, received, self.own.whole(given, kept), state)
        if task.measures == "both":
            # training loads it again, so that nothing of the measurement is left
            self.worker.load(kept.get(MODEL) or run.received, client.devices)
            self._measure(run, work, "_before")
        self.worker.train(self.algorithm, run, self.data)
        self.worker.check_frozen()
        work.num_examples = run.num_examples
        work.num_steps = run.num_steps
        work.metrics = run.metrics
        if task.measures != "none" and not self.algorithm.own_model:
            self._measure(run, work)
        # what was its own once stays so, through rounds in which it is sent too
        own = self._values(dict.fromkeys([*work.own, *kept.get(KEPT, {})]))
        if self.algorithm.communicates:
            work.payload = self._uplink(run)
            # again: an uplink hook counts the examples that it measures on
            work.num_examples = run.num_examples
            if work.payload is None:
                work.fault = Fault("skipped", "nothing was sent", carried=run.carries)
        # last, as it leaves another model in the module
        model = {}
        if self.algorithm.own_model and work.fault is None:
            model = {MODEL: self._train_own(run, kept.get(MODEL), work)}
            if task.measures != "none":
                self._measure(run, work)
        work.keeps = {**self._kept(run.state, self._messages.keeps), KEPT: own, **model}

    def _train_own(self, sent: LocalRun, kept: Params | None, work: _Work) -> Params:
        """Train the client's own model after the one that it sends; what it comes to."""
        start = self.worker.to_device(kept) if kept else sent.received
        run = replace(sent, own=start, num_examples=0, num_steps=0, lr_sums={}, metrics={})
        self.worker.train(self.algorithm, run, self.data)
        # its time counts, and its loss is another one
        work.num_examples += run.num_examples
        work.num_steps += run.num_steps
        work.metrics |= {f"{name}_own": value for name, value in run.metrics.items()}
        self.worker.check_frozen()
        names = (name for name in self.worker.state() if name not in self.worker.untrained)
        return self._values(dict.fromkeys(names))

    def _run(
        self, task: Task, client: Client, message: Params, start: Params, state: dict[str, Tensor]
    ) -> LocalRun:
        assert task.training is not None
        # no draw depends on which process trains the client, nor on what it trained before
        rng = RandomKeys(task.seed, task.round, client.id)
        return LocalRun(
            client=client,
            round=task.round,
            module=self.worker.module,
            device=self.worker.device,
            training=task.training,
            part=task.part,
            received=self.worker.to_device(start),
            message=message,
            state=state,
            rng=rng,
            evaluate=partial(self._on_own_data, client, rng),
            history=task.history,
            link=task.link,
            downlink_bytes=len(task.downlink) + len(task.body),
        )

    def _measure(self, run: LocalRun, work: _Work, when: str = "") -> None:
        """Log what the client's model is worth on its own validation samples, or else on all."""
        own = self.data.client_val_batches(run.client.id)
        for name, value in self.worker.evaluate(own or self.data.val_batches(), "val").items():
            run.metrics[f"val/{name}_local{when}_{run.client.group}"] = value
            if own:
                work.measured[name + when] = value

    def _values(self, names: Mapping[str, None]) -> Params:
        """A copy of some tensors of the module, on the CPU."""
        values = self.worker.state() if names else {}
        return {name: values[name].cpu().clone() for name in names}

    def _uplink(self, run: LocalRun) -> bytes | None:
        """What a client sends, without what never travels."""
        update = self.hooks.uplink(run)
        if update is None:
            return None
        # a tied tensor travels once, by its first name
        staying = self.own.always | self.worker.untrained.keys() | self.worker.tied
        try:
            return encode(without(update, staying))
        except PayloadError as error:
            raise PayloadError(f"{self.hooks.name('uplink')}: {error}") from None

    def _on_own_data(self, client: Client, rng: RandomKeys, num_examples: int) -> Metrics:
        """Validation metrics of the module on some of a client's training examples, the same at
        every call.
        """
        # the keyed order of the first epoch, so that models are compared on the same examples
        batches = self.data.client_batches(client.id, rng, 0)
        per_batch = math.ceil(client.num_examples / self.data.num_batches(client.id))
        return self.worker.evaluate(islice(batches, math.ceil(num_examples / per_batch)), "val")


def _state(kept: Mapping[str, Any]) -> dict[str, Tensor]:
    """All that the algorithm keeps of a client."""
    common, _ = split(kept.get(COMMON, {}))
    return {**kept.get("algorithm", {}), **common}
