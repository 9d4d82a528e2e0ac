"""Fewer bytes from the forward to the backward pass: what autograd saves of activations, in
integers.

Layers computed in integers keep int8 codes of their input anyway. What norms, attention and
activation functions between them save is float32, and in most networks more; this is for it, and
for float layers too.
"""

import math
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode

from bhfl.quant.packing import pack, unpack
from bhfl.quant.rounding import block_size

_FLOATS = (torch.float32, torch.bfloat16, torch.float16)
_SMALLEST = 1 << 12
"""Tensors of fewer elements are saved as they are: encoding them takes longer than it is worth."""
_WIDEST, _NARROWEST = 256, 16
"""Elements behind one another in memory that have a range of their own: at most, and at least where
rows matter.
"""

_PRODUCTS = {"matmul", "rmatmul", "mm", "bmm", "einsum"}
"""Functions of which all operands are saved in 8 bits."""
_NORMS_OF_ROWS = {"layer_norm", "rms_norm"}
_NORMS_OF_CHANNELS = {"batch_norm", "group_norm", "instance_norm"}
_EIGHT_BITS = {
    *(
        "linear",
        "conv1d",
        "conv2d",
        "conv3d",
        "conv_transpose1d",
        "conv_transpose2d",
        "conv_transpose3d",
    ),
    *("mul", "rmul", "dropout", "gelu", "silu", "mish", "celu", "glu"),
    *("max_pool1d", "max_pool2d", "max_pool3d", "avg_pool1d", "avg_pool2d", "avg_pool3d"),
    *_NORMS_OF_ROWS,
    *_NORMS_OF_CHANNELS,
}
"""Functions whose input is saved in 8 bits. Their gradients vary as it does; those of others divide
by it, take its exponential, jump as those of leaky ReLUs do, or vanish where a probability is close
to 1.
"""
_SIXTEEN_BITS = {"multi_head_attention_forward", "scaled_dot_product_attention"}
"""Functions whose inputs and results are saved in 16 bits: they take the exponential of products of
them.
"""

Restore = Callable[[], Tensor]


@contextmanager
def save_in_int8() -> Iterator[None]:
    """Let most of what autograd saves of activations take a quarter of float32 or less.

    It is for the forward pass in training, as ``torch.autograd.graph.save_on_cpu`` is; the results
    stay what they are::

        with save_in_int8():
            loss = F.cross_entropy(model(x), y)
        loss.backward()

    * Of a ReLU one bit an element is saved; its gradient is exact.
    * Inputs of layers, products, norms, pooling and smooth activation functions become codes of 8
      bits, rounded to nearest, with a range for each 256 elements or fewer, or each channel (after
      Chen et al. 2021, "ActNN"); those of attention codes of 16 bits. What is computed from them
      backward is off by about half a step of these ranges.
    * Indices, as those of pooling, become int16 where they fit; their gradient is exact.
    * All else is saved as it is: parameters, batches of data, losses, statistics of norms,
      functions that are not named here (recurrent ones among them), float64, what is not finite,
      and tensors of less than 4,096 elements.

    Saving and restoring takes one to two nanoseconds an element. Compiled models save what their
    compiler chose. Like the checks of autograd, it does not notice changes through ``.data``.
    """
    saving = _Saving()
    with torch.autograd.graph.saved_tensors_hooks(saving.save, lambda restore: restore()), saving:
        yield


