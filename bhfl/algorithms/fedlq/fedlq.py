"""FedLQ: each layer its own bits, for each client, under its own link; after Xu et al., Computer
Networks 264, 2025.

Only the paper's abstract is public. It fixes the idea: layer-wise widths from layer significance,
memory saved against accuracy lost, with a convergence bound behind it. The rest is the design of
this project.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from bhfl.algorithms.fedlq.allocation import Solver
from bhfl.algorithms.fedlq.both import BothWays, check_both_ways, check_downlink
from bhfl.algorithms.fedlq.bound import observed_bound
from bhfl.algorithms.fedlq.budget import Budget, Traffic, rounded_down
from bhfl.algorithms.fedlq.candidates import candidates_problem, check_carried, check_left_out
from bhfl.algorithms.fedlq.layers import trained_parts
from bhfl.algorithms.fedlq.mean import ProbedMean
from bhfl.algorithms.fedlq.moves import (
    check_trained,
    coded,
    corrected,
    from_server,
    keep_errors,
    squared_move,
)
from bhfl.algorithms.fedlq.plan import INFEASIBLE, PLAN, check_clients, widths
from bhfl.algorithms.fedlq.planning import Planner
from bhfl.algorithms.fedlq.sensitivity import HARM, Sensitivity
from bhfl.algorithms.fedlq.sides import Sides, check_side_bits
from bhfl.algorithms.fedlq.significance import significance
from bhfl.algorithms.feedback import carry, needs_differences
from bhfl.checks import bits_or, checked, choice, options, true_or_false
from bhfl.comm import Tensors, float_tensors
from bhfl.engine.algorithm import Algorithm, Context, LocalRun
from bhfl.engine.downlink import an_example
from bhfl.engine.random import RandomKeys
from bhfl.engine.types import Client, ClientState, Metrics, Params, ServerState, only, without
from bhfl.quant import QuantizedTensor, quantized_state

_MOST_CURVED = 1e30
"""The largest curvature that goes down: a float32 has to hold it, and costs must be finite."""


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
        candidates: Widths to choose from: 2..16, 32 (float32); and of a ``delta`` with
            `error_feedback`, 1 (signs and a scale) and 0 (left for a later round).
        budget: How many bits a client may send.
        sensitivity: How the curvatures are measured.
        solver: ``dp`` (exact), ``greedy`` or ``greedy_down``, by significance.
        infeasible: What a client does whose budget is below the least payload: send it all the same
            (``late``, and so it will be where the network has a deadline), or nothing: it loses
            what it came to (``skip``), or error feedback has it in its next upload (``carry``).
        plan: Who allocates: the ``client`` from what it is about to send, or the ``server`` from
            the last round's.
        error_feedback: Whether what rounding, to the nearest codes, left out of a client's
            ``delta`` is in its next one.
        both_ways: Whether layers get bits of their own on the way down too, at most those of
            ``trainer.downlink`` with ``send: differences``, from one budget of seconds for both.
        side_bits: Bits of what is trained and is no layer, biases and norms: 32 for values, 2..16
            for differences, of ``delta`` alone.

    Raises:
        ValueError: An argument is out of its range; in `setup`, model, fleet, data or network do
            not fit.
    """

    # what rounding left out of one update is all that a client keeps
    begins_anew = True

    def __init__(  # noqa: PLR0913
        self,
        payload: Literal["weights", "delta"] = "weights",
        candidates: Sequence[int] = (2, 3, 4, 6, 8, 16, 32),
        budget: Budget = Budget(),  # noqa: B008  # frozen
        sensitivity: Sensitivity = Sensitivity(),  # noqa: B008  # frozen
        solver: Solver = "dp",
        infeasible: Literal["late", "skip", "carry"] = "late",
        plan: Literal["client", "server"] = "client",
        error_feedback: bool = False,
        both_ways: bool = False,
        side_bits: int = 32,
    ) -> None:
        self.error_feedback = needs_differences("FedLQ", error_feedback, payload)
        self.payload = checked("FedLQ.payload", payload, choice("weights", "delta"))
        self.candidates = tuple(checked("FedLQ.candidates", candidates, candidates_problem))
        self.budget = checked("FedLQ.budget", budget, options(Budget))
        self.sensitivity = checked("FedLQ.sensitivity", sensitivity, options(Sensitivity))
        self.solver = checked("FedLQ.solver", solver, choice(*get_args(Solver)))
        self.infeasible = checked("FedLQ.infeasible", infeasible, choice("late", "skip", "carry"))
        check_carried(infeasible, error_feedback, budget.rule)
        self.plan = checked("FedLQ.plan", plan, choice("client", "server"))
        check_left_out(self.candidates, error_feedback, plan)
        self.both_ways = checked("FedLQ.both_ways", both_ways, true_or_false)
        if both_ways:
            check_both_ways(budget.rule, plan)
        self.side_bits = checked("FedLQ.side_bits", side_bits, bits_or())
        check_side_bits(side_bits, payload)
        if budget.average_bits < min(candidates) and budget.rule != "deadline":
            raise ValueError(
                f"FedLQ.budget.average_bits must be at least {min(candidates)}, the fewest of "
                f"candidates, got {budget.average_bits}"
            )

    # ---- setting up ------------------------------------------------------------------------------

    def prepare(self, module: nn.Module, clients: Sequence[Client]) -> None:
        """Find the layers.

        Raises:
            ValueError: The model has no quantisable layer, a client computes with fewer bits than
                any candidate, or a group says the bits of its layers.
        """
        self.layers, sides = trained_parts(module)
        self.sizes = [module.get_parameter(name).numel() for name in self.layers]
        check_clients(clients, self.candidates)
        self.sides = Sides(sides, self.side_bits, self.error_feedback)
        self.planner = Planner(
            layers=self.layers,
            sizes=self.sizes,
            candidates=self.candidates,
            budget=self.budget,
            sensitivity=self.sensitivity,
            solver=self.solver,
            sides=self.sides,
        )

    def setup(self, context: Context) -> None:
        """Check that what the budget and the probes read is there.

        Raises:
            ValueError: There is no such network, or there are no held-out data to probe on.
        """
        self._max_rounds = context.settings.stopping.max_rounds
        self.budget.check(context.timing)
        if self.both_ways:
            check_downlink(context.clients, self.candidates)
        self.sensitivity.check(context)

    def init_server(self, params: Params, clients: Sequence[Client]) -> dict[str, Any]:
        """No probe yet; the variances of the first plan are those of the weights."""
        return {"probe": None, "variances": self._planned_variances(params)}

    def _planned_variances(self, sent: Params) -> Tensor | None:
        """What the server plans by, if it does: the variances of what clients are about to send."""
        plans = self.plan == "server" or self.both_ways
        return self.planner.variances(sent) if plans else None

    # ---- what goes down --------------------------------------------------------------------------

    def begin_round(
        self, server: ServerState, cohort: Sequence[Client], context: Context
    ) -> ServerState:
        """Probe, in rounds where the server is to; and settle the round's deadline and its plan,
        which `extra` holds until the round ends.
        """
        probe = self.sensitivity.begin_round(context, server, self.layers)
        curvature = self.sensitivity.curvature(probe, len(self.layers))
        # the deadline's place is kept before it is known: it follows from the size of the downlink
        told = torch.cat([curvature.clamp(max=_MOST_CURVED).float(), torch.zeros(1)])
        planner = self.planner
        example = an_example(cohort, context.clients)
        both = BothWays(planner)
        if self.both_ways:
            traffic = both.traffic(server, context, example, told, self.budget.average_bits)
        else:
            traffic = planner.traffic(server, context, example, told)
        examples = {one.id: planner.examples(one, server.round, context) for one in cohort}
        deadline = self.budget.deadline_seconds(
            context.timing, server.round, traffic, cohort, examples
        )
        # rounded up to a float32, it would let a client send what then comes too late
        told[-1] = rounded_down(deadline)
        plan: Tensor | dict[int, Tensor] = told
        if self.plan == "server":
            sends_anyway = self.infeasible == "late"
            plan = planner.planned(server, context, cohort, curvature, deadline, sends_anyway)
        extra = {**server.extra, "probe": self.sensitivity.stored(probe), "plan": plan}
        if self.both_ways:
            extra["rooms"] = both.rooms(server, context, cohort, told, examples, deadline)
        return replace(server, extra=extra)

    def downlink(self, server: ServerState, client: Client) -> Tensors:
        """The model, and what the client needs to choose its bits, or the bits."""
        plan = server.extra["plan"]
        return {**server.params, PLAN: plan[client.id] if self.plan == "server" else plan}

    def bits_down(self, server: ServerState, client: Client, moves: Params) -> Mapping[str, int]:
        """Bits of the layers down, with `both_ways`."""
        if not self.both_ways or client.id not in server.extra["rooms"]:
            return {}
        return BothWays(self.planner).bits(
            moves,
            client,
            room=server.extra["rooms"][client.id],
            curvature=server.extra["plan"][:-1],
            variances=server.extra["variances"],
        )

    def receive(self, received: Params, state: ClientState) -> Params:
        """The model."""
        return without(received, [PLAN])

    # ---- what goes up ----------------------------------------------------------------------------

    def uplink(self, run: LocalRun) -> Tensors | None:
        """The layers at their bits, everything else in float32; None for a client that is to
        skip.

        Raises:
            ValueError: A weight is not finite.
        """
        update = only(quantized_state(run.module, sent=True), run.message)
        values = float_tensors({name: update[name] for name in self.layers})
        check_trained(values)
        sent = goals = corrected(run, values) if self.error_feedback else values
        if self.payload == "delta":
            sent = {name: run.received[name] - goal for name, goal in goals.items()}
        # what was measured takes room in the payload, so it is there before the budget is
        update |= self.sensitivity.of_client(run, self.layers)
        generator = None if self.error_feedback else run.rng.torch("quant_up", device=run.device)
        moves = self.sides.send(run, update, generator)
        variances = self.planner.variances(sent)
        others = without(update, values)
        bits = self._bits(run, variances, values, others)
        if bits is None:
            if self.infeasible == "carry":
                carry(run, {**sent, **moves})
            return None
        for name, width, row in zip(self.layers, bits, variances, strict=True):
            own = update[name]
            is_fit = isinstance(own, QuantizedTensor) and own.bits == width and not own.scale.ndim
            # codes of one scale that the client computed with go as they are: another rounding
            # adds an error
            if is_fit and self.payload == "weights":
                row.zero_()
            elif width == 32:
                update[name] = goals[name]
            else:
                update[name] = coded(sent[name], width, generator)
        if self.error_feedback:
            keep_errors(run, sent, update)
        self._tell(run, bits, variances, values)
        return update

    def _bits(
        self, run: LocalRun, variances: Tensor, layers: Params, others: Tensors
    ) -> Sequence[int] | None:
        """What the server planned, or the client's own allocation; None to send nothing."""
        plan = run.message[PLAN].cpu()
        if self.plan == "server":
            run.metrics["fedlq/infeasible"] = float((plan >= INFEASIBLE).any())
            bits = widths(plan)
            return bits if all(bits) else None
        traffic = Traffic(layers, others, run.downlink_bytes)
        room = self.budget.layer_bits(traffic, run.link, run.num_examples, float(plan[-1]))
        allocation = self.planner.allocate(plan[:-1], variances, run.client, room)
        run.metrics["fedlq/infeasible"] = float(not allocation.feasible)
        return allocation.bits if allocation.feasible or self.infeasible == "late" else None

    def _tell(self, run: LocalRun, bits: Sequence[int], variances: Tensor, values: Params) -> None:
        """Log the bits, and what the bound is made of."""
        for name, width, row in zip(self.layers, bits, variances, strict=True):
            run.metrics[f"fedlq/bits_{name}"] = float(width)
            run.metrics[f"fedlq/variance_{name}"] = float(row[self.candidates.index(width)])
        codes = sum(width * size for width, size in zip(bits, self.sizes, strict=True))
        run.metrics["fedlq/bits"] = codes / sum(self.sizes)
        run.metrics["fedlq/move_squared"] = squared_move(run.received, values, self.layers)
        run.metrics["fedlq/lr_sum"] = run.lr_sum
        run.metrics["fedlq/steps"] = float(run.num_steps)

    # ---- the server ------------------------------------------------------------------------------

    def expected(self, server: ServerState) -> Mapping[str, Tensor]:
        """The model, and what clients measure in rounds where they probe."""
        return {**server.params, **self.sensitivity.expected(server.round, len(self.layers))}

    def coded(
        self, server: ServerState, client: Client, layers: list[str]
    ) -> Mapping[str, Collection[int]]:
        """The layers, at the bits planned for each, or at any that the client can choose."""
        chosen: list[list[int]] = [self.planner.candidates_of(client)] * len(self.layers)
        if self.plan == "server":
            chosen = [[width] for width in widths(server.extra["plan"][client.id])]
        allowed = dict(super().coded(server, client, layers))
        for name, bits in zip(self.layers, chosen, strict=True):
            # what is left out comes as codes of 2 bits, of which none is there
            allowed[name] = [width or 2 for width in bits if width < 32]
        return allowed | dict.fromkeys(self.sides.coded(server.params), (self.side_bits,))

    def aggregator(self, server: ServerState, clients: Sequence[Client]) -> ProbedMean:
        """The mean of the models, and what the clients measured."""
        return ProbedMean(server.params)

    def reconstruct(self, update: Tensors, client: Client, server: ServerState) -> Tensors:
        """Values, and the quantised differences of ``delta`` as they came; those of ``weights`` are
        values too.

        Raises:
            ValueError: The harm that the client measured is negative.
        """
        harm = update.get(HARM)
        if isinstance(harm, Tensor) and harm.numel() and float(harm.min()) < 0:
            raise ValueError(f"{HARM} must be at least 0, got {float(harm.min()):.4g}")
        if self.payload == "delta":
            return from_server(update, client, server)
        return float_tensors(update)

    def server_update(self, server: ServerState, aggregate: Any, rng: RandomKeys) -> ServerState:
        """The mean, the probe, and what the next plan and the bound need."""
        mean, harms = aggregate
        known = self.sensitivity.restored(server, self.layers)
        probe = self.sensitivity.end_round(known, server, self.layers, harms)
        sent = mean
        if self.payload == "delta":
            # the step of the mean stands for what a client will send next
            sent = {name: server.params[name] - mean[name] for name in self.layers}
        metrics = {"fedlq/step_squared": squared_move(server.params, mean, self.layers)}
        if probe is not None:
            shares = significance(probe, self.sensitivity.joint)
            for name, share in zip(self.layers, shares, strict=True):
                metrics[f"fedlq/significance_{name}"] = float(share)
        following = self.apply_mean(replace(server, metrics=metrics), mean).with_extra(
            probe=self.sensitivity.stored(probe), variances=self._planned_variances(sent)
        )
        # these are of one round alone, and a server optimiser's state is of all
        for key in ("plan", "rooms"):
            following.extra.pop(key, None)
        return following

    def summarize(self, server: ServerState, metrics: Mapping[str, float]) -> Metrics:
        """The convergence bound of the round, see `observed_bound`."""
        return observed_bound(self.layers, metrics, self._max_rounds)
