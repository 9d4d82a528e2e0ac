"""Multi-head attention with quantised projections, and a guard against the fused kernels of torch,
which bypass the layers.

Legend: B batch, H heads, L length of query, S length of key and value, E embed_dim.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from bhfl.quant.layers import QUANT_CLASSES, QuantLinear
from bhfl.quant.quant_layer import QuantLayer


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
        products: dict[int, tuple[Tensor, ...]] = {}
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


def can_be_quantized(attention: nn.Module) -> bool:
    """Whether a module is attention of the kind that :class:`QuantMultiheadAttention` computes:
    without kdim, vdim, add_bias_kv and add_zero_attn.
    """
    return (
        isinstance(attention, nn.MultiheadAttention)
        and attention._qkv_same_embed_dim
        and attention.bias_k is None
        and not attention.add_zero_attn
    )


QUANT_CLASSES[nn.MultiheadAttention] = QuantMultiheadAttention
QUANT_CLASSES[NonDynamicallyQuantizableLinear] = QuantAttentionOutput


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
