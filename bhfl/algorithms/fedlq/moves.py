"""What clients come to by training: whether it can be sent, and how far it is from the start."""

from collections.abc import Sequence
from itertools import chain

import torch
from torch import Tensor

from bhfl.engine.types import Params
from bhfl.quant import QuantizedTensor
from bhfl.quant.rounding import extremes


def check_trained(values: Params) -> None:
    """ValueError unless all trained weights are finite."""
    # they pass NaN on, and so tell of all values
    ends = torch.stack([*chain.from_iterable(map(extremes, values.values()))])
    if not ends.isfinite().all():
        raise ValueError("its weights are not finite after training")


def is_as_computed(own: Tensor | QuantizedTensor, width: int) -> bool:
    """Whether a layer at `width` is just what the client computes with, in one scale."""
    return isinstance(own, QuantizedTensor) and own.bits == width and own.scale.ndim == 0


def difference_of(sent: Tensor | QuantizedTensor, received: Tensor) -> Tensor:
    """The difference that a layer as it is sent stands for: codes are of it, values of weights."""
    return sent.dequantize() if isinstance(sent, QuantizedTensor) else received - sent


def squared_move(start: Params, end: Params, layers: Sequence[str]) -> float:
    """The squared length of a move of all layers."""
    moves = [start[name] - end[name] for name in layers]
    return float(sum(move.double().square_().sum() for move in moves))
