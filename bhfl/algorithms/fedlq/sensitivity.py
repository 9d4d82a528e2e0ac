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

from bhfl.algorithms.fedlq.significance import Probe, curvature, probe
from bhfl.checks import are_all, check_options, choice, count, is_integer, within
from bhfl.engine.algorithm import Context, LocalRun
from bhfl.engine.buffers import tracks_statistics
from bhfl.engine.devices import FLOAT
from bhfl.engine.roster import one_of_each
from bhfl.engine.types import Client, Params, ServerState
from bhfl.quant import BitSpec, quantize, set_spec_

Source = Literal["server", "clients"]
Metric = Literal["loss", "accuracy"]
Joint = Literal["ratio", "convex"]


def _widths_problem(bits: Sequence[int]) -> str:
    """What is wrong with widths to probe."""
    known = are_all(bits, lambda width: is_integer(width) and 2 <= width <= 16)
    if known and bits and len(set(bits)) == len(bits):
        return ""
    return f"must be distinct widths of 2..16, got {bits!r}"


_CHECKS = {
    "source": choice(*get_args(Source)),
    "bits": _widths_problem,
    "samples": count(1),
    "refresh": count(1),
    "decay": within("[0, 1)"),
    "shrinkage": within("[0, 1]"),
    "metric": choice(*get_args(Metric)),
    "joint": choice(*get_args(Joint)),
}
HARM = ":harm"
"""What a client that probes sends besides: the harm of each layer at each probed width, float32 [L,
P].
"""


@dataclass(frozen=True)
class Sensitivity:
    """How the curvature of each layer is measured: by probes, which quantise one layer at a time.

    Args:
        source: Who probes: the ``server`` on ``data.holdout`` samples, or the ``clients`` on their
            own.
        bits: Widths to probe; few and low ones say most.
        samples: Examples that a client probes with.
        refresh: Rounds between probes.
        decay: Decay of the moving average over probes, in [0, 1).
        shrinkage: 1 believes the probes alone, 0 does without them and gives all layers the same
            curvature.
        metric: What harm is measured in: ``loss`` or ``accuracy``.
        joint: How harm and memory are joined in the significance that is logged: ``ratio`` or
            ``convex``.

    Raises:
        ValueError: An option is out of its range.
    """

    source: Source = "server"
    bits: tuple[int, ...] = (2, 4)
    samples: int = 256
    refresh: int = 10
    decay: float = 0.7
    shrinkage: float = 0.5
    metric: Metric = "loss"
    joint: Joint = "ratio"

    def __post_init__(self) -> None:
        """Check the options."""
        check_options("FedLQ.sensitivity", self, _CHECKS)

    def check(self, context: Context) -> None:
        """ValueError where the server is to probe and cannot."""
        if self.source != "server" or not self.shrinkage:
            return
        if context.settings.aggregation.norm == "local" and tracks_statistics(context.module):
            raise ValueError(
                "trainer.norm: local keeps running statistics on the clients, so "
                "FedLQ.sensitivity.source: server has none to probe with; set "
                "sensitivity.source: clients"
            )
        if not context.data.num_holdout():
            raise ValueError(
                "data.holdout must be at least 1 for FedLQ.sensitivity.source: server, got 0; or "
                "set sensitivity.source: clients, or sensitivity.shrinkage: 0, which does without "
                "probes"
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
        if known is None:
            return torch.ones(num_layers, dtype=torch.float64)
        return curvature(known, self.shrinkage)

    # ---- what is known ---------------------------------------------------------------------------

    def stored(self, known: Probe | None) -> dict[str, Tensor] | None:
        """A probe as `ServerState.extra` holds it."""
        return None if known is None else {"harm": known.harm, "distortion": known.distortion}

    def restored(self, server: ServerState, layers: Sequence[str]) -> Probe | None:
        """The probe that `ServerState.extra` holds."""
        state = server.extra["probe"]
        return None if state is None else self._made(server.params, layers, **state)

    def _made(
        self, params: Params, layers: Sequence[str], harm: Tensor, distortion: Tensor
    ) -> Probe:
        sizes = tuple(params[name].numel() for name in layers)
        return Probe(tuple(layers), sizes, tuple(self.bits), harm, distortion)

    # ---- on the server ---------------------------------------------------------------------------

    def begin_round(
        self, context: Context, server: ServerState, layers: Sequence[str]
    ) -> Probe | None:
        """What is known for this round; collective, rank 0 probes where the server is to."""
        known = self.restored(server, layers)
        # a round that was skipped lost its probe, which then is made in the next
        due = known is None or self.is_due(server.round, "server")
        if self.source != "server" or not self.shrinkage or not due:
            return known
        fresh = None
        if context.fabric.is_global_zero:
            worker = context.worker
            # probes run in float32, so running statistics of float clients fit best
            floats = [
                client.bits for client in one_of_each(context.clients) if client.spec.is_float
            ]
            group = [*floats, context.clients[0].bits][0]
            worker.load({**server.params, **context.buffers(server, group)}, FLOAT)
            batches = context.data.holdout_batches
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
        mean = torch.zeros(len(layers), len(self.bits), dtype=torch.float64)
        for _, weight, harm in harms:
            mean += weight / total * harm.double()
        distortion = torch.zeros_like(mean)
        # the error is that of the weights which the clients probed: the ones they were sent
        for row, name in enumerate(layers):
            weights = server.params[name]
            for column, bits in enumerate(self.bits):
                error = quantize(weights, bits).dequantize() - weights
                distortion[row, column] = error.double().square().sum()
        fresh = self._made(server.params, layers, mean, distortion)
        return fresh.blend(known, self.decay) if known else fresh

    def expected(self, round: int, num_layers: int) -> dict[str, Tensor]:
        """What comes with the updates of a round."""
        if not self.is_due(round, "clients"):
            return {}
        return {HARM: torch.empty(num_layers, len(self.bits))}

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
            run.client.devices.set_(run.module)
        run.num_examples += self.examples(run.client, run.round, len(layers))
        return {HARM: found.harm.float()}

    def _probe(
        self, module: nn.Module, layers: Sequence[str], measure: Callable[[], Mapping[str, Any]]
    ) -> Probe:
        def evaluate(_: nn.Module) -> tuple[float, float]:
            metrics = measure()
            wanted = "acc" if self.metric == "accuracy" else "loss"
            if wanted not in metrics:
                raise ValueError(
                    f"FedLQ probes the validation {wanted}, which the model does not log: it logs "
                    f"{', '.join(sorted(metrics)) or 'nothing'}"
                )
            return metrics.get("loss", math.nan), metrics.get("acc", math.nan)

        return probe(module, layers, self.bits, evaluate, metric=self.metric)


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
