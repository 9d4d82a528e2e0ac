"""What FedPAQ, FedCOM and FedCOMGATE share: quantised differences up, float32 down."""

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from bhfl.algorithms.feedback import keep_error, largest, with_error
from bhfl.algorithms.trained import OfTrained
from bhfl.checks import bits_or, checked, choice, count, or_none, true_or_false, within
from bhfl.comm import float_tensors
from bhfl.engine.algorithm import LocalRun
from bhfl.engine.random import RandomKeys
from bhfl.engine.types import Client, Params, ServerState, Tensors
from bhfl.quant import QuantizedTensor, quantize

Norm = Literal["linf", "l2"]

_LEAST_SHARE = 1e-4
"""The least of `top_k`: places of fewer entries would take more than their codes."""
REST = ":rest"
"""Ends the name of the last, shorter bucket of a tensor."""


def buckets(name: str, x: Tensor, size: int | None) -> dict[str, Tensor]:
    """`x` as buckets of `size` consecutive entries: ``[numel // size, size]`` by `name`, and what
    is left over.

    A tensor that one bucket holds is returned as it is.
    """
    if size is None or size >= x.numel():
        return {name: x}
    flat = x.reshape(-1)
    whole = x.numel() // size * size
    parts = {name: flat[:whole].view(-1, size)}
    if whole < x.numel():
        parts[name + REST] = flat[whole:].view(1, -1)
    return parts


def qsgd(
    x: Tensor, bits: int, norm: Norm, generator: torch.Generator | None, by_row: bool = False
) -> QuantizedTensor:
    """The unbiased QSGD quantiser (Alistarh et al. 2017): ``sign(x) * M * xi / s`` with ``s =
    2**(bits-1) - 1``; or, for differences whose sender carries what is left out, the nearest codes
    at the scale of the least squared error.

    Without bias, few bits leave out more than there is: up to ``|x|_1 M / s``, several times the
    squared length of ``x``, so that what is carried would grow from round to round. The nearest
    codes leave out less than there is (Karimireddy et al., ICML 2019).

    Args:
        x: Float tensor, any shape.
        bits: 2..16.
        norm: ``M`` is the largest magnitude (`linf`) or the Euclidean length (`l2`).
        generator: Draws the stochastic rounding; None for the nearest codes, of `linf`.
        by_row: One scale a row of dimension 0 instead of one for all; with `l2`, of [R, N].
    """
    if norm == "linf":
        return quantize(
            x,
            bits,
            range_rule="absmax" if generator else "mse",
            granularity="channel" if by_row else "tensor",
            generator=generator,
        )
    length = torch.linalg.vector_norm(x.float(), dim=1 if by_row else None)
    # a scale of 0, or a subnormal one, has no reciprocal
    scale = (length / (2 ** (bits - 1) - 1)).clamp_min(torch.finfo(torch.float32).tiny)
    return quantize(x, bits, scale=scale, generator=generator)


