"""Evaluate a model again and again with one layer changed: what comes before that layer is computed
once.

Probing L layers at P widths takes `1 + L P` passes over the same samples. Up to the quantised layer
all passes agree, so the outputs of the first one are kept and returned: on a deep network this
saves half of the arithmetic.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

_PURE = ("torch.nn.", "bhfl.quant.")
"""Packages whose layers, in evaluation mode, compute from input, parameters and buffers, and do
nothing else.
"""


@dataclass(frozen=True)
class _Call:
    """What a layer once received and gave; of no use any more when either has been written to
    since.
    """

    input: Tensor
    output: Tensor
    versions: tuple[int, int]

    def answers(self, x: Tensor) -> bool:
        if self.versions != (self.input._version, self.output._version):
            return False
        # torch.equal compares shapes too, and refuses tensors of two dtypes
        return x is self.input or (x.dtype == self.input.dtype and torch.equal(x, self.input))


@dataclass
class Reuse:
    """The calls kept; while `records` holds, calls are added and none is answered.

    Attributes:
        records: True for the first pass; the owner of the `with` block sets it to False after that.
    """

    records: bool = True
    _calls: dict[int, list[_Call]] = field(default_factory=dict)

    def call(
        self, layer: nn.Module, saved: Sequence[tuple[Tensor, Tensor]], *args: Any, **options: Any
    ) -> Any:
        """The layer's output, kept or computed; `saved` are its tensors and copies of what they
        held at first.
        """
        # layer.forward is this method itself by now
        forward = partial(type(layer).forward, layer)
        x = args[0] if len(args) == 1 and not options else None
        # inference tensors count no versions, so nobody could tell whether they were written to
        if not isinstance(x, Tensor) or x.is_inference() or x.requires_grad or layer.training:
            return forward(*args, **options)
        calls = self._calls.setdefault(id(layer), [])
        if not self.records:
            known = next((call for call in calls if call.answers(x)), None)
            if known is not None and all(torch.equal(now, then) for now, then in saved):
                return known.output
        output = forward(x)
        if (
            self.records
            and isinstance(output, Tensor)
            and not output.is_inference()
            and not output.requires_grad
        ):
            calls.append(_Call(x, output, (x._version, output._version)))
        return output


@contextmanager
def reusing(model: nn.Module) -> Iterator[Reuse]:
    """Lets the costly layers of `model`, those with weights, answer from an earlier pass where
    nothing has changed.

    For passes over the same inputs, in evaluation mode and without gradients. A layer computes as
    ever when its input, weights or buffers differ from those of the first pass, and a layer of an
    unknown class always does: results are those of plain evaluation to the bit. Memory: inputs and
    outputs of the layers for the samples of one pass.
    """
    reuse = Reuse()
    layers = [layer for layer in model.modules() if _is_pure(layer)]
    try:
        for layer in layers:
            tensors = [*layer.parameters(recurse=False), *layer.buffers(recurse=False)]
            saved = [(tensor, tensor.detach().clone()) for tensor in tensors]
            # on the layer itself, below its __call__, so that its hooks run as ever
            layer.forward = partial(reuse.call, layer, saved)
        yield reuse
    finally:
        for layer in layers:
            layer.__dict__.pop("forward", None)


def _is_pure(layer: nn.Module) -> bool:
    """Whether `layer` has weights and no children, and its class is one of PyTorch's or of
    `bhfl.quant`.
    """
    # a forward that somebody set on the layer itself may do anything
    known = f"{type(layer).__module__}.".startswith(_PURE) and "forward" not in vars(layer)
    return (
        known
        and next(layer.children(), None) is None
        and next(layer.parameters(recurse=False), None) is not None
    )
