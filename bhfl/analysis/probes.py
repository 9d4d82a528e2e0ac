"""What the layers of a module do in a training step: their inputs, what they keep for the backward
pass, and their seconds.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.hooks import RemovableHandle

from bhfl.engine.flops import REST, layers_of


class Watch:
    """Takes down what each layer does while it is open, for one training step.

    Attributes:
        kept: Bytes that are kept for the backward pass, by layer; of several trainings those of the
            one that keeps the most.
        inputs: The input of a layer that is called with one tensor alone, by layer.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.inputs: dict[str, Tensor] = {}
        self._stack: list[str] = []
        own = [*module.parameters(), *module.buffers()]
        self._own = {tensor.untyped_storage().data_ptr() for tensor in own}
        self._trainings: list[dict[str, int]] = []
        self._alive: list[Tensor] = []
        self.begin()

    def begin(self) -> None:
        """See another training come, whose tensors are not there beside those of the last."""
        self._trainings.append({})
        self._seen = set(self._own)
        self._alive.clear()

    @property
    def kept(self) -> dict[str, int]:
        """See the class."""
        return max(self._trainings, key=lambda kept: sum(kept.values()))

    @contextmanager
    def open(self) -> Iterator[Watch]:
        """Watch all that is computed in the block."""
        handles: list[RemovableHandle] = []
        for name, layer in layers_of(self.module).items():
            handles.append(layer.register_forward_pre_hook(self._entering(name), with_kwargs=True))
            handles.append(layer.register_forward_hook(self._leave, always_call=True))
        try:
            with saved_tensors_hooks(self._keep, lambda tensor: tensor):
                yield self
        finally:
            for handle in handles:
                handle.remove()
            self._alive.clear()

    def _entering(self, name: str) -> Any:
        def enter(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._stack.append(name)
            alone = len(args) == 1 and not kwargs and isinstance(args[0], Tensor)
            if alone and name not in self.inputs:
                self.inputs[name] = args[0].detach().clone().requires_grad_(args[0].requires_grad)

        return enter

    def _leave(self, layer: nn.Module, args: Any, output: Any) -> None:
        self._stack.pop()

    def _keep(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._seen:
            self._seen.add(storage.data_ptr())
            # what is freed would leave its address to another tensor
            self._alive.append(tensor)
            name = self._stack[-1] if self._stack else REST
            kept = self._trainings[-1]
            kept[name] = kept.get(name, 0) + storage.nbytes()
        return tensor


def layer_seconds(layer: nn.Module, given: Tensor, repeats: int) -> float:
    """Median seconds of a layer's forward and backward pass, alone; nan where it gives no tensor.

    Args:
        layer: The layer in training mode, with the bits and the backend that are meant.
        given: Its input, which is asked for a gradient where it needs one.
        repeats: Passes that count; one more comes before.
    """
    seconds = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        output = layer(given)
        if not isinstance(output, Tensor):
            return float("nan")
        if output.requires_grad:
            torch.autograd.backward(output, torch.ones_like(output))
        _wait(given)
        seconds.append(time.perf_counter() - start)
    layer.zero_grad()
    given.grad = None
    return median(seconds[1:])


def _wait(tensor: Tensor) -> None:
    """Wait until a GPU has computed what it was told to."""
    if tensor.is_cuda:
        torch.cuda.synchronize(tensor.device)
