"""`FederatedTrainer`: the round loop on Lightning Fabric."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import lightning as L
from lightning.fabric.loggers import Logger
from lightning.fabric.strategies import Strategy

from bhfl.checks import refuse
from bhfl.comm.network import SimulatedNetwork
from bhfl.downlink import DownBits, Downlink
from bhfl.engine.algorithm import ALGORITHM_HOOKS, Algorithm
from bhfl.engine.availability import Availability
from bhfl.engine.buffers import NormPolicy
from bhfl.engine.callback import Callback
from bhfl.engine.checkpoint import State
from bhfl.engine.client.local import LocalClients
from bhfl.engine.exchange import Clients
from bhfl.engine.fedavg import FedAvg
from bhfl.engine.fit import fit
from bhfl.engine.fleet import Fleet
from bhfl.engine.launch import make_fabric
from bhfl.engine.links import MeasuredLinks
from bhfl.engine.measure import Fitted, measure
from bhfl.engine.optimizers import OptimizerCallable
from bhfl.engine.predict import predict
from bhfl.engine.progress import with_progress
from bhfl.engine.result import FitResult
from bhfl.engine.resume import find_checkpoint
from bhfl.engine.run import Run
from bhfl.engine.session import Session
from bhfl.engine.settings import checked_settings, global_seed, profile_problem
from bhfl.engine.types import Client, FederatedData, Metrics, ServerState
from bhfl.files import user_path
from bhfl.settings import Measures


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
            the whole fleet; ``poisson``: each client by itself, `clients_per_round` on average.
        local_epochs: Passes of a client over its data in a round.
        local_steps: Optimiser steps of a client in a round instead of `local_epochs`.
        lr_schedule: ``continue``: schedulers go on over rounds; ``restart``: they begin anew in
            each.
        gradient_clip_val: Largest L2 norm of a client's gradients.
        weights: The weights of clients in averages: their numbers of ``samples``, or ``uniform``.
        server_optimizer: A torch optimiser for the server's step on ``w_t - mean``; None takes the
            mean itself.
        network: Simulated links and devices: logs ``time/simulated_s``, and drops who misses its
            deadline.
        availability: Clients that drop out, updates that are lost, stragglers that make a part of
            their steps, and how often the server asks again; None for clients that do all.
        downlink: Bits of the weights that clients are sent, with a scale for each output channel: a
            number; ``client``: what the client stores in, or computes with, at least 8; or
            ``float32``. Or ``{bits: 4, send: differences, keep: 5}``: their differences to what a
            client was sent at most `keep` versions ago, or else float32 weights.
        norm: Running statistics of BatchNorm: ``average`` over all, inside each bit ``group``, or
            ``local``.
        min_clients: Fewer usable updates than this, and the round is skipped.
        max_failed_rounds: Skipped rounds in a row that are put up with; one more, and the run stops
            with an error.
        evaluate_clients: Also measure the clients' own models, each on its own validation samples:
            ``after`` local training (``val/acc_local_<group>``), or ``both`` before
            (``val/acc_local_before_<group>``) and after it; ``clients.csv`` has each client's.
        validate_first: Validate before the first round too, as round 0, which is logged alone: it
            is never the best round, and neither `patience`, schedules nor algorithms see it.
        check_val_every_n_rounds: Rounds between validations; the last round is always validated.
        monitor: Logged metric by which the best model is chosen.
        mode: Whether `monitor` is better at its ``max`` or ``min``.
        best_by_group: Also keep the best model of each bit group, by the `monitor` of its own
            (``val/acc_int8`` for ``val/acc_avg``); `patience` then waits for all of them.
        patience: Stop after so many validations without a better `monitor`.
        min_delta: What is better by no more than this does not count for `patience`.
        checkpoint_every_n_rounds: Rounds between checkpoints; the last round always has one.
        keep_checkpoints: Newest checkpoints kept, beside the best.
        seed: The number that every random draw follows; None takes the one that
            `lightning.seed_everything` was given, which the initial weights of a model follow, and
            0 where it was not called. `settings` and checkpoints hold the number itself.
        accelerator: Fabric's ``accelerator``: ``auto``, ``cpu``, ``cuda`` and others.
        devices: Fabric's ``devices``, one process each; clients are dealt out to them.
        num_nodes: Fabric's ``num_nodes``: machines that train together.
        strategy: ``auto``, ``ddp``, or a Fabric `DDPStrategy`: processes that meet in collectives.
        precision: Fabric's ``precision``, of which ``32-true``, ``16-mixed`` and ``bf16-mixed``.
        threads: CPU threads of each process, at most 16 for each CPU. Results depend on it in the
            last bits, so it never depends on `devices`.
        timeout_seconds: How long a process waits for another before the run fails.
        channels_last: Keep images and convolution weights in channels-last order, which is faster.
            ``auto`` tries it on a copy of the model before the first round, and takes it where the
            results are the same.
        save_in_int8: Clients with activations of up to 8 bits keep what the backward pass needs as
            integers, about a third of the memory, see `bhfl.quant.save_in_int8`; steps take longer.
        reestimate_norm: Evaluate the global model with BatchNorm statistics of its own at each
            width, from the samples of ``data.holdout``.
        finetune_epochs: Evaluate each client's model after so many epochs on its own training data,
            by a copy that is then dropped; 0 for the models as they are.
        logger: True for TensorBoard and CSV in the run folder, False for none, or any Lightning
            loggers.
        callbacks: Objects of classes that derive from `bhfl.engine.Callback`, whose hooks are
            called in this order.
        enable_progress_bar: Show a bar where a terminal or a notebook looks on; in Python
            `bhfl.callbacks.Progress` is then among the callbacks unasked.
        default_root_dir: Where run folders are made.
        name: Run folders are ``<default_root_dir>/<name>/version_N``.

    Raises:
        ValueError: With every problem of the options, one a line, before any work is done.
    """

    def __init__(  # noqa: PLR0913
        self,
        clients: Fleet | Mapping[Any, int] | Sequence[Mapping[str, Any]],
        algorithm: Algorithm | None = None,
        num_clients: int | None = None,
        max_rounds: int = 10,
        clients_per_round: int | float | None = None,
        sampling: Literal["stratified", "uniform", "poisson"] = "stratified",
        local_epochs: int = 1, local_steps: int | None = None,
        lr_schedule: Literal["continue", "restart"] = "continue",
        gradient_clip_val: float | None = None,
        weights: Literal["samples", "uniform"] = "samples",
        server_optimizer: OptimizerCallable | None = None,
        network: SimulatedNetwork | None = None,
        availability: Availability | None = None,
        downlink: DownBits | Downlink = "float32",
        norm: NormPolicy = "group",
        min_clients: int = 1,
        max_failed_rounds: int = 3,
        evaluate_clients: Measures = "none",
        validate_first: bool = True, check_val_every_n_rounds: int = 1,
        monitor: str = "val/acc_avg", mode: Literal["max", "min"] = "max",
        best_by_group: bool = False,
        patience: int | None = None, min_delta: float = 0.0,
        checkpoint_every_n_rounds: int = 1,
        keep_checkpoints: int = 2,
        seed: int | None = None,
        accelerator: str = "auto",
        devices: int | str | list[int] = "auto", num_nodes: int = 1,
        strategy: str | Strategy = "auto",
        precision: int | str = "32-true",
        threads: int = 1,
        timeout_seconds: int = 600,
        channels_last: bool | Literal["auto"] = "auto",
        save_in_int8: bool = False,
        reestimate_norm: bool = False,
        finetune_epochs: int = 0,
        logger: bool | Logger | list[Logger] = True,
        callbacks: list[Callback] | None = None,
        enable_progress_bar: bool = True,
        default_root_dir: str = "runs",
        name: str = "bhfl",
    ) -> None:  # fmt: skip
        # The first statement, so that `locals` holds the arguments alone.
        self._begin({key: value for key, value in locals().items() if key != "self"})

    def _begin(self, options: dict[str, Any]) -> None:
        """Check all options, and make of them what the trainer works with."""
        if options["seed"] is None:
            options["seed"] = global_seed()
        if options["algorithm"] is None:
            options["algorithm"] = FedAvg()
        self.settings = checked_settings(options)
        self.fleet = Fleet(options["clients"])
        network = self.settings.fleet.network
        refuse(profile_problem(group, network) for group in self.fleet.groups)
        self.algorithm: Algorithm = options["algorithm"]
        if not isinstance(self.algorithm, Algorithm):
            raise ValueError(f"algorithm must be an Algorithm, as FedAvg(), got {self.algorithm!r}")
        ALGORITHM_HOOKS.check(self.algorithm)
        self.callbacks = with_progress(self.settings.output)
        self.fabric = make_fabric(self.settings.machine, options["precision"])
        self.config: dict[str, Any] = {}
        """The parts of the configuration that name classes; the command line says them here."""
        self.run: Run | None = None
        self.session: Session | None = None
        """What the last fit or measurement worked with, or still does."""
        self.links: MeasuredLinks | None = None
        """How fast clients were that are elsewhere."""
        self.launched = False
        """Whether the processes have been started."""
        self.should_stop = False
        """Set by a callback, on any process, to end a fit after the round that is at work."""
        self.fitted: Fitted | None = None
        """What the last fit came to, and the model that it was left in."""

    # ---- what users call -------------------------------------------------------------------------

    def fit(
        self,
        model: L.LightningModule,
        datamodule: FederatedData,
        ckpt_path: str | Path | None = None,
    ) -> FitResult:
        """Train `model` over the fleet, its data split by `datamodule`, and test the result.

        Args:
            model: Any LightningModule. Its layers are swapped for quantised ones in place, its
                parameters kept.
            datamodule: A `bhfl.data.FederatedDataModule`, or any object with the methods of
                `FederatedData`.
            ckpt_path: Go on from a checkpoint, a run folder, or ``last`` of the newest run of this
                `name`.

        Returns:
            What the run came to, its weights too; the last float32 ones are in `model`.

        Raises:
            ValueError: The data cannot be split, or the model, algorithm and fleet do not fit
                together.
            TooFewClientsError: No usable round for more than `max_failed_rounds` rounds, or none at
                all; or an error of one kind at one line stopped every client of a round.
            CheckpointError: `ckpt_path` cannot be used, or belongs to a run with other options of
                the trainer, the algorithm or the data (how they are split and batched); the command
                line compares the model's too.
        """
        # a fit that fails leaves a model that is no run's result
        self.fitted = None
        with Session.opened(self, model, datamodule, "fit", "test") as session:
            result = fit(session, ckpt_path)
        # after the model was given back, with the last weights in it
        self.fitted = Fitted.of(session)
        return result

    def validate(
        self,
        model: L.LightningModule,
        datamodule: FederatedData,
        ckpt_path: str | Path | None = None,
    ) -> Metrics:
        """The metrics of `model`, or of a checkpoint of it, on the validation split, by bit group.

        A model as `fit` left it is measured with all that its run came to: each group's or client's
        own model too.

        Args:
            model: Any LightningModule that has the step of the split.
            datamodule: A `bhfl.data.FederatedDataModule`, or another one with its methods.
            ckpt_path: A checkpoint, a run folder or "last" or "best", see `fit`, or "best-int8" for
                the best of a bit group; None for the model as it is.

        Returns:
            The metrics by tag, such as ``val/acc_int8``.

        Raises:
            ValueError: The model lacks the step, or does not fit the data or the fleet.
            CheckpointError: The checkpoint cannot be used.
        """
        return measure(self, model, datamodule, ckpt_path, "val")

    def test(
        self,
        model: L.LightningModule,
        datamodule: FederatedData,
        ckpt_path: str | Path | None = None,
    ) -> Metrics:
        """The metrics of `model`, or of a checkpoint of it, on the test split, by bit group.

        Args:
            model: See `validate`.
            datamodule: See `validate`.
            ckpt_path: See `validate`.

        Returns:
            The metrics by tag, such as ``test/acc_int8``.
        """
        return measure(self, model, datamodule, ckpt_path, "test")

    def predict(
        self,
        model: L.LightningModule,
        datamodule: FederatedData,
        ckpt_path: str | Path | None = None,
        group: str | None = None,
        out: str | Path | None = None,
    ) -> list[Any]:
        """What `model`, or a checkpoint of it, predicts of the test split, or of the data's
        ``predict_dataloader`` where they have one.

        Args:
            model: Its ``predict_step`` is called; where it has none, ``forward`` with the inputs of
                a batch.
            datamodule: See `validate`.
            ckpt_path: See `validate`.
            group: A bit group, with whose bits the global model computes, which with `Ditto` is not
                its clients' own; by default the server's float32 model.
            out: A file that the predictions are written to, ``.csv`` or ``.npz``: a row for each
                sample, with its target where the batches tell it.

        Returns:
            What ``predict_step`` returned of each batch, on the CPU.

        Raises:
            ValueError: There is no such group, no whole model on the server, or `out` cannot hold
                what is predicted.
            CheckpointError: The checkpoint cannot be used.
        """
        return predict(self, model, datamodule, ckpt_path, group, out)

    # ---- what a run works with -------------------------------------------------------------------

    def connect(self, session: Session) -> Clients:
        """Whoever trains on the tasks of a session: this process's own clients. Override it for
        clients that are elsewhere.
        """
        return LocalClients(
            session.worker, self.algorithm, session.fleet, session.data, session.own, session.store
        )

    @property
    def clients(self) -> Sequence[Client]:
        """The fleet, once the data are split among it."""
        return self.session.fleet if self.session else []

    @property
    def server(self) -> ServerState:
        """The state that was reached last."""
        return self.session.server if self.session else ServerState({})

    @property
    def root(self) -> Path:
        """Where the folders of this trainer's runs are."""
        return user_path(self.settings.output.default_root_dir) / str(self.settings.output.name)

    def find_checkpoint(self, ckpt_path: str | Path) -> tuple[Path | None, State]:
        """The run folder and the state that `ckpt_path` means.

        ``last``, ``best`` and ``best-<group>`` are those of this trainer's own run, or of the
        newest one of its `name` before it has any.

        Raises:
            CheckpointError: There is none, or it is unusable.
        """
        return find_checkpoint(ckpt_path, self.run.folder if self.run else self.root)
