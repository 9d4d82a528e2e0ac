"""Accuracy per bit group: the global model as each group would run it."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from operator import itemgetter
from typing import TYPE_CHECKING, Any, NamedTuple

from bhfl.comm import encode
from bhfl.engine.devices import FLOAT, Devices, finest
from bhfl.engine.exchange import Measured, Stage, Task
from bhfl.engine.per_client import spread
from bhfl.engine.processes import gather
from bhfl.engine.roster import behind, group_sizes, members, one_of_each
from bhfl.engine.types import Client, Metrics, Params, ServerState, server_data, without
from bhfl.settings import LocalTraining

if TYPE_CHECKING:
    from bhfl.engine.session import Session

GLOBAL = "global"
"""Key of the float32 server model among the groups' results."""


class Found(NamedTuple):
    """What a pass came to."""

    number: int
    """Its place among all passes."""
    metrics: Mapping[str, float]
    """Means over the common samples."""
    own: Mapping[str, float]
    """Means over the client's own."""
    correct: str
    """Which of the common samples it was right about, see `Measured`."""


@dataclass(frozen=True)
class Pass:
    """One pass over the evaluation set: a model on some devices, whose result counts for `key`."""

    key: str
    devices: Devices
    tensors: Params
    """The model, without what its client has of its own."""
    client: Client | None = None
    """The client whose own model is measured, or that measures it; None where the server does."""
    common: bool = True
    """Whether it is measured on the samples of all."""
    own: bool = False
    """Whether it is measured on the client's own test samples."""


