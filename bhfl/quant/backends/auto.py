"""Backends ``auto...``: integer products for the layers that are faster by them, ``fake`` for the
others.

Small layers lose more by quantising in passes of their own than they gain in the product. A table
says which are small, by device and kind of layer: :func:`bhfl.quant.tune` measures it anew.
:func:`bhfl.quant.backend_choices` and ``print(model)`` show what was chosen.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from bhfl.quant.backends.base import FAKE, Backend
from bhfl.quant.backends.shapes import device_of, kernel_shape, product_of

if TYPE_CHECKING:
    from bhfl.quant.quant_layer import QuantLayer

FAST = {"auto": "int8", "auto-bfloat16": "int8-bfloat16", "auto-integer": "integer"}
"""The backends of this kind, and the one that each takes where it is faster."""

NEVER = 1 << 62
"""More channels than any layer has."""

TABLE: dict[tuple[str, str, str], int] = {
    ("cpu", "int8", "linear"): 192,
    ("cpu", "int8", "conv"): 32,
    ("cpu", "int8-bfloat16", "linear"): 128,
    ("cpu", "int8-bfloat16", "conv"): 16,
    ("cpu", "integer", "linear"): 128,
    ("cpu", "integer", "conv"): 32,
    ("cuda", "int8", "linear"): 1024,
    ("cuda", "int8-bfloat16", "linear"): 1024,
    ("cuda", "integer", "linear"): 1024,
}
"""Device type, backend, kind of layer -> the number of channels from which the backend is faster;
what is never faster has no entry.
"""


class Auto(Backend):
    """One backend where the table says that it is faster and it does not refuse, else ``fake``.

    Args:
        name: See :class:`Backend`.
        fast: The backend to take where it is faster.
    """

    def __init__(self, name: str, fast: Backend) -> None:
        self.name = name
        self.fast = fast

    def chosen_for(self, layer: QuantLayer) -> Backend:
        """See :class:`Backend`."""
        key = (device_of(layer).type, self.fast.name, kind(layer))
        # a refusal needs no warning here: nobody has asked for that backend by name
        if num_channels(layer) < TABLE.get(key, NEVER) or self.fast.refusal(layer):
            return FAKE
        return self.fast

    def compute(self, layer: QuantLayer, x: Tensor) -> Tensor:
        """See :class:`Backend`."""
        return self.chosen_for(layer).forward(layer, x)


def kind(layer: nn.Module) -> str:
    """The word of the table for a layer; a convolution that sees one pixel at a time is a linear
    layer.
    """
    if isinstance(layer, nn.Conv1d | nn.Conv2d) and max(layer.kernel_size) > 1:
        return "conv"
    return "linear"


def num_channels(layer: nn.Module) -> int:
    """The harmonic mean of the numbers of inputs and outputs of a layer, in one group: how often it
    multiplies each value that it quantises. 0 where it has no integer product.
    """
    if product_of(layer) is None:
        return 0
    num_outputs, num_inputs, *_ = kernel_shape(layer)
    num_outputs //= getattr(layer, "groups", 1)
    return 2 * num_inputs * num_outputs // (num_inputs + num_outputs)
