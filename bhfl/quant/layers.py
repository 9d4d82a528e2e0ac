"""The quantised layers, one for each layer of torch that can be quantised, but for attention.

What they have in common is in :mod:`bhfl.quant.quant_layer`; attention is in
:mod:`bhfl.quant.attention`.

Legend: N batch, C channels, H x W pixels, L length.
"""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from bhfl.quant.backends import get_backend
from bhfl.quant.memory_format import contiguous, layer_needs_contiguous
from bhfl.quant.quant_layer import QuantLayer


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
        # a fault of oneDNN, see bhfl.quant.memory_format
        if layer_needs_contiguous(self):
            x, weight = contiguous(x), contiguous(weight)
        y: Tensor = self._conv_forward(x, weight, self.bias)
        return y


class QuantConvTranspose2d(QuantLayer, nn.ConvTranspose2d):
    """``nn.ConvTranspose2d`` with quantised input and weight; granularity "channel" means its input
    channels, which are dimension 0 of the weight.
    """

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """[N, C, H, W] or [C, H, W] -> the same with out_channels; always by backend fake."""
        if self.spec.is_float:
            return nn.ConvTranspose2d.forward(self, input, output_size)
        get_backend(self.backend).report(self)
        # torch annotates the sizes of all convolutions as "perhaps text"
        own: Any = self
        sizes = (own.stride, own.padding, own.kernel_size)
        extra = self._output_padding(input, output_size, *sizes, 2, own.dilation)
        geometry = (own.stride, own.padding, extra, self.groups, own.dilation)
        x, weight = self.forward_input(input), self.forward_weight()
        return self._forward_output(F.conv_transpose2d(x, weight, self.bias, *geometry))


class QuantEmbedding(QuantLayer, nn.Embedding):
    """``nn.Embedding`` with a quantised table; its inputs are indices, which stay as they are."""

    def forward(self, input: Tensor) -> Tensor:
        """Indices [...] -> [..., embedding_dim]; always by backend fake."""
        # the parent handles max_norm and sparse gradients
        if self.spec.is_float:
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
"""The layers of torch that can be quantised, and what they become; :mod:`bhfl.quant.attention` adds
its own.
"""
