"""Fewer bytes from the forward to the backward pass: autograd saves activations as integers.

Layers that compute in integers keep int8 codes of their input anyway. What the norms, attention and
activation functions between them save is float32, and more in most networks; this module is for
that, and for float layers too.
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
"""The most elements behind one another in memory that share a range, and the fewest where a group
must not cross rows.
"""

_PRODUCTS = {"matmul", "rmatmul", "mm", "bmm", "einsum"}
"""Functions of which all operands are saved in 8 bits."""
_LAYERS = {
    "linear",
    "conv1d",
    "conv2d",
    "conv3d",
    "conv_transpose1d",
    "conv_transpose2d",
    "conv_transpose3d",
}
_POOLS = {"max_pool1d", "max_pool2d", "max_pool3d", "avg_pool1d", "avg_pool2d", "avg_pool3d"}
_ELEMENTWISE = {"mul", "rmul", "dropout", "gelu", "silu", "mish", "celu", "glu"}
_NORMS_OF_ROWS = {"layer_norm", "rms_norm"}
_NORMS_OF_CHANNELS = {"batch_norm", "group_norm", "instance_norm"}
_EIGHT_BITS = _LAYERS | _POOLS | _ELEMENTWISE | _NORMS_OF_ROWS | _NORMS_OF_CHANNELS
"""Functions whose input is saved in 8 bits. Their gradients vary as it does; those of others divide
by it, take its exponential, jump as those of leaky ReLUs do, or vanish where a probability is close
to 1.
"""
_SIXTEEN_BITS = {"multi_head_attention_forward", "scaled_dot_product_attention"}
"""Functions whose inputs and results are saved in 16 bits: they take the exponential of products of
them.
"""

Restore = Callable[[], Tensor]
"""A function that gives a saved tensor back."""
Grouping = tuple[tuple[int, ...], int]
"""How the elements of a tensor are cut into groups of one range, see `_grouping`."""
Form = tuple[int | None, Grouping | None]
"""How a tensor is saved: the bits of its codes and their grouping; `_AS_IT_IS` is the plain one."""
_AS_IT_IS: Form = (None, None)


@contextmanager
def save_in_int8() -> Iterator[None]:
    """Let most of what autograd saves of activations take a quarter of float32 or less.

    It is for the forward pass in training, as ``torch.autograd.graph.save_on_cpu`` is; the results
    stay what they are::

        with save_in_int8():
            loss = F.cross_entropy(model(x), y)
        loss.backward()

    * A ReLU saves one bit an element; its gradient is exact.
    * Inputs of layers, products, norms, pooling and smooth activation functions become codes of 8
      bits, rounded to nearest, with a range for each 256 elements or fewer, or each channel (after
      Chen et al. 2021, "ActNN"); those of attention become codes of 16 bits. What backward computes
      from them is off by about half a step of these ranges.
    * Indices, as those of pooling, become int16 where they fit; their gradient is exact.
    * All else is saved as it is: parameters, batches of data, losses, statistics of norms, what
      functions that are not named here save (recurrent ones among them), float64, what is not
      finite, and tensors of less than 4,096 elements.

    Saving and restoring takes one to two nanoseconds an element. Compiled models save what their
    compiler chose. Like the checks of autograd, this does not notice changes through ``.data``.
    """
    saving = _Saving()
    with torch.autograd.graph.saved_tensors_hooks(saving.save, lambda restore: restore()), saving:
        yield


class _Saving(TorchFunctionMode):
    """The hook that saves a tensor, and the function that saves it: autograd does not tell a hook
    which function that is, and so this mode notes every call.

    Attributes:
        function: The name of the function that is running.
        arguments: The arguments of that function.
        saved: What was made of tensors that exist, by tensor and form: their storage, and the way
            back.
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
        # an operator that a library registers may have any name, also one of those above
        custom = isinstance(func, torch._ops.OpOverload | torch._ops.OpOverloadPacket)
        self.function = "" if custom else getattr(func, "__name__", "").strip("_")
        self.arguments = *args, *kwargs.values()
        try:
            return func(*args, **kwargs)
        finally:
            self.function, self.arguments = before

    def save(self, x: Tensor) -> Restore:
        """Something that holds less memory than a tensor and gives it back; one and the same for
        all functions that save the same tensor in the same form.
        """
        if type(x) is not Tensor or x.numel() < _SMALLEST or not _has_its_elements(x):
            return _as_it_is(x)
        tensors = [argument for argument in self.arguments if isinstance(argument, Tensor)]
        given = any(_is_given(x, argument) for argument in tensors)
        if x.dtype == torch.int64:
            return _as_it_is(x) if given else _short(x)
        bits = None if given or x.dtype not in _FLOATS else self.bits(x, tensors)
        grouping = _grouping(self.function, x)
        form = (bits, grouping)
        # what another function holds as it is costs no more memory
        if restore := self.known(x, _AS_IT_IS) or self.known(x, form):
            return restore
        if bits is None or grouping is None:
            return self.remember(x, _AS_IT_IS, _as_it_is(x))
        return self.remember(x, form, _signs(x) if bits == 1 else _codes(x, bits, grouping))

    def remember(self, x: Tensor, form: Form, restore: Restore) -> Restore:
        """Keep what was made of x for as long as x and a graph with it exist."""
        key = _identity(x), form
        storage = StorageWeakRef(x.untyped_storage())  # type: ignore[no-untyped-call]
        self.saved[key] = storage, weakref.ref(restore, lambda _: self.saved.pop(key, None))
        return restore

    def known(self, x: Tensor, form: Form) -> Restore | None:
        """What was made of x in this form, if anything was."""
        if entry := self.saved.get((_identity(x), form)):
            storage, restore = entry
            # other tensors may have come to lie where one was
            return None if storage.expired() else restore()
        return None

    def bits(self, x: Tensor, tensors: list[Tensor]) -> int | None:
        """The bits in which the running function, with these arguments, saves x; None where x stays
        as it is.
        """
        # a view of a weight is memory that stays anyway
        if isinstance(x._base, torch.nn.Parameter):
            return None
        if self.function == "relu":
            return 1
        if self.function in _PRODUCTS:
            return 8
        # of another size than the input is a weight, or a statistic of a norm
        if not tensors or x.numel() != tensors[0].numel():
            return None
        if self.function in _SIXTEEN_BITS:
            return 16
        return 8 if self.function in _EIGHT_BITS else None


