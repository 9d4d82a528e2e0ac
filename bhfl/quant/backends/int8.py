"""Backend ``int8``: integer products forward, and the straight-through estimator backward.

The codes are those of ``fake``, and so are the gradients, up to float rounding: backward multiplies
floats. What is kept for backward are the int8 codes of the input, a quarter of float32. With
``int8-bfloat16`` backward rounds the error and the weight to bfloat16, which is much faster where
the processor has it.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from bhfl.quant.backends.base import FAKE, EagerBackend, result_dtype
from bhfl.quant.backends.codes import Codes, input_codes
from bhfl.quant.backends.conv import Conv
from bhfl.quant.backends.linear import Linear
from bhfl.quant.backends.shapes import (
    device_of,
    kernel,
    kernel_shape,
    lower,
    product_of,
    restore,
    takes,
)
from bhfl.quant.rounding import is_channels_last, per_slice

if TYPE_CHECKING:
    from bhfl.quant.quant_layer import QuantLayer
    from bhfl.quant.spec import BitSpec

WIDEST = 8
"""The bits that an int8 code holds."""


@dataclass(frozen=True)
class Plan:
    """What a product of codes needs besides its operands.

    Attributes:
        product: The product of the layer, with its geometry.
        bits: Bits of the input.
        dtype: The dtype of float products in backward.
        generator: The source of stochastic rounding of errors, where they are rounded.
    """

    product: Linear | Conv
    bits: int
    dtype: torch.dtype
    generator: torch.Generator | None


class Int8(EagerBackend):
    """The backends ``int8`` and ``int8-bfloat16``; see the head of this file.

    Args:
        name: See :class:`Backend`.
        dtype: The dtype of float products in backward.
    """

    def __init__(self, name: str = "int8", dtype: torch.dtype = torch.float32) -> None:
        self.name = name
        self.dtype = dtype
        self.function: type[IntegerForward] = StraightThrough

    def unfit(self, spec: "BitSpec") -> str:
        """See :class:`Backend`."""
        if max(spec.weights, spec.activations) <= WIDEST:
            return ""
        return (
            f"it needs weights and activations of at most {WIDEST} bits, "
            f"got {spec.weights}, {spec.activations}"
        )

    def refusal(self, layer: "QuantLayer") -> str:
        """See :class:`Backend`."""
        if problem := self.unfit(layer.spec):
            return problem
        product = product_of(layer)
        if product is None:
            return "it has no integer product"
        return product.fault(kernel_shape(layer), device_of(layer))

    def compute(self, layer: "QuantLayer", x: Tensor) -> Tensor:
        """See :class:`Backend`."""
        product = product_of(layer)
        if product is None or not takes(layer, x):
            # fake computes an empty input, and raises torch's own error for a wrong one
            return FAKE.compute(layer, x)
        plan = Plan(product, layer.spec.activations, self.dtype, layer.generator)
        stand_in, codes, scale = layer.forward_codes()
        y: Tensor = self.function.apply(
            lower(layer, x), kernel(layer, stand_in), kernel(layer, codes), scale, layer.bias, plan
        )
        return restore(layer, y, x).to(result_dtype(x))


class IntegerForward(torch.autograd.Function):
    """The forward pass on codes; a subclass has the gradients of x and of the weight, which goes to
    the stand-in of :func:`bhfl.quant.functional.quantize_with_gradient`.
    """

    @staticmethod
    def forward(  # noqa: PLR0913
        ctx: Any,
        x: Tensor,
        stand_in: Tensor,
        codes: Tensor,
        scale: Tensor,
        bias: Tensor | None,
        plan: Plan,
    ) -> Tensor:
        """The product as float32, in channels_last if x or the weight is."""
        inputs = input_codes(plan.product.dense(x), plan.bits)
        ctx.plan = plan
        ctx.x_shape = x.shape
        ctx.dtypes = (x.dtype, stand_in.dtype, bias is None or bias.dtype)
        ctx.save_for_backward(codes, scale, inputs.values, inputs.scale, inputs.zero)
        y = plan.product.forward(inputs, Codes(codes, scale), bias)
        return y if is_channels_last(x) or is_channels_last(codes) else y.contiguous()


def gradients(
    ctx: Any, g: Tensor, gx: Tensor | None, gw: Tensor | None
) -> tuple[Tensor | None, ...]:
    """What backward returns: the gradients in the dtypes of x, weight and bias.

    Args:
        ctx: The context of :class:`IntegerForward`.
        g: The gradient of the output, [M, O] or [B, O, P, Q]; that of the bias is its sum.
        gx: The gradient of x.
        gw: The gradient of the weight.
    """
    gb = g.sum([0, *range(2, g.dim())]) if ctx.needs_input_grad[4] else None
    found = [
        None if grad is None else grad.to(dtype)
        for grad, dtype in zip((gx, gw, gb), ctx.dtypes, strict=True)
    ]
    return found[0], found[1], None, None, found[2], None


class StraightThrough(IntegerForward):
    """Gradients by float products with the values that the codes stand for."""

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        """See :func:`gradients`."""
        codes, scale, *inputs = ctx.saved_tensors
        product = ctx.plan.product
        x = Codes(*inputs)
        need = ctx.needs_input_grad[:2]
        dtype = ctx.plan.dtype
        weight = codes.to(dtype).mul_(per_slice(scale, codes.dim()).to(dtype))
        # autocast would multiply in a dtype of its own, and not in that of the backend
        with torch.autocast(g.device.type, enabled=False):
            gx, gw = product.float_gradients(
                product.dense(g.to(dtype)), x.whole(dtype), weight, need
            )
        # the product was with whole numbers, which bfloat16 holds exactly: their scale comes after
        # it
        return gradients(ctx, g, gx, None if gw is None else gw.float().mul_(x.scale))
