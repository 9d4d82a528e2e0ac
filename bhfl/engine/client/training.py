"""The local steps of one client in one round, hook by hook as `lightning.Trainer` takes them."""

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any

import lightning as L
import torch
from torch import Tensor

from bhfl.engine.algorithm import Algorithm, LocalRun
from bhfl.engine.availability import part_of
from bhfl.engine.client.optim import LocalOptimizers
from bhfl.engine.client.plain import epochs_of
from bhfl.engine.client.recorder import Recorder, tag_of
from bhfl.engine.types import FederatedData, Metrics
from bhfl.quant import save_in_int8, store_

if TYPE_CHECKING:
    from bhfl.engine.client.worker import Worker

_RETURNED = "the loss that training_step returned"


class Training:
    """The local steps of one client in one round.

    A client's round is a slice of one long training: `self.current_epoch` and `self.global_step` go
    on over its rounds, and so do schedules. Hooks come in Lightning's order, with its arguments. In
    each round ``configure_optimizers``, ``on_train_start``, the epochs and ``on_train_end`` are
    called; in each process once a run ``prepare_data``, ``setup``, ``configure_model``,
    ``on_fit_start``, and at its end ``on_fit_end`` and ``teardown``.

    What is not as under `lightning.Trainer`:

    * ``configure_optimizers`` is called once more at set-up, to see whether torch takes what it
      asks for.
    * Validation comes after the round, on the server's model, not inside an epoch.
    * ``configure_callbacks``, ``on_save_checkpoint`` and ``on_load_checkpoint`` are not called,
      with a warning.
    * `self.trainer` has what `bhfl.engine.client.module_trainer.ModuleTrainer` has; anything else
      is an error by name.
    * Where ``training_step`` returned nothing there is no step: ``on_before_optimizer_step`` and
      ``configure_gradient_clipping`` are not called.
    * A schedule's ``frequency`` counts steps over all rounds, not anew in each epoch;
      ReduceLROnPlateau that goes on over rounds steps on the server's metrics. An overridden
      ``lr_scheduler_step`` is called at the start of a round for the steps of the rounds before,
      because its schedules begin anew with each client.
    * Values that are logged are averaged over the round, whatever ``on_step`` and ``on_epoch`` say.
    * An algorithm's ``client_gradients_`` comes right before ``on_before_optimizer_step``.

    Args:
        worker: This process's module.
        algorithm: Its client half.
        run: The client's work.
        recorder: Takes what the module logs.
        generator: Draws for layers that are stored at low bits.
    """

    def __init__(
        self,
        worker: "Worker",
        algorithm: Algorithm,
        run: LocalRun,
        recorder: Recorder,
        generator: torch.Generator,
    ) -> None:
        self.worker = worker
        self.algorithm = algorithm
        self.run = run
        self.recorder = recorder
        self.generator = generator
        self.module: L.LightningModule = worker.module
        self.place = worker.place
        self.last: dict[str, Any] = {}
        """The loss of the last step."""
        self.outputs: Any = None
        self.batches = 0
        """Batches that on_train_batch_start was called with."""
        self.ended = False
        """Whether this epoch has come to its last batch."""
        self.saving: Callable[[], AbstractContextManager[None]] = (
            save_in_int8 if run.saves_in_int8 else nullcontext
        )

    def metrics(self) -> Metrics:
        """What was logged, by tag; a loss that the module logs itself is preferred to the one it
        returned.
        """
        means = self.recorder.means()
        loss = {"train/loss": means.pop(_RETURNED)} if _RETURNED in means else {}
        return loss | {tag_of(name): mean for name, mean in means.items()}

    def train(self, data: FederatedData) -> None:
        """All local epochs, or steps.

        Raises:
            RuntimeError: The client makes no step.
            ValueError: It has no batch, or the module returned no loss.
        """
        module = self.module
        run = self.run
        place = self.place
        # first: what is planned depends on whose place it is
        place.begin(run.round, run.client, run.training)
        self.limit = self.algorithm.num_steps(run, part_of(place.planned_steps, run.part))
        if not self.limit:
            raise RuntimeError("dropped out: it made no step")
        continued = run.training.lr_schedule == "continue"
        self.optimizers = LocalOptimizers(module, place, run.history if continued else None)
        if type(self.algorithm).client_gradients_ is not Algorithm.client_gradients_:
            # only an overridden hook: under 16-mixed gradients are unscaled for whoever looks at
            # them
            place.change_gradients = lambda: self.algorithm.client_gradients_(run)
        first = place.optimizers[0]
        first._on_after_step = partial(self.stepped, first._on_after_step)
        module.on_train_start()
        by_steps = run.training.local_steps is not None
        for epoch in epochs_of(run.training, self.limit, place.num_batches):
            before = run.num_steps
            self.epoch(epoch, data.client_batches(run.client.id, run.rng, epoch))
            # an epoch without a step would be followed by others without end
            if run.num_steps == self.limit or (by_steps and run.num_steps == before):
                break
        module.on_train_end()
        if not run.num_steps:
            raise RuntimeError(
                "made no step: on_train_batch_start ended each epoch before its first"
            )
        if module.automatic_optimization and not self.last:
            raise ValueError("training_step returned no loss for any batch")

    def epoch(self, epoch: int, batches: Iterable[Any]) -> None:
        """One pass over the client's data, which its last step or the module itself may cut
        short.
        """
        module, run = self.module, self.run
        self.ended = False
        index = -1
        self.recorder.begin_epoch()
        module.on_train_epoch_start()
        wanted = islice(batches, self.limit - run.num_steps)
        for index, batch in enumerate(self.worker.on_device(wanted)):
            self.ended = index + 1 == self.place.num_batches
            if not self.batch(batch, index, epoch):
                break
        if index < 0:
            raise ValueError(f"client {run.client.id} has no training batch")
        # fewer batches came than the data had said
        if not self.ended and run.num_steps < self.limit:
            self.optimizers.advance("epoch", epoch + 1)
        with self.recorder.epoch_end():
            module.on_train_epoch_end()
        self.optimizers.advance_plateaus("epoch", epoch + 1, self.metrics)
        self.place.epoch += 1

    def batch(self, batch: Any, index: int, epoch: int) -> bool:
        """One batch with its hooks; False where ``on_train_batch_start`` ended the epoch before
        it.
        """
        module = self.module
        self.recorder.observe(batch)
        goes_on = module.on_train_batch_start(batch, index) != -1
        self.ended = self.ended or not goes_on
        self.batches += 1
        outputs = self.step(batch, index) if goes_on else {}
        self.optimizers.advance("step", self.batches)
        # Lightning steps the schedules of an epoch before the hook at the end of its last batch
        if self.ended:
            self.optimizers.advance("epoch", epoch + 1)
        if goes_on:
            module.on_train_batch_end(outputs, batch, index)
            self.optimizers.advance_plateaus("step", self.batches, lambda: self.last)
        return goes_on

    def step(self, batch: Any, index: int) -> dict[str, Any]:
        """One training step; what ``on_train_batch_end`` is told of it."""
        run = self.run
        run.num_examples += self.recorder.batch_size
        if self.module.automatic_optimization:
            self.optimise(batch, index)
        else:
            self.compute(batch, index)
        # None again, by which optimise sees whether the next step called its closure
        outputs: dict[str, Any] = self.outputs
        self.outputs = None
        run.num_steps += 1
        if "loss" in outputs:
            self.last = {"train/loss": torch.as_tensor(outputs["loss"])}
            self.recorder.log(_RETURNED, outputs["loss"])
        # a walk over all layers, for nothing otherwise
        if run.client.devices.stores_low_bits:
            store_(self.module, self.generator)
        return outputs

    def stepped(self, counted: Callable[[], None]) -> None:
        """Take note of a step of the first optimiser, before anything changes its rates."""
        counted()
        # no loss, no step
        if not self.place.without_loss:
            self.run.add_rates(self.optimizers.raw[0])

    def optimise(self, batch: Any, index: int) -> None:
        """One step of the optimiser through the module's own ``optimizer_step``, as Lightning takes
        it.
        """
        module, place = self.module, self.place
        closure = partial(self.closure, batch, index)
        module.optimizer_step(module.current_epoch, index, place.optimizers[0], closure)
        if self.outputs is None:
            raise ValueError(
                f"{type(module).__name__}.optimizer_step or its optimizer never called the "
                "closure, which computes the gradients: hand it on, as "
                "optimizer.step(closure=optimizer_closure)"
            )
        place.count()

    # an optimiser of the user's may call its closure under no_grad, in which torch's own step runs
    @torch.enable_grad()
    def closure(self, batch: Any, index: int) -> Tensor | None:
        """The loss of a batch, detached, and its gradients; an optimiser may ask several times."""
        module, optimizer = self.module, self.optimizers.raw[0]
        loss = self.compute(batch, index)
        # between loss and backward, as Lightning's closure has it
        module.on_before_zero_grad(optimizer)
        module.optimizer_zero_grad(module.current_epoch, index, optimizer)
        self.place.without_loss = loss is None
        if loss is None:
            return None
        module.trainer.strategy.backward(loss, optimizer)
        detached: Tensor = self.outputs["loss"]
        return detached

    def compute(self, batch: Any, index: int) -> Any:
        """Run the algorithm's loss and keep what came of it; the loss itself."""
        # the step is called on the bare module: outside of autocast it would run in float32,
        # silently
        with self.worker.fabric.autocast(), self.saving():
            output = self.algorithm.client_loss(self.run, batch, index)
        self.outputs = outputs_of(output, self.module.automatic_optimization)
        return output["loss"] if isinstance(output, Mapping) and "loss" in output else output


def outputs_of(output: Any, automatic: bool) -> dict[str, Any]:
    """What ``training_step`` returned, as ``on_train_batch_end`` gets it: a dict with the loss
    detached.

    Raises:
        ValueError: It is nothing that Lightning takes.
    """
    if output is None:
        return {}
    if isinstance(output, Tensor):
        # a clone: what is only detached shares memory with the loss that backward needs
        return {"loss": output.detach().clone()}
    if not isinstance(output, Mapping):
        raise ValueError(
            f"training_step must return a tensor, a dict or None, got {type(output).__name__}"
        )
    loss = output.get("loss")
    if isinstance(loss, Tensor):
        loss = loss.detach()
        return {**output, "loss": loss.clone() if automatic else loss}
    if not automatic:
        return dict(output)
    if loss is None:
        raise ValueError(
            "training_step returned a dict without 'loss', with "
            f"{', '.join(map(repr, output)) or 'nothing'}"
        )
    raise ValueError(
        f"the loss that training_step returned must be a tensor, got {type(loss).__name__}"
    )
