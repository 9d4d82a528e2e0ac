"""What a client finds as `self.trainer`: Lightning's names for where it is in the run, and nothing
that half works.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import lightning as L
import torch
from lightning.fabric import Fabric
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.plugins.precision import Precision
from lightning.pytorch.utilities.types import LRSchedulerConfig
from torch import Tensor
from torch.optim import LBFGS, Optimizer

from bhfl.engine.client.place import Place


class _Kept:
    """An object that has what is kept of one of Lightning's; anything else is refused by name."""

    _name = ""

    def __getattr__(self, name: str) -> Any:
        # copy, pickle and inspect ask for these, and take a bare AttributeError for a no
        if name.startswith("__"):
            raise AttributeError(name)
        kept = sorted(kept for kept in {*dir(type(self)), *vars(self)} if not kept.startswith("_"))
        raise AttributeError(
            f"{self._name}.{name} is not kept for federated clients; there is: {', '.join(kept)}"
        )

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"{self._name}.{name} cannot be set by a federated client")


class LocalStrategy(_Kept):
    """One device and one process, which is what a client has: backward, and the optimiser's step
    around its closure.

    Args:
        module: The client.
        place: Where in the run it is.
        fabric: Gives the device and the gradient scaler.
    """

    _name = "self.trainer.strategy"
    _place: Place
    _precision: Any
    lightning_module: L.LightningModule
    root_device: torch.device

    def __init__(self, module: L.LightningModule, place: Place, fabric: Fabric) -> None:
        # through vars, since __setattr__ refuses whoever sets anything
        vars(self).update(
            lightning_module=module,
            root_device=fabric.device,
            _place=place,
            _precision=fabric.strategy.precision,
        )

    @property
    def _lightning_optimizers(self) -> list[LightningOptimizer]:
        return self._place.optimizers

    def all_gather(self, tensor: Tensor, group: Any = None, sync_grads: bool = False) -> Tensor:
        """The tensor itself: a client is alone."""
        return tensor

    def reduce(self, tensor: Any, *args: Any, **kwargs: Any) -> Any:
        """The value itself: a client is alone."""
        return tensor

    def broadcast(self, obj: Any, src: int = 0) -> Any:
        """The object itself: a client is alone."""
        return obj

    def barrier(self, *args: Any, **kwargs: Any) -> None:
        """Wait for nobody: a client is alone."""

    def backward(self, loss: Tensor, optimizer: Any = None, *args: Any, **kwargs: Any) -> None:
        """Run backward between its hooks; the loss is scaled first where the precision needs it."""
        module, scaler = self.lightning_module, self._scaler
        if scaler is not None:
            loss = scaler.scale(loss)
        module.on_before_backward(loss)
        module.backward(loss, *args, **kwargs)
        module.on_after_backward()

    def optimizer_step(
        self, optimizer: Optimizer, closure: Callable[[], Any], **kwargs: Any
    ) -> Any:
        """One step of an optimiser, whose closure computes the gradients."""
        scaler = self._scaler
        if scaler is None:
            return optimizer.step(closure=partial(self._closed, optimizer, closure), **kwargs)
        # it calls its closure several times a step, and a GradScaler takes no closure
        if isinstance(optimizer, LBFGS):
            raise ValueError(
                "LBFGS cannot train under trainer.precision 16-mixed: take bf16-mixed or 32-true"
            )
        closure()
        if self._place.without_loss:
            return None
        # fused optimisers unscale in their own kernels, too late for whoever changes the gradients
        # before
        changed = self._place.change_gradients or self._place.training.gradient_clip_val
        if changed or not getattr(optimizer, "_step_supports_amp_scaling", False):
            self._precision.unscale_gradients(optimizer)
        self._before_step(optimizer)
        output = scaler.step(optimizer, **kwargs)
        scaler.update()
        return output

    @property
    def _scaler(self) -> Any:
        return getattr(self._precision, "scaler", None)

    def _closed(self, optimizer: Optimizer, closure: Callable[[], Any]) -> Any:
        result = closure()
        if not self._place.without_loss:
            self._before_step(optimizer)
        return result

    def _before_step(self, optimizer: Optimizer) -> None:
        """What follows the gradients: the algorithm's changes of them, the module's hook, and
        clipping.
        """
        module, place = self.lightning_module, self._place
        if place.change_gradients is not None:
            place.change_gradients()
        module.on_before_optimizer_step(optimizer)
        if module.automatic_optimization:
            clip = place.training.gradient_clip_val
            module.configure_gradient_clipping(
                optimizer, gradient_clip_val=clip, gradient_clip_algorithm=None
            )