class DifferenceAlgorithm(OfTrained):
    """Clients send ``Q(w_t - w_i)``, the server steps ``w_{t+1} = w_t - gamma * mean_i Q(w_t -
    w_i)``.

    Weights (two dimensions or more) travel as quantised differences; everything else as float32
    values, because ``w_t - gamma * (w_t - mean w_i)`` is the same step without rounding. At 32 bits
    the weights travel as values too, so that a lossless method with ``gamma = 1`` is FedAvg to the
    bit.
    """

    begins_anew = True
    server_lr: float = 1.0
    """``gamma``; a method that takes another one sets it."""

    def __init__(
        self,
        bits: int = 8,
        norm: Norm = "linf",
        bucket_size: int | None = None,
        error_feedback: bool = False,
        top_k: float | None = None,
    ) -> None:
        name = type(self).__name__
        self.bits = checked(f"{name}.bits", bits, bits_or())
        self.norm = checked(f"{name}.norm", norm, choice("linf", "l2"))
        self.bucket_size = checked(f"{name}.bucket_size", bucket_size, or_none(count(1)))
        self.error_feedback = checked(f"{name}.error_feedback", error_feedback, true_or_false)
        if error_feedback and self.norm != "linf":
            raise ValueError(
                f"{name}.error_feedback needs {name}.norm: linf, got {self.norm}: what is carried "
                "is rounded to the nearest codes"
            )
        self.top_k = checked(f"{name}.top_k", top_k, or_none(within(f"[{_LEAST_SHARE}, 1)")))
        if top_k is None:
            return
        if self.bits == 32 or self.bucket_size is not None:
            raise ValueError(
                f"{name}.top_k needs codes with one scale a tensor: {name}.bits must be 2..16 and "
                f"{name}.bucket_size null, got {self.bits} and {self.bucket_size}"
            )

    def quantised(self, params: Params) -> list[str]:
        """Names of the tensors that travel as quantised differences."""
        if self.bits == 32:
            return []
        return [name for name, tensor in params.items() if tensor.ndim >= 2]

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
        # rounding draws from a stream of its own, so that the data come in the same order at any
        # bits
        generator = None if self.error_feedback else run.rng.torch("quant_up", device=run.device)
        bits = self.bits_of(run)
        for name in self.quantised(run.received):
            difference = with_error(run, name, run.received[name] - values[name])
            coded = self._coded(name, difference, bits, generator)
            update |= coded
            if self.error_feedback:
                sent = self.join(coded, {name: difference})[name]
                keep_error(run, name, difference, sent)
        return update

    def _coded(
        self, name: str, difference: Tensor, bits: int, generator: torch.Generator | None
    ) -> dict[str, QuantizedTensor]:
        """A difference as it is sent: its buckets, or its largest entries."""
        if self.top_k is not None:
            few = qsgd(largest(difference, self.top_k), bits, self.norm, generator)
            return {name: replace(few, sparse=True)}
        parts = buckets(name, difference, self.bucket_size)
        # an uncut tensor keeps its shape, whose rows are no buckets: it has one norm
        by_row = parts[name] is not difference
        return {key: qsgd(part, bits, self.norm, generator, by_row) for key, part in parts.items()}

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
        differences = self.mean_difference(server.params, aggregate)
        stepped = {
            name: self.stepped(name, server.params[name], difference)
            for name, difference in differences.items()
        }
        # w - (w - mean) differs from the mean in its last bits, and at 32 bits FedAvg's are
        # promised
        for name in aggregate.keys() - self.quantised(server.params):
            if self._rate(name) == 1:
                stepped[name] = aggregate[name]
        return self.apply_mean(server, stepped)

    def stepped(self, name: str, weight: Tensor, difference: Tensor) -> Tensor:
        """Where the server's step leads a tensor; a client that makes it has the same bits."""
        return weight - self._rate(name) * difference

    def _rate(self, name: str) -> float:
        # buffers of the module's own are averaged, whatever the step
        return self.server_lr if name in self._trained else 1.0

    def mean_difference(self, params: Params, aggregate: Params) -> Params:
        """``mean_i Q(w_t - w_i)`` of all tensors that clients send."""
        quantised = self.quantised(params)
        differences = {}
        for name, value in params.items():
            if name in quantised and name in aggregate:
                differences[name] = aggregate[name]
            elif name in aggregate:
                differences[name] = value - aggregate[name]
        return differences

    def reconstruct(self, update: Tensors, client: Client, server: ServerState) -> Params:
        """Differences and values in float32, in the shapes of the model."""
        return self.join(update, server.params)

    def join(self, update: Tensors, params: Params) -> Params:
        """An update with its buckets joined, in the shapes of `params`."""
        tensors = float_tensors(update)
        for name in self.quantised(params):
            if parts := [tensors[key].reshape(-1) for key in (name, name + REST) if key in tensors]:
                joined = torch.cat(parts) if len(parts) > 1 else parts[0]
                tensors[name] = joined.view(params[name].shape)
        return {name: tensors[name] for name in params if name in tensors}
