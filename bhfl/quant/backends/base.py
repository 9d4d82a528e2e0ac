"""What a backend is: one way to compute the product of a quantised layer.

A :class:`~bhfl.quant.BitSpec` says which numbers a layer multiplies; a backend says how they are
multiplied. Every backend gets the same codes of weights and activations, so that a model may change
its backend at any time. Where a backend cannot compute a layer, ``fake`` does, and one warning says
so.
"""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from bhfl.quant.quant_layer import QuantLayer
    from bhfl.quant.spec import BitSpec


class BackendWarning(UserWarning):
    """A layer was computed by another backend than the one it was given."""


class Backend(ABC):
    """Computes ``product(quantised input, quantised weight) + bias`` of layers, and has no state of
    any of them.

    Attributes:
        name: What ``quantize_(model, spec, backend=...)`` calls it.
    """

    name: str

    def require(self) -> None:
        """ImportError where this backend needs a package that cannot be imported."""
        return

    def unfit(self, spec: "BitSpec") -> str:
        """Why this backend can compute no layer of these bits; empty if it can."""
        return ""

    def caution(self, device: str) -> str:
        """What a user of this backend has to know, on a type of device; mostly nothing."""
        return ""

    def refusal(self, layer: "QuantLayer") -> str:
        """Why this backend cannot compute a layer on its device with its spec; empty if it can."""
        return ""

    def chosen_for(self, layer: "QuantLayer") -> "Backend":
        """The backend that really computes a layer: this one, another one that it chooses, or
        ``fake``.
        """
        return FAKE if self.refusal(layer) else self

    def report(self, layer: "QuantLayer") -> bool:
        """Whether this backend refuses a layer; each reason is warned of once."""
        reason = self.refusal(layer)
        if not reason:
            return False
        message = (
            f"backend {self.name!r} cannot compute a {type(layer).__name__}: {reason}; it runs as "
            "'fake'"
        )
        if message not in _REPORTED:
            _REPORTED.add(message)
            warnings.warn(message, BackendWarning, stacklevel=2)
        return True

    def forward(self, layer: "QuantLayer", x: Tensor) -> Tensor:
        """The output of a layer; that of ``fake``, with a warning, where this backend refuses it.

        Args:
            layer: The layer.
            x: Its input, float, in the shape that the layer of torch takes.
        """
        if exporting() or self.report(layer):
            return FAKE.compute(layer, x)
        return self.compute(layer, x)

    @abstractmethod
    def compute(self, layer: "QuantLayer", x: Tensor) -> Tensor:
        """The output of a layer that is not refused."""


class EagerBackend(Backend):
    """A backend that ``torch.compile`` cannot trace: a compiled program leaves the graph for it,
    and an exported one computes with fake.
    """

    def forward(self, layer: "QuantLayer", x: Tensor) -> Tensor:
        """See :class:`Backend`."""
        if torch.compiler.is_dynamo_compiling() and not exporting():
            # as a decorator, this would import the compiler along with this file
            eager: Callable[[QuantLayer, Tensor], Tensor] = torch.compiler.disable(super().forward)  # type: ignore[no-untyped-call]
            return eager(layer, x)
        if torch.compiler.is_compiling():
            return FAKE.compute(layer, x)
        return super().forward(layer, x)


def exporting() -> bool:
    """Whether ``torch.export`` is tracing."""
    # up to torch 2.11, torch.compiler.is_exporting() is true under every compiler
    return bool(getattr(torch.compiler, "_is_exporting_flag", False))


class Fake(Backend):
    """Float products of values on their grids: any width, any device, any layer."""

    name = "fake"

    def compute(self, layer: "QuantLayer", x: Tensor) -> Tensor:
        """See :class:`Backend`."""
        return layer.float_product(layer.forward_input(x), layer.forward_weight())


FAKE = Fake()
"""What computes a layer where another backend does not."""
_REPORTED: set[str] = set()
"""The warnings that this process has given."""


def result_dtype(x: Tensor) -> torch.dtype:
    """The dtype of a product of x with anything: that of autocast where it is on, else that of
    x.
    """
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