def _grouping(function: str, x: Tensor) -> Grouping | None:
    """How elements in the order of the memory are cut into groups; None if they would be too small.

    A norm divides by the deviation of a row or a channel, so that no group may hold two of these,
    nor two samples where each has its own.

    Returns:
        The shape of a piece, ``(width,)`` or ``(height, width)``, and the dimension of it that a
        group runs along.
    """
    order = _order(x)
    last = x.dim() - 1
    # in channels_last, a column of the memory is a channel
    if function in _NORMS_OF_CHANNELS and order[-1] == 1:
        pixels = x.numel() // x.shape[1] if function == "batch_norm" else math.prod(x.shape[2:])
        # narrow matrices are slow: a line of a piece is several pixels
        together = math.gcd(pixels, max(1, min(_WIDEST // x.shape[1], pixels // 64)))
        height = _size(pixels // together) if order[0] == 0 else 0
        return ((height, together * x.shape[1]), -2) if height else None
    if function in _NORMS_OF_CHANNELS:
        width = _size(math.prod(x.shape[2:])) if order == [*range(x.dim())] else 0
    elif function in _NORMS_OF_ROWS:
        width = _size(x.shape[last]) if order[-1] == last else 0
    else:
        # as many of the innermost dimensions as make a group that is not too small
        row = 1
        for i in reversed(order):
            row *= x.shape[i] if row < _WIDEST // 2 else 1
        width = _size(row) or _WIDEST
    return ((width,), -1) if width else None


@cache
def _size(row: int) -> int:
    """The largest size of a group that divides a row of this many elements; 0 if there is none."""
    return max((size for size in range(_NARROWEST, _WIDEST + 1) if row % size == 0), default=0)


def _identity(x: Tensor) -> tuple[Any, ...]:
    """What two tensors have in common that hold the same values in the same memory."""
    return x.data_ptr(), x._version, x.shape, x.stride(), x.dtype


def _is_given(x: Tensor, argument: Tensor) -> bool:
    """Whether x is an argument that was not computed: parameters and data stay in memory anyway."""
    try:
        return argument.grad_fn is None and argument.data_ptr() == x.data_ptr()
    # sparse tensors and those of torch.func have no data_ptr
    except RuntimeError:
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
    """Save a tensor without its graph: that of a result would hold the result, and so itself."""
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
    """Save int64 in 16 bits, where the values fit."""
    if x.amin() < -(1 << 15) or x.amax() >= 1 << 15:
        return _as_it_is(x)
    short = x.to(torch.int16)
    return lambda: short.to(torch.int64)


def _signs(x: Tensor) -> Restore:
    """Save where the result of a ReLU is positive, which is all that its gradient asks: what comes
    back is 1 there, and 0 elsewhere.
    """
    flat, back = _in_memory_order(x)
    # a code of one bit is -1 or 0
    bits = pack((flat <= 0).view(torch.int8).neg_(), 1)
    count = x.numel()
    dtype = x.dtype
    return lambda: back(unpack(bits, 1, count).add_(1).to(dtype))


def _codes(x: Tensor, bits: int, grouping: Grouping) -> Restore:
    """Save affine codes of 8 or 16 bits, from the least to the largest value of each group."""
    piece, dim = grouping
    flat, back = _in_memory_order(x)
    half = 1 << (bits - 1)
    last = 2 * half - 1
    codes = torch.empty_like(flat, dtype=torch.int8 if bits == 8 else torch.int16)
    dtype = x.dtype
    grids = []
    for values, target in zip(_pieces(flat, piece), _pieces(codes, piece), strict=True):
        low = values.amin(dim, keepdim=True).float()
        high = values.amax(dim, keepdim=True).float()
        # both ends are divided before they are subtracted: their difference may overflow
        step = (high / last - low / last).clamp_(min=torch.finfo(torch.float32).tiny)
        middle = low + half * step
        if not torch.isfinite(middle).all():
            return _as_it_is(x)
        inverse = step.reciprocal()
        exact = (values.float() * inverse).sub_(middle * inverse)
        target.copy_(exact.round_().clamp_(-half, half - 1))
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
    """Views [pieces, *piece] of [N], each of as many pieces as the cache of a CPU holds; what is
    left of N is the last one, [1, rest].
    """
    size = math.prod(piece)
    whole = flat.numel() // size * size
    pieces = torch.split(flat[:whole].view(-1, *piece), max(1, block_size(flat) // size))
    return [*pieces, flat[whole:].unsqueeze(0)] if whole < flat.numel() else [*pieces]


def _order(x: Tensor) -> list[int]:
    """The dimensions as they lie in memory, the innermost last."""
    return sorted(range(x.dim()), key=x.stride().__getitem__, reverse=True)


def _in_memory_order(x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """The elements as they lie in memory, [N], and the way back from such a vector to the shape and
    the memory format of x.
    """
    order = _order(x)
    there = x.detach().permute(order)
    shape = there.shape
    inverse = [order.index(i) for i in range(x.dim())]
    return there.reshape(-1), lambda flat: flat.view(shape).permute(inverse)
