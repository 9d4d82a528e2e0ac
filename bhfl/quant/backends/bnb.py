"""Backend ``bitsandbytes``: linear layers by the int8 products of that package (those of its
``Linear8bitLt``, Dettmers et al. 2022, "LLM.int8()").

The package quantises each row of the weight, so its codes are ours where the spec has one absmax
scale for each output channel. On CUDA it also quantises each row of the input, and computes in
float16; on a CPU it multiplies the codes of the weight as floats and leaves the input as it is.

Three of its faults are worked around: inputs of more than two dimensions are flattened, autocast is
off inside, and codes never outlive the forward pass, so that none are stale after
``load_state_dict``.
"""

import importlib
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from bhfl.quant.backends.base import FAKE, EagerBackend, result_dtype
from bhfl.quant.backends.shapes import lower, restore

if TYPE_CHECKING:
    from bhfl.quant.quant_layer import QuantLayer
    from bhfl.quant.spec import BitSpec


class BitsAndBytes(EagerBackend):
    """The backend ``bitsandbytes``; see the head of this file."""

    name = "bitsandbytes"

    def require(self) -> None:
        """See :class:`Backend`."""
        _package()

    def unfit(self, spec: "BitSpec") -> str:
        """See :class:`Backend`."""
        found = (spec.weights, spec.activations, spec.range_rule, spec.granularity)
        if found == (8, 8, "absmax", "channel"):
            return ""
        return f"it needs {{weights: 8, activations: 8, granularity: channel}}, got {spec.label}"

    def caution(self, device: str) -> str:
        """See :class:`Backend`."""
        if device != "cpu":
            return ""
        return (
            "on a CPU bitsandbytes multiplies its 8-bit weights with inputs that it leaves in "
            "float32"
        )

    def refusal(self, layer: "QuantLayer") -> str:
        """See :class:`Backend`."""
        return (
            self.unfit(layer.spec) if isinstance(layer, nn.Linear) else "it has linear layers only"
        )

    def compute(self, layer: "QuantLayer", x: Tensor) -> Tensor:
        """See :class:`Backend`."""
        if x.numel() == 0:
            return FAKE.compute(layer, x)
        matmul, new_state = _package()
        dtype = result_dtype(x)
        with torch.autocast(x.device.type, enabled=False):
            rows = lower(layer, x).to(layer.weight.dtype)
            weight = layer.forward_weight()
            if weight.requires_grad:
                # the package reads weight.grad, at which torch warns of a tensor that is not a leaf
                weight.retain_grad()
            y = matmul(rows, weight, bias=layer.bias, state=new_state())
        return restore(layer, y, x).to(dtype)


@cache
def _package() -> tuple[Any, Any]:
    """The function that multiplies, and the class of its state."""
    try:
        # it takes seconds, so that it is imported only when needed
        package = importlib.import_module("bitsandbytes")
    # a broken CUDA set-up raises anything
    except Exception as error:
        message = (
            f"backend 'bitsandbytes' cannot import bitsandbytes ({error}): "
            "pip install bitsandbytes, or use 'int8'"
        )
        raise ImportError(message) from error
    return package.matmul, package.MatmulLtState