class _Saving(TorchFunctionMode):
    """A hook is not told who saves the tensor that it is given: functions are noticed on their
    way.
    """

    def __init__(self) -> None:
        super().__init__()
        self.function = ""
        self.arguments: tuple[Any, ...] = ()
        self.saved: dict[Any, tuple[Any, weakref.ref[Restore]]] = {}

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if torch.compiler.is_compiling():
            return func(*args, **kwargs)
        before = self.function, self.arguments
        # of any name
        custom = isinstance(func, torch._ops.OpOverload | torch._ops.OpOverloadPacket)
        self.function = "" if custom else getattr(func, "__name__", "").strip("_")
        self.arguments = *args, *kwargs.values()
        try:
            return func(*args, **kwargs)
        finally:
            self.function, self.arguments = before

    def save(self, x: Tensor) -> Restore:
        """Something that holds less than a tensor and gives it back; the same for all who save the
        same.
        """
        if type(x) is not Tensor or x.numel() < _SMALLEST or not _has_its_elements(x):
            return _as_it_is(x)
        if x.dtype == torch.int64:
            given = any(_is_given(x, argument) for argument in self.tensors())
            return _as_it_is(x) if given else _short(x)
        bits = self.bits(x) if x.dtype in _FLOATS else None
        grouping = _grouping(self.function, x)
        for form in (None, (bits, grouping)):  # what somebody holds as it is costs nothing more
            if restore := self.known(x, form):
                return restore
        if bits is None or grouping is None:
            return self.remember(x, None, _as_it_is(x))
        return self.remember(
            x, (bits, grouping), _signs(x) if bits == 1 else _codes(x, bits, *grouping)
        )

    def remember(self, x: Tensor, form: Any, restore: Restore) -> Restore:
        """Know it again for as long as x and a graph with it exist."""
        key, storage = (_identity(x), form), StorageWeakRef(x.untyped_storage())  # type: ignore[no-untyped-call]
        self.saved[key] = storage, weakref.ref(restore, lambda _: self.saved.pop(key, None))
        return restore

    def known(self, x: Tensor, form: Any) -> Restore | None:
        """What was made of x in this form."""
        if entry := self.saved.get((_identity(x), form)):
            storage, restore = entry
            return None if storage.expired() else restore()
        return None

    def tensors(self) -> list[Tensor]:
        """The arguments of the function of the moment that are tensors."""
        return [argument for argument in self.arguments if isinstance(argument, Tensor)]

    def bits(self, x: Tensor) -> int | None:
        """The bits in which the function of the moment saves x; None where it stays as it is."""
        tensors = self.tensors()
        given = any(_is_given(x, argument) for argument in tensors)
        if given or isinstance(x._base, torch.nn.Parameter):
            return None
        if self.function == "relu":
            return 1
        if self.function in _PRODUCTS:
            return 8
        if not tensors or x.numel() != tensors[0].numel():  # weights, statistics
            return None
        if self.function in _SIXTEEN_BITS:
            return 16
        return 8 if self.function in _EIGHT_BITS else None


