"""Backend ``integer``: forward as ``int8``, and both gradients as products of int8 codes too.

The error becomes int8 codes with the dynamic range of its tensor, rounded stochastically and so
without bias by the generator of the layer. Where the weight has one scale for each output channel,
a product of codes cannot take these scales out of the sum over output channels: the error is
multiplied with them first, and gets codes of its own for the gradient of the input.
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from bhfl.quant.backends.codes import Codes, error_codes
from bhfl.quant.backends.int8 import Int8, IntegerForward, gradients
from bhfl.quant.rounding import per_slice

if TYPE_CHECKING:
    from bhfl.quant.quant_layer import QuantLayer


class Integer(Int8):
    """The backend ``integer``; see the head of this file."""

    def __init__(self) -> None:
        super().__init__("integer")
        self.function = StochasticErrors

    def compute(self, layer: "QuantLayer", x: Tensor) -> Tensor:
        """See :class:`Backend`; ValueError without a generator where gradients are wanted."""
        if torch.is_grad_enabled() and (x.requires_grad or layer.weight.requires_grad):
            layer.required_generator()
        return super().compute(layer, x)


class StochasticErrors(IntegerForward):
    """Gradients by integer products, with errors that are rounded stochastically."""

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        """See :func:`bhfl.quant.backends.int8.gradients`."""
        values, scale, *inputs = ctx.saved_tensors
        product = ctx.plan.product
        generator = ctx.plan.generator
        gx = None
        gw = None
        g = product.dense(g)
        codes = error_codes(g, generator)
        if ctx.needs_input_grad[0]:
            weight = Codes(values, scale)
            errors = codes
            if scale.dim():
                weight = Codes(values, scale.new_ones(()))
                # channels are dimension 1 of g: the scales broadcast over the batch
                scaled = g * per_slice(scale, g.dim() - 1)
                errors = error_codes(scaled, generator)
            gx = product.grad_input(errors, weight, ctx.x_shape)
        if ctx.needs_input_grad[1]:
            gw = product.grad_weight(codes, Codes(*inputs), values.shape)
        return gradients(ctx, g, gx, gw)
