"""FedLQ: each layer its own bits, for each client, under its own link; after Xu et al., Computer
Networks 264, 2025.

Only the paper's abstract is public. It fixes the idea: layer-wise widths from layer significance,
memory saved against accuracy lost, with a convergence bound behind it. The rest is the design of
this project.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, Union

import torch
from lightning.fabric import Fabric
from torch import Tensor, nn

from bhfl.algorithms.differences import qsgd
from bhfl.algorithms.fedlq.allocation import Allocation, Solver, allocate
from bhfl.algorithms.fedlq.bound import convergence_bound
from bhfl.algorithms.fedlq.budget import Budget, Rule, Traffic, rounded_down
from bhfl.algorithms.fedlq.mean import MixedMean
from bhfl.algorithms.fedlq.sensitivity import HARM, Sensitivity, Source
from bhfl.algorithms.fedlq.significance import layer_costs, significance, variance_table
from bhfl.comm import Tensors, encoded_bytes, float_tensors
from bhfl.engine.algorithm import Algorithm, Context, LocalRun
from bhfl.engine.processes import gather
from bhfl.engine.random import RandomKeys
from bhfl.engine.types import Client, Params, ServerState
from bhfl.quant import QuantizedTensor, layer_weights, quantized_state

_MOST_CURVED = 1e30
"""Above it a curvature is no finite float32, or its product with a variance none."""

PLAN = ":plan"
"""What goes down beside the model: with ``plan: client`` the curvatures and the deadline, float32
[L + 1]; with ``plan: server`` the layers' bits, uint8 [L], all zero for a client that is to send
nothing, and all with the highest bit set where not even the least payload fits.
"""

_INFEASIBLE = 128


class FedLQ(Algorithm):
    """Layer-wise quantised uplinks, the bits of each layer chosen to cost the least expected loss
    within a budget.

    A client that has trained knows what each layer would lose at each width: ``C_l(b) = h_l V_l(b)
    / 2``, the curvature ``h_l`` measured by probing on held-out data, the variance ``V_l(b)`` of
    the stochastic quantiser in closed form. A multiple-choice knapsack then spends its budget.
    Clients that compute with b bits send at most b.

    Args:
        payload: ``weights``: the model itself; ``delta``: its difference from the one that was sent
            (FedLQ-delta).
        candidates: Widths to choose from, 2..16 or 32 (float32).
        budget: ``average``, ``deadline`` or ``quantile``; see
            `bhfl.algorithms.fedlq.budget.Budget`.
        average_bits: Codes of a weight that the budget is for, with ``average`` and ``quantile``.
        quantile: Share of the cohort that ``quantile`` gives the time for it.
        solver: ``dp`` (exact), ``greedy`` or ``greedy_down``, by significance.
        infeasible: What a client does whose budget is below the least payload: send it all the same
            (``late``, and so it will be where the network has a deadline) or nothing (``skip``).
        plan: Who allocates: the ``client`` from what it is about to send, or the ``server`` from
            the last round's.
        sensitivity: Who probes: the ``server`` on ``data.holdout`` samples, or the ``clients`` on
            their own.
        probe_bits: Widths to probe; few and low ones say most.
        probe_samples: Examples that a client probes with.
        refresh: Rounds between probes.
        decay: Of the moving average over probes, in [0, 1).
        shrinkage: 1 believes the probes alone, 0 does without them and gives all layers the same
            curvature.
        metric: What harm is measured in: ``loss`` or ``accuracy``.
        joint: How harm and memory are joined in the significance that is logged: ``ratio`` or
            ``convex``.

    Raises:
        ValueError: An argument is out of its range; in `setup`, model, fleet, data or network do
            not fit.
    """

    def __init__(
        self,
        payload: Literal["weights", "delta"] = "weights",
        candidates: Sequence[int] = (2, 3, 4, 6, 8, 16, 32),
        budget: Rule = "average",
        average_bits: Union[int, float] = 4,
        quantile: float = 0.8,
        solver: Solver = "dp",
        infeasible: Literal["late", "skip"] = "late",
        plan: Literal["client", "server"] = "client",
        sensitivity: Source = "server",
        probe_bits: Sequence[int] = (2, 4),
        probe_samples: int = 256,
        refresh: int = 10,
        decay: float = 0.7,
        shrinkage: float = 0.5,
        metric: Literal["loss", "accuracy"] = "loss",
        joint: Literal["ratio", "convex"] = "ratio",
    ) -> None:
        chosen: list[tuple[str, str, tuple[str, ...]]] = [
            ("payload", payload, ("weights", "delta")),
            ("infeasible", infeasible, ("late", "skip")),
            ("plan", plan, ("client", "server")),
            ("joint", joint, ("ratio", "convex")),
        ]
        for key, choice, choices in chosen:
            if choice not in choices:
                raise ValueError(f"FedLQ.{key} must be one of {', '.join(choices)}, got {choice!r}")
        # raises where these cannot be used
        allocate([[0.0] * len(candidates)], [1], candidates, 1, solver=solver)
        if 0 < average_bits < min(candidates) and budget != "deadline":
            raise ValueError(
                f"FedLQ.average_bits must be at least {min(candidates)}, the fewest of candidates, "
                f"got {average_bits}"
            )
        self.payload = payload
        self.candidates = tuple(candidates)
        self.solver = solver
        self.infeasible = infeasible
        self.plan, self.joint = plan, joint
        self.budget = Budget(budget, average_bits, quantile)
        self.sensitivity = Sensitivity(
            sensitivity, tuple(probe_bits), probe_samples, refresh, decay, shrinkage, metric
        )

    # ---- setting up ------------------------------------------------------------------------------

    def prepare(self, module: nn.Module, clients: list[Client]) -> None:
        """Find the layers.

        Raises:
            ValueError: The model has no quantisable layer, or a client computes with fewer bits
                than any candidate.
        """
        found = {id(module.get_parameter(name)) for name in layer_weights(module)}
        first: dict[int, str] = {}  # tied weights travel once, under the first of their names
        for name, tensor in module.state_dict(keep_vars=True).items():
            if id(tensor) in found:
                first.setdefault(id(tensor), name)
        self.layers = [name for name in first.values() if module.get_parameter(name).numel()]
        if not self.layers:
            raise ValueError(
                "FedLQ needs a layer with weights: all that can be quantised are empty"
            )
        self.sizes = [module.get_parameter(name).numel() for name in self.layers]
        for client in clients:
            if not self._candidates(client):
                raise ValueError(
                    f"FedLQ.candidates must hold a width of at most {client.spec.weights} for "
                    f"{client.group} clients, got {list(self.candidates)}"
                )

    def setup(self, context: Context) -> None:
        """Check that what the budget and the probes read is there.

        Raises:
            ValueError: There is no such network, or there are no held-out data to probe on.
        """
        self._max_rounds = context.settings.stopping.max_rounds
        self.budget.check(context.timing)
        self.sensitivity.check(context)

    def _candidates(self, client: Client) -> list[int]:
        return [bits for bits in self.candidates if bits <= client.spec.weights]

    def init_server(self, params: Params, clients: list[Client]) -> dict[str, Any]:
        """No probe yet; the variances of the first plan are those of the weights."""
        variances = variance_table([params[name] for name in self.layers], self.candidates)
        return {"probe": None, "variances": variances if self.plan == "server" else None}

    # ---- what goes down --------------------------------------------------------------------------

    def begin_round(
        self, server: ServerState, cohort: Sequence[Client], context: Context
    ) -> ServerState:
        """Probe, in rounds where the server is to; and settle the round's deadline and its plan,
        which `extra` holds until the round ends.
        """
        probe = self.sensitivity.begin_round(context, server, self.layers)
        curvature = self.sensitivity.curvature(probe, len(self.layers))
        told = torch.cat([curvature.clamp(max=_MOST_CURVED).float(), torch.zeros(1)])
        traffic = self._traffic(server, context, context.clients[0].group, told)
        examples = {client.id: self._examples(client, server.round, context) for client in cohort}
        deadline = self.budget.deadline_seconds(
            context.timing, server.round, traffic, cohort, examples
        )
        told[-1] = rounded_down(deadline)
        plan: Tensor | dict[int, Tensor] = told
        if self.plan == "server":
            plan = self._planned(server, context, cohort, curvature, deadline)
        extra = {**server.extra, "probe": self.sensitivity.stored(probe), "plan": plan}
        return replace(server, extra=extra)

    def downlink(self, server: ServerState, client: Client) -> Tensors:
        """The model, and what the client needs to choose its bits, or the bits."""
        plan = server.extra["plan"]
        return {**server.params, PLAN: plan[client.id] if self.plan == "server" else plan}

    def receive(self, received: Params, state: dict[str, Tensor]) -> Params:
        """The model."""
        return {name: tensor for name, tensor in received.items() if name != PLAN}

    def _planned(
        self,
        server: ServerState,
        context: Context,
        cohort: Sequence[Client],
        curvature: Tensor,
        deadline: float,
    ) -> dict[int, Tensor]:
        """The server's choice for each client, by its id; every process plans for some of them.

        The variances are those of what the last round came to.
        """
        timing, fabric = context.timing, context.fabric
        mine = []
        for client in cohort[fabric.global_rank :: fabric.world_size]:
            nothing = torch.zeros(len(self.layers), dtype=torch.uint8)
            traffic = self._traffic(server, context, client.group, nothing)
            link = timing.link(server.round, client, len(cohort)) if timing else None
            examples = self._examples(client, server.round, context)
            room = self.budget.layer_bits(traffic, link, examples, deadline)
            allocation = self._allocate(curvature, server.extra["variances"], client, room)
            sends = allocation.feasible or self.infeasible == "late"
            plan = torch.tensor(allocation.bits, dtype=torch.uint8) if sends else nothing
            mine.append((client.id, plan if allocation.feasible else plan | _INFEASIBLE))
        return dict(sorted(gather(fabric, mine), key=lambda planned: planned[0]))

    def _traffic(self, server: ServerState, context: Context, group: str, plan: Tensor) -> Traffic:
        """What a client of a group and the server send each other."""
        layers = {name: server.params[name] for name in self.layers}
        both_ways = {**server.params, **context.buffers(server, group)}
        others = {name: tensor for name, tensor in both_ways.items() if name not in layers}
        up = {**others, **self.sensitivity.expected(server.round, len(self.layers))}
        return Traffic(layers, up, encoded_bytes({**layers, **others, PLAN: plan}))

    def _examples(self, client: Client, round: int, context: Context) -> int:
        """Examples that a client is going to compute on, probing included."""
        timing = context.timing
        planned = timing.planned(client, context.data) if timing else 0
        return planned + self.sensitivity.examples(client, round, len(self.layers))

    def _allocate(
        self, curvature: Tensor, variances: Tensor, client: Client, room: float
    ) -> Allocation:
        candidates = self._candidates(client)
        columns = [self.candidates.index(bits) for bits in candidates]
        costs = layer_costs(curvature, variances[:, columns])
        return allocate(costs.numpy(), self.sizes, candidates, room, solver=self.solver)

    # ---- what goes up ----------------------------------------------------------------------------

    def uplink(self, run: LocalRun) -> Tensors | None:
        """The layers at their bits, everything else in float32; None for a client that is to
        skip.
        """
        state = {
            name: value
            for name, value in quantized_state(run.module).items()
            if name in run.message
        }
        values = float_tensors({name: state[name] for name in self.layers})
        if not all(bool(value.isfinite().all()) for value in values.values()):
            raise ValueError("its weights are not finite after training")
        sent = (
            {n: run.received[n] - v for n, v in values.items()}
            if self.payload == "delta"
            else values
        )
        others = {name: value for name, value in state.items() if name not in values}
        others |= self.sensitivity.of_client(run, self.layers)
        variances = variance_table([sent[name] for name in self.layers], self.candidates)
        bits = self._bits(run, variances, values, others)
        if bits is None:
            return None
        generator = run.rng.torch("quant_up", device=run.device)
        update: dict[str, Tensor | QuantizedTensor] = dict(others)
        for name, width, row in zip(self.layers, bits, variances, strict=True):
            own = state[name]
            if width == 32:
                update[name] = values[name]
            elif (
                self.payload == "weights"
                and isinstance(own, QuantizedTensor)
                and _is_as_computed(own, width)
            ):
                update[name] = own
                row.zero_()
            else:
                update[name] = qsgd(sent[name], width, "linf", generator)
            run.metrics[f"fedlq/bits_{name}"] = float(width)
            run.metrics[f"fedlq/variance_{name}"] = float(row[self.candidates.index(width)])
        run.metrics["fedlq/bits"] = sum(b * n for b, n in zip(bits, self.sizes, strict=True)) / sum(
            self.sizes
        )
        moves = (run.received[name] - values[name] for name in self.layers)
        run.metrics["fedlq/move_squared"] = float(
            sum(move.double().square().sum() for move in moves)
        )
        run.metrics["fedlq/lr_sum"], run.metrics["fedlq/steps"] = run.lr_sum, float(run.num_steps)
        return {name: update[name] for name in (*state, *(update.keys() - state.keys()))}

    def _bits(
        self, run: LocalRun, variances: Tensor, layers: Params, others: Tensors
    ) -> Sequence[int] | None:
        """What the server planned, or the client's own allocation; None to send nothing."""
        plan = run.message[PLAN].cpu()
        if self.plan == "server":
            run.metrics["fedlq/infeasible"] = float((plan & _INFEASIBLE).any())
            bits = _widths(plan)
            return bits if all(bits) else None
        traffic = Traffic(layers, others, run.downlink_bytes)
        room = self.budget.layer_bits(traffic, run.link, run.num_examples, float(plan[-1]))
        allocation = self._allocate(plan[:-1], variances, run.client, room)
        run.metrics["fedlq/infeasible"] = float(not allocation.feasible)
        return allocation.bits if allocation.feasible or self.infeasible == "late" else None

    # ---- the server ------------------------------------------------------------------------------

    def expected(self, server: ServerState) -> Mapping[str, Tensor]:
        """The model, and what clients measure in rounds where they probe."""
        return {**server.params, **self.sensitivity.expected(server.round, len(self.layers))}

    def coded(
        self, server: ServerState, client: Client, layers: list[str]
    ) -> Mapping[str, Collection[int]]:
        """The layers, at the bits that were planned for each, or at any that the client can
        choose.
        """
        chosen: dict[str, tuple[int, ...]]
        if self.plan == "server":
            planned = _widths(server.extra["plan"][client.id])
            bits = dict(zip(self.layers, planned, strict=True))
            chosen = {name: (width,) if width < 32 else () for name, width in bits.items()}
        else:
            allowed = tuple(bits for bits in self._candidates(client) if bits < 32)
            chosen = {name: allowed for name in self.layers}
        return {**super().coded(server, client, layers), **chosen}

    def aggregator(self, server: ServerState, clients: list[Client]) -> _Fold:
        """The mean of the models, and what the clients measured."""
        return _Fold(server.params)

    def reconstruct(self, update: Tensors, client: Client, server: ServerState) -> Tensors:
        """Values, and the quantised differences of ``delta`` as they came; those of ``weights`` are
        values too.

        Raises:
            ValueError: The harm that the client measured is negative.
        """
        harm = update.get(HARM)
        if isinstance(harm, Tensor) and harm.numel() and float(harm.min()) < 0:
            raise ValueError(f"{HARM} must be at least 0, got {float(harm.min()):.4g}")
        return update if self.payload == "delta" else float_tensors(update)

    def server_update(self, server: ServerState, aggregate: Any, rng: RandomKeys) -> ServerState:
        """The mean, the probe, and what the next plan and the bound need."""
        mean, harms = aggregate
        known = self.sensitivity.restored(server.extra["probe"], self.layers, server.params)
        probe = self.sensitivity.end_round(known, server, self.layers, harms)
        moves = [server.params[name] - mean[name] for name in self.layers]
        variances = None
        if self.plan == "server":
            sent = moves if self.payload == "delta" else [mean[name] for name in self.layers]
            variances = variance_table(sent, self.candidates)
        metrics = {"fedlq/step_squared": float(sum(move.double().square().sum() for move in moves))}
        if probe is not None:
            shares = significance(probe, self.joint)
            metrics |= {
                f"fedlq/significance_{n}": float(s)
                for n, s in zip(self.layers, shares, strict=True)
            }
        extra = {"probe": self.sensitivity.stored(probe), "variances": variances}
        return self.apply_mean(replace(server, extra=extra, metrics=metrics), mean)

    def summarize(self, server: ServerState, metrics: Mapping[str, float]) -> dict[str, float]:
        """``fedlq/bound``, its quantisation term and that term by layer, as if all rounds were like
        this one.

        Clients count alike. The loss stands for the gap ``F - F*``; the dispersion of the clients'
        moves, which a server can see, for both the gradients' variance and the clients'
        heterogeneity, so that each is charged in full; and the smoothness is the largest for which
        the theorem holds at this step size, ``1 / (8 eta K)``.
        """
        variances = [f"fedlq/variance_{name}" for name in self.layers]
        needed = (
            "fedlq/lr_sum",
            "fedlq/steps",
            "fedlq/step_squared",
            "fedlq/move_squared",
            "train/loss",
            *variances,
        )
        known = {tag: metrics.get(tag, math.nan) for tag in needed}
        if (
            not all(math.isfinite(value) for value in known.values())
            or not metrics["fedlq/lr_sum"] > 0
        ):
            return {}  # the round came to nothing, or its model to no numbers
        if any(known[tag] < 0 for tag in variances):
            return {}  # a client's own report, which nothing enters but this
        travelled, steps = metrics["fedlq/lr_sum"], max(1, round(metrics["fedlq/steps"]))
        dispersion = (
            max(0.0, metrics["fedlq/move_squared"] - metrics["fedlq/step_squared"]) / travelled**2
        )
        bound = convergence_bound(
            initial_gap=max(0.0, metrics["train/loss"]),
            smoothness=1 / (8 * travelled),
            gradient_variance=steps * dispersion,
            heterogeneity=dispersion,
            learning_rate=travelled / steps,
            local_steps=steps,
            num_rounds=self._max_rounds,
            variances=[[known[tag] for tag in variances]] * int(metrics["clients/ok"]),
        )
        by_layer = zip(self.layers, bound.quantisation_per_layer, strict=True)
        return {
            "fedlq/bound": bound.total,
            "fedlq/bound_quantisation": bound.quantisation,
            **{f"fedlq/bound_{name}": term for name, term in by_layer},
        }


class _Fold(MixedMean):
    """The mean of the models, and beside it what the clients measured."""

    def __init__(self, start: Params) -> None:
        super().__init__(start)
        self.harms: list[tuple[int, float, Tensor]] = []

    def add(self, update: Tensors, client: Client) -> None:
        super().add(update, client)
        if HARM in update:
            self.harms.append((client.id, client.weight, float_tensors(update)[HARM]))

    def reduce(self, fabric: Fabric) -> Any:
        return super().reduce(fabric), sorted(gather(fabric, self.harms), key=lambda harm: harm[0])


def _widths(plan: Tensor) -> list[int]:
    """The layers' bits that the server planned."""
    return (plan % _INFEASIBLE).tolist()


def _is_as_computed(own: QuantizedTensor, width: int) -> bool:
    """Whether a layer at `width` is just what the client computes with, in one scale."""
    return own.bits == width and own.scale.ndim == 0
