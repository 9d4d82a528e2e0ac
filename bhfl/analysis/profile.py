"""What a round costs each bit group before anything is trained, in all and layer by layer: one
client of each group trains a little, on this machine and by the method that is meant.

One row a layer and group, one of what belongs to no layer, and one of the group, whose layer is
`ALL`, of plain values:

    group, layer, kind, bits   names; the bits are the layer's own
    rounds                     the first and the last round of these bits, as in ``9-14``; there
                               only where the bits of any group change
    parameters                 their number
    low_share                  share of the parameters that are computed with below 32 bits
    flops                      FLOPs of a forward pass of one sample
    training_flops             FLOPs of a training step for one sample, less where weights are
                               frozen
    kept_bytes                 what is kept of a batch for the backward pass: activations, their
                               masks, and weights as the layer computes with them; the most at a
                               time, where a client trains two models
    step_seconds               a training step on this machine, with the group's backend; of a layer
                               its forward and backward pass alone
    uplink_bytes               what the client sends in a round, and
    downlink_bytes             what it is sent; in all, the whole payload with its header
    once_bytes                 what it is sent once and keeps, as it is frozen; there only where
                               anything is
    step_joules                energy of a step, of all packages of the processor; there only where
                               the machine counts it
"""

import math
import re
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import lightning as L
from torch.nn import Parameter

from bhfl.analysis.energy import POWERCAP, EnergyMeter
from bhfl.analysis.probes import Watch, layer_seconds
from bhfl.analysis.short import ShortClients
from bhfl.checks import checked, count, refuse
from bhfl.engine.client.store import ClientStore
from bhfl.engine.coordinator import Coordinator
from bhfl.engine.devices import FLOAT, Devices
from bhfl.engine.figures import tensor_bytes
from bhfl.engine.flops import REST, count_flops, layers_of
from bhfl.engine.formats import with_format
from bhfl.engine.random import RandomKeys
from bhfl.engine.references import References
from bhfl.engine.session import Session
from bhfl.engine.trainer import FederatedTrainer
from bhfl.engine.types import Client, FederatedData
from bhfl.quant import quant_layers

ALL = "(all)"
"""The layer of a group's own row."""
Row = dict[str, Any]


@dataclass(frozen=True)
class Profile:
    """What a fleet costs."""

    rows: list[Row]
    """See `bhfl.analysis.profile` for the columns, `bhfl.report.profile` for tables."""
    title: str
    """What they are of, in words."""


def profile(
    trainer: FederatedTrainer,
    model: L.LightningModule,
    datamodule: FederatedData,
    *,
    steps: int = 5,
    repeats: int = 3,
    powercap: Path = POWERCAP,
) -> Profile:
    """Measure one client of each bit group, with all bits that the group comes to: its layers, its
    steps, its bytes. Nothing is written, and the model is left with the weights that it had.

    Args:
        trainer: Whose options, fleet and algorithm are meant.
        model: Any LightningModule that can be trained; FLOPs are those of its validation_step.
        datamodule: Data as for `fit`.
        steps: Training steps of the shorter of two measurements; the longer one has twice as many,
            and what it takes more is the time of so many steps.
        repeats: How often both are measured; the median counts.
        powercap: Where the machine shows its counters of energy.

    Returns:
        Rows of layers and of whole clients, and what they are of.

    Raises:
        ValueError: An option is out of its range, the run has several processes, or model, data,
            algorithm and fleet do not fit together.
        RuntimeError: A client cannot train.
    """
    checked("steps", steps, count(1))
    checked("repeats", repeats, count(1))
    if trainer.fabric.world_size > 1:
        devices = f"devices must be 1, got {trainer.settings.machine.devices!r}"
        refuse([f"profile runs in one process: {devices}"])
    meter = EnergyMeter(powercap)
    with _all_there(trainer), Session.opened(trainer, model, datamodule, "fit") as session:
        with tempfile.TemporaryDirectory() as folder:
            session.store = ClientStore(Path(folder))
            session.references = References(Path(folder, References.place))
            rows = _Bench(session, steps, repeats, meter).rows()
        name = type(session.module).__name__
        session.tear_down()
    threads = trainer.settings.machine.threads
    return Profile(
        rows,
        f"{name} by {type(trainer.algorithm).__name__}, {threads} thread{'s' * (threads > 1)} on "
        f"{trainer.fabric.device.type}",
    )


