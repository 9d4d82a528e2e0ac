"""The memory format of a module's weights and images, which can be taken and given back."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from bhfl.quant.memory_format import contiguous, layer_needs_contiguous


class Layout:
    """The memory format of a module's weights and images, which can be taken and given back.

    Convolutions that crash in channels_last stay contiguous, their inputs too.

    Args:
        module: The model.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.channels_last = False
        self._changed: list[nn.Parameter] = []
        self._hooks: list[Any] = []

    def take_(self, channels_last: bool) -> None:
        """Lay the weights out so; what was changed before is changed back."""
        if channels_last == self.channels_last:
            return
        self.channels_last = channels_last
        if channels_last:
            self._change_()
            return
        for parameter in self._changed:
            parameter.data = parameter.data.contiguous()
        for hook in self._hooks:
            hook.remove()
        self._changed = []
        self._hooks = []

    def _change_(self) -> None:
        last = torch.channels_last
        for parameter in self.module.parameters():
            if parameter.ndim == 4 and not parameter.is_contiguous(memory_format=last):
                # through .data the parameter stays the object that optimisers and tied layers hold
                parameter.data = parameter.data.contiguous(memory_format=last)
                # weights that were lent in channels_last are not among them, and stay so
                self._changed.append(parameter)
        # one operand in channels_last is enough for oneDNN to write past its workspace
        for layer in filter(layer_needs_contiguous, self.module.modules()):
            self._hooks.append(layer.register_forward_pre_hook(_contiguous_inputs, prepend=True))
            for parameter in layer.parameters(recurse=False):
                if parameter.ndim == 4:
                    parameter.data = contiguous(parameter.data)

    def batch(self, batch: Any) -> Any:
        """A batch whose images are laid out so."""
        return tree_map_only(Tensor, _channels_last, batch) if self.channels_last else batch


def _contiguous_inputs(layer: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(
        contiguous(x) if isinstance(x, Tensor) and x.dim() in (3, 4) else x for x in inputs
    )


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x
