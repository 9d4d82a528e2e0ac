"""FLOPs of a forward pass, layer by layer, and what training takes of them.

A trained layer takes three forward passes' FLOPs: its output, and the gradients of its weight and
of its input. A frozen weight needs no gradient; and nothing has a gradient that is computed before
the first layer with anything to train.
"""

import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from bhfl.engine.client.recorder import size_of
from bhfl.engine.client.worker import Worker

REST = "(others)"
"""Stands for all that belongs to no layer: functions between them, parameters outside them."""
_TRAINED = 3
"""Forward passes that a training step costs where everything is trained."""


def layers_of(module: nn.Module) -> dict[str, nn.Module]:
    """The modules that hold parameters themselves, by name; of a shared one its first name."""
    return {
        name: layer
        for name, layer in module.named_modules()
        if name and [*layer.parameters(recurse=False)]
    }


@dataclass(frozen=True)
class Flops:
    """FLOPs of some examples by layer; what belongs to none is under `REST`."""

    forward: Mapping[str, int]
    """Those of a forward pass."""
    training: Mapping[str, int]
    """Those of a training step, its forward pass among them."""
    num_examples: int = 1

    @property
    def example(self) -> float:
        """Those of a forward pass of one example."""
        return sum(self.forward.values()) / self.num_examples

    @property
    def training_example(self) -> float:
        """Those of a training step for one example."""
        whole = sum(self.forward.values())
        return sum(self.training.values()) / whole * self.example if whole else 0.0


def count_flops(worker: Worker, batch: Any) -> Flops:
    """Count a validation step of the worker's module on a batch.

    Args:
        worker: Holds the module, whose parameters are frozen that clients do not train.
        batch: One batch of a client's.
    """
    with without_fused_kernels(), FlopCounterMode(display=False) as counter:
        account = _Account(worker.module, counter)
        with account.open():
            worker.evaluate([batch], "val")
        account.charge()
    return Flops(account.forward, account.training, size_of(batch))


def _trains(layer: nn.Module) -> bool:
    """Whether a module has anything to train besides the modules in it."""
    return any(parameter.requires_grad for parameter in layer.parameters(recurse=False))


class LayersAtWork:
    """The layers of a module, and which of them are at work while it is open.

    Attributes:
        layers: All of them by name, see `layers_of`.
        stack: The names of those at work, the innermost last.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.layers = layers_of(module)
        self.stack = [REST]

    @contextmanager
    def open(self) -> Iterator[Self]:
        """Watch all that is computed in the block."""
        handles = []
        for name, layer in self.layers.items():
            enter = partial(self.enter, name)
            handles.append(layer.register_forward_pre_hook(enter, with_kwargs=True))
            handles.append(layer.register_forward_hook(self.leave, always_call=True))
        try:
            yield self
        finally:
            for handle in handles:
                handle.remove()

    def enter(self, name: str, layer: nn.Module, args: Any, kwargs: Any) -> None:
        """See a layer begin.

        Args:
            name: Its name.
            layer: The layer.
            args: What it is called with, by position.
            kwargs: And by name.
        """
        self.stack.append(name)

    def leave(self, layer: nn.Module, args: Any, output: Any) -> None:
        """See a layer end."""
        self.stack.pop()


class _Account(LayersAtWork):
    """Charges what a counter counts to the innermost layer that is at work."""

    def __init__(self, module: nn.Module, counter: FlopCounterMode) -> None:
        super().__init__(module)
        self.counter = counter
        self.forward: Counter[str] = Counter()
        self.training: Counter[str] = Counter()
        self._charged = 0
        # where nothing is frozen all counts as trained, the first layer's input too
        whole = all(parameter.requires_grad for parameter in module.parameters())
        self._flows = whole or _trains(module)

    def enter(self, name: str, layer: nn.Module, args: Any, kwargs: Any) -> None:
        """See `LayersAtWork`."""
        self.charge()
        super().enter(name, layer, args, kwargs)
        # what a network trains of its own, such as a prompt, goes through the layers inside it
        self._flows |= _trains(layer) and any(True for _ in layer.children())

    def leave(self, layer: nn.Module, args: Any, output: Any) -> None:
        """See `LayersAtWork`."""
        self.charge()
        super().leave(layer, args, output)
        self._flows |= _trains(layer)

    def charge(self) -> None:
        """Charge what was counted since the last time."""
        name = self.stack[-1]
        total = self.counter.get_total_flops()
        spent = total - self._charged
        self._charged = total
        self.forward[name] += spent
        self.training[name] += self._factor(name) * spent

    def _factor(self, name: str) -> int:
        """Forward passes that a step costs in a layer, called now."""
        if name == REST:
            return _TRAINED if self._flows else 1
        own = list(self.layers[name].parameters(recurse=False))
        # a bias alone costs no product
        weights = [parameter for parameter in own if parameter.dim() > 1] or own
        if any(parameter.requires_grad for parameter in weights):
            return _TRAINED
        return 2 if self._flows else 1


@contextmanager
def without_fused_kernels() -> Iterator[None]:
    """Recurrent layers and attention by products one by one: those in one kernel are not
    counted.
    """
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        # setting the flags back warns of other devices
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "TF32 acceleration")
            mkldnn = torch.backends.mkldnn.flags(enabled=False)
            cudnn = torch.backends.cudnn.flags(enabled=False)
            with mkldnn, cudnn, sdpa_kernel(SDPBackend.MATH):
                yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
