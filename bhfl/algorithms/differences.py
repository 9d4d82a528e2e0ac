"""What FedPAQ, FedCOM and FedCOMGATE share: quantised differences up, float32 down."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Literal

import torch
from torch import Tensor

from bhfl.comm import float_tensors
from bhfl.engine.algorithm import Algorithm, LocalRun
from bhfl.engine.random import RandomKeys
from bhfl.engine.types import Client, Params, ServerState, Tensors
from bhfl.quant import QuantizedTensor, quantize

Norm = Literal["linf", "l2"]


REST = ":rest"
"""Ends the name of the last, shorter bucket of a tensor."""


def buckets(name: str, x: Tensor, size: int | None) -> dict[str, Tensor]:
    """`x` as buckets of `size` consecutive entries: ``[numel // size, size]`` by `name`, and what
    is left over.

    A tensor that one bucket holds is returned as it is.
    """
    if size is None or size >= x.numel():
        return {name: x}
    flat, whole = x.reshape(-1), x.numel() // size * size
    parts = {name: flat[:whole].view(-1, size)}
    return parts if whole == x.numel() else {**parts, name + REST: flat[whole:].view(1, -1)}


def qsgd(
    x: Tensor, bits: int, norm: Norm, generator: torch.Generator, by_row: bool = False
) -> QuantizedTensor:
    """The unbiased QSGD quantiser (Alistarh et al. 2017): ``sign(x) * M * xi / s`` with ``s =
    2**(bits-1) - 1``.

    Args:
        x: Float tensor, any shape.
        bits: 2..16.
        norm: ``M`` is the largest magnitude (`linf`) or the Euclidean length (`l2`).
        generator: Of the stochastic rounding.
        by_row: One ``M`` a row of dimension 0 instead of one for all.
    """
    if norm == "linf":
        return quantize(x, bits, granularity="channel" if by_row else "tensor", generator=generator)
    rows = x.float().reshape(x.shape[0] if by_row else 1, -1)
    length = torch.linalg.vector_norm(rows, dim=1)
    scale = torch.where(length > 0, length / (2 ** (bits - 1) - 1), torch.ones_like(length))
    scale = scale.clamp_min(torch.finfo(torch.float32).tiny)  # a subnormal scale has no reciprocal
    return quantize(x, bits, scale=scale if by_row else scale[0], generator=generator)


class DifferenceAlgorithm(Algorithm):
    """Clients send ``Q(w_t - w_i)``, the server steps ``w_{t+1} = w_t - gamma * mean_i Q(w_t -
    w_i)``.

    Weights (two dimensions or more) travel as quantised differences; everything else as float32
    values, because ``w_t - gamma * (w_t - mean w_i)`` is the same step without rounding. At 32 bits
    the weights travel as values too, so that a lossless method with ``gamma = 1`` is FedAvg to the
    bit.
    """

    def __init__(self, bits: int, norm: Norm, bucket_size: int | None, server_lr: float) -> None:
        name = type(self).__name__
        if bits != 32 and not (
            isinstance(bits, int) and not isinstance(bits, bool) and 2 <= bits <= 16
        ):
            raise ValueError(f"{name}.bits must be 2..16 or 32, got {bits!r}")
        if norm not in ("linf", "l2"):
            raise ValueError(f"{name}.norm must be linf or l2, got {norm!r}")
        if bucket_size is not None and bucket_size < 1:
            raise ValueError(
                f"{name}.bucket_size must be at least 1, or null for one bucket a tensor, got "
                f"{bucket_size}"
            )
        if not 0 < server_lr < math.inf:
            raise ValueError(f"{name}.server_lr must be positive and finite, got {server_lr}")
        self.bits = bits
        self.norm = norm
        self.bucket_size = bucket_size
        self.server_lr = server_lr

    def quantised(self, params: Params) -> list[str]:
        """Names of the tensors that travel as quantised differences."""
        return (
            [name for name, tensor in params.items() if tensor.ndim >= 2] if self.bits < 32 else []
        )

    def bits_of(self, run: LocalRun) -> int:
        """Bits of a client's differences in this round."""
        return self.bits

    def bits_asked(self, server: ServerState) -> int:
        """The same, as the server knows it."""
        return self.bits

    def uplink(self, run: LocalRun) -> Tensors:
        """Differences of weights at their bits, float32 values of the rest."""
        values = run.module.state_dict()
        update: dict[str, Tensor | QuantizedTensor] = dict(values)
        generator, bits = run.rng.torch("quant_up", device=run.device), self.bits_of(run)
        for name in self.quantised(run.received):
            difference = run.received[name] - values[name]
            parts = buckets(name, difference, self.bucket_size)
            by_row = parts[name] is not difference
            update |= {
                key: qsgd(part, bits, self.norm, generator, by_row) for key, part in parts.items()
            }
        return update

    def expected(self, server: ServerState) -> Params:
        """The shapes of values and buckets."""
        return {**server.params, **self._parts(server)}

    def coded(
        self, server: ServerState, client: Client, layers: list[str]
    ) -> Mapping[str, Collection[int]]:
        """All buckets, at the bits of differences."""
        return dict.fromkeys(self._parts(server), (self.bits_asked(server),))

    def _parts(self, server: ServerState) -> Params:
        """The buckets of what travels as differences."""
        parts: Params = {}
        for name in self.quantised(server.params):
            parts |= buckets(name, server.params[name], self.bucket_size)
        return parts

    def server_update(self, server: ServerState, aggregate: Params, rng: RandomKeys) -> ServerState:
        """The step with `server_lr`."""
        difference = self.mean_difference(server.params, aggregate)
        stepped = {
            name: server.params[name] - self.server_lr * step for name, step in difference.items()
        }
        if self.server_lr == 1:
            quantised = self.quantised(server.params)
            stepped |= {name: value for name, value in aggregate.items() if name not in quantised}
        return self.apply_mean(server, stepped)

    def mean_difference(self, params: Params, aggregate: Params) -> Params:
        """``mean_i Q(w_t - w_i)`` of all tensors that clients send."""
        quantised = self.quantised(params)
        return {
            name: aggregate[name] if name in quantised else value - aggregate[name]
            for name, value in params.items()
            if name in aggregate
        }

    def reconstruct(self, update: Tensors, client: Client, server: ServerState) -> Params:
        """Differences and values in float32, in the shapes of the model."""
        return self.join(update, server.params)

    def join(self, update: Tensors, params: Params) -> Params:
        """An update with its buckets joined, in the shapes of `params`."""
        tensors = float_tensors(update)
        for name in self.quantised(params):
            if parts := [tensors[key].reshape(-1) for key in (name, name + REST) if key in tensors]:
                tensors[name] = torch.cat(parts).view(params[name].shape)
        return {name: tensors[name] for name in params if name in tensors}
