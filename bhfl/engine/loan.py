"""A user's module is lent to a run, and comes back as it was, but for its weights, however the run
ends.
"""

from collections.abc import Callable
from typing import Any

import lightning as L
from lightning.fabric import Fabric
from torch._dynamo.eval_frame import OptimizedModule

from bhfl.engine.client.module_trainer import ModuleTrainer
from bhfl.engine.client.place import Place
from bhfl.quant import BitSpec, dequantize_, set_spec_


class Loan:
    """A module while a trainer has it, and what is needed to give it back.

    Args:
        model: A LightningModule, or what `torch.compile` made of one: its `forward` then stays
            compiled while it is lent, and its steps run as they are written.
        data: The data module, which is told of the same `trainer`.
        last: The trainer's session before this one, if there was any.

    Raises:
        ValueError: It is neither, or the trainer is still at work.
    """

    def __init__(self, model: Any, data: Any, last: Any = None) -> None:
        if last and last.loan.weights:
            raise ValueError(
                "the trainer is at work, and cannot begin anything else meanwhile: in a callback "
                "trainer.session.evaluate('val') measures, in every process alike"
            )
        module = model._orig_mod if isinstance(model, OptimizedModule) else model
        if not isinstance(module, L.LightningModule):
            raise ValueError(f"model must be a LightningModule, got {type(module).__name__}")
        self.module = module
        self.data = data
        self.weights: Callable[[], None] | None = None
        """Puts the last weights into the module; None before a run has any of its own."""
        self._modes = [(layer, layer.training) for layer in module.modules()]
        self._trained = [(parameter, parameter.requires_grad) for parameter in module.parameters()]
        # `module.trainer` raises where there is none
        self._attached = module._trainer, module.fabric
        self._compiled = module is not model
        # while a module has a fabric, its `trainer` is a stand-in of Lightning's
        module.fabric = None
        if isinstance(data, L.LightningDataModule):
            self._trainer_of_data = data.trainer
        if self._compiled:
            module.forward = model.dynamo_ctx(module.forward)  # type: ignore[method-assign]

    def attach(self, place: Place, fabric: Fabric) -> None:
        """Let the module and the data module find their place in the run as `self.trainer`."""
        trainer: Any = ModuleTrainer(self.module, place, fabric)
        self.module.trainer = trainer
        if isinstance(self.data, L.LightningDataModule):
            self.data.trainer = trainer

    def tear_down(self, *stages: str) -> None:
        """Call ``teardown`` of the data module and the module for each of the stages that they were
        set up for.
        """
        for stage in stages:
            if isinstance(self.data, L.LightningDataModule):
                self.data.teardown(stage)
            self.module.teardown(stage=stage)

    def give_back(self) -> None:
        """Float layers with the last weights, modes and `requires_grad` as they were lent, attached
        to nothing.
        """
        module = self.module
        try:
            if self.weights is not None:
                self.weights()
        finally:
            self.weights = None
            dequantize_(set_spec_(module, BitSpec()))
            module.trainer, module.fabric = self._attached
            if isinstance(self.data, L.LightningDataModule):
                self.data.trainer = self._trainer_of_data
            if self._compiled:
                del module.forward
            for layer, training in self._modes:
                # `train()` would reach all layers below it, and may be the user's own
                layer.training = training
            for parameter, requires_grad in self._trained:
                # by attribute: a lazy parameter has no more yet
                parameter.requires_grad = requires_grad
            module.zero_grad()