class Evaluator:
    """Evaluates a server state over its fleet; passes are spread over the processes, each done
    whole by one.

    A pass is never split: dynamic activation ranges and metric states then do not depend on how
    many processes there are, and a user's `validation_step`, hooks and torchmetrics work as they
    are.
    """

    def __init__(self, session: "Session") -> None:
        self.session = session
        counts = group_sizes(session.fleet)
        self.shares = {group: count / counts.total() for group, count in counts.items()}
        self.own: dict[int, Mapping[str, float]] = {}
        """What each client's model is worth on its own test samples, by id, as last measured."""
        self.correct: dict[str, list[str]] = {}
        """Which common samples the models of each group were right about, as last measured: a
        digit a sample for each model; nothing where the model's step does not say.
        """
        settings = session.settings
        self.training: LocalTraining | None = None
        """What clients do before they are measured."""
        if epochs := settings.aggregation.finetune_epochs:
            self.training = replace(settings.training, local_epochs=epochs, local_steps=None)

    def __call__(self, server: ServerState, stage: Stage) -> Metrics:
        """The metrics of `stage`, tagged: ``val/acc`` (the server's float32 model),
        ``val/acc_<group>``, ``val/acc_avg`` (weighted by the groups' numbers of clients),
        ``val/acc_min``; of a test, the distribution over clients of what they are worth on test
        samples of their own, see `bhfl.engine.per_client.spread`.
        """
        fabric = self.session.fabric
        passes = list(enumerate(self._passes(server, stage)))
        mine = passes[fabric.global_rank :: fabric.world_size]
        results: dict[str, list[Mapping[str, float]]] = {}
        self.own = {}
        self.correct = {}
        found = gather(fabric, list(self._measured(server, stage, mine)))
        # by the numbers of passes: means then add up in one order on any number of processes
        for came in sorted(found, key=itemgetter(0)):
            one = passes[came.number][1]
            if one.common:
                results.setdefault(one.key, []).append(came.metrics)
            if came.correct and one.key != GLOBAL:
                self.correct.setdefault(one.key, []).append(came.correct)
            if one.client is not None and came.own:
                self.own[one.client.id] = came.own
        floats = [name for name, own in self.groups(server).items() if own.spec.is_float]
        tags = self._tag({key: _mean(rows) for key, rows in results.items()}, floats, stage)
        return tags | spread(stage, self.own, self.session.fleet)

    def by_client(self, server: ServerState) -> bool:
        """Whether any group cannot be measured without what its clients keep."""
        if self.session.algorithm.own_model:
            return True
        models = (self.model(server, one) for one in self.groups(server).values())
        return any(map(self.session.own.missing, models))

    def groups(self, server: ServerState) -> dict[str, Devices]:
        """The devices of each group, by its name, with the bits of the round that a state is
        from.
        """
        fleet = behind(self.session.fleet, server.round)
        return {client.group: client.devices for client in one_of_each(fleet)}

    def kept_apart(self, server: ServerState) -> set[str]:
        """Names of the tensors that all clients keep to themselves, so that the server's values of
        them are those of the first model.
        """
        session = self.session
        # what any group sends has been trained, and no prediction depends on counters
        stays = session.own.first.keys() - set(session.buffers.counters)
        if session.worker.reestimate_ is not None:
            stays -= set(session.buffers.statistics)
        for devices in self.groups(server).values():
            stays &= set(session.own.missing(self.model(server, devices)))
        return stays

    def model(self, server: ServerState, devices: Devices) -> Params:
        """The model of a group, without what is its clients' own."""
        session = self.session
        params = session.hooks.group_params(server, devices.bits)
        return {**params, **session.buffers.of(server, devices.bits)}

    def _passes(self, server: ServerState, stage: Stage) -> Iterator[Pass]:
        session = self.session
        apart = session.algorithm.own_model or self.training is not None
        samples = self._own_samples(stage)
        floating = False
        fleet = session.fleet
        places = members(fleet)
        for group, devices in self.groups(server).items():
            given = self.model(server, devices)
            lacks = bool(session.own.missing(given))
            # float32 clients run the server's own model, which needs no pass of its own beside
            # theirs
            floating |= devices.spec.is_float and (lacks or not apart)
            alone = lacks or apart
            if not alone:
                yield Pass(group, devices, given)
            if not alone and samples is None:
                continue
            for id in places[group]:
                own = samples is not None and samples(id) is not None
                if alone or own:
                    yield Pass(group, devices, given, fleet[id], alone, own)
        if session.algorithm.communicates and not floating:
            buffers = session.buffers.of(server, finest(self.groups(server).values()))
            yield Pass(GLOBAL, FLOAT, session.own.whole({**server.params, **buffers}, {}))

    def _own_samples(self, stage: Stage) -> Callable[[int], Iterable[Any] | None] | None:
        """What gives each client's own test samples; None where nobody is measured on them."""
        # rounds are not: nothing may be chosen by test samples
        if stage != "test":
            return None
        sizes = getattr(self.session.data, "held_sizes", None)
        # to ask each of a million clients takes a quarter of a minute
        if sizes is not None and not sizes("test").any():
            return None
        return server_data(self.session.data).client_test_batches

    def _measured(
        self, server: ServerState, stage: Stage, passes: Sequence[tuple[int, Pass]]
    ) -> Iterator[Found]:
        """The results of some passes."""
        session = self.session
        worker = session.worker
        data = session.data
        worker.begin(server)
        batches = data.val_batches if stage == "val" else data.test_batches
        alone: dict[int, int] = {}
        for index, one in passes:
            if one.client is not None:
                alone[one.client.id] = index
                continue
            worker.load_global(one.tensors, one.devices)
            metrics = worker.evaluate(batches(), stage)
            yield Found(index, metrics, {}, worker.correct)
        if alone:
            tasks = self._tasks(server, stage, (one for _, one in passes))
            lacking = set()
            for measured in session.clients.evaluate(tasks):
                if measured.holds is False:
                    lacking.add(measured.client)
                else:
                    yield _found(alone, measured)
            again = [one for _, one in passes if one.client and one.client.id in lacking]
            tasks = self._tasks(server, stage, again, lacking)
            for measured in session.clients.evaluate(tasks) if again else ():
                yield _found(alone, measured)

    def _tasks(
        self,
        server: ServerState,
        stage: Stage,
        passes: Iterable[Pass],
        lacking: Collection[int] = (),
    ) -> Iterator[Task]:
        """Tasks for clients that are measured each; one message for all of a group. Those that lack
        the frozen tensors are sent them.
        """
        session = self.session
        frozen = session.frozen.sha256 if session.algorithm.communicates else ""
        holders = set(server.holders).difference(lacking)
        group = ""
        payload = body = b""
        for one in passes:
            if one.client is None:
                continue
            if one.key != group:
                payload = encode(without(one.tensors, session.own.always))
                group = one.key
            if frozen and not body and one.client.id not in holders:
                body = session.frozen.payload()
            yield Task(
                client=one.client.id,
                round=server.round,
                stage=stage,
                downlink=payload,
                frozen=frozen,
                body=b"" if one.client.id in holders else body,
                version=server.accepted.get(one.client.id, 0),
                channels_last=server.channels_last,
                seed=session.settings.cohort.seed,
                training=self.training if one.client.num_examples else None,
                common=one.common,
                own=one.own,
            )

    def _tag(self, results: dict[str, Metrics], floats: Sequence[str], stage: Stage) -> Metrics:
        """The numbers of all passes by tag, from the mean of each key; `floats` are the groups that
        compute in float32.
        """
        # they run the server's own model
        whole = GLOBAL if GLOBAL in results else next(iter(floats), GLOBAL)
        overall = results.get(whole, {})
        results.pop(GLOBAL, None)
        metrics: Metrics = {}
        # some a step may log for some models alone, such as a share of what one of them predicted
        for name in dict.fromkeys(chain.from_iterable(results.values())):
            values = {group: result[name] for group, result in results.items() if name in result}
            if self.session.algorithm.communicates and name in overall:
                metrics[f"{stage}/{name}"] = overall[name]
            for group, value in values.items():
                metrics[f"{stage}/{name}_{group}"] = value
            shared = (self.shares[group] * value for group, value in values.items())
            # and a group whose clients are elsewhere may not have answered
            there = sum(self.shares[group] for group in values)
            whole_fleet = len(values) == len(self.shares)
            metrics[f"{stage}/{name}_avg"] = sum(shared) if whole_fleet else sum(shared) / there
            metrics[f"{stage}/{name}_min"] = min(values.values())
        return metrics


def _found(passes: Mapping[int, int], measured: Measured) -> Found:
    """What a client measured, with the number of its pass."""
    number = passes[measured.client]
    return Found(number, measured.metrics, measured.own, measured.correct)


def _mean(rows: list[Mapping[str, float]]) -> Metrics:
    means = {}
    for name in dict.fromkeys(chain.from_iterable(rows)):
        values = [row[name] for row in rows if name in row]
        means[name] = sum(values) / len(values)
    return means
