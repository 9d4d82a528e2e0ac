"""Integer convolutions: those of oneDNN on a CPU that has them, else products of unfolded images
(im2col).

Legend: x [B, C, H, W] input, w [O, C/G, R, S] weight with G groups, g [B, O, P, Q] error, which is
the gradient of the output; all codes are int8. Images are channels_last, so that an unfolded image
is a strided view. A one-dimensional convolution has H == R == 1.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from bhfl.quant.backends.codes import Codes
from bhfl.quant.backends.linear import int_mm, int_mm_fault, row_sums, scaled, too_long, weight_sums
from bhfl.quant.memory_format import contiguous, needs_contiguous

Pair = tuple[int, int]
_UNFOLDED_BYTES = 1 << 22
"""Images are unfolded some at a time, into about so many bytes: what the cache of a CPU holds."""
PIXELS_PER_OUTPUT = 64
"""oneDNN is used from so many output pixels for each output channel on: it orders the weights anew
each time, at 5 ns a weight, and fewer pixels do not make up for that.
"""


@dataclass(frozen=True)
class Conv:
    """A convolution of two dimensions; its padding is zeros, as many at both ends."""

    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    groups: int = 1

    def fault(self, weight: Sequence[int], device: torch.device) -> str:
        """Why it cannot be computed in integers with a weight of this shape; empty if it can."""
        num_outputs, num_inputs, *kernel = weight
        channels = max(num_inputs, num_outputs // self.groups)
        return too_long(channels * math.prod(kernel)) or int_mm_fault(str(device))

    def dense(self, x: Tensor) -> Tensor:
        """The input or error in the memory format that the products need."""
        return x.contiguous(memory_format=torch.channels_last)

    def forward(self, x: Codes, w: Codes, bias: Tensor | None) -> Tensor:
        """x, w -> float32 [B, O, P, Q], channels_last; w has one scale, or one for each O."""
        product = _onednn if self._suits_onednn(x.values, w.values) else _unfolded
        return product(self, x, w, bias)

    def _suits_onednn(self, x: Tensor, w: Tensor) -> bool:
        """Whether oneDNN computes this, exactly, and faster."""
        kernel = w.shape[2:]
        # It is wrong where all taps of a kernel may miss the image, because they step over it or
        # lie in the padding.
        narrow = all(p < k for p, k in zip(self.padding, kernel, strict=True))
        height, width = self._output_size(x, kernel)
        gains = len(x) * height * width > PIXELS_PER_OUTPUT * len(w)
        inside = narrow and self.dilation == (1, 1)
        return x.device.type == "cpu" and inside and gains and not onednn_fault()

    def _output_size(self, x: Tensor, kernel: Sequence[int]) -> list[int]:
        """[P, Q]."""
        return [
            (n + 2 * p - d * (k - 1) - 1) // s + 1
            for n, k, s, p, d in zip(
                x.shape[2:], kernel, self.stride, self.padding, self.dilation, strict=True
            )
        ]

    def grad_input(self, g: Codes, w: Codes, shape: torch.Size) -> Tensor:
        """g, w -> float32 of the shape of x, channels_last; one scale each."""
        taps = zip(self.dilation, w.values.shape[2:], self.padding, strict=True)
        down, right = (d * (k - 1) - p for d, k, p in taps)
        if self.stride != (1, 1) or min(down, right) < 0:
            return self._folded(g, w, shape)
        # without a stride, it is the convolution of the error with the mirrored kernel
        conv = Conv(padding=(down, right), dilation=self.dilation, groups=self.groups)
        return conv.forward(g, Codes(self._mirrored(w.values), w.scale), None)

    def _folded(self, g: Codes, w: Codes, shape: torch.Size) -> Tensor:
        """:meth:`grad_input` for any geometry (col2im): each error times all taps is added to the
        inputs that these taps saw. What a stride skips costs nothing.
        """
        kernel = w.values.shape[2:]
        matrices = w.values.permute(0, 2, 3, 1).flatten(1).chunk(self.groups)
        (top, left), (height, width) = self.padding, shape[2:]
        size = (len(g.values), height + 2 * top, width + 2 * left, shape[1])
        padded = torch.zeros(size, dtype=torch.int32, device=g.values.device)
        errors = g.values.permute(0, 2, 3, 1)
        bytes_per_image = 4 * errors[0, ..., 0].numel() * matrices[0].shape[1]
        num_images = max(1, _UNFOLDED_BYTES // max(bytes_per_image, 1))
        parts = zip(torch.split(errors, num_images), torch.split(padded, num_images), strict=True)
        for some, target in parts:
            groups = zip(matrices, target.chunk(self.groups, 3), strict=True)
            for i, (matrix, inputs) in enumerate(groups):
                patches = self._patches(inputs, some.shape[1:3], kernel)
                products = int_mm(_rows(some, i, len(matrix)), matrix).view(patches.shape)
                # one tap at a time: the patches of different taps share elements
                for r, s in itertools.product(*map(range, kernel)):
                    patches[:, :, :, r, s].add_(products[:, :, :, r, s])
        inside = padded[:, top : top + height, left : left + width]
        return scaled(inside, g.scale, w.scale).permute(0, 3, 1, 2)

    def _mirrored(self, w: Tensor) -> Tensor:
        """The weight [G*O', C', R, S] with inputs and outputs exchanged and the kernel turned
        around: [G*C', O', R, S].
        """
        # in memory [R, S, O', G*C'], which is quick to make
        grouped = w.flip(2, 3).reshape(self.groups, -1, *w.shape[1:])
        return grouped.permute(3, 4, 1, 0, 2).flatten(3).contiguous().permute(3, 2, 0, 1)

    def grad_weight(self, g: Codes, x: Codes, shape: torch.Size) -> Tensor:
        """g, x -> float32 of the shape of w."""
        num_outputs, num_inputs, *kernel = shape
        patches = self.unfold(x, kernel)
        errors = torch.split(g.values.permute(0, 2, 3, 1), len(patches[0]))
        total = torch.empty(num_outputs, math.prod(shape[1:]), device=g.values.device)
        for i, part in enumerate(torch.chunk(total, self.groups)):
            # made one by one: a row of each patch is a copy
            pairs = (
                (_rows(error, i, len(part)), _rows(patch, i, num_inputs))
                for error, patch in zip(errors, patches, strict=True)
            )
            part.copy_(weight_sums(pairs, x.zero))
        total.mul_(g.scale * x.scale)
        return total.view(num_outputs, *kernel, num_inputs).permute(0, 3, 1, 2)

    def unfold(self, x: Codes, kernel: Sequence[int]) -> tuple[Tensor, ...]:
        """Views [some of B, P, Q, R, S, C] of padded images, each of which takes about
        _UNFOLDED_BYTES where it is copied.
        """
        down, right = self.padding
        border = 0 if x.zero is None else int(x.zero)
        images = x.values.permute(0, 2, 3, 1)
        images = F.pad(images, (0, 0, right, right, down, down), value=border).contiguous()
        patches = self._patches(images, self._output_size(x.values, kernel), kernel)
        return torch.split(patches, max(1, _UNFOLDED_BYTES // max(patches[:1].numel(), 1)))

    def _patches(self, images: Tensor, size: Sequence[int], kernel: Sequence[int]) -> Tensor:
        """Padded images [B, H, W, C] as each output pixel sees them: a view [B, P, Q, R, S, C], in
        which patches share elements.
        """
        b, h, w, c = images.stride()
        down, right = self.stride
        tap_down, tap_right = self.dilation
        strides = (b, h * down, w * right, h * tap_down, w * tap_right, c)
        return images.as_strided((len(images), *size, *kernel, images.shape[3]), strides)

    def float_gradients(
        self, g: Tensor, x: Tensor, w: Tensor, need: tuple[bool, bool]
    ) -> tuple[Tensor | None, ...]:
        """Gradients of x and w, where needed, by convolutions of floats of one dtype."""
        if needs_contiguous(w.shape, self.stride):  # a fault of oneDNN
            g, x, w = map(contiguous, (g, x, w))
        forward = (self.stride, self.padding, self.dilation)
        transposed = (False, (0, 0))
        found: tuple[Tensor | None, ...] = torch.ops.aten.convolution_backward(
            g, x, w, None, *forward, *transposed, self.groups, (*need, False)
        )
        return found[:2]


def _rows(x: Tensor, group: int, size: int) -> Tensor:
    """The channels of one group as a matrix with a row for each output pixel: [B, P, Q, ...,
    G*size] -> [B*P*Q, ...*size].
    """
    own = x[..., group * size : (group + 1) * size]
    return own.reshape(math.prod(x.shape[:3]), -1)


def _unfolded(conv: Conv, x: Codes, w: Codes, bias: Tensor | None) -> Tensor:
    """The convolution by matrix products, on any device."""
    num_outputs, num_inputs, *kernel = w.values.shape
    matrices = w.values.permute(0, 2, 3, 1).reshape(conv.groups, num_outputs // conv.groups, -1)
    # sums of (code - zero) * weight are those of code * weight, less zero times the sum of weights
    zeros = [None if x.zero is None else row_sums(matrix) * x.zero for matrix in matrices]
    unfolded = conv.unfold(x, kernel)
    y = torch.empty(len(x.values), *unfolded[0].shape[1:3], num_outputs, device=x.values.device)
    for patches, block in zip(unfolded, torch.split(y, len(unfolded[0])), strict=True):
        parts = block.chunk(conv.groups, 3)
        for i, (matrix, zero, part) in enumerate(zip(matrices, zeros, parts, strict=True)):
            sums = int_mm(_rows(patches, i, num_inputs), matrix.t())
            part.copy_((sums if zero is None else sums.sub_(zero)).view(part.shape))
        block.mul_(w.scale * x.scale)
    return (y if bias is None else y.add_(bias)).permute(0, 3, 1, 2)


def _onednn(conv: Conv, x: Codes, w: Codes, bias: Tensor | None) -> Tensor:
    """The convolution by oneDNN, on a CPU."""
    ops = torch.ops.onednn
    geometry = (conv.stride, conv.padding, conv.dilation, conv.groups)
    # oneDNN takes unsigned inputs: turning the highest bit of a signed code adds 128
    images = x.values.view(torch.uint8).bitwise_xor(0x80)
    scale = float(x.scale)
    zero = 128 + (0 if x.zero is None else int(x.zero))
    scales = w.scale.expand(len(w.values)).contiguous()
    packed = ops.qconv_prepack(
        w.values.contiguous(), scales, scale, zero, *geometry, list(images.shape)
    )
    zeros = torch.zeros(len(scales), dtype=torch.int32)
    bias = None if bias is None else bias.float()
    output = (1.0, 0, torch.float32)  # scale, zero point and dtype
    operands = (images, scale, zero, packed, scales, zeros, bias)
    # "none": no operation is fused with the convolution
    y: Tensor = ops.qconv2d_pointwise(*operands, *geometry, *output, "none", [], "")
    return y


@cache
def onednn_fault() -> str:
    """Why oneDNN's integer convolutions cannot be used; empty if they can. See
    :func:`int_mm_fault`.
    """
    one = torch.ones(())
    extremes = torch.full((1, 32, 4, 4), 127, dtype=torch.int8)
    x = Codes(Conv().dense(extremes), one, torch.tensor(-128, dtype=torch.int32))
    weight = torch.full((16, 32, 3, 3), 127, dtype=torch.int8)
    weight[1::2] = -127
    try:
        found = _onednn(Conv(), x, Codes(weight, one), None)
    except (RuntimeError, NotImplementedError, AttributeError) as error:
        return f"oneDNN has no integer convolution here ({str(error).splitlines()[0]})"
    exact = torch.equal(found[0, :2, 0, 0], torch.tensor([1.0, -1.0]) * 255 * 127 * 32 * 9)
    return "" if exact else "oneDNN's integer convolutions are not exact here"
