"""Which updates must not enter an average: the server believes nothing of what a client sends."""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from bhfl.comm import encoded_bytes
from bhfl.engine.types import Client, Params
from bhfl.quant import QuantizedTensor
from bhfl.quant.codes import largest_code

_SMALLEST_SCALE = torch.finfo(torch.float32).tiny
"""Scales below it are subnormal, and quotients by them are infinite; that of an all-zero tensor is
just this.
"""
_MAX_BATCHES = 1 << 20
"""Batches that a client can have counted in a round."""
_MAX_COUNT = 1 << 40
"""What any other counter can have grown by in a round."""


@dataclass(frozen=True)
class Asked:
    """What the clients of a round were asked for."""

    tensors: Params
    """Names, shapes and dtypes of an update."""
    counters: Params
    """Those of its tensors that count, with the server's own values."""
    limit: float
    """Bound on ``weight * |value|``, so that all sums stay exact."""


def most_bytes(tensors: Params) -> int:
    """Bytes of an update of these tensors at most.

    Args:
        tensors: Names, shapes and dtypes of an update.
    """
    # codes of 16 bits and a scale for each of them take less than twice the float32 values
    return 2 * encoded_bytes(tensors)


class TooFewClientsError(RuntimeError):
    """Too few updates were usable for too long, or the same error would stop every client for
    ever.
    """


class RefusedError(ValueError):
    """An update that must not enter an average; the message says why."""


def admit(  # noqa: C901  # rule by rule
    update: Mapping[str, Tensor | QuantizedTensor],
    asked: Asked,
    coded: Mapping[str, Collection[int]],
    client: Client,
) -> float:
    """The largest magnitude in a decoded update, if it may enter an average.

    Args:
        update: The update, decoded.
        asked: What all clients of the round were asked for.
        coded: Bits at which this client was to send tensors as codes, by name; any other must come
            as plain values.
        client: Who sent it.

    Raises:
        RefusedError: It may not.
    """
    if not 0 < client.weight < math.inf:
        raise RefusedError(f"weight must be positive and finite, got {client.weight}")
    if missing := asked.tensors.keys() - update.keys():
        raise RefusedError(f"{min(missing)} is missing")
    if unknown := update.keys() - asked.tensors.keys():
        raise RefusedError(f"{min(unknown)} was not asked for")
    largest = 0.0
    for name, value in update.items():
        low, high = _range(name, value, asked.tensors[name])
        largest = max(largest, high, -low)
        # `not <` refuses NaN too
        if not client.weight * max(high, -low) < asked.limit:
            raise RefusedError(f"{name} holds a value that is not finite or too large to average")
        # BatchNorm takes the root of them
        if low < 0 and name.rpartition(".")[2] == "running_var":
            raise RefusedError(f"{name} must hold variances, which are at least 0, got {low:.4g}")
        if isinstance(value, QuantizedTensor):
            _check_codes(name, value, coded.get(name, ()))
        elif name in asked.counters:
            _check_count(name, value, asked.counters[name])
    return largest


def _range(name: str, value: Tensor | QuantizedTensor, like: Tensor) -> tuple[float, float]:
    """Lowest and highest value of a tensor of the shape and kind that was asked for; 0 and 0 for
    integers.
    """
    content = value.codes if isinstance(value, QuantizedTensor) else value
    if content.shape != like.shape:
        raise RefusedError(
            f"{name} must have shape {tuple(like.shape)}, got {tuple(content.shape)}"
        )
    if isinstance(value, QuantizedTensor):
        # a bound by scale and bits: nothing is dequantised that may yet be refused
        scale = float(value.scale.max()) if value.scale.numel() else 0.0
        reach = scale * largest_code(value.bits)
        return -reach, reach
    if value.dtype != like.dtype:
        raise RefusedError(f"{name} must be {like.dtype}, got {value.dtype}")
    if not value.numel() or not value.is_floating_point():
        return 0.0, 0.0
    low, high = torch.aminmax(value)
    return float(low), float(high)


def _check_codes(name: str, value: QuantizedTensor, bits: Collection[int]) -> None:
    """Refuse codes of a tensor or of bits that were not asked for, and such as mean no numbers."""
    if not bits:
        raise RefusedError(f"{name} must come as values, got codes of {value.bits} bits")
    if value.bits not in bits:
        raise RefusedError(
            f"{name} must come as codes of {' or '.join(map(str, sorted(bits)))} bits, got "
            f"{value.bits} bits"
        )
    if value.scale.numel() and (least := float(value.scale.min())) < _SMALLEST_SCALE:
        raise RefusedError(
            f"{name} must have scales of at least {_SMALLEST_SCALE:.4g}, got {least:.4g}"
        )


def _check_count(name: str, value: Tensor, counted: Tensor) -> None:
    """Refuse a counter that has grown by more than a round can add; one that is lower changes no
    maximum.
    """
    if not value.numel():
        return
    most = _MAX_BATCHES if name.rpartition(".")[2] == "num_batches_tracked" else _MAX_COUNT
    highest, before = int(value.max()), int(counted.max())
    if highest - before > most:
        raise RefusedError(
            f"{name} must have grown by at most {most} in a round, got {highest} after {before}"
        )
