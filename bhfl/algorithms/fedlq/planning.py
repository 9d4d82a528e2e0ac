"""What is planned before anything is sent: who sends how much, and what the server chooses."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bhfl.algorithms.fedlq.allocation import Allocation, Offer, Solver, allocate, wire_sizes
from bhfl.algorithms.fedlq.budget import Budget, Traffic
from bhfl.algorithms.fedlq.moves import coded, squared_errors
from bhfl.algorithms.fedlq.plan import PLAN, plan_of
from bhfl.algorithms.fedlq.sensitivity import Sensitivity
from bhfl.algorithms.fedlq.sides import Sides
from bhfl.algorithms.fedlq.significance import layer_costs, variance_table
from bhfl.comm import Tensors, encoded_bytes
from bhfl.engine.algorithm import Context
from bhfl.engine.downlink import as_sent
from bhfl.engine.frozen import bytes_due
from bhfl.engine.processes import gather
from bhfl.engine.types import Client, Params, ServerState


@dataclass(frozen=True)
class Planner:
    """Plans bits; see `FedLQ` for its options.

    Args:
        layers: Names of the layers.
        sizes: How many weights each has.
        candidates: The widths to choose from.
        budget: How many bits a client may send.
        sensitivity: How the curvatures are measured.
        solver: Who allocates.
        sides: Sends what is no layer.
    """

    layers: Sequence[str]
    sizes: Sequence[int]
    candidates: Sequence[int]
    budget: Budget
    sensitivity: Sensitivity
    solver: Solver
    sides: Sides

    def candidates_of(self, client: Client) -> list[int]:
        """The widths that a client may send."""
        return [bits for bits in self.candidates if bits <= client.spec.sent_bits]

    def variances(self, sent: Params) -> Tensor:
        """The variance of each layer of what is about to be sent, at each candidate, [L, B]; where
        what is left out is carried, its squared length.
        """
        layers = [sent[name] for name in self.layers]
        if self.sides.feedback:
            return squared_errors(layers, self.candidates, coded)
        return variance_table(layers, self.candidates)

    def offer(self, curvature: Tensor, variances: Tensor, client: Client) -> Offer:
        """What a client may choose for each layer, and what it costs.

        Args:
            curvature: That of each layer, [L].
            variances: See `variances`.
            client: Who sends.

        Returns:
            The client's candidates, with their sizes on the wire.
        """
        candidates = self.candidates_of(client)
        columns = [self.candidates.index(bits) for bits in candidates]
        costs = layer_costs(curvature, variances[:, columns]).numpy()
        return Offer(candidates, wire_sizes(self.sizes, candidates), costs)

    def allocate(
        self, curvature: Tensor, variances: Tensor, client: Client, room: float
    ) -> Allocation:
        """The bits of what a client sends.

        Args:
            curvature: That of each layer, [L].
            variances: See `variances`.
            client: Who sends.
            room: Bits that its layers may take.

        Returns:
            The layers' widths.
        """
        offer = self.offer(curvature, variances, client)
        return allocate(offer.costs, self.sizes, offer.candidates, room, solver=self.solver)

    def traffic(
        self, server: ServerState, context: Context, client: Client, plan: Tensor
    ) -> Traffic:
        """What a client and the server send each other.

        Args:
            server: The state of the round.
            context: What the run is made of.
            client: The client.
            plan: What it is told besides the model.

        Returns:
            It is of the size of what will be sent.
        """
        layers = {name: server.params[name] for name in self.layers}
        others = {**server.params, **context.buffers(server, client.bits)}
        for name in layers:
            del others[name]
        up: Tensors = {
            **others,
            **self.sides.coded(others),
            **self.sensitivity.expected(server.round, len(self.layers)),
        }
        down = as_sent({**layers, **others, PLAN: plan}, client, server)
        return Traffic(layers, up, encoded_bytes(down) + bytes_due(server, client))

    def examples(self, client: Client, round: int, context: Context) -> int:
        """Examples that a client is going to compute on, probing included."""
        timing = context.timing
        planned = timing.planned(client, context.data, round) if timing else 0
        return planned + self.sensitivity.examples(client, round, len(self.layers))

    def planned(
        self,
        server: ServerState,
        context: Context,
        cohort: Sequence[Client],
        curvature: Tensor,
        deadline: float,
        sends_anyway: bool,
    ) -> dict[int, Tensor]:
        """The server's choice for each client, by its id; every process plans for some of them.

        The variances are those of what the last round came to.

        Args:
            server: The state of the round.
            context: What the run is made of.
            cohort: The clients of the round.
            curvature: That of each layer, [L].
            deadline: When uploads must have arrived, in seconds.
            sends_anyway: Whether a client sends the least payload where none fits.

        Returns:
            Plans as they are sent, see `PLAN`.
        """
        timing = context.timing
        fabric = context.fabric
        nothing = torch.zeros(len(self.layers), dtype=torch.uint8)
        mine = []
        for client in cohort[fabric.global_rank :: fabric.world_size]:
            traffic = self.traffic(server, context, client, nothing)
            link = timing.link(server.round, client, len(cohort)) if timing else None
            examples = self.examples(client, server.round, context)
            room = self.budget.layer_bits(traffic, link, examples, deadline)
            allocation = self.allocate(curvature, server.extra["variances"], client, room)
            mine.append((client.id, plan_of(allocation, sends_anyway)))
        # the order is the same on any number of processes
        return dict(sorted(gather(fabric, mine), key=lambda planned: planned[0]))
