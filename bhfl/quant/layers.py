"""The quantised layers, one for each layer of torch that can be quantised; what they have in common
is in :mod:`bhfl.quant.quant_layer`.

Legend: N batch, C channels, H x W pixels, L length. Attention: B batch, H heads, L length of query,
S length of key and value, E embed_dim.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

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


class QuantAttentionOutput(QuantLinear, NonDynamicallyQuantizableLinear):
    """The output projection of attention."""


class QuantMultiheadAttention(QuantLayer, nn.MultiheadAttention):
    """``nn.MultiheadAttention`` with quantised projections; the products of queries, keys and
    values stay float.

    The three input projections share one weight, ``in_proj_weight``, and so its scale. Where query,
    key and value are not the same tensor, each distinct one is multiplied with all of it.
    """

    weight_key = "in_proj_weight"

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """The weight of the input projections, [3 * E, E]."""
        return self.in_proj_weight

    @property
    def bias(self) -> Tensor | None:
        """The bias of the input projections, [3 * E]."""
        return self.in_proj_bias

    def float_product(self, x: Tensor, weight: Tensor) -> Tensor:
        """[..., E] -> [..., 3 * E]."""
        return F.linear(x, weight, self.in_proj_bias)

    def forward(  # type: ignore[override]  # noqa: PLR0913
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend as the parent does, with its arguments, shapes and errors.

        ``is_causal`` is a hint about ``attn_mask``, which must be given along with it.
        """
        if not _holds_quantized(self):
            rest = (key_padding_mask, need_weights, attn_mask, average_attn_weights, is_causal)
            return nn.MultiheadAttention.forward(self, query, key, value, *rest)
        if is_causal and attn_mask is None:
            raise RuntimeError("Need attn_mask if specifying the is_causal hint.")
        q, k, v = map(self._heads, self._project(query, key, value))
        mask = _merged_mask(attn_mask, key_padding_mask, q, k)
        out, weights = _attend(q, k, v, mask, self.dropout if self.training else 0.0, need_weights)
        batched = query.dim() == 3
        out = self.out_proj(self._joined(out, batched))
        if weights is not None and average_attn_weights:
            weights = weights.mean(1)
        if weights is not None and not batched:
            weights = weights.squeeze(0)
        return out, weights

    def _project(self, query: Tensor, key: Tensor, value: Tensor) -> list[Tensor]:
        """The projections of the three, by one product for each distinct tensor."""
        products = {}
        projected = []
        for i, x in enumerate((query, key, value)):
            if id(x) not in products:
                products[id(x)] = QuantLayer.forward(self, x).chunk(3, dim=-1)
            projected.append(products[id(x)][i])
        return projected

    def _heads(self, x: Tensor) -> Tensor:
        """[B, L, E], [L, B, E] or [L, E] -> [B, H, L, E / H]."""
        if x.dim() == 2:
            x = x.unsqueeze(0)
        elif not self.batch_first:
            x = x.transpose(0, 1)
        return x.reshape(*x.shape[:2], self.num_heads, self.head_dim).transpose(1, 2)

    def _joined(self, x: Tensor, batched: bool) -> Tensor:
        """[B, H, L, E / H] -> the shape of the query."""
        x = x.transpose(1, 2).flatten(2)
        if not batched:
            return x.squeeze(0)
        return x if self.batch_first else x.transpose(0, 1)


def _attend(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float, need_weights: bool
) -> tuple[Tensor, Tensor | None]:
    """Scaled dot-product attention of H heads (Vaswani et al. 2017, section 3.2.1).

    Returns:
        [B, H, L, E / H] for q of this shape and k and v [B, H, S, E / H]; and the weights
        [B, H, L, S] if they are needed, which the fused kernel does not give.
    """
    if not need_weights:
        return F.scaled_dot_product_attention(q, k, v, mask, dropout), None
    scores = (q / math.sqrt(q.shape[-1])) @ k.transpose(-2, -1)
    weights = F.dropout((scores if mask is None else scores + mask).softmax(-1), dropout)
    return weights @ v, weights


def _merged_mask(
    attn_mask: Tensor | None, key_padding_mask: Tensor | None, q: Tensor, k: Tensor
) -> Tensor | None:
    """What is added to the scores, broadcasting to [B, H, L, S]; None where there are no masks."""
    merged = None
    if attn_mask is not None:  # [L, S] or [B * H, L, S]
        heads = q.shape[1] if attn_mask.dim() == 3 else 1
        merged = _additive(attn_mask, q).view(-1, heads, *attn_mask.shape[-2:])
    if key_padding_mask is not None:  # [B, S] or [S]
        padding = _additive(key_padding_mask, q).view(-1, 1, 1, k.shape[2])
        merged = padding if merged is None else merged + padding
    return merged


def _additive(mask: Tensor, like: Tensor) -> Tensor:
    """A mask as it is added to scores; a boolean one is True where nothing may be seen."""
    if mask.is_floating_point():
        return mask.to(like.dtype)
    if mask.dtype != torch.bool:
        raise RuntimeError(f"masks must be of bool or of a floating dtype, got {mask.dtype}")
    return torch.zeros_like(mask, dtype=like.dtype).masked_fill_(mask, -math.inf)


QUANT_CLASSES: dict[type[nn.Module], type[QuantLayer]] = {
    nn.Linear: QuantLinear,
    nn.Conv1d: QuantConv1d,
    nn.Conv2d: QuantConv2d,
    nn.ConvTranspose2d: QuantConvTranspose2d,
    nn.Embedding: QuantEmbedding,
    nn.MultiheadAttention: QuantMultiheadAttention,
    NonDynamicallyQuantizableLinear: QuantAttentionOutput,
}
"""The layers of torch that can be quantised, and what they become."""


def can_be_quantized(layer: nn.Module) -> bool:
    """Whether a layer is no attention, or of the kind that :class:`QuantMultiheadAttention`
    computes: without kdim, vdim, add_bias_kv and add_zero_attn.
    """
    return not isinstance(layer, nn.MultiheadAttention) or (
        layer._qkv_same_embed_dim and layer.bias_k is None and not layer.add_zero_attn
    )


def guard_fused_kernels_(model: nn.Module) -> None:
    """Keep ``nn.TransformerEncoderLayer`` from its fused kernel for inference, which reads the
    weights and calls no layer, while it holds quantised layers.

    The switches are attributes of the encoder that torch asks before it takes this kernel. At
    float32 they have the values that they had before.
    """
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoderLayer):
            switch = "activation_relu_or_gelu"
        elif isinstance(module, nn.TransformerEncoder):
            switch = "use_nested_tensor"
        else:
            continue
        usual = vars(module).pop("_before_quantization", getattr(module, switch, 0))
        quantized = _holds_quantized(module)
        setattr(module, switch, 0 if quantized else usual)
        if quantized:
            vars(module)["_before_quantization"] = usual


def _holds_quantized(module: nn.Module) -> bool:
    """Whether a module, or one inside it, computes with few bits."""
    return any(isinstance(m, QuantLayer) and not m.spec.is_float for m in module.modules())
