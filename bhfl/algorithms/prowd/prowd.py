"""ProWD. Yoon, Park, Jeong, Hwang, ICML 2022, https://arxiv.org/abs/2202.11453."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, Optional, Union

import lightning as L
import torch
from torch import Tensor, nn

from bhfl.algorithms.differences import qsgd
from bhfl.algorithms.grouped import precision
from bhfl.algorithms.prowd.aggregation import Fill, MaskOptions, Scope, Selected, SelectiveMean
from bhfl.algorithms.prowd.blocks import Arch, Bound
from bhfl.algorithms.prowd.dequantizer import ProgressiveDequantizer
from bhfl.algorithms.prowd.finetune import FineTuning, own_copy
from bhfl.algorithms.prowd.selection import mask_limit
from bhfl.comm import float_tensors
from bhfl.engine.algorithm import Algorithm, Context, LocalRun
from bhfl.engine.random import RandomKeys
from bhfl.engine.types import Client, Params, ServerState, Tensors
from bhfl.quant import QuantizedTensor, quantized_state

_OWN_NAMES = {"bits": "ladder", "lr": "dequantizer_lr"}
"""Of the dequantizer's arguments that are called otherwise here."""


class ProWD(Algorithm):
    """Progressive weight dequantisation and selective weight aggregation.

    A trainable dequantizer raises low-bit weights to float32 before they are averaged; a mask keeps
    of each low-bit client only the entries that agree with the move of the high-bit clients. With
    both switched off and ``delta_ref: broadcast`` it is FedAvg.

    Args:
        dequantizer: Use the trainable dequantizer; otherwise low-bit weights are dequantised
            linearly.
        mask: Use the mask; otherwise all entries are averaged.
        coarse: Mean square of a tensor's move, in steps of the low-bit client's grid, below which
            the move is coarse: only coarse moves are masked, and one of mean square m counts as m /
            (m + coarse) of a high-bit client's. With ``delta`` they count wholly in the low-bit
            model, which takes no high-bit move of a tensor that is coarse on average over its
            clients: it was made for another model. Null masks all and counts all wholly, as the
            paper.
        tau: Largest share of entries (a float in (0, 1]) or number of them (an int) that a mask
            keeps.
        scope: One mask a weight tensor (``layer``) or one for all of them (``model``).
        per: One mask a ``client``, or one a bit ``group`` from the group's mean.
        fill: What stands for dropped entries: nothing, the rest is ``renorm``-alised; no change
            (``delta``); the ``high`` group's mean; or zero, as the paper's formula reads
            (``literal``).
        global_models: ``single``, or ``dual``: low-bit clients get the unmasked mean of
            reconstructed weights instead (one reading of the two float32 models that the paper's
            table counts on the downlink).
        payload: What low-bit clients send: their ``weights``, as in the paper; or how much these
            differ from the ones that they were sent (``delta``), rounded without bias at their own
            bits, one scale an output channel. The dequantizer learns from weights, so it has to be
            off with ``delta``.
        delta_ref: Where the move of a client that sends weights is measured from: what it makes of
            the broadcast weights at its bits, the move being added to them (``dequant_start``), so
            that rounding the broadcast is no part of the average; or the ``broadcast`` weights, its
            own weights being averaged as they are.
        high_max_age: Rounds for which the last high-bit move serves when a round has no high-bit
            client.
        ladder: Widths that the dequantizer climbs; by default the fleet's, with doublings in
            between.
        warmup_rounds: The round in which the dequantizer is trained first.
        period: Rounds between its fine-tunings.
        first_steps: Its optimiser steps the first time.
        steps: Its optimiser steps each time after.
        distill_weight: Weight (lambda) of distillation beside reconstruction; 0 needs no buffer.
        buffer_size: Samples of the server's buffer, out of `data.holdout`.
        pool_size: High-bit models that it learns from.
        dequantizer_lr: Its learning rate.
        arch: Of its blocks.
        bound: Of its blocks.

    Raises:
        ValueError: An argument is out of its range; in `setup`, the fleet, the data or the model do
            not fit.
    """

    def __init__(
        self,
        dequantizer: bool = True,
        mask: bool = True,
        coarse: Optional[float] = 0.1,
        tau: Union[int, float] = 0.05,
        scope: Scope = "layer",
        per: Literal["client", "group"] = "client",
        fill: Fill = "renorm",
        global_models: Literal["single", "dual"] = "dual",
        payload: Literal["weights", "delta"] = "weights",
        delta_ref: Literal["broadcast", "dequant_start"] = "dequant_start",
        high_max_age: int = 5,
        ladder: Optional[list[int]] = None,
        warmup_rounds: int = 5,
        period: int = 5,
        first_steps: int = 100,
        steps: int = 30,
        distill_weight: float = 1.0,
        buffer_size: int = 128,
        pool_size: int = 4,
        dequantizer_lr: float = 1e-3,
        arch: Arch = "conv1d",
        bound: Bound = "auto",
    ) -> None:
        mask_limit(tau, 1)
        counts = {
            "warmup_rounds": warmup_rounds,
            "period": period,
            "first_steps": first_steps,
            "steps": steps,
        }
        for key, value in (counts | {"buffer_size": buffer_size, "pool_size": pool_size}).items():
            if value < 1:
                raise ValueError(f"ProWD.{key} must be at least 1, got {value}")
        if high_max_age < 0:
            raise ValueError(f"ProWD.high_max_age must be >= 0, got {high_max_age}")
        if coarse is not None and not 0 < coarse < math.inf:
            raise ValueError(f"ProWD.coarse must be positive and finite, or null, got {coarse}")
        chosen: list[tuple[str, str, tuple[str, ...]]] = [
            ("scope", scope, ("layer", "model")),
            ("per", per, ("client", "group")),
            ("fill", fill, ("renorm", "delta", "high", "literal")),
            ("global_models", global_models, ("single", "dual")),
            ("payload", payload, ("weights", "delta")),
            ("delta_ref", delta_ref, ("broadcast", "dequant_start")),
        ]
        for key, choice, choices in chosen:
            if choice not in choices:
                raise ValueError(f"ProWD.{key} must be one of {', '.join(choices)}, got {choice!r}")
        if dequantizer and payload == "delta":
            raise ValueError(
                "ProWD.dequantizer learns from weights and must be false with ProWD.payload: "
                "delta, got true"
            )
        self.mask = MaskOptions(mask, coarse, tau, scope, per, fill)
        self.global_models = global_models
        self.payload = payload
        self.delta_ref = delta_ref
        self.high_max_age = high_max_age
        self.use_dequantizer = dequantizer
        self.ladder = ladder
        self.pool_size = pool_size
        self.warmup_rounds = warmup_rounds
        self.period = period
        self.first_steps = first_steps
        self.steps = steps
        self.buffer_size = buffer_size
        self.block_options: dict[str, Any] = {
            "arch": arch,
            "bound": bound,
            "lr": dequantizer_lr,
            "distill_weight": distill_weight,
        }
        try:
            ProgressiveDequantizer(ladder or (2, 32), **self.block_options)
        except ValueError as error:
            key, _, rule = str(error).partition(" ")
            raise ValueError(f"ProWD.{_OWN_NAMES.get(key, key)} {rule}") from None

    # ---- setting up ------------------------------------------------------------------------------

    def prepare(self, module: nn.Module, clients: list[Client]) -> None:
        """Find the high-bit group, whose clients send weights."""
        self.specs = {client.group: client.spec for client in clients}
        self.top = max(self.specs, key=lambda group: precision(self.specs[group]))

    def setup(self, context: Context) -> None:
        """See whether there are high-bit clients to learn from, and what the dequantizer needs.

        Raises:
            ValueError: No high-bit group, a ladder that misses a width, or a buffer larger than the
                held-out data.
        """
        specs = self.specs
        self.seed = context.settings.cohort.seed
        top = specs[self.top].weights
        low = [spec for group, spec in specs.items() if group != self.top]
        if not low and top < 32:
            raise ValueError(
                f"ProWD needs a high-bit group beside the low-bit ones, got only {self.top} clients"
            )
        self.tuning: FineTuning | None = None
        widths = sorted({spec.weights for spec in low if spec.weights < top})
        if self.use_dequantizer and widths:
            ladder = self.ladder or doublings([*widths, top])
            if missing := [width for width in (*widths, top) if width not in ladder]:
                raise ValueError(
                    f"ProWD.ladder must hold every width of the fleet, got {ladder} without "
                    f"{missing[0]}"
                )
            network, inputs = self._probe(context)
            self.tuning = FineTuning(
                lambda: ProgressiveDequantizer(
                    [w for w in ladder if w <= top], seed=self.seed, **self.block_options
                ),
                [spec for spec in low if spec.weights < top],
                network,
                inputs,
            )

    def _probe(self, context: Context) -> tuple[Any, Tensor | None]:
        """The network and the buffer of distillation."""
        if not self.block_options["distill_weight"]:
            return None, None
        held_out = getattr(context.data, "holdout", 0)
        if held_out < self.buffer_size:
            raise ValueError(
                f"data.holdout must be at least ProWD.buffer_size={self.buffer_size}, got "
                f"{held_out}; or set ProWD.distill_weight: 0"
            )
        network = own_copy(context.module)
        if type(network).forward is L.LightningModule.forward:
            raise ValueError(
                "ProWD distils through the model's forward(inputs), which "
                f"{type(network).__name__} does not define; define it, or set "
                "ProWD.distill_weight: 0"
            )
        inputs: Tensor = context.data.holdout_inputs()  # type: ignore[attr-defined]
        # they may be sorted by class
        spread = torch.arange(self.buffer_size) * len(inputs) // self.buffer_size
        return network, inputs[spread]

    def init_server(self, params: Params, clients: list[Client]) -> dict[str, Any]:
        """No high-bit move yet; the identity for a dequantizer."""
        return {
            "move": None,
            "low": params if self.global_models == "dual" else None,
            "pool": [],
            "dequantizer": self.tuning.initial() if self.tuning else None,
            "published_MB": 0.0,
        }

    # ---- rounds ----------------------------------------------------------------------------------

    def downlink(self, server: ServerState, client: Client) -> Tensors:
        """The client's global model."""
        return self.group_params(server, client.group)

    def group_params(self, server: ServerState, group: str) -> Params:
        """The selective aggregate, or with ``dual`` the plain one for low-bit groups."""
        low: Params | None = server.extra["low"]
        return server.params if low is None or group == self.top else low

    def uplink(self, run: LocalRun) -> Tensors | None:
        """Weights at the client's bits; with ``delta``, a low-bit client's differences ``w_t -
        w_i``.
        """
        update = quantized_state(run.module)
        if self.payload == "weights" or run.client.group == self.top:
            return update
        values = run.module.state_dict()
        generator = run.rng.torch("quant_up", device=run.device)
        for name, value in update.items():
            if isinstance(value, QuantizedTensor):
                update[name] = qsgd(
                    run.received[name] - values[name], value.bits, "linf", generator, by_row=True
                )
        return update

    def reconstruct(self, update: Tensors, client: Client, server: ServerState) -> Any:
        """High-bit weights in float32; low-bit tensors wait as they are."""
        return float_tensors(update) if client.group == self.top else update

    def begin_round(
        self, server: ServerState, cohort: Sequence[Client], context: Context
    ) -> ServerState:
        """Fine-tune the dequantizer where that is due, on the weights of earlier rounds."""
        since = server.round + 1 - self.warmup_rounds
        if self.tuning is None or since < 0 or since % self.period:
            return server
        statistics = server.buffers["statistics"]
        buffers = statistics.get(self.top, statistics.get("all", {}))
        models = server.extra["pool"] or [server.params]
        state, metrics = self.tuning.tune(
            context.fabric,
            server.extra["dequantizer"],
            states=[{**params, **buffers} for params in models],
            steps=self.first_steps if since == 0 else self.steps,
            seed=RandomKeys(self.seed, server.round).integer("server"),
        )
        return replace(server, extra={**server.extra, "dequantizer": state}, metrics=metrics)

    def aggregator(self, server: ServerState, clients: list[Client]) -> SelectiveMean:
        """Hold the round's updates until the high-bit move is known."""
        move = server.extra["move"]
        fresh = move is not None and server.round - move["round"] <= self.high_max_age
        chain = self.tuning.chain(server.extra["dequantizer"]) if self.tuning else None
        return SelectiveMean(
            server.params,
            is_high=lambda client: client.group == self.top,
            raised=chain or float_tensors,
            past_move=move["params"] if fresh else None,
            mask=self.mask,
            pool_size=self.pool_size if self.tuning else 0,
            keep_plain=self.global_models == "dual",
            low_start=server.params if server.extra["low"] is None else server.extra["low"],
            origin="sent" if self.payload == "delta" else self.delta_ref,
        )

    def server_update(
        self, server: ServerState, aggregate: Selected, rng: RandomKeys
    ) -> ServerState:
        """The new model or models, the high-bit move, and the dequantizer's pool."""
        extra = dict(server.extra)
        if aggregate.move is not None:
            extra["move"] = {"params": aggregate.move, "round": server.round}
        if aggregate.plain is not None:
            extra["low"] = aggregate.plain
        if aggregate.pool:
            extra["pool"] = [*server.extra["pool"], *aggregate.pool][-self.pool_size :]
        extra["published_MB"] += (
            aggregate.num_clients * published_downlink_bytes(server.params) / 1e6
        )
        metrics = {**aggregate.metrics, **server.metrics}
        metrics["comm/downlink_published_MB"] = extra["published_MB"]
        return self.apply_mean(replace(server, extra=extra, metrics=metrics), aggregate.params)


def published_downlink_bytes(params: Params) -> int:
    """What the paper's table counts for a client and round: two float32 numbers a weight, one for
    all else.

    One is what is needed and what is sent; this is logged beside the bytes that were measured.
    """
    return sum(4 * tensor.numel() * (2 if tensor.ndim >= 2 else 1) for tensor in params.values())


def doublings(widths: Sequence[int]) -> list[int]:
    """The widths, and between any two of them the doublings of the lower one that are widths.

    >>> doublings([2, 32]), doublings([6, 32]), doublings([6, 8, 12, 16])
    ([2, 4, 8, 16, 32], [6, 12, 32], [6, 8, 12, 16])
    """
    ladder = [widths[0]]
    for width in widths[1:]:
        while (double := ladder[-1] * 2) < width and double <= 16:
            ladder.append(double)
        ladder.append(width)
    return ladder
