"""What a backend is: one way to compute the product of a quantised layer, with the codes that its
BitSpec asks for.

A :class:`~bhfl.quant.BitSpec` says which numbers a layer multiplies; a backend says how they are
multiplied. Every backend sees the same codes of weights and activations, so that a model may change
its backend at any time. Where a backend cannot compute a layer, ``fake`` does, and one warning says
so.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from bhfl.quant.quant_layer import QuantLayer


class BackendWarning(UserWarning):
    """A layer was computed by another backend than the one it was given."""


class Backend(ABC):
    """Computes ``product(quantised input, quantised weight) + bias`` of layers; holds nothing of
    any of them.

    Attributes:
        name: What ``quantize_(model, spec, backend=...)`` calls it.
    """

    name: str

    def require(self) -> None:
        """ImportError where this backend needs a package that cannot be imported."""
        return

    def refusal(self, layer: QuantLayer) -> str:
        """Why this backend cannot compute a layer on its device with its spec; empty if it can."""
        return ""

    def chosen_for(self, layer: QuantLayer) -> Backend:
        """The backend that really computes a layer: this one, or another one that it chooses, or
        ``fake``.
        """
        return FAKE if self.refusal(layer) else self

    def report(self, layer: QuantLayer) -> bool:
        """Whether this backend refuses a layer, which is warned of once for each reason."""
        if reason := self.refusal(layer):
            report_once(
                f"backend {self.name!r} cannot compute a {type(layer).__name__}: {reason}; it runs "
                "as 'fake'"
            )
        return bool(reason)

    def forward(self, layer: QuantLayer, x: Tensor) -> Tensor:
        """The output of a layer, or that of ``fake`` with a warning where this backend refuses
        it.
        """
        fake = exporting() or self.report(layer)
        return FAKE.compute(layer, x) if fake else self.compute(layer, x)

    @abstractmethod
    def compute(self, layer: QuantLayer, x: Tensor) -> Tensor:
        """The output of a layer that is not refused."""


class EagerBackend(Backend):
    """A backend that no compiler sees through: a compiled program stops for it, an exported one
    computes with fake.
    """

    def forward(self, layer: QuantLayer, x: Tensor) -> Tensor:
        """See :class:`Backend`."""
        if torch.compiler.is_dynamo_compiling() and not exporting():
            # a decorator would import the compiler along with this file
            eager: Callable[[QuantLayer, Tensor], Tensor] = torch.compiler.disable(super().forward)  # type: ignore[no-untyped-call]
            return eager(layer, x)
        return (
            FAKE.compute(layer, x) if torch.compiler.is_compiling() else super().forward(layer, x)
        )


def exporting() -> bool:
    """Whether ``torch.export`` is at work; ``is_exporting()`` says so of every compiler up to torch
    2.11.
    """
    return bool(getattr(torch.compiler, "_is_exporting_flag", False))


class Fake(Backend):
    """Float products of values on their grids: any width, any device, any layer."""

    name = "fake"

    def compute(self, layer: QuantLayer, x: Tensor) -> Tensor:
        """See :class:`Backend`."""
        return layer.float_product(layer.forward_input(x), layer.forward_weight())


FAKE = Fake()
_REPORTED: set[str] = set()


def report_once(message: str) -> None:
    """One :class:`BackendWarning` for each message in the life of the process."""
    if message not in _REPORTED:
        _REPORTED.add(message)
        warnings.warn(message, BackendWarning, stacklevel=2)


def result_dtype(x: Tensor) -> torch.dtype:
    """The dtype of a product of x with anything: that of autocast where it is on, else that of
    x.
    """
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
