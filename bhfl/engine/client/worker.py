"""A LightningModule lent to one client after the other: load, train, hand back; load, evaluate."""

import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import lightning as L
import torch
from lightning.fabric import Fabric
from torch import Tensor
from torch.utils._pytree import tree_map_only

from bhfl.engine.algorithm import Algorithm, LocalRun
from bhfl.engine.calls import call_batch_hook, call_step
from bhfl.engine.client.faults import advice
from bhfl.engine.client.module_hooks import Transfer, overrides
from bhfl.engine.client.place import Place
from bhfl.engine.client.plain import STEPS, PlainWorker
from bhfl.engine.client.recorder import Recorder, is_one_number, recording
from bhfl.engine.client.training import Training
from bhfl.engine.correct import TOLD, as_text, told_by
from bhfl.engine.devices import FLOAT, Devices
from bhfl.engine.exchange import Stage, Task
from bhfl.engine.random import seed_globals
from bhfl.engine.types import FederatedData, Metrics, ServerState

_UNCALLED = (
    "configure_callbacks",
    "configure_sharded_model",
    "on_save_checkpoint",
    "on_load_checkpoint",
    # those of data modules, which hold the clients' samples
    "train_dataloader",
    "val_dataloader",
    "test_dataloader",
    "predict_dataloader",
    # Lightning 1 had these, and Lightning 2 refuses them
    "training_epoch_end",
    "validation_epoch_end",
    "test_epoch_end",
)
_UNCALLED_OF_DATA = (
    "train_dataloader",
    "val_dataloader",
    "test_dataloader",
    "state_dict",
    "load_state_dict",
    "on_exception",
)


