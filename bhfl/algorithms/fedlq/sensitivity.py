"""When FedLQ probes, who does, and what becomes of it: the curvature of each layer, refreshed
during the run.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from bhfl.algorithms.fedlq.significance import Probe, curvature, probe
from bhfl.engine.algorithm import Context, LocalRun
from bhfl.engine.types import Client, Params, ServerState
from bhfl.quant import BitSpec, quantize, set_spec_

Source = Literal["server", "clients"]

HARM = ":harm"
"""What a client that probes sends besides: the harm of each layer at each probed width, float32 [L,
P].
"""


@dataclass(frozen=True)
class Sensitivity:
    """The arguments of `FedLQ` that are about probing.

    Raises:
        ValueError: One is out of its range.
    """

    source: Source
    bits: tuple[int, ...]
    samples: int
    refresh: int
    decay: float
    shrinkage: float
    metric: Literal["loss", "accuracy"]

    def __post_init__(self) -> None:
        if self.source not in get_args(Source):
            raise ValueError(
                f"FedLQ.sensitivity must be one of {', '.join(get_args(Source))}, got "
                f"{self.source!r}"
            )
        if self.metric not in ("loss", "accuracy"):
            raise ValueError(f"FedLQ.metric must be loss or accuracy, got {self.metric!r}")
        if not self.bits or any(not 2 <= width <= 16 for width in self.bits):
            raise ValueError(f"FedLQ.probe_bits must be widths of 2..16, got {list(self.bits)}")
        for key, value in {"probe_samples": self.samples, "refresh": self.refresh}.items():
            if value < 1:
                raise ValueError(f"FedLQ.{key} must be at least 1, got {value}")
        if not 0 <= self.decay < 1:
            raise ValueError(f"FedLQ.decay must be in [0, 1), got {self.decay}")
        if not 0 <= self.shrinkage <= 1:
            raise ValueError(f"FedLQ.shrinkage must be in [0, 1], got {self.shrinkage}")

    def check(self, context: Context) -> None:
        """ValueError where the server is to probe and cannot."""
        norms = [
            m
            for m in context.module.modules()
            if isinstance(m, _NormBase) and m.track_running_stats
        ]
        if (
            self.source == "server"
            and self.shrinkage
            and norms
            and context.settings.aggregation.norm == "local"
        ):
            raise ValueError(
                "trainer.norm: local keeps running statistics on the clients, so "
                "FedLQ.sensitivity: server has none to probe with; set sensitivity: clients"
            )
        if self.source == "server" and self.shrinkage and not getattr(context.data, "holdout", 0):
            raise ValueError(
                "data.holdout must be at least 1 for FedLQ.sensitivity: server, got 0; or set "
                "sensitivity: clients, or shrinkage: 0, which does without probes"
            )

    def is_due(self, round: int, source: Source) -> bool:
        """Whether `source` probes in a round."""
        return self.source == source and self.shrinkage > 0 and round % self.refresh == 0

    def examples(self, client: Client, round: int, num_layers: int) -> int:
        """What a client's probing costs, in examples of training: a forward pass is a third of
        one.
        """
        if not self.is_due(round, "clients"):
            return 0
        passes = 1 + num_layers * len(self.bits)
        return math.ceil(passes * min(self.samples, client.num_examples) / 3)

    def curvature(self, known: Probe | None, num_layers: int) -> Tensor:
        """``h``, [L]; all ones as long as nothing was probed."""
        return (
            torch.ones(num_layers, dtype=torch.float64)
            if known is None
            else curvature(known, self.shrinkage)
        )

    # ---- on the server ---------------------------------------------------------------------------

    def begin_round(
        self, context: Context, server: ServerState, layers: Sequence[str]
    ) -> Probe | None:
        """What is known for this round; collective, rank 0 probes where the server is to."""
        known = self.restored(server.extra["probe"], layers, server.params)
        asked = self.source == "server" and self.shrinkage > 0
        if not asked or (known is not None and not self.is_due(server.round, "server")):
            return known
        fresh: Probe | None = None
        if context.fabric.is_global_zero:
            worker = context.worker
            group = next(
                (c.group for c in context.clients if c.spec.is_float), context.clients[0].group
            )
            worker.load({**server.params, **context.buffers(server, group)}, BitSpec())
            batches = context.data.holdout_batches  # type: ignore[attr-defined]
            fresh = self._probe(worker.module, layers, lambda: worker.evaluate(batches(), "val"))
        fresh = context.fabric.broadcast(fresh)
        assert fresh is not None
        return fresh.blend(known, self.decay) if known else fresh

    def end_round(
        self,
        known: Probe | None,
        server: ServerState,
        layers: Sequence[str],
        harms: Sequence[tuple[int, float, Tensor]],
    ) -> Probe | None:
        """What is known after it: the weighted mean of what its clients measured, where they
        did.
        """
        if not harms:
            return known
        total = math.fsum(weight for _, weight, _ in harms)
        mean = sum(weight / total * harm.double() for _, weight, harm in harms)
        assert isinstance(mean, Tensor)
        fresh = Probe(
            tuple(layers),
            _sizes(server.params, layers),
            self.bits,
            mean,
            self._distortion(server.params, layers),
        )
        return fresh.blend(known, self.decay) if known else fresh

    def _distortion(self, params: Params, layers: Sequence[str]) -> Tensor:
        """Squared errors of the weights that the clients probed, [L, P]."""
        rows = [
            [
                float(
                    (quantize(params[name], bits).dequantize() - params[name])
                    .double()
                    .square()
                    .sum()
                )
                for bits in self.bits
            ]
            for name in layers
        ]
        return torch.tensor(rows, dtype=torch.float64)

    def stored(self, known: Probe | None) -> dict[str, Tensor] | None:
        """For `ServerState.extra`."""
        return None if known is None else {"harm": known.harm, "distortion": known.distortion}

    def restored(
        self, state: Mapping[str, Tensor] | None, layers: Sequence[str], params: Params
    ) -> Probe | None:
        """The inverse."""
        if state is None:
            return None
        return Probe(
            tuple(layers), _sizes(params, layers), self.bits, state["harm"], state["distortion"]
        )

    def expected(self, round: int, num_layers: int) -> dict[str, Tensor]:
        """What comes with the updates of a round."""
        return (
            {HARM: torch.empty(num_layers, len(self.bits))} if self.is_due(round, "clients") else {}
        )

    # ---- on a client -----------------------------------------------------------------------------

    def of_client(self, run: LocalRun, layers: Sequence[str]) -> dict[str, Tensor]:
        """What the client measures on the weights that it was sent, in rounds where clients
        probe.
        """
        if not self.is_due(run.round, "clients"):
            return {}
        with _holding(run.module, run.received):
            # as the server would: what clients measure does not depend on their bits
            set_spec_(run.module, BitSpec())
            found = self._probe(run.module, layers, lambda: run.evaluate(self.samples))
            set_spec_(run.module, run.client.spec)
        run.num_examples += self.examples(run.client, run.round, len(layers))
        return {HARM: found.harm.float()}

    def _probe(
        self, module: nn.Module, layers: Sequence[str], measure: Callable[[], Mapping[str, float]]
    ) -> Probe:
        def evaluate(_: nn.Module) -> tuple[float, float]:
            metrics: Mapping[str, Any] = measure()
            wanted = "acc" if self.metric == "accuracy" else "loss"
            if wanted not in metrics:
                logged = ", ".join(sorted(metrics)) or "nothing"
                raise ValueError(
                    f"FedLQ probes the validation {wanted}, which the model does not log: it logs "
                    f"{logged}"
                )
            return metrics.get("loss", math.nan), metrics.get("acc", math.nan)

        return probe(module, layers, self.bits, evaluate, metric=self.metric)


def _sizes(params: Params, layers: Sequence[str]) -> tuple[int, ...]:
    return tuple(params[name].numel() for name in layers)


@contextmanager
def _holding(module: nn.Module, weights: Params) -> Iterator[None]:
    """The module with other weights, and then with its own."""
    state = module.state_dict()
    own = {name: state[name].clone() for name in weights}
    try:
        _fill(state, weights)
        yield
    finally:
        _fill(state, own)


@torch.no_grad()
def _fill(state: Mapping[str, Tensor], weights: Params) -> None:
    for name, value in weights.items():
        state[name].copy_(value)