@contextmanager
def _all_there(trainer: FederatedTrainer) -> Iterator[None]:
    """Nobody drops out or does a part of its steps: what is measured is a whole round."""
    settings = trainer.settings
    trainer.settings = replace(settings, fleet=replace(settings.fleet, availability=None))
    try:
        yield
    finally:
        trainer.settings = settings


class _Bench:
    """Measures one client of each group.

    Args:
        session: Opened for a fit.
        steps: See `profile`.
        repeats: See `profile`.
        meter: The machine's counters of energy.
    """

    def __init__(self, session: Session, steps: int, repeats: int, meter: EnergyMeter) -> None:
        self.session = session
        self.steps = steps
        self.repeats = repeats
        self.meter = meter
        worker = session.worker
        if session.timing:
            session.timing.measure_(worker, session.data)
        session.server = with_format(
            session.server, session.settings, worker, session.fleet, session.data
        )
        self.short = ShortClients(session.clients)
        session.clients = self.short
        self.layers = layers_of(session.module)
        self.own: dict[str, dict[str, Parameter]] = {}
        """The parameters of each layer; tied ones count in the first of theirs."""
        seen: set[Parameter] = set()
        for name, layer in self.layers.items():
            parameters = layer.named_parameters(recurse=False)
            self.own[name] = {key: one for key, one in parameters if one not in seen}
            seen.update(self.own[name].values())
        self.low = dict(quant_layers(session.module))
        client = next(client for client in session.fleet if client.num_examples)
        worker.begin(session.server)
        worker.load_global(session.global_model(), FLOAT)
        keys = RandomKeys(session.settings.cohort.seed, 0, client.id)
        batch = next(iter(session.data.client_batches(client.id, keys, 0)))
        self.flops = count_flops(worker, batch)
        """What a batch of a client's takes in float32."""

    def rows(self) -> list[Row]:
        """The rows of all groups, in the fleet's order, those of a group by its bits as they come;
        groups without samples are left out.
        """
        found: dict[Devices, list[Row]] = {}
        fleet = self.session.fleet
        server = self.session.server
        for round in fleet.changes:
            server = self.session.regrouped(replace(server, round=round))
            roster = fleet.at(round)
            new = []
            for ids in roster.members.values():
                first = [roster[id] for id in ids if roster[id].num_examples][:1]
                new += [client for client in first if client.devices not in found]
            sampled = {client.id: client for client in [*self.session.cohort(round), *new]}
            self.cohort = [sampled[id] for id in sorted(sampled)]
            self.started = self.session.begin_round(server, self.cohort)
            for client in new:
                found[client.devices] = self._of(client)
        rows: list[Row] = []
        for devices in fleet.devices:
            rows += [self._dated(row, devices) for row in found.get(devices, [])]
        return rows

    def _dated(self, row: Row, devices: Devices) -> Row:
        """A row with the rounds that its bits stand for, where any change."""
        fleet = self.session.fleet
        if fleet.changes == [0]:
            return row
        (stages,) = [stages for stages, _ in fleet.stages if devices in stages.values()]
        starts = [*stages, self.session.settings.stopping.max_rounds]
        place = list(stages.values()).index(devices)
        rounds = f"{starts[place] + 1}-{starts[place + 1]}"
        names = {key: row[key] for key in ("group", "layer", "kind", "bits")}
        return {**names, "rounds": rounds, **row}

    # ---- one group -------------------------------------------------------------------------------

    def _of(self, client: Client) -> list[Row]:
        self._train(client, 1)
        watch = self._watched(client)
        seconds, joules = self._timed(client)
        payloads = {
            "uplink_bytes": self.short.reply.payload or b"",
            "downlink_bytes": self.short.sent,
        }
        if self.short.once:
            payloads["once_bytes"] = self.short.once
        sent = {key: self._bytes(payload) for key, payload in payloads.items()}
        rows = []
        for name, layer in self.layers.items():
            row = self._layer_row(client, name, layer, watch)
            rows.append(row | {key: sizes[name] for key, sizes in sent.items()})
        whole = self._whole_row(client, rows, watch)
        whole["step_seconds"] = seconds
        whole |= {key: len(payload) for key, payload in payloads.items()}
        rest = {**whole, "layer": REST, "kind": "", "low_share": 0.0, "step_seconds": math.nan}
        for key in ("parameters", "flops", "training_flops", "kept_bytes"):
            rest[key] -= sum(row[key] for row in rows)
        rest |= {key: sizes[REST] for key, sizes in sent.items()}
        rows.append(rest)
        if self.meter:
            rows = [{**row, "step_joules": math.nan} for row in rows]
            whole["step_joules"] = joules
        return [*rows, whole]

    def _whole_row(self, client: Client, rows: list[Row], watch: Watch) -> Row:
        module = self.session.module
        total = sum(p.numel() for p in module.parameters())
        low = sum(row["low_share"] * row["parameters"] for row in rows)
        return {
            "group": client.group,
            "layer": ALL,
            "kind": type(module).__name__,
            "bits": client.spec.label,
            "parameters": total,
            "low_share": low / max(total, 1),
            **self._flops_of(*self.flops.forward),
            "kept_bytes": sum(watch.kept.values()),
        }

    def _layer_row(self, client: Client, name: str, layer: Any, watch: Watch) -> Row:
        own = self.own[name]
        size = sum(p.numel() for p in own.values())
        weight = own.get(getattr(layer, "weight_key", ""))
        spec = client.devices.spec_of(f"{name}.weight") if name in self.low else FLOAT.spec
        low_share = 0.0
        if weight is not None and spec.weights < 32:
            low_share = weight.numel() / size
        seconds = math.nan
        if name in watch.inputs:
            with self.session.fabric.autocast():
                seconds = layer_seconds(layer, watch.inputs[name], 3 * self.repeats)
        return {
            "group": client.group,
            "layer": name,
            "kind": type(layer).__name__.removeprefix("Quant"),
            "bits": spec.label,
            "parameters": size,
            "low_share": low_share,
            **self._flops_of(name),
            "kept_bytes": watch.kept.get(name, 0),
            "step_seconds": seconds,
        }

    def _train(self, client: Client, steps: int) -> float:
        """Seconds of a client's first round, cut to so many steps."""
        self.short.steps = steps
        coordinator = Coordinator(self.session, self.started, self.cohort)
        coordinator.mine = [client]
        (record,) = coordinator.records([])
        # nothing is kept: each round is the first
        self.short.close(self.started.round + 1, {})
        if record.status in ("failed", "rejected"):
            raise RuntimeError(
                f"client {client.id} of group {client.group} {record.status}: {record.reason}"
            )
        seconds: float = self.short.reply.seconds
        return seconds

    def _timed(self, client: Client) -> tuple[float, float]:
        """Seconds and joules of a step."""
        found = []
        before = self.meter.read()
        for _ in range(self.repeats):
            short = self._train(client, self.steps)
            found.append((self._train(client, 2 * self.steps) - short) / self.steps)
        joules = self.meter.joules(before, self.meter.read())
        return max(median(found), 0.0), joules / (3 * self.steps * self.repeats)

    def _watched(self, client: Client) -> Watch:
        """One step, watched layer by layer; the module then stands as the client's."""
        self.short.saves_in_int8 = False
        worker = self.session.worker
        train = worker.train
        try:
            with Watch(self.session.module).open() as watch:

                def each(*args: Any) -> None:
                    watch.begin()
                    train(*args)

                # a client with a model of its own trains twice
                vars(worker)["train"] = each
                self._train(client, 1)
        finally:
            self.short.saves_in_int8 = True
            vars(worker).pop("train", None)
        return watch

    def _flops_of(self, *layers: str) -> Row:
        """The FLOPs of some layers together, for one sample."""
        found = {}
        for key, flops in (("flops", self.flops.forward), ("training_flops", self.flops.training)):
            found[key] = sum(flops.get(name, 0) for name in layers) // self.flops.num_examples
        return found

    def _bytes(self, payload: bytes) -> Counter[str]:
        """Bytes of a payload by layer, each with its part of the header."""
        found: Counter[str] = Counter()
        for name, size in tensor_bytes(payload).items():
            found[self._layer_of(name)] += size
        return found

    def _layer_of(self, tensor: str) -> str:
        """The layer that a tensor is of, whatever a method puts before its name."""
        owner = tensor.rpartition(".")[0]
        fitting = [n for n in self.layers if re.search(rf"(?<!\w){re.escape(n)}$", owner)]
        return max(fitting, key=len, default=REST)
