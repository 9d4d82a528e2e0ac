"""Backends ``auto...``: integer products for the layers that are faster by them, ``fake`` for the
others.

Small layers lose more by quantising in passes of their own than they gain in the product. What is
small is read from a table of channels, by device and kind of layer, which :func:`bhfl.quant.tune`
measures anew. What was chosen is said by :func:`bhfl.quant.backend_choices` and by
``print(model)``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from bhfl.quant.backends.base import FAKE, Backend
from bhfl.quant.backends.shapes import device_of

if TYPE_CHECKING:
    from bhfl.quant.quant_layer import QuantLayer

FAST = {"auto": "int8", "auto-bfloat16": "int8-bfloat16", "auto-integer": "integer"}
"""The backends of this kind, and what each takes where it is faster."""

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
"""Device type, backend, kind of layer -> the channels from which the backend is faster; none for
never.
"""


class Auto(Backend):
    """One backend where the table says that it is faster and it does not refuse, else ``fake``.

    Args:
        name: See :class:`Backend`.
        fast: The backend to take.
    """

    def __init__(self, name: str, fast: Backend) -> None:
        self.name, self.fast = name, fast

    def chosen_for(self, layer: QuantLayer) -> Backend:
        """See :class:`Backend`."""
        device = device_of(layer).type
        if num_channels(layer) < TABLE.get(
            (device, self.fast.name, kind(layer)), NEVER
        ) or self.fast.refusal(layer):
            return FAKE
        return self.fast

    def compute(self, layer: QuantLayer, x: Tensor) -> Tensor:
        """See :class:`Backend`."""
        return self.chosen_for(layer).forward(layer, x)


def kind(layer: nn.Module) -> str:
    """The word of the table for a layer; a convolution that sees one pixel at a time is a linear
    layer.
    """
    if isinstance(layer, nn.Conv1d | nn.Conv2d):
        return "conv" if max(layer.kernel_size) > 1 else "linear"
    return "linear"


def num_channels(layer: nn.Module) -> int:
    """The harmonic mean of the inputs and outputs of a layer: what it multiplies for each value
    that it quantises.
    """
    if isinstance(layer, nn.MultiheadAttention):
        return _harmonic_mean(layer.embed_dim, 3 * layer.embed_dim)
    if isinstance(layer, nn.Linear):
        return _harmonic_mean(layer.in_features, layer.out_features)
    if isinstance(layer, nn.Conv1d | nn.Conv2d):
        return _harmonic_mean(layer.in_channels // layer.groups, layer.out_channels // layer.groups)
    return 0


def _harmonic_mean(a: int, b: int) -> int:
    return 2 * a * b // (a + b)
