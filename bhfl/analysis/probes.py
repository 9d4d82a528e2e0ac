"""What the layers of a module do in a training step: their inputs, what they keep for the backward
pass, and their seconds.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from bhfl.engine.flops import LayersAtWork


class Watch(LayersAtWork):
    """Takes down what each layer does while it is open, for one training step.

    Attributes:
        kept: Bytes that are kept for the backward pass, by layer; of several trainings those of the
            one that keeps the most.
        inputs: The input of a layer that is called with one tensor alone, by layer.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module)
        self.inputs: dict[str, Tensor] = {}
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
    def open(self) -> Iterator[Self]:
        """Watch all that is computed in the block."""
        with super().open(), saved_tensors_hooks(self._keep, lambda tensor: tensor):
            yield self
        self._alive.clear()

    def enter(self, name: str, layer: nn.Module, args: Any, kwargs: Any) -> None:
        """See `LayersAtWork`."""
        super().enter(name, layer, args, kwargs)
        alone = len(args) == 1 and not kwargs and isinstance(args[0], Tensor)
        if alone and name not in self.inputs:
            self.inputs[name] = args[0].detach().clone().requires_grad_(args[0].requires_grad)

    def _keep(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._seen:
            self._seen.add(storage.data_ptr())
            # what is freed would leave its address to another tensor
            self._alive.append(tensor)
            name = self.stack[-1]
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
        # until a GPU has computed what it was told to
        if given.is_cuda:
            torch.cuda.synchronize(given.device)
        seconds.append(time.perf_counter() - start)
    layer.zero_grad()
    given.grad = None
    return median(seconds[1:])
