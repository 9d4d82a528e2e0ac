"""One worker module a process, lent to one client after the other: load, train, hand back; load,
evaluate.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import lightning as L
import torch
from lightning.fabric import Fabric
from torch import Tensor

from bhfl.engine.advice import advice
from bhfl.engine.algorithm import Algorithm, LocalRun
from bhfl.engine.calls import call_batch_hook, call_step
from bhfl.engine.client.layout import Layout
from bhfl.engine.client.module_hooks import Transfer, overrides
from bhfl.engine.client.module_trainer import Place
from bhfl.engine.client.recorder import Recorder, recording
from bhfl.engine.client.registered import Registered
from bhfl.engine.client.training import Training
from bhfl.engine.random import seed_globals
from bhfl.engine.types import FederatedData
from bhfl.quant import BitSpec, begin_round_, quantize_, seed_, set_spec_
from bhfl.quant.quant_layer import takes_low_bits
from bhfl.settings import LocalTraining

_UNCALLED = (
    "configure_callbacks",
    "configure_sharded_model",
    "on_save_checkpoint",
    "on_load_checkpoint",
)


class Worker:
    """The one module of this process and what it takes to train and evaluate it as any client.

    Args:
        module: The user's LightningModule; its layers are swapped for quantised ones in place,
            parameters shared.
        fabric: Gives the device and the precision.
        settings: How long and in what manner clients train.
        place: Where in the run the module is; `self.trainer` tells the module of it.
    """

    def __init__(
        self, module: L.LightningModule, fabric: Fabric, settings: LocalTraining, place: Place
    ) -> None:
        self.fabric = fabric
        self.settings = settings
        self.place = place
        check_module(module, settings.gradient_clip_val)
        self.module: L.LightningModule = quantize_(
            module, BitSpec(), lambda _, layer: takes_low_bits(layer)
        )
        fabric.to_device(self.module)
        self._transfer = Transfer(module, place.data, fabric.device)
        self.layout = Layout(self.module)
        self.reestimate_: Callable[[Worker], None] | None = None
        """Gives a global model that is evaluated the BatchNorm statistics of its width; None to
        keep the clients'.
        """
        self.frozen = (
            [layer for layer in module.modules() if not layer.training] if module.training else []
        )
        self.registered = Registered(module, fabric.device)
        saved = self.module.state_dict()
        transient = {
            name: buffer.cpu().clone()
            for name, buffer in module.named_buffers()
            if name not in saved
        }
        # those of rank 0, as the weights are
        self.transient: dict[str, Tensor] = fabric.broadcast(transient)
        names_of: dict[int, str] = {}
        self.tied = {
            name: first
            for name, tensor in self.module.state_dict(keep_vars=True).items()
            if (first := names_of.setdefault(id(tensor), name)) != name
        }

    def state(self) -> dict[str, Tensor]:
        """The module's state by name, tied tensors once."""
        return {
            name: tensor
            for name, tensor in self.module.state_dict().items()
            if name not in self.tied
        }

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor], spec: BitSpec) -> None:
        """Make the module a client of `spec` with these weights; buffers that are never saved begin
        anew.

        Whatever a client before it did to parameters and buffers is undone, so that nothing goes
        from one to the next.
        """
        set_spec_(self.module, spec)
        self.registered.train_as_lent()
        own = self.module.state_dict()
        for name, value in tensors.items():
            self.registered.put(name, own.get(name), value)
        for name, value in self.transient.items():
            owner, _, leaf = name.rpartition(".")
            self.registered.put(name, getattr(self.module.get_submodule(owner), leaf, None), value)
        self.registered.drop_new()
        begin_round_(self.module)

    def load_global(self, tensors: Mapping[str, Tensor], spec: BitSpec) -> None:
        """Make the module the global model at `spec`, as it is evaluated and handed on."""
        self.load(tensors, spec)
        if self.reestimate_ is not None:
            self.reestimate_(self)

    def _train_mode(self) -> L.LightningModule:
        """The module in training mode, but for those layers that its owner handed over in
        evaluation mode.
        """
        self.module.train()
        for layer in self.frozen:
            layer.training = False
        return self.module

    def train(
        self,
        algorithm: Algorithm,
        run: LocalRun,
        data: FederatedData,
        history: Sequence[Mapping[str, Any]],
    ) -> LocalRun:
        """Train as `run.client` from `run.received`; `run.metrics` holds the means of the loss and
        of logged values.
        """
        self.load(run.received, run.client.spec)
        module = self._train_mode()
        seed_globals(run.rng.integer("dropout"), self.fabric.device)
        generator = run.rng.torch("quant_train", device=self.fabric.device)
        seed_(module, generator)
        precision: Any = self.fabric.strategy.precision
        if (
            getattr(precision, "scaler", None) is not None
        ):  # its scale, and a step that it was in, are the last client's
            precision.scaler = torch.amp.GradScaler(self.fabric.device.type)
        try:
            with recording(module) as recorder:
                training = Training(self, algorithm, run, recorder, generator, history)
                training.train(data)
            run.metrics.update(training.metrics())
        finally:  # nothing is left for the next client, and no memory is held until it comes
            module.zero_grad()
            self.place.lend([], [])
            self.place.change_gradients, self.place.without_loss = None, False
        return run

    @torch.no_grad()
    def evaluate(self, batches: Iterable[Any], stage: Literal["val", "test"]) -> dict[str, float]:
        """Means over `batches` of what the module's validation or test step logs or returns, as the
        module stands.

        Names come without the stage: ``val_acc``, ``val/acc`` and ``acc`` are all ``acc``.
        """
        hook = {"val": "validation", "test": "test"}[stage]
        seed_globals(0, self.fabric.device)
        returned = Recorder()
        with recording(self.module) as logged, self.place.evaluating(stage), self._noted(hook):
            self._evaluate(hook, batches, logged, returned)
        means = [*returned.means().items(), *logged.means().items()]  # what is logged counts more
        return {re.sub(rf"^{stage}[/_]", "", name): mean for name, mean in means}

    def _evaluate(
        self, hook: str, batches: Iterable[Any], logged: Recorder, returned: Recorder
    ) -> None:
        """Lightning's hooks around each batch of a pass, and around the pass if it has any
        batch.
        """
        module = self.module

        def call(name: str) -> None:
            getattr(module, f"on_{hook}_{name}")()

        index = None
        for index, batch in enumerate(batches):
            if not index:
                self._train_mode()
                for name in ("model_eval", "start", "epoch_start"):
                    call(name)
            (batch,) = self.on_device([batch])
            call_batch_hook(getattr(module, f"on_{hook}_batch_start"), batch, index)
            logged.observe(batch)
            returned.observe(batch)
            with self.fabric.autocast():
                output = call_step(getattr(module, f"{hook}_step"), batch, index)
            returned.log_dict(_numbers(output))
            call_batch_hook(getattr(module, f"on_{hook}_batch_end"), output, batch, index)
        if index is not None:
            with logged.epoch_end():
                call("epoch_end")
            call("end")
            if overrides(module, f"on_{hook}_model_train", L.LightningModule):
                call("model_train")
            else:
                self._train_mode()

    @contextmanager
    def _noted(self, hook: str) -> Iterator[None]:
        """Say of an error where it happened, and what to do where that is known."""
        try:
            yield
        except Exception as error:
            hint = advice(error, self.layout.channels_last)
            error.add_note(f"(while {hook}_step ran over its batches{hint})")
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
    ignored = [
        name
        for name in _UNCALLED
        if getattr(type(module), name) is not getattr(L.LightningModule, name)
    ]
    if ignored:
        name = type(module).__name__
        warnings.warn(
            f"{name} overrides {', '.join(ignored)}, which federated clients do not call",
            stacklevel=2,
        )


def _numbers(output: Any) -> dict[str, Any]:
    """What a step returned, as metrics: a loss, or a mapping whose one-element values count."""
    if isinstance(output, Tensor):
        return {"loss": output} if output.numel() == 1 else {}
    items = output.items() if isinstance(output, Mapping) else ()
    return {
        k: v
        for k, v in items
        if isinstance(v, (int, float)) or (isinstance(v, Tensor) and v.numel() == 1)
    }
