"""`FederatedTrainer`: the round loop on Lightning Fabric."""

from __future__ import annotations

import shlex
import time
import warnings
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Optional, Union

import lightning as L
from lightning.fabric.loggers import Logger
from lightning.fabric.strategies import Strategy

from bhfl.comm import encoded_bytes
from bhfl.comm.network import SimulatedNetwork
from bhfl.engine.algorithm import ALGORITHM_HOOKS, Algorithm
from bhfl.engine.buffers import NormPolicy
from bhfl.engine.callback import Callback, call_hook
from bhfl.engine.checkpoint import CheckpointError, check_storable, digest
from bhfl.engine.client.module_hooks import check_trainable
from bhfl.engine.client.module_trainer import Place
from bhfl.engine.client.optim import check_optimizers
from bhfl.engine.client.store import ClientStore, client_store
from bhfl.engine.client.worker import Worker
from bhfl.engine.common import check_common_folder, check_same_options
from bhfl.engine.ending import STANDING
from bhfl.engine.evaluate import Evaluator, Stage
from bhfl.engine.failures import TooFewClientsError as TooFewClientsError
from bhfl.engine.failures import failed_in_a_row
from bhfl.engine.fleet import Fleet
from bhfl.engine.folder import new_run
from bhfl.engine.forewarn import forewarn, is_compiled
from bhfl.engine.formats import with_format
from bhfl.engine.hooks import check_methods
from bhfl.engine.launch import in_turns, launched, make_fabric
from bhfl.engine.loan import Loan
from bhfl.engine.monitor import check_monitor, doubt, unseen
from bhfl.engine.records import ClientRecord, round_metrics
from bhfl.engine.reestimate import reestimation
from bhfl.engine.resume import (
    contradictions,
    described,
    find_checkpoint,
    fitting,
    shaping,
    warn_of_known,
)
from bhfl.engine.rounds import Rounds
from bhfl.engine.run import Run
from bhfl.engine.server_optimizer import OptimizerCallable, ServerOptimizer
from bhfl.engine.settings import DATA, checked_settings, global_seed
from bhfl.engine.state import check_state
from bhfl.engine.timing import Timing
from bhfl.engine.types import Client, FederatedData, ServerState
from bhfl.files import user_path


@dataclass(frozen=True)
class Fitted:
    """What a run came to, and the model that it was left in."""

    model: weakref.ref[L.LightningModule]
    sha256: str
    server: ServerState

    def is_of(self, model: L.LightningModule) -> bool:
        """Whether `model` is as the run left it."""
        return self.model() is model and digest(model.state_dict()) == self.sha256


