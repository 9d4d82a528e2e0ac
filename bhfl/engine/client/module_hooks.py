"""Which hooks a LightningModule and a data module have, and whose is called."""

import inspect
import warnings
from typing import Any

import lightning as L
import torch

_TRANSFER = ("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer")


def overrides(thing: Any, hook: str, base: type) -> bool:
    """Whether `thing` has a `hook` of its own, by its class or as an attribute, besides that of
    `base`.
    """
    own = hook in getattr(thing, "__dict__", {}) or getattr(type(thing), hook, None) is not getattr(
        base, hook, None
    )
    return own and callable(getattr(thing, hook, None))


def check_trainable(module: L.LightningModule) -> None:
    """Say before any work what a module must have to be trained.

    Raises:
        ValueError: It defines no training_step or no configure_optimizers, or its step takes
            Lightning's iterator.
    """
    name = type(module).__name__
    if missing := [
        h
        for h in ("training_step", "configure_optimizers")
        if not overrides(module, h, L.LightningModule)
    ]:
        raise ValueError(f"{name} must define {' and '.join(missing)} to be trained")
    if "dataloader_iter" in inspect.signature(module.training_step).parameters:
        raise ValueError(
            f"{name}.training_step takes dataloader_iter, and federated clients have none: take "
            "batch and batch_idx"
        )


class Transfer:
    """Brings batches to the device through Lightning's three hooks: the data module's where it
    overrides them.

    Args:
        module: Owner of the hooks that the data module leaves alone.
        data: Any data object; a hook may be missing from it.
        device: Where the batches go.
    """

    def __init__(self, module: L.LightningModule, data: Any, device: torch.device) -> None:
        self.device = device
        self._owners = [_owner(module, data, hook) for hook in _TRANSFER]

    def __call__(self, batch: Any) -> Any:
        """The batch on the device."""
        # 0 is the index of the data loader, of which a client has one
        before, move, after = self._owners
        batch = before.on_before_batch_transfer(batch, 0)
        batch = move.transfer_batch_to_device(batch, self.device, 0)
        return after.on_after_batch_transfer(batch, 0)


def _owner(module: L.LightningModule, data: Any, hook: str) -> Any:
    """Whose `hook` is called: the data module's where it overrides it, else the module's."""
    if not overrides(data, hook, L.LightningDataModule):
        return module
    if overrides(module, hook, L.LightningModule):
        warnings.warn(
            f"{type(module).__name__} and {type(data).__name__} both override {hook}: that of the "
            "data module is called, as in Lightning",
            stacklevel=2,
        )
    return data
