"""The quantised layers, one for each layer of torch that can be quantised; see
`bhfl.quant.quant_layer` for what they have in common.
"""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from bhfl.quant.backends import get_backend
from bhfl.quant.memory_format import contiguous, layer_needs_contiguous
from bhfl.quant.quant_layer import QuantLayer, check_layer
from bhfl.quant.spec import BitSpec


class QuantLinear(QuantLayer, nn.Linear):
    """``nn.Linear`` with quantised input and weight."""

    def float_product(self, x: Tensor, weight: Tensor) -> Tensor:
        """[..., in_features] -> [..., out_features]."""
        return F.linear(x, weight, self.bias)


class QuantConv1d(QuantLayer, nn.Conv1d):
    """``nn.Conv1d`` with quantised input and weight."""

    def float_product(self, x: Tensor, weight: Tensor) -> Tensor:
        """[N, C, L] or [C, L] -> the same with out_channels."""
        y: Tensor = self._conv_forward(x, weight, self.bias)
        return y


class QuantConv2d(QuantLayer, nn.Conv2d):
    """``nn.Conv2d`` with quantised input and weight."""

    def float_product(self, x: Tensor, weight: Tensor) -> Tensor:
        """[N, C, H, W] or [C, H, W] -> the same with out_channels."""
        if layer_needs_contiguous(self):
            x, weight = contiguous(x), contiguous(weight)
        y: Tensor = self._conv_forward(x, weight, self.bias)
        return y


class QuantConvTranspose2d(QuantLayer, nn.ConvTranspose2d):
    """``nn.ConvTranspose2d`` with quantised input and weight; "channel" means its inputs, which are
    dimension 0.
    """

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """[N, C, H, W] or [C, H, W] -> the same with out_channels; always by fake."""
        if self.spec.is_float:
            return nn.ConvTranspose2d.forward(self, input, output_size)
        get_backend(self.backend).report(self)
        own: Any = self  # whose sizes are lists of numbers, though torch says that they may be text
        sizes = (own.stride, own.padding, own.kernel_size)
        extra = self._output_padding(input, output_size, *sizes, 2, own.dilation)
        geometry = (own.stride, own.padding, extra, self.groups, own.dilation)
        return self._forward_output(
            F.conv_transpose2d(
                self.forward_input(input), self.forward_weight(), self.bias, *geometry
            )
        )


class QuantEmbedding(QuantLayer, nn.Embedding):
    """``nn.Embedding`` with quantised weights; its input are indices, which stay as they are."""

    def set_spec_(self, spec: BitSpec) -> None:
        """See :meth:`QuantLayer.set_spec_` and :func:`check_layer`."""
        check_layer(self, spec)
        super().set_spec_(spec)

    def forward(self, input: Tensor) -> Tensor:
        """Indices [...] -> [..., embedding_dim]; always by fake."""
        if self.spec.is_float:  # the parent knows of max_norm and sparse gradients
            return nn.Embedding.forward(self, input)
        get_backend(self.backend).report(self)
        y = F.embedding(
            input,
            self.forward_weight(),
            self.padding_idx,
            scale_grad_by_freq=self.scale_grad_by_freq,
        )
        return self._forward_output(y)


QUANT_CLASSES: dict[type[nn.Module], type[QuantLayer]] = {
    nn.Linear: QuantLinear,
    nn.Conv1d: QuantConv1d,
    nn.Conv2d: QuantConv2d,
    nn.ConvTranspose2d: QuantConvTranspose2d,
    nn.Embedding: QuantEmbedding,
}