class ModuleTrainer(_Kept):
    """`self.trainer` of a client, and of a data module: what is here is right, and anything else is
    an error.

    A client is a training of its own on one device: it is global zero, rank 0 of 1, in whatever
    process it runs.

    Args:
        module: This process's module.
        place: Where in the run it is.
        fabric: Gives device, precision and gradient scaler.
    """

    _name = "self.trainer"
    _place: Place
    # Lightning's `log` asks for it outside its hooks, and says so where it is None
    _results = None
    accumulate_grad_batches = 1
    barebones = False
    fast_dev_run = False
    sanity_checking = False
    gradient_clip_algorithm = None
    progress_bar_callback = None
    is_global_zero = True
    global_rank = 0
    local_rank = 0
    node_rank = 0
    num_devices = 1
    num_nodes = 1
    world_size = 1

    def __init__(self, module: L.LightningModule, place: Place, fabric: Fabric) -> None:
        settings = place.settings
        vars(self).update(
            _place=place,
            lightning_module=module,
            model=module,
            datamodule=place.data,
            strategy=LocalStrategy(module, place, fabric),
            precision_plugin=Precision(),
            precision=str(settings.training.precision),
            gradient_clip_val=settings.training.gradient_clip_val,
            default_root_dir=str(settings.output.default_root_dir),
        )

    @property
    def current_epoch(self) -> int:
        """Rounds finished times the planned local epochs, and the epochs of this round."""
        place = self._place
        done = place.round * place.planned_epochs + place.epoch
        # Lightning validates inside its epochs, before they count
        return max(0, done - 1) if self.validating else done

    @property
    def global_step(self) -> int:
        """Rounds finished times the planned steps, and the steps of this round.

        Each of several optimisers, which need manual optimisation, counts its own steps, as in
        Lightning.
        """
        place = self._place
        return place.round * place.planned_steps * max(1, len(place.optimizers)) + place.step

    @property
    def max_epochs(self) -> int:
        """Local epochs of a client that takes part in every round."""
        return self._place.settings.stopping.max_rounds * self._place.planned_epochs

    @property
    def max_steps(self) -> int:
        """Steps of a client that takes part in every round, where they are counted; else -1, which
        is Lightning's word for no limit.
        """
        steps = self._place.training.local_steps
        return -1 if steps is None else self._place.settings.stopping.max_rounds * steps

    @property
    def num_training_batches(self) -> int:
        """Batches in a local epoch of this client."""
        return self._place.num_batches

    @property
    def estimated_stepping_batches(self) -> int:
        """Steps of this client if it takes part in every round."""
        return self._place.settings.stopping.max_rounds * self._place.planned_steps

    @property
    def optimizers(self) -> list[Optimizer]:
        """The optimisers of the client that trains now."""
        return [optimizer.optimizer for optimizer in self._place.optimizers]

    @property
    def lr_scheduler_configs(self) -> list[LRSchedulerConfig]:
        """The schedules of the client that trains now."""
        return self._place.schedules

    @property
    def training(self) -> bool:
        """Whether the module trains, or is being set up for it."""
        return self._place.stage == "train"

    @property
    def validating(self) -> bool:
        """Whether the module is being validated."""
        return self._place.stage == "val"

    @property
    def testing(self) -> bool:
        """Whether the module is being tested."""
        return self._place.stage == "test"

    @property
    def predicting(self) -> bool:
        """Whether the module predicts."""
        return self._place.stage == "predict"

    @property
    def evaluating(self) -> bool:
        """Whether the module is being validated or tested."""
        return self._place.stage in ("val", "test")

    @property
    def loggers(self) -> list[Any]:
        """The run's loggers; what other processes than the first give them is not written."""
        return self._place.loggers

    @property
    def logger(self) -> Any:
        """The first of the loggers, None where there is none."""
        return self._place.loggers[0] if self._place.loggers else None

    @property
    def log_dir(self) -> str | None:
        """The run folder, None where there is none."""
        return None if self._place.folder is None else str(self._place.folder)