def _grouping(function: str, x: Tensor) -> tuple[tuple[int, ...], int] | None:
    """How elements in the order of the memory are cut into groups; None if they would be too small.

    A norm divides by the deviation of a row or a channel, so that no group may hold two of these,
    nor two samples where each has its own.

    Returns:
        The shape of a piece, ``(width,)`` or ``(height, width)``, and the dimension of it that a
        group runs along.
    """
    order, last = _order(x), x.dim() - 1
    if function in _NORMS_OF_CHANNELS and order[-1] == 1:
        pixels = x.numel() // x.shape[1] if function == "batch_norm" else math.prod(x.shape[2:])
        # narrow columns are slow
        together = math.gcd(pixels, max(1, min(_WIDEST // x.shape[1], pixels // 64)))
        height = _size(pixels // together) if order[0] == 0 else 0
        return ((height, together * x.shape[1]), -2) if height else None
    if function in _NORMS_OF_CHANNELS:
        width = _size(math.prod(x.shape[2:])) if order == [*range(x.dim())] else 0
        return ((width,), -1) if width else None
    if function in _NORMS_OF_ROWS:
        width = _size(x.shape[last]) if order[-1] == last else 0
        return ((width,), -1) if width else None
    row = 1
    for i in reversed(order):
        row *= x.shape[i] if row < _WIDEST // 2 else 1
    return (_size(row) or _WIDEST,), -1


@cache
def _size(row: int) -> int:
    """The most elements of a group, where rows of so many are cut into groups of one size; 0 if
    there is no such.
    """
    return max((size for size in range(_NARROWEST, _WIDEST + 1) if row % size == 0), default=0)


def _identity(x: Tensor) -> tuple[Any, ...]:
    return x.data_ptr(), x._version, x.shape, x.stride(), x.dtype


def _is_given(x: Tensor, argument: Tensor) -> bool:
    """Whether x is an argument that was not computed: parameters and data are there anyway."""
    try:
        return argument.grad_fn is None and argument.data_ptr() == x.data_ptr()
    except RuntimeError:  # sparse tensors and those of torch.func have no place of their own
        return False


def _has_its_elements(x: Tensor) -> bool:
    """Whether each element has its own place in memory."""
    return (
        x.layout == torch.strided
        and not x.is_nested
        and 0 not in x.stride()
        and x.untyped_storage().nbytes() >= x.numel() * x.element_size()
        and x.device.type != "meta"
    )


def _as_it_is(x: Tensor) -> Restore:
    """The tensor without its graph, which would be a circle if x is a result."""
    kept, version = x.detach(), x._version

    def restore() -> Tensor:
        if kept._version != version:
            raise RuntimeError(
                f"a tensor of shape {list(kept.shape)} that backward needs was changed in place "
                "after it was saved"
            )
        return kept

    return restore


def _short(x: Tensor) -> Restore:
    """Integers in 16 bits, where they fit."""
    if x.amin() < -(1 << 15) or x.amax() >= 1 << 15:
        return _as_it_is(x)
    short = x.to(torch.int16)
    return lambda: short.to(torch.int64)


def _signs(x: Tensor) -> Restore:
    """Save where the result of a ReLU is positive, which is all that its gradient asks: 1 there,
    and 0 elsewhere.
    """
    flat, back = _in_memory_order(x)
    bits = pack((flat <= 0).view(torch.int8).neg_(), 1)
    count = x.numel()
    dtype = x.dtype
    return lambda: back(unpack(bits, 1, count).add_(1).to(dtype))


def _codes(x: Tensor, bits: int, piece: tuple[int, ...], dim: int) -> Restore:
    """Affine codes from the least to the largest value of each group; see `_grouping`."""
    flat, back = _in_memory_order(x)
    half = 1 << (bits - 1)
    codes = torch.empty_like(flat, dtype=torch.int8 if bits == 8 else torch.int16)
    dtype = x.dtype
    grids = []
    for values, target in zip(_pieces(flat, piece), _pieces(codes, piece), strict=True):
        low, high = values.amin(dim, keepdim=True).float(), values.amax(dim, keepdim=True).float()
        step = (high / (2 * half - 1) - low / (2 * half - 1)).clamp_(
            min=torch.finfo(torch.float32).tiny
        )
        middle = low + half * step
        if not torch.isfinite(middle).all():
            return _as_it_is(x)
        inverse = step.reciprocal()
        target.copy_(
            (values.float() * inverse).sub_(middle * inverse).round_().clamp_(-half, half - 1)
        )
        grids.append((step, middle))

    def restore() -> Tensor:
        values = torch.empty_like(codes, dtype=dtype)
        for kept, target, (step, middle) in zip(
            _pieces(codes, piece), _pieces(values, piece), grids, strict=True
        ):
            target.copy_(kept.float().mul_(step).add_(middle))
        return back(values)

    return restore


def _pieces(flat: Tensor, piece: tuple[int, ...]) -> list[Tensor]:
    """[N] -> some pieces at a time, as many as the cache of a CPU holds; the rest of N is a piece
    of its own.
    """
    size = math.prod(piece)
    whole = flat.numel() // size * size
    pieces = torch.split(flat[:whole].view(-1, *piece), max(1, block_size(flat) // size))
    return [*pieces, flat[whole:].unsqueeze(0)] if whole < flat.numel() else [*pieces]


def _order(x: Tensor) -> list[int]:
    """The dimensions as they lie in memory, the innermost last."""
    return sorted(range(x.dim()), key=x.stride().__getitem__, reverse=True)


def _in_memory_order(x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """The elements as they lie in memory, [N], and the way back from such a vector to the shape of
    x.
    """
    order = _order(x)
    there = x.detach().permute(order)
    shape, inverse = there.shape, [order.index(i) for i in range(x.dim())]
    return there.reshape(-1), lambda flat: flat.view(shape).permute(inverse)
