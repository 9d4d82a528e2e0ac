"""What a fit, a measurement, an analysis or an export works with."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning as L

from bhfl.engine.algorithm import Algorithm, Context
from bhfl.engine.best import watched
from bhfl.engine.buffers import Buffers
from bhfl.engine.callback import call_hook
from bhfl.engine.checked import ServerHooks
from bhfl.engine.client.module_hooks import check_trainable
from bhfl.engine.client.optim import check_optimizers
from bhfl.engine.client.place import Place
from bhfl.engine.client.registered import frozen_in
from bhfl.engine.client.store import ClientStore
from bhfl.engine.client.worker import Worker
from bhfl.engine.dealing import Dealer
from bhfl.engine.devices import FLOAT, finest
from bhfl.engine.ending import STANDING
from bhfl.engine.evaluate import Evaluator
from bhfl.engine.exchange import Clients, Stage
from bhfl.engine.fingerprint import fingerprint, model_options, note_backends
from bhfl.engine.frozen import held_by
from bhfl.engine.handed import check_server, name_of, tensors_in
from bhfl.engine.hooks import check_methods
from bhfl.engine.launch import in_turns, launched
from bhfl.engine.loan import Loan
from bhfl.engine.monitor import check_monitor, check_samples, monitored
from bhfl.engine.own import Own
from bhfl.engine.processes import check_agreement
from bhfl.engine.reestimate import reestimation
from bhfl.engine.references import References
from bhfl.engine.resume import fitting, use_backends_, warn_of_other
from bhfl.engine.roster import Roster, group_sizes
from bhfl.engine.sampling import cohort_of
from bhfl.engine.server_optimizer import server_optimizer
from bhfl.engine.state import check_state
from bhfl.engine.timing import Timing
from bhfl.engine.types import Client, FederatedData, Params, ServerState, server_data, without
from bhfl.quant import layer_weights
from bhfl.settings import Role
from bhfl.told import Told

if TYPE_CHECKING:
    from bhfl.engine.trainer import FederatedTrainer


class Session:
    """A model, its data and its fleet, set up to be trained or measured.

    It is opened and released by ``with Session.opened(trainer, model, data, "fit")``: the model
    comes back as it was lent, whatever happens, with the last server state in it.

    Args:
        trainer: Whose options, fleet, algorithm and callbacks are meant.
        loan: The model and the data.
        stages: What they are set up for, in Lightning's words.
    """

    def __init__(self, trainer: "FederatedTrainer", loan: Loan, stages: Sequence[str]) -> None:
        self.trainer = trainer
        self.settings = trainer.settings
        self.fabric = trainer.fabric
        self.algorithm = trainer.algorithm
        self.loan = loan
        self.module = loan.module
        self.data: FederatedData = loan.data
        self.stages = stages
        self.told: Told = {}
        """What a fit is told, see `bhfl.engine.fingerprint`."""
        self.store = ClientStore(Path("nowhere"))
        """What the clients of this process keep between rounds."""
        self.references = References(Path("nowhere"))
        """What each of them was sent last, where differences are sent."""
        self._set_up()

    @classmethod
    @contextmanager
    def opened(
        cls,
        trainer: "FederatedTrainer",
        model: L.LightningModule,
        data: FederatedData,
        *stages: str,
        threads: int | None = None,
    ) -> "Iterator[Session]":
        """A session, with the processes of the run at work.

        Args:
            trainer: Whose options, fleet, algorithm and callbacks are meant.
            model: Lent to the session.
            data: Lent to the session.
            stages: What it is for: ``fit``, ``validate``, ``test``, ``predict``.
            threads: CPU threads, in place of the trainer's.

        Raises:
            ValueError: Model, data, algorithm and fleet do not fit together.
        """
        machine = trainer.settings.machine
        num_threads = threads or machine.threads
        with launched(trainer.fabric, num_threads, machine.timeout_seconds, again=trainer.launched):
            trainer.launched = True
            with ExitStack() as stack:
                for callback in trainer.callbacks:
                    stack.enter_context(callback.around(trainer, stage=stages[0]))
                loan = Loan(model, data, trainer.session)
                stack.callback(loan.give_back)
                trainer.session = session = cls(trainer, loan, stages)
                yield session

    # ---- setting up ------------------------------------------------------------------------------

    def _set_up(self) -> None:
        """Data, clients, worker and the first server state; all problems show here."""
        module = self.module
        settings, machine = self.settings, self.settings.machine
        fits = "fit" in self.stages
        check_methods(
            self.data, FederatedData, "datamodule must be FromDatasets(...) or have its methods"
        )
        if fits or settings.aggregation.finetune_epochs:
            check_trainable(module)
        stage = {"fit": "train", "validate": "val"}.get(self.stages[0], self.stages[0])
        self.place = Place(self.data, settings, stage)
        self.loan.attach(self.place, self.fabric)
        self.fleet = self.place.clients = self._split()
        network = settings.fleet.network
        self.timing = Timing(network, self.fleet, settings) if network else None
        for stage in self.stages:
            module.setup(stage=stage)
        module.configure_model()
        check_state(module)
        self._names_frozen = frozen_in(module)
        self.algorithm.prepare(module, self.fleet)
        if fits:
            self._check_fit()
        self.worker = Worker(module, self.fabric, self.place)
        if settings.aggregation.reestimate_norm:
            norm = settings.aggregation.norm
            self.worker.reestimate_ = reestimation(module, self.data, self.algorithm, norm)
        self._look_at_model()
        self.dealer = Dealer(self.fabric, self.context.planned_steps)
        make = settings.aggregation.server_optimizer
        self.algorithm.server_optimizer = server_optimizer(make, self.algorithm, module)
        self.algorithm.setup(self.context)
        self.evaluator = Evaluator(self)
        if fits:
            module.on_fit_start()
        self.server = replace(self.init_server(), channels_last=machine.channels_last is True)
        self.loan.weights = self._release

    def _split(self) -> Roster:
        """Fetch the data, and deal them out to the fleet."""
        STANDING.at("preparing the data")
        in_turns(self.fabric, self.data.prepare_data)
        in_turns(self.fabric, self.module.prepare_data)
        STANDING.at("setting up")
        for stage in self.stages:
            self.data.setup(stage)
        STANDING.at("splitting the data among the clients")
        fleet, settings = self.trainer.fleet, self.settings
        counts = fleet.counts(settings.fleet.num_clients)
        sizes = self.data.federate(sum(counts), settings.cohort.seed)
        ways = settings.aggregation.weights, settings.fleet.downlink
        return Roster(fleet.groups, counts, sizes, *ways)

    def _check_fit(self) -> None:
        """Refuse what could not be trained or chosen by, and take down what the run is told."""
        module = self.module
        settings = self.settings
        fleet, method = self.trainer.fleet.groups, self.algorithm.client_half
        self.optimizers, needed = check_optimizers(module, fleet, method)
        made = model_options(module, self.optimizers)
        config = self.trainer.config
        self.told = fingerprint(settings, self.data, config.get("model", made))
        identity = self.told[Role.IDENTITY.value]
        # a class of Python's may be another one with the same tensors
        if "model" not in config:
            identity["model"] = self.told[Role.TASK.value].pop("model")
        identity["model.num_parameters"] = sum(p.numel() for p in module.parameters())
        groups = group_sizes(self.fleet)
        self.bests = watched(settings.choice.monitor, groups, settings.choice.best_by_group)
        self.monitors = monitored(self.bests, module, settings, needed)
        for tag, owner in self.monitors.items():
            check_monitor(tag, module, groups, owner, self.algorithm)
        check_samples(self.data, settings, len(self.fleet))

    def _look_at_model(self) -> None:
        """Find out what of the model is whose, and whether every client can be made of it."""
        method = self.algorithm.client_half
        changes = type(method).client_gradients_ is not Algorithm.client_gradients_
        if (changes or method.descends) and not self.module.automatic_optimization:
            raise ValueError(
                f"{type(method).__name__} changes losses or gradients, which needs automatic "
                f"optimization; {type(self.module).__name__} optimises manually"
            )
        groups = self.fleet.devices
        STANDING.at("choosing backends for the model")
        for devices in (*groups, FLOAT):
            # raises now, not in the first client, where the model cannot take it
            devices.match_(self.module, self._names_frozen)
            devices.set_(self.module)
            # one choice for all: what is fast may differ from machine to machine
            if self.fabric.is_global_zero:
                devices.choose_(self.module)
            devices.backends = self.fabric.broadcast(devices.backends)
        note_backends(self.told, groups)
        self.bits = list(dict.fromkeys(devices.bits for devices in groups))
        norm, frozen = self.settings.aggregation.norm, self._names_frozen
        self.buffers = Buffers(self.module, self.worker.state(), norm, self.bits, frozen)
        low = any(devices.has_low_weights for devices in groups)
        self.layers = layer_weights(self.module) if low else []
        self.context = Context(
            clients=self.fleet,
            module=self.module,
            data=server_data(self.data),
            fabric=self.fabric,
            settings=self.settings,
            worker=self.worker,
            buffers=self.travelling,
            timing=self.timing or self.trainer.links,
        )

    def init_server(self) -> ServerState:
        """The state before the first round: the worker's weights, as rank 0 has them."""
        server = self.buffers.first_state(self.worker.state())
        params = server.params
        server = replace(server, extra=self.algorithm.init_server(params, self.fleet.at(0)))
        check_server(name_of(self.algorithm, "init_server"), server, server)
        server = self.fabric.broadcast(server)
        self.own = Own.of(server, self.buffers, self.bits[0], self.algorithm)
        self.hooks = ServerHooks(self.algorithm, self.own.first, server.extra)
        self.frozen = held_by(self.worker, server)
        return server

    # ---- states ----------------------------------------------------------------------------------

    # Not in set-up: `connect` hands on the store, which a fit or a checkpoint brings later.
    @cached_property
    def clients(self) -> Clients:
        """Whoever trains on tasks."""
        return self.trainer.connect(self)

    def load(
        self, ckpt_path: str | Path, *, clients: bool = True
    ) -> tuple[Path | None, Mapping[str, Any]]:
        """Take up the state of a checkpoint.

        Args:
            ckpt_path: A checkpoint, a run folder, or ``last`` or ``best`` of the newest run.
            clients: Whether what clients keep is needed, where their models are not whole without.

        Returns:
            The run folder that it lies in, if any, and all that it holds.

        Raises:
            CheckpointError: There is none that fits, or what clients keep is not there.
        """
        found = self.trainer.find_checkpoint(ckpt_path) if self.fabric.is_global_zero else None
        folder, state = self.fabric.broadcast(found)  # type: ignore[misc]
        self.take_up(fitting(state, self.server))
        warn_of_other(ckpt_path, state["config"], type(self.algorithm).__name__)
        self.use_backends(state["config"])
        if clients and self.evaluator.by_client(self.server):
            self.store = ClientStore.listed(folder, state["clients"])
        return folder, state

    def use_backends(self, told: Told) -> None:
        """Compute the layers by what a run was told, on whatever machine that was.

        Raises:
            CheckpointError: There is no such layer or backend.
        """
        use_backends_(told, self.fleet.devices, self.module)
        note_backends(self.told, self.fleet.devices)

    def take_up(self, server: ServerState) -> None:
        """Go on from a state, and from the first model that it had."""
        self.server = server
        self.own.first |= server.buffers["first"]
        self.frozen = held_by(self.worker, server)

    def evaluate(self, stage: Stage) -> dict[str, float]:
        """The metrics of the state that was reached; see `Evaluator`."""
        STANDING.at("validating" if stage == "val" else "testing")
        return self.evaluator(self.server, stage)

    def global_model(self) -> Params:
        """The server's model in float32, by name."""
        bits = finest(self.evaluator.groups(self.server).values())
        return {**self.server.params, **self.buffers.of(self.server, bits)}

    def load_global(self) -> None:
        """Put the global model into the module."""
        self.worker.load_global(self.global_model())

    def tear_down(self) -> None:
        """Let module and data put away what they were set up with, now that the work is done."""
        self.loan.tear_down(*self.stages)

    def _release(self) -> None:
        """Make the module ready to be given back to its owner, with the global model in it."""
        self.load_global()
        self.worker.layout.take_(False)

    def call(self, hook: str, **arguments: Any) -> None:
        """Call a hook of all callbacks."""
        call_hook(self.trainer.callbacks, hook, self.trainer, **arguments)

    # ---- rounds ----------------------------------------------------------------------------------

    def cohort(self, round: int) -> list[Client]:
        """The clients of a round."""
        return cohort_of(self.fleet.at(round), self.settings.cohort, round)

    def regrouped(self, server: ServerState) -> ServerState:
        """The state with what bits have of their own, where some come to be or cease in its
        round.
        """
        if server.round not in self.fleet.changes[1:]:
            return server
        origins = self.fleet.origins(server.round)
        server = replace(server, buffers=self.buffers.regrouped(server.buffers, origins))
        return self.hooks.regroup(server, self.fleet.at(server.round), origins)

    def begin_round(self, server: ServerState, cohort: list[Client]) -> ServerState:
        """The state that a round is done with, the same in every process."""
        self.worker.begin(server)
        # without the last round's numbers, which would be logged again
        context = replace(self.context, clients=self.fleet.at(server.round))
        started = self.hooks.begin_round(replace(server, metrics={}), cohort, context)
        # only what the hook has made is compared: the rest of the state is equal already
        known = {id(tensor) for _, tensor in tensors_in(server)}
        made = [tensor for _, tensor in tensors_in(started) if id(tensor) not in known]
        check_agreement(self.fabric, made, self.hooks.name("begin_round"))
        return started

    def travelling(self, server: ServerState, group: str) -> Params:
        """The buffers that go with the parameters of a bit group (`Client.bits`), both ways."""
        return without(self.buffers.of(server, group), self.own.always)