class Worker(PlainWorker):
    """A LightningModule that is one client after the other, with all its hooks, under Fabric.

    Args:
        module: The user's LightningModule; its layers are swapped for quantised ones in place,
            parameters shared.
        fabric: Gives the device and the precision.
        place: Where in the run the module is; `self.trainer` tells the module of it.
    """

    def __init__(self, module: L.LightningModule, fabric: Fabric, place: Place) -> None:
        check_module(module, place.settings.training.gradient_clip_val)
        _tell(place.data, _UNCALLED_OF_DATA, L.LightningDataModule)
        super().__init__(module, fabric.device)
        self.fabric = fabric
        self.place = place
        self._transfer = Transfer(module, place.data, fabric.device)
        self.reestimate_: Callable[[Worker], None] | None = None
        """Gives a global model that is evaluated the BatchNorm statistics of its width; None to
        keep the clients'.
        """
        # those of rank 0, as the weights are
        self.transient = fabric.broadcast(self.transient)

    def load_global(self, tensors: Mapping[str, Tensor], devices: Devices = FLOAT) -> None:
        """Make the module the global model on such devices, as it is evaluated and handed on."""
        self.load(tensors, devices)
        if self.reestimate_ is not None:
            self.reestimate_(self)

    def begin(self, at: Task | ServerState) -> None:
        """Stand before or after the clients of a round, as its state or a task of it says."""
        super().begin(at)
        # no client yet: until one begins, the place counts what the largest of them does
        self.place.begin(at.round)

    def train(self, algorithm: Algorithm, run: LocalRun, data: FederatedData) -> None:
        """Train as `run.client` from `run.received`; `run.metrics` holds the means of the loss and
        of logged values.
        """
        self.load(run.own or run.received, run.client.devices)
        self.train_mode()
        generator = self.seed(run)
        precision: Any = self.fabric.strategy.precision
        if getattr(precision, "scaler", None) is not None:
            # its scale, and a step that it was in, are the last client's
            precision.scaler = torch.amp.GradScaler(self.fabric.device.type)
        try:
            with recording(self.module) as recorder:
                training = Training(self, algorithm, run, recorder, generator)
                training.train(data)
            run.metrics.update(training.metrics())
        # nothing is left for the next client, and no memory is held until it comes
        finally:
            self.module.zero_grad()
            self.place.lend([], [])
            self.place.change_gradients, self.place.without_loss = None, False

    @torch.no_grad()
    def evaluate(self, batches: Iterable[Any], stage: Stage) -> Metrics:
        """Means over `batches` of what the module's validation or test step logs or returns, as the
        module stands.

        Names come without the stage: ``val_acc``, ``val/acc`` and ``acc`` are all ``acc``.
        """
        hook = STEPS[stage].removesuffix("_step")
        # models are compared: what draws must draw alike for each
        seed_globals(0, self.device)
        returned = Recorder()
        correct = []
        step = partial(getattr, self.module, STEPS[stage])
        with recording(self.module) as logged, self.place.evaluating(stage), self._noted(hook):
            for batch, output in self._passed(hook, step, batches, logged):
                returned.observe(batch)
                returned.log_dict(_numbers(output))
                if (told := told_by(output)) is not None:
                    correct.append(told)
        self.correct = as_text(correct)
        # what is logged comes last, and counts more than what is returned by the same name
        means = [*returned.means().items(), *logged.means().items()]
        return {re.sub(rf"^{stage}[/_]", "", name): mean for name, mean in means}

    @torch.no_grad()
    def predict(self, batches: Iterable[Any]) -> list[Any]:
        """What the module's ``predict_step`` makes of each batch, on the CPU, as the module stands.

        Where it has none of its own, its ``forward`` is given the batch, and of a pair of inputs
        and targets the inputs.
        """
        seed_globals(0, self.device)
        own = overrides(self.module, "predict_step", L.LightningModule)
        step = partial(getattr, self.module, "predict_step") if own else lambda: self._forward
        outputs = []
        place = self.place.evaluating("predict")
        with recording(self.module) as logged, place, self._noted("predict"):
            for _, output in self._passed("predict", step, batches, logged):
                outputs.append(tree_map_only(Tensor, Tensor.cpu, output))
        return outputs

    def _forward(self, batch: Any, batch_idx: int) -> Any:
        pair = isinstance(batch, list | tuple) and len(batch) == 2
        return self.module(batch[0] if pair else batch)

    def _passed(
        self, hook: str, step: Callable[..., Any], batches: Iterable[Any], logged: Recorder
    ) -> Iterator[tuple[Any, Any]]:
        """Each batch and what a step makes of it, with Lightning's hooks around each one, and
        around the pass if it has any batch; `step` finds the step, once its hooks were called.
        """
        module = self.module

        def call(name: str) -> None:
            getattr(module, f"on_{hook}_{name}")()

        index = None
        # the first hooks wait for a batch: Lightning calls none where there is nothing to measure
        for index, batch in enumerate(batches):
            if not index:
                self.train_mode()
                for name in ("model_eval", "start", "epoch_start"):
                    call(name)
            (batch,) = self.on_device([batch])
            call_batch_hook(getattr(module, f"on_{hook}_batch_start"), batch, index)
            logged.observe(batch)
            with self.fabric.autocast():
                output = call_step(step(), batch, index)
            yield batch, output
            call_batch_hook(getattr(module, f"on_{hook}_batch_end"), output, batch, index)
        if index is not None:
            with logged.epoch_end():
                call("epoch_end")
            call("end")
            # Lightning calls it only where it is overridden, and else puts the modes back by itself
            if overrides(module, f"on_{hook}_model_train", L.LightningModule):
                call("model_train")
            else:
                self.train_mode()

    @contextmanager
    def _noted(self, hook: str) -> Iterator[None]:
        """Say of an error where it happened, and what to do where that is known."""
        try:
            yield
        except Exception as error:
            error.add_note(
                f"(while {hook}_step ran over its batches"
                f"{advice(error, self.layout.channels_last)})"
            )
            raise

    def on_device(self, batches: Iterable[Any]) -> Iterator[Any]:
        """The batches moved to this process's device, images in the memory format asked for."""
        for batch in batches:
            yield self.layout.batch(self._transfer(batch))


def check_module(module: L.LightningModule, gradient_clip_val: float | None) -> None:
    """Say what a module asks of Lightning that it does not get here.

    Raises:
        ValueError: Automatic clipping is asked for where the module optimises manually.
    """
    if gradient_clip_val is not None and not module.automatic_optimization:
        raise ValueError(
            "gradient_clip_val needs automatic optimization: call self.clip_gradients(...) in "
            "training_step instead"
        )
    _tell(module, _UNCALLED, L.LightningModule)


def _tell(thing: Any, uncalled: Iterable[str], base: type) -> None:
    """Warn of hooks of Lightning's that `thing` has of its own, and that nobody calls here."""
    if ignored := [name for name in uncalled if overrides(thing, name, base)]:
        warnings.warn(
            f"{type(thing).__name__} overrides {', '.join(ignored)}, which federated clients do "
            "not call",
            stacklevel=3,
        )


def _numbers(output: Any) -> dict[str, Any]:
    """What a step returned, as metrics: a loss, or a mapping whose one-element values count."""
    if isinstance(output, Tensor):
        return {"loss": output} if is_one_number(output) else {}
    items = output.items() if isinstance(output, Mapping) else ()
    numbers = {name: value for name, value in items if is_one_number(value)}
    # that of a batch of one sample is no metric either
    if told_by(output) is not None:
        numbers.pop(TOLD, None)
    return numbers
