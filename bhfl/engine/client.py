"""One worker module a process, lent to one client after the other: load, train, hand back; load, evaluate."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal

import lightning as L
import torch
from lightning.fabric import Fabric
from torch import Tensor

from bhfl.engine.advice import advice
from bhfl.engine.algorithm import Algorithm, LocalRun
from bhfl.engine.formats import Layout
from bhfl.engine.optim import LocalOptimizers, lend_
from bhfl.engine.recorder import Recorder, recording, tag_of
from bhfl.engine.registered import Registered
from bhfl.engine.sampling import seed_globals
from bhfl.engine.types import FederatedData
from bhfl.quant import BitSpec, begin_round_, dequantize_, quantize_, save_in_int8, seed_, set_spec_, store_
from bhfl.quant.layers import takes_low_bits

_RETURNED = "the loss that training_step returned"
_UNCALLED = (
    "setup", "teardown", "configure_callbacks", "on_fit_start", "on_fit_end", "on_train_start", "on_train_end",
    "transfer_batch_to_device", "backward", "optimizer_step", "optimizer_zero_grad", "lr_scheduler_step",
    "configure_gradient_clipping", "on_save_checkpoint", "on_load_checkpoint",
)  # fmt: skip


@dataclass(frozen=True)
class LocalSettings:
    """How long and in what manner a client trains in a round."""

    local_epochs: int = 1
    local_steps: int | None = None
    """Optimiser steps, over as many epochs as they take; overrides `local_epochs`."""
    lr_schedule: Literal["continue", "restart"] = "continue"
    """`continue`: schedulers go on where the rounds before left them; `restart`: each round begins anew."""
    gradient_clip_val: float | None = None
    save_in_int8: bool = False
    """Clients with activations of up to 8 bits keep what backward needs so too, see `bhfl.quant.save_in_int8`."""


class Worker:
    """The one module of this process and what it takes to train and evaluate it as any client.

    Args:
        module: The user's LightningModule; its layers are swapped for quantised ones in place, parameters shared.
        fabric: For device, precision and backward.
        settings: See `LocalSettings`.
    """

    def __init__(self, module: L.LightningModule, fabric: Fabric, settings: LocalSettings) -> None:
        self.fabric, self.settings = fabric, settings
        check_module(module, settings.gradient_clip_val)
        self.module: L.LightningModule = quantize_(module, BitSpec(), lambda _, layer: takes_low_bits(layer))
        fabric.to_device(self.module)
        self.module.fabric = fabric  # manual_backward and optimizers() of manually optimised modules go through it
        self.layout = Layout(self.module)
        self.reestimate_: Callable[[Worker], None] | None = None
        """Gives a global model that is evaluated the BatchNorm statistics of its width; None to keep the clients'."""
        self.frozen = [layer for layer in module.modules() if not layer.training] if module.training else []
        self.registered = Registered(module, fabric.device)
        saved = self.module.state_dict()
        transient = {name: buffer.cpu().clone() for name, buffer in module.named_buffers() if name not in saved}
        self.transient: dict[str, Tensor] = fabric.broadcast(transient)  # those of rank 0, as the weights are
        names_of: dict[int, str] = {}
        self.tied = {
            name: first
            for name, tensor in self.module.state_dict(keep_vars=True).items()
            if (first := names_of.setdefault(id(tensor), name)) != name
        }

    def state(self) -> dict[str, Tensor]:
        """The module's state by name, tied tensors once."""
        return {name: tensor for name, tensor in self.module.state_dict().items() if name not in self.tied}

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor], spec: BitSpec) -> None:
        """Make the module a client of `spec` with these weights; buffers that are never saved begin anew.

        Whatever a client before it did to parameters and buffers is undone, so that nothing goes from one to the next.
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

    def release(self, tensors: Mapping[str, Tensor]) -> None:
        """Make the module an ordinary one again, with these weights."""
        self.load_global(tensors, BitSpec())
        self.layout.take_(False)
        dequantize_(self._train_mode()).fabric = None

    def _train_mode(self) -> L.LightningModule:
        """The module in training mode, but for those layers that its owner handed over in evaluation mode."""
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
        """Train as `run.client` from `run.received`; `run.metrics` holds the means of the loss and of logged values."""
        self.load(run.received, run.client.spec)
        module = self._train_mode()
        seed_globals(run.rng.integer("dropout"), self.fabric.device)
        generator = run.rng.torch("quant_train", device=self.fabric.device)
        seed_(module, generator)
        try:
            with recording(module) as recorder:
                training = _Training(self, algorithm, run, recorder, generator, history)
                training.train(data)
            run.metrics.update(training.metrics())
        finally:  # nothing is left for the next client, and no memory is held until it comes
            module.zero_grad()
            lend_(module, self.fabric, [], [])
        return run

    @torch.no_grad()
    def evaluate(self, batches: Iterable[Any], stage: Literal["val", "test"]) -> dict[str, float]:
        """Means over `batches` of what the module's validation or test step logs or returns, as the module stands.

        Names come without the stage: ``val_acc``, ``val/acc`` and ``acc`` are all ``acc``.
        """
        module, hook = self.module.eval(), {"val": "validation", "test": "test"}[stage]
        seed_globals(0, self.fabric.device)
        index, returned = None, Recorder()
        with recording(module) as logged, self._noted(hook):
            for index, batch in enumerate(self.on_device(batches)):
                if not index:
                    getattr(module, f"on_{hook}_start")()
                    getattr(module, f"on_{hook}_epoch_start")()
                getattr(module, f"on_{hook}_batch_start")(batch, index)
                logged.observe(batch)
                returned.observe(batch)
                with self.fabric.autocast():
                    output = getattr(module, f"{hook}_step")(batch, index)
                returned.log_dict(_numbers(output))
                getattr(module, f"on_{hook}_batch_end")(output, batch, index)
            if index is not None:
                getattr(module, f"on_{hook}_epoch_end")()
                getattr(module, f"on_{hook}_end")()
        means = [*returned.means().items(), *logged.means().items()]  # what is logged counts more
        return {re.sub(rf"^{stage}[/_]", "", name): mean for name, mean in means}

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
            batch = self.fabric.to_device(self.module.on_before_batch_transfer(batch, 0))
            batch = self.module.on_after_batch_transfer(batch, 0)
            yield self.layout.batch(batch)


def check_module(module: L.LightningModule, gradient_clip_val: float | None) -> None:
    """Say what a module asks of Lightning that it does not get here.

    Raises:
        ValueError: Automatic clipping is asked for where the module optimises manually.
    """
    if gradient_clip_val is not None and not module.automatic_optimization:
        raise ValueError(
            "gradient_clip_val needs automatic optimization: call self.clip_gradients(...) in training_step instead"
        )
    ignored = [name for name in _UNCALLED if getattr(type(module), name) is not getattr(L.LightningModule, name)]
    if ignored:
        name = type(module).__name__
        warnings.warn(f"{name} overrides {', '.join(ignored)}, which federated clients do not call", stacklevel=2)


def _numbers(output: Any) -> dict[str, Any]:
    """What a step returned, as metrics: a loss, or a mapping whose one-element values count."""
    if isinstance(output, Tensor):
        return {"loss": output} if output.numel() == 1 else {}
    items = output.items() if isinstance(output, Mapping) else ()
    return {k: v for k, v in items if isinstance(v, (int, float)) or (isinstance(v, Tensor) and v.numel() == 1)}


@dataclass
class _Training:
    """The local steps of one client in one round."""

    worker: Worker
    algorithm: Algorithm
    run: LocalRun
    recorder: Recorder
    generator: torch.Generator
    history: Sequence[Mapping[str, Any]]
    last: dict[str, Any] = field(default_factory=dict)

    def metrics(self) -> dict[str, float]:
        """What was logged, by tag; a loss that the module logs itself is preferred to the one it returned."""
        means = self.recorder.means()
        loss = {"train/loss": means.pop(_RETURNED)} if _RETURNED in means else {}
        return loss | {tag_of(name): mean for name, mean in means.items()}

    def train(self, data: FederatedData) -> None:
        settings, module, run = self.worker.settings, self.run.module, self.run
        epochs, steps = settings.local_epochs, settings.local_steps
        continued = settings.lr_schedule == "continue"
        rounds = run.round if continued else 0
        num_batches = data.num_batches(run.client.id)
        planned = steps or epochs * num_batches
        self.limit = self.algorithm.num_steps(run, planned)
        if not self.limit:
            raise RuntimeError("dropped out: it made no step")
        position = {"epoch": rounds * math.ceil(planned / max(num_batches, 1)), "step": rounds * planned}
        self.optimizers = LocalOptimizers(module, self.worker.fabric, position, self.history if continued else None)
        lend_(module, self.worker.fabric, self.optimizers.wrapped, self.optimizers.schedules)
        epoch = 0
        while run.num_steps < self.limit:
            self.epoch(data.client_batches(run.client.id, run.rng, epoch))
            epoch += 1
            self.optimizers.advance("epoch", epoch, self.metrics)
        if module.automatic_optimization and not self.last:
            raise ValueError("training_step returned no loss for any batch")

    def epoch(self, batches: Iterable[Any]) -> None:
        module, run = self.run.module, self.run
        before = run.num_steps
        module.on_train_epoch_start()
        for index, batch in enumerate(self.worker.on_device(batches)):
            if run.num_steps == self.limit:
                break
            self.batch(batch, index)
        if run.num_steps == before:
            raise ValueError(f"client {run.client.id} has no training batch")
        module.on_train_epoch_end()

    def batch(self, batch: Any, index: int) -> None:
        module, run = self.run.module, self.run
        self.recorder.observe(batch)
        module.on_train_batch_start(batch, index)
        run.lr_sum += self.optimizers.lr
        run.num_steps += 1
        run.num_examples += self.recorder.batch_size
        with self.worker.fabric.autocast(), self.saving():
            output = self.algorithm.client_loss(run, batch, index)
        loss = _loss(output, module.automatic_optimization)
        if loss is not None:
            self.last = {"train/loss": torch.as_tensor(loss).detach()}
            self.recorder.log(_RETURNED, loss)
            if module.automatic_optimization:
                self.step(loss)
        if run.client.spec.storage < 32:  # a walk over all layers, for nothing otherwise
            store_(module, self.generator)
        module.on_train_batch_end(output, batch, index)
        self.optimizers.advance("step", run.num_steps, lambda: self.last)

    def saving(self) -> AbstractContextManager[None]:
        lean = self.worker.settings.save_in_int8 and self.run.client.spec.activations <= 8
        return save_in_int8() if lean else nullcontext()

    def step(self, loss: Tensor) -> None:
        module, fabric, clip = self.run.module, self.worker.fabric, self.worker.settings.gradient_clip_val
        optimizer = self.optimizers.wrapped[0]
        module.on_before_zero_grad(self.optimizers.raw[0])
        optimizer.zero_grad()
        module.on_before_backward(loss)
        fabric.backward(loss)
        module.on_after_backward()
        fabric.strategy.precision.unscale_gradients(self.optimizers.raw[0])
        self.algorithm.client_gradients_(self.run)
        if clip is not None:
            torch.nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], clip)
        module.on_before_optimizer_step(self.optimizers.raw[0])
        optimizer.step()


def _loss(output: Any, automatic: bool) -> Any:
    """The loss in what `training_step` returned."""
    if not isinstance(output, Mapping):
        return output
    if automatic and "loss" not in output:
        raise ValueError(
            f"training_step returned a dict without 'loss', with {', '.join(map(repr, output)) or 'nothing'}"
        )
    return output.get("loss")
