"""Backends ``auto...``: integer products for the layers that are faster by them, ``fake`` for the
others.

Small layers lose more by quantising in passes of their own than they gain in the product, and all
lose on hardware without instructions for such products. A table says from which size on a layer
gains, by kind of layer: see :mod:`bhfl.quant.backends.machine`; :func:`bhfl.quant.tune` measures it
anew. :func:`bhfl.quant.backend_choices` and ``print(model)`` show what was chosen.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from bhfl.quant.backends.base import FAKE, Backend
from bhfl.quant.backends.machine import Table, table_of
from bhfl.quant.backends.shapes import device_of, kernel_shape, product_of

if TYPE_CHECKING:
    from bhfl.quant.quant_layer import QuantLayer
    from bhfl.quant.spec import BitSpec

FAST = {"auto": "int8", "auto-bfloat16": "int8-bfloat16", "auto-integer": "integer"}
"""The backends of this kind, and the one that each takes where it is faster."""

NEVER = 1 << 62
"""More channels than any layer has."""

TABLES: dict[str, Table] = {}
"""What this process goes by, by type of device; see :func:`bhfl.quant.backends.machine.table_of`,
which is asked once, and :func:`bhfl.quant.tune`.
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

    def require(self) -> None:
        """See :class:`Backend`; look at the machine before a compiler looks at the layers."""
        self.fast.require()
        device = "cuda" if torch.cuda.is_available() else "cpu"
        _threshold(device, self.fast.name, "linear")

    def unfit(self, spec: "BitSpec") -> str:
        """See :class:`Backend`."""
        return self.fast.unfit(spec)

    def chosen_for(self, layer: "QuantLayer") -> Backend:
        """See :class:`Backend`."""
        least = _threshold(device_of(layer).type, self.fast.name, kind(layer))
        # a refusal needs no warning here: nobody has asked for that backend by name
        return FAKE if num_channels(layer) < least or self.fast.refusal(layer) else self.fast

    def compute(self, layer: "QuantLayer", x: Tensor) -> Tensor:
        """See :class:`Backend`."""
        return self.chosen_for(layer).forward(layer, x)


def _threshold(device: str, backend: str, kind: str) -> int:
    """The channels from which a backend is faster here."""
    if device not in TABLES:
        TABLES[device] = table_of(device)
    return TABLES[device].get((backend, kind), NEVER)


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