class FederatedTrainer:
    """Trains one model over a fleet of clients of different bit-widths.

    Args:
        clients: The fleet, e.g. ``{8: 5, 32: 5}`` or ``[{bits: ternary, fraction: 0.5}, {bits: 32,
            fraction: 0.5}]``.
        algorithm: How updates are made and combined; FedAvg by default.
        num_clients: Size of a fleet given by fractions.
        max_rounds: Rounds in all, those before a resume included.
        clients_per_round: Cohort: a count, a fraction of the fleet (a float), or all.
        sampling: ``stratified``: every bit group takes part in each round; ``uniform``: drawn from
            the whole fleet.
        local_epochs: Passes of a client over its data in a round.
        local_steps: Optimiser steps of a client in a round instead of `local_epochs`.
        lr_schedule: ``continue``: schedulers go on over rounds; ``restart``: they begin anew in
            each.
        gradient_clip_val: Largest L2 norm of a client's gradients.
        weights: Of clients in averages: their numbers of ``samples``, or ``uniform``.
        server_optimizer: A torch optimiser for the server's step on ``w_t - mean``; None takes the
            mean itself.
        network: Simulated links and devices: logs ``time/simulated_s``, and drops who misses its
            deadline.
        norm: Running statistics of BatchNorm: ``average`` over all, inside each bit ``group``, or
            ``local``.
        min_clients: Fewer usable updates than this, and the round is skipped.
        max_failed_rounds: Skipped rounds in a row that are put up with; one more, and the run stops
            with an error.
        evaluate_clients: Also measure the clients' own models after local training
            (``val/acc_local_<group>``).
        check_val_every_n_rounds: Rounds between validations; the last round is always validated.
        monitor: Logged metric by which the best model is chosen.
        mode: Whether `monitor` is better at its ``max`` or ``min``.
        patience: Stop after so many validations without a better `monitor`.
        checkpoint_every_n_rounds: Rounds between checkpoints; the last round always has one.
        keep_checkpoints: Newest checkpoints kept, beside the best.
        seed: Of every random draw; None takes the number that `lightning.seed_everything` was
            given, which the initial weights of a model follow, and 0 where it was not called.
            `settings` and checkpoints hold the number itself.
        accelerator: As in Fabric.
        devices: As in Fabric; clients are dealt out to them.
        num_nodes: As in Fabric.
        strategy: ``auto``, ``ddp``, or a Fabric `DDPStrategy`: processes that meet in collectives.
        precision: As in Fabric; mixed precisions and 32-true.
        threads: CPU threads of each process, at most 16 for each CPU. Results depend on it in the
            last bits, so it never depends on `devices`.
        timeout_seconds: How long a process waits for another before the run fails.
        channels_last: Keep images and convolution weights in channels-last order, which is faster.
            ``auto`` tries it on a copy of the model before the first round, and takes it where the
            results are the same.
        save_in_int8: Clients with activations of up to 8 bits keep what the backward pass needs as
            integers, about a third of the memory, see `bhfl.quant.save_in_int8`; steps take longer.
        reestimate_norm: Evaluate the global model with BatchNorm statistics of its own at each
            width, from the samples of ``data.holdout``; the server's seconds for it are in
            ``time/round_s``.
        logger: True for TensorBoard and CSV in the run folder, False for none, or any Lightning
            loggers.
        callbacks: Objects of classes that derive from `bhfl.engine.Callback`, whose hooks are
            called in this order.
        default_root_dir: Where run folders are made.
        name: Run folders are ``<default_root_dir>/<name>/version_N``.

    Raises:
        ValueError: With every problem of the options, one a line, before any work is done.
    """

    def __init__(  # noqa: PLR0913
        self,
        clients: Union[Fleet, Mapping[Any, int], Sequence[Mapping[str, Any]]],
        algorithm: Optional[Algorithm] = None,
        num_clients: Optional[int] = None,
        max_rounds: int = 10,
        clients_per_round: Union[int, float, None] = None,
        sampling: Literal["stratified", "uniform"] = "stratified",
        local_epochs: int = 1,
        local_steps: Optional[int] = None,
        lr_schedule: Literal["continue", "restart"] = "continue",
        gradient_clip_val: Optional[float] = None,
        weights: Literal["samples", "uniform"] = "samples",
        server_optimizer: Optional[OptimizerCallable] = None,
        network: Optional[SimulatedNetwork] = None,
        norm: NormPolicy = "group",
        min_clients: int = 1,
        max_failed_rounds: int = 3,
        evaluate_clients: bool = False,
        check_val_every_n_rounds: int = 1,
        monitor: str = "val/acc_avg",
        mode: Literal["max", "min"] = "max",
        patience: Optional[int] = None,
        checkpoint_every_n_rounds: int = 1,
        keep_checkpoints: int = 2,
        seed: Optional[int] = None,
        accelerator: str = "auto",
        devices: Union[int, str, list[int]] = "auto",
        num_nodes: int = 1,
        strategy: Union[str, Strategy] = "auto",
        precision: Union[int, str] = "32-true",
        threads: int = 1,
        timeout_seconds: int = 600,
        channels_last: Union[bool, Literal["auto"]] = "auto",
        save_in_int8: bool = False,
        reestimate_norm: bool = False,
        logger: Union[bool, Logger, list[Logger]] = True,
        callbacks: Optional[list[Callback]] = None,
        default_root_dir: str = "runs",
        name: str = "bhfl",
    ) -> None:
        options = {key: value for key, value in locals().items() if key != "self"}
        options["seed"] = global_seed() if seed is None else seed
        self.settings = checked_settings(options)
        self.fleet = Fleet(clients)
        self.algorithm = Algorithm() if algorithm is None else algorithm
        if not isinstance(self.algorithm, Algorithm):
            raise ValueError(f"algorithm must be an Algorithm such as FedAvg(), got {algorithm!r}")
        ALGORITHM_HOOKS.check(self.algorithm)
        self.callbacks = list(callbacks or [])
        self.fabric = make_fabric(
            accelerator, devices, num_nodes, strategy, precision, timeout_seconds
        )
        self.config: dict[str, Any] = {}
        """What a resumed run must agree with besides the trainer's options; the command line adds
        its own here.
        """
        self._shaping: dict[str, Any] = {}
        self.clients: list[Client] = []
        self.server = ServerState({})
        self.run: Run | None = None
        self._fitted: Fitted | None = None
        self._launched = False

    # ---- what users call -------------------------------------------------------------------------

    def fit(
        self,
        model: L.LightningModule,
        datamodule: FederatedData,
        ckpt_path: Union[str, Path, None] = None,
    ) -> ServerState:
        """Train `model` over the fleet, its data split by `datamodule`, and test the result.

        Args:
            model: Any LightningModule. Its layers are swapped for quantised ones in place, its
                parameters kept.
            datamodule: A `bhfl.data.FederatedDataModule`, or any object with the methods of
                `FederatedData`.
            ckpt_path: Go on from a checkpoint, a run folder, or ``last`` of the newest run of this
                `name`.

        Returns:
            The last server state, whose float32 weights are in `model` too. `run` holds the folder,
            the history of metrics and the ledger.

        Raises:
            ValueError: The data cannot be split, or the model, algorithm and fleet do not fit
                together.
            TooFewClientsError: No usable round for more than `max_failed_rounds` rounds, or none at
                all; or an error of one kind at one line stopped every client of a round.
            CheckpointError: `ckpt_path` cannot be used, or belongs to a run with other options of
                the trainer, the algorithm or the data (how they are split and batched); the command
                line compares the model's too.
        """
        self._fitted = None
        with self._machine():
            with self._lent(model, datamodule) as module:
                metrics = self._fit(module, datamodule, ckpt_path)
                self._run.finish(metrics)
                self._call("on_fit_end", metrics=metrics)
            self._fitted = Fitted(weakref.ref(module), digest(module.state_dict()), self.server)
        return self.server

    def validate(
        self,
        model: L.LightningModule,
        datamodule: FederatedData,
        ckpt_path: Union[str, Path, None] = None,
    ) -> dict[str, float]:
        """The metrics of `model`, or of a checkpoint of it, on the validation split, by bit group.

        A model as `fit` left it is measured with all that its run came to: each group's or client's
        own model too.
        """
        return self._measure(model, datamodule, ckpt_path, "val")

    def test(
        self,
        model: L.LightningModule,
        datamodule: FederatedData,
        ckpt_path: Union[str, Path, None] = None,
    ) -> dict[str, float]:
        """The metrics of `model`, or of a checkpoint of it, on the test split, by bit group; see
        `validate`.
        """
        return self._measure(model, datamodule, ckpt_path, "test")

    # ---- setting up ------------------------------------------------------------------------------

    @contextmanager
    def _machine(self) -> Iterator[None]:
        machine = self.settings.machine
        with launched(self.fabric, machine.threads, machine.timeout_seconds, again=self._launched):
            self._launched = True
            yield

    @contextmanager
    def _lent(self, model: L.LightningModule, data: FederatedData) -> Iterator[L.LightningModule]:
        """The module of `model`, which is given back whatever happens, with the last server state
        if there is one.
        """
        self._loan = Loan(model, data)
        try:
            yield self._loan.module
        finally:
            self._loan.give_back()

    def _setup(self, model: L.LightningModule, data: FederatedData, *stages: str) -> None:
        """Data, clients, worker and the first server state; all problems show here."""
        check_methods(
            data, FederatedData, "datamodule must be a FederatedDataModule or have its methods"
        )
        if "fit" in stages:
            check_trainable(model)
        place = self.place = Place(
            data, self.settings, {"fit": "train", "validate": "val"}.get(stages[0], stages[0])
        )
        self._loan.attach(place, self.fabric)
        STANDING.at("preparing the data")
        in_turns(self.fabric, data.prepare_data)
        in_turns(self.fabric, model.prepare_data)
        STANDING.at("setting up")
        for stage in stages:
            data.setup(stage)
        specs = self.fleet.specs(self.settings.fleet.num_clients)
        sizes = data.federate(len(specs), self.settings.cohort.seed)
        uniform = self.settings.aggregation.weights == "uniform"
        self.clients = [
            Client(i, spec, size, float(size > 0) if uniform else float(size))
            for i, (spec, size) in enumerate(zip(specs, sizes, strict=True))
        ]
        network = self.settings.fleet.network
        self.timing = Timing(network, self.clients, self.settings) if network else None
        place.clients = self.clients
        for stage in stages:
            model.setup(stage=stage)
        model.configure_model()
        check_state(model)
        self.algorithm.prepare(model, self.clients)
        if "fit" in stages:
            check_optimizers(model)
            check_monitor(
                self.settings.choice.monitor, model, {client.group for client in self.clients}
            )
            self._check_validation(data)
        worker = Worker(
            model,
            self.fabric,
            self.settings.training,
            place,
        )
        if self.settings.aggregation.reestimate_norm:
            worker.reestimate_ = reestimation(
                model, data, self.algorithm, self.settings.aggregation.norm
            )
        self.rounds = Rounds(worker, self.algorithm, self.clients, data, self.settings, self.timing)
        self.algorithm.server_optimizer = self._server_optimizer(model)
        self.algorithm.setup(self.rounds.context)
        self.evaluator = Evaluator(self.rounds)
        if "fit" in stages:
            model.on_fit_start()
        self.server = replace(
            self.rounds.init_server(), channels_last=self.settings.machine.channels_last is True
        )
        self._loan.weights = lambda: self.rounds.release(self.server)

    def _server_optimizer(self, model: L.LightningModule) -> ServerOptimizer | None:
        make = self.settings.aggregation.server_optimizer
        if make and not self.algorithm.communicates:
            name = type(self.algorithm).__name__
            raise ValueError(
                f"trainer.server_optimizer needs a model of the server's, and {name} has none"
            )
        return (
            ServerOptimizer(make, {n for n, p in model.named_parameters() if p.requires_grad})
            if make
            else None
        )

    def _check_validation(self, data: FederatedData) -> None:
        """Refuse options that need validation samples where there are none."""
        if next(iter(data.val_batches()), None) is not None:
            return
        settings = self.settings
        missing = "needs validation samples, and the data have none"
        if settings.stopping.patience is not None and settings.choice.monitor.startswith("val/"):
            raise ValueError(f"trainer.patience {missing}; got {settings.stopping.patience}")
        if settings.output.evaluate_clients and not any(
            data.client_val_batches(client.id) for client in self.clients
        ):
            raise ValueError(f"trainer.evaluate_clients {missing}; got True")

    def _begin(self, data: FederatedData, ckpt_path: Union[str, Path, None]) -> None:
        """Find or make the run folder, take up a checkpoint's state, open the logs."""
        STANDING.at("opening the run folder")
        partition = data.partition_record()
        self._shaping = {
            "trainer": shaping(self.settings),
            "clients": str(
                self.fleet.to_config()
            ),  # as text, because the order of the groups counts
            "algorithm": described(self.algorithm),
            "data": {key: getattr(data, key, None) for key in DATA},
            "partition": partition.get("sha256"),
            **self.config,
        }
        check_same_options(self.fabric, self._shaping)
        check_storable(vars(self.server), "ServerState")
        self._warn(doubt(self.settings.choice.monitor, self.settings.choice.mode))
        found = self._folder(ckpt_path) if self.fabric.is_global_zero else (Path(), None)
        folder, state = self.fabric.broadcast(found)
        check_common_folder(self.fabric, folder)
        self.run = Run(self.settings, folder, self.fabric.is_global_zero)
        if state is not None:
            self.server = fitting(state, self.server)
            self._run.restore(state)
        self.rounds.store = self.run.store
        self.run.begin(self.server, {"partition": partition})
        self.place.open(self.run.folder, self.run.loggers)
        self.fabric.barrier()

    @property
    def _root(self) -> Path:
        """Where the folders of this trainer's runs are."""
        return user_path(self.settings.output.default_root_dir) / str(self.settings.output.name)

    def find_checkpoint(self, ckpt_path: Union[str, Path]) -> tuple[Path | None, dict[str, Any]]:
        """The run folder and the state that `ckpt_path` means.

        ``last`` and ``best`` are those of this trainer's own run, or of the newest one of its
        `name` before it has any.

        Raises:
            CheckpointError: There is none, or it is unusable.
        """
        root: Path = self.run.folder if self.run else self._root
        return find_checkpoint(ckpt_path, root)

    def _folder(self, ckpt_path: Union[str, Path, None]) -> tuple[Path, dict[str, Any] | None]:
        if ckpt_path is None:
            return new_run(self._root), None
        folder, state = self.find_checkpoint(ckpt_path)
        differences = contradictions(state["config"], self._shaping)
        if differences:
            listed = "\n  ".join(differences)
            raise CheckpointError(
                f"{ckpt_path}: the checkpoint's run had other options (old -> new):\n  {listed}"
            )
        client_store(folder, state)  # all of it is there
        return folder or new_run(self._root), state

    # ---- rounds ----------------------------------------------------------------------------------

    def _fit(
        self, module: L.LightningModule, data: FederatedData, ckpt_path: Union[str, Path, None]
    ) -> dict[str, float]:
        """All rounds; the metrics of the test."""
        self._setup(module, data, "fit", "test")
        if self.fabric.is_global_zero:
            forewarn(
                self.rounds.worker.module,
                self.clients,
                data,
                self.settings,
                fresh=ckpt_path is None,
                compiled=is_compiled(module),
            )
        if self.timing:
            self.timing.measure_(self.rounds.worker, data)
            smallest = encoded_bytes(self.server.params) if self.algorithm.communicates else 0
            self.timing.check_deadline(smallest, data)
        if ckpt_path is None:  # a resumed run keeps to what it was begun with
            self.server = with_format(
                self.server, self.settings, self.rounds.worker, self.clients, data
            )
        self._begin(data, ckpt_path)
        if ckpt_path is not None and self.server.round >= self.settings.stopping.max_rounds:
            done, wanted = self.server.round, self.settings.stopping.max_rounds
            warnings.warn(
                f"nothing is left to train: {done} rounds are done, max_rounds is {wanted}",
                stacklevel=1,
            )
        self._call("on_fit_start")
        try:
            while (
                self.server.round < self.settings.stopping.max_rounds
                and not self._run.out_of_patience
            ):
                self._round()
            self.rounds.load(self.server)
            module.on_fit_end()
            metrics = self._evaluate(data, "test")
            self._loan.tear_down("fit", "test")
        except Exception as error:
            self._run.fail(error)
            raise
        finally:
            self._run.close()
        return metrics

    @property
    def _run(self) -> Run:
        assert self.run is not None
        return self.run

    def _round(self) -> None:
        start = time.perf_counter()
        run = self._run
        settings = self.settings
        STANDING.at(f"beginning round {self.server.round + 1}")
        self.server, records = self.rounds.run(self.server, run.history, self._on_client)
        run.failed_rounds = failed_in_a_row(
            records,
            before=run.failed_rounds,
            round=self.server.round,
            settings=settings,
            tell=self.fabric.is_global_zero,
        )
        row: dict[str, Any] = {
            "round": self.server.round,
            **round_metrics(records),
            **self.server.metrics,
        }
        row |= run.ledger.add(records)
        if self.timing:
            before = run.history[-1]["time/simulated_s"] if run.history else 0.0
            row |= self.timing.metrics(self.server.round - 1, records, before)
        row |= self.algorithm.summarize(self.server, row)
        last = self.server.round >= settings.stopping.max_rounds
        validates = last or self.server.round % settings.output.check_val_every_n_rounds == 0
        measured = self._evaluate(self.rounds.data, "val") if validates else {}
        row |= measured
        if self.server.round == min(
            settings.output.check_val_every_n_rounds, settings.stopping.max_rounds
        ):
            self._warn(unseen(settings.choice.monitor, row, measured))
        seconds = self.fabric.broadcast(time.perf_counter() - start)
        run.seconds += seconds
        row |= {**run.ledger.metrics(), "time/round_s": seconds}
        row["problems"] = [
            f"client {r.client} {r.status}: {r.reason}" for r in records if r.status != "ok"
        ]
        run.log(row)
        complete = measured or not settings.choice.monitor.startswith("val/")
        best = run.improved(row, complete=bool(complete and row["clients/ok"]))
        due = (
            last
            or run.out_of_patience
            or self.server.round % settings.output.checkpoint_every_n_rounds == 0
        )
        self._save(best, due, records)
        self._call("on_round_end", metrics=row)

    def _warn(self, text: str) -> None:
        """Say something once, where there is anything to say."""
        if text and self.fabric.is_global_zero:
            warnings.warn(text, stacklevel=3)

    def _save(self, best: bool, due: bool, records: list[ClientRecord]) -> None:
        kept = self._run.save(self.server, self._shaping, best, due)
        if due:
            STANDING.saved = (
                f"--ckpt_path {shlex.quote(str(self._run.folder))} goes on from "
                f"round {self.server.round}"
            )
        if kept and self.rounds.store.folder.exists():
            for record in records:
                self.rounds.store.prune(record.client, kept)
        self.fabric.barrier()

    def _evaluate(self, data: FederatedData, stage: Stage) -> dict[str, float]:
        STANDING.at("validating" if stage == "val" else "testing")
        batches = data.val_batches if stage == "val" else data.test_batches
        return self.evaluator(self.server, batches, stage, self._kept)

    def _kept(self, client: Client) -> Mapping[str, Any]:
        """What a client keeps between rounds."""
        return self.rounds.store.load(client.id, self.server.round) or {}

    def _measure(
        self,
        model: L.LightningModule,
        data: FederatedData,
        ckpt_path: Union[str, Path, None],
        stage: Stage,
    ) -> dict[str, float]:
        name = "validate" if stage == "val" else "test"
        with self._machine(), self._lent(model, data) as module:
            step = {"val": "validation_step", "test": "test_step"}[stage]
            if getattr(type(module), step, None) is getattr(L.LightningModule, step):
                raise ValueError(f"{type(module).__name__} must define {step} to be measured")
            fitted = self._fitted if self._fitted and self._fitted.is_of(module) else None
            self._setup(module, data, name)
            self.rounds.store = ClientStore(Path("nowhere"))
            if ckpt_path is not None:
                found = (
                    self.find_checkpoint(ckpt_path) if self.fabric.is_global_zero else (None, {})
                )
                folder, state = self.fabric.broadcast(found)
                self.server = fitting(state, self.server)
                if self.evaluator.by_client(self.server):
                    self.rounds.store = client_store(folder, state)
                if stage == "val" and folder and self.fabric.is_global_zero:
                    warn_of_known(folder, data.partition_record())
            elif fitted:
                self.rounds.store, self.server = self._run.store, fitted.server
            metrics = self._evaluate(data, stage)
            self._call("on_measured", metrics=metrics, stage=stage)
            self._loan.tear_down(name)
        return metrics

    # ---- callbacks -------------------------------------------------------------------------------

    def _on_client(self, client: Client, record: ClientRecord) -> None:
        self._call("on_client_end", client=client, record=record)

    def _call(self, hook: str, **arguments: Any) -> None:
        call_hook(self.callbacks, hook, self, **arguments)
