"""Fewer bytes from the forward to the backward pass: what autograd saves of activations, in integers.

Layers computed in integers keep int8 codes of their input anyway. What norms, attention and activation functions
between them save is float32, and in most networks more; this is for it, and for float layers too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from bhfl.quant.packing import pack, unpack
from bhfl.quant.rounding import block_size

_FLOATS = (torch.float32, torch.bfloat16, torch.float16)
_SMALLEST = 1 << 10
"""Tensors of fewer elements are saved as they are."""
_GROUP = 1 << 8
"""Elements behind one another in memory that have one range."""

_PRODUCTS = {"matmul", "rmatmul", "mm", "bmm", "einsum"}
"""Functions of which all operands are saved in codes."""
_OF_INPUT = {
    *(
        "linear",
        "conv1d",
        "conv2d",
        "conv3d",
        "conv_transpose1d",
        "conv_transpose2d",
        "conv_transpose3d",
        "mul",
        "rmul",
    ),
    *("batch_norm", "layer_norm", "group_norm", "instance_norm", "rms_norm", "dropout", "softmax"),
    *("multi_head_attention_forward", "scaled_dot_product_attention"),
    *("gelu", "silu", "mish", "elu", "celu", "selu", "glu", "leaky_relu", "prelu", "relu6", "sigmoid", "tanh"),
    *("hardtanh", "hardswish", "hardsigmoid"),
    *("max_pool1d", "max_pool2d", "max_pool3d", "avg_pool1d", "avg_pool2d", "avg_pool3d"),
}
"""Functions of which what has as many elements as their input is: not weights, nor statistics. Their gradients change
little where a saved value does; others divide by it, as that of a logarithm, or take its exponential."""

Restore = Callable[[], Tensor]


@contextmanager
def save_in_int8() -> Iterator[None]:
    """Within, most of what autograd saves of activations takes a quarter of float32 or less.

    For the forward pass, as ``torch.autograd.graph.save_on_cpu``; its results stay what they are, to the bit::

        with save_in_int8():
            loss = F.cross_entropy(model(x), y)
        loss.backward()

    * Of a ReLU one bit an element is saved; its gradient is exact.
    * Inputs of layers, products, norms, attention, pooling and activation functions become codes of 8 bits, rounded to
      nearest, with a range for each 256 elements (after Chen et al. 2021, "ActNN"). What is computed from them backward
      is off by up to 1/510 of the range of these elements. What is not finite stays so.
    * Indices, as those of pooling, become int16 where they fit; their gradient is exact.
    * All else is saved as it is: parameters, losses, statistics of norms, functions that are not named above, float64,
      and tensors of less than 1,024 elements.

    Saving and restoring takes about a nanosecond an element.
    """
    saving = _Saving()
    with torch.autograd.graph.saved_tensors_hooks(saving.save, lambda restore: restore()), saving:
        yield


class _Saving(TorchFunctionMode):
    """A hook is not told who saves the tensor that it is given: functions are noticed on their way."""

    def __init__(self) -> None:
        super().__init__()
        self.function, self.num_inputs = "", 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        before = self.function, self.num_inputs
        first = args[0] if args else kwargs.get("input")
        self.function = getattr(func, "__name__", "").strip("_")
        self.num_inputs = first.numel() if isinstance(first, Tensor) else 0
        try:
            return func(*args, **kwargs)
        finally:
            self.function, self.num_inputs = before

    def save(self, x: Tensor) -> Restore:
        """Something that holds less than a tensor and gives it back."""
        if x.numel() < _SMALLEST or x.layout != torch.strided or x.is_nested or 0 in x.stride():
            return lambda: x
        if x.dtype in _FLOATS and self.function == "relu":
            return _signs(x)
        of_input = self.function in _OF_INPUT and x.numel() == self.num_inputs
        if x.dtype in _FLOATS and (of_input or self.function in _PRODUCTS) and not _is_parameter(x):
            return _codes(x)
        if x.dtype == torch.int64 and x.amin() >= -(1 << 15) and x.amax() < 1 << 15:
            short = x.to(torch.int16)
            return lambda: short.to(torch.int64)
        return lambda: x


def _is_parameter(x: Tensor) -> bool:
    return isinstance(x if x._base is None else x._base, torch.nn.Parameter)


def _signs(x: Tensor) -> Restore:
    """Of the result of a ReLU, of which its gradient asks only where it is positive: 1 there, 0 elsewhere."""
    flat, back = _in_memory_order(x)
    bits, count, dtype = pack((flat <= 0).view(torch.int8).neg_(), 1), x.numel(), x.dtype
    return lambda: back(unpack(bits, 1, count).add_(1).to(dtype))


def _codes(x: Tensor) -> Restore:
    """Affine codes of 8 bits from the least to the largest value of each group."""
    flat, back = _in_memory_order(x)
    codes, dtype, grids = torch.empty_like(flat, dtype=torch.int8), x.dtype, []
    for values, target in zip(_groups(flat), _groups(codes), strict=True):
        low, high = values.amin(1, keepdim=True).float(), values.amax(1, keepdim=True).float()
        step = (high / 255 - low / 255).clamp_(min=torch.finfo(torch.float32).tiny)
        middle = low + 128 * step
        inverse = step.reciprocal()
        target.copy_((values.float() * inverse).sub_(middle * inverse).round_().clamp_(-128, 127))
        grids.append((step, middle))

    def restore() -> Tensor:
        values = torch.empty_like(codes, dtype=dtype)
        for kept, target, (step, middle) in zip(_groups(codes), _groups(values), grids, strict=True):
            target.copy_(kept.float().mul_(step).add_(middle))
        return back(values)

    return restore


def _groups(flat: Tensor) -> list[Tensor]:
    """[N] -> some rows of _GROUP elements each at a time, as many as the cache of a CPU holds; the rest is one row."""
    whole = flat.numel() // _GROUP * _GROUP
    rows = torch.split(flat[:whole].view(-1, _GROUP), max(1, block_size(flat) // _GROUP))
    return [*rows, flat[whole:].unsqueeze(0)] if whole < flat.numel() else [*rows]


def _in_memory_order(x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """The elements as they lie in memory, [N], and the way back from such a vector to the shape of x."""
    order = sorted(range(x.dim()), key=x.stride().__getitem__, reverse=True)
    there = x.detach().permute(order)
    shape, inverse = there.shape, [order.index(i) for i in range(x.dim())]
    return there.reshape(-1), lambda flat: flat.view(shape).permute(inverse)
