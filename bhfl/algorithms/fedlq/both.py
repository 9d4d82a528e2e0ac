"""Bits down and up, chosen together from one budget of seconds.

A client's seconds carry what it is sent and what it sends, so that a bit down costs as much as
``R_up / R_down`` bits up. The knapsack of `allocation` takes the layers of both ways. What the
rounding of a layer costs up is as ever; down, what is left out of the difference that the client is
sent (see `bhfl.engine.downlink`) is known exactly, and counts m / 8 times, for a cohort of m.

This factor is that of the theorem in `bound`. A client that begins e off the model moves by
gradients that are ``L |e|`` off, which costs ``eta K L^2 |e|^2 / (2 m)`` a round, by Young's
inequality and the mean over clients; an error e of what it sends costs ``L |e|^2 / (2 m^2)``. So an
error down weighs ``eta K L m`` times as much, and ``eta K L`` is 1 / 8 at most.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bhfl.algorithms.fedlq.allocation import Offer, allocate_all
from bhfl.algorithms.fedlq.budget import Traffic
from bhfl.algorithms.fedlq.candidates import is_served
from bhfl.algorithms.fedlq.moves import squared_errors
from bhfl.algorithms.fedlq.plan import PLAN
from bhfl.algorithms.fedlq.planning import Planner
from bhfl.algorithms.fedlq.significance import layer_costs
from bhfl.comm import encoded_bytes
from bhfl.engine.algorithm import Context
from bhfl.engine.devices import Devices
from bhfl.engine.downlink import as_sent, bits_down, coded_move, has_reference
from bhfl.engine.roster import one_of_each
from bhfl.engine.types import Client, Params, ServerState, without
from bhfl.quant import QuantizedTensor
from bhfl.quant.spec import FLOAT_BITS
from bhfl.quant.ternary import ternary_bytes

_WEIGHT = 1 / 8
"""How much an error down weighs, for each client of the cohort."""


def check_both_ways(rule: str, plan: str) -> None:
    """ValueError where the options of both ways do not fit together."""
    if rule == "average" or plan != "client":
        raise ValueError(
            "FedLQ.both_ways shares out seconds, and needs FedLQ.budget.rule: deadline or quantile "
            f"and FedLQ.plan: client, got {rule} and {plan}"
        )


def check_downlink(clients: Sequence[Client], candidates: Sequence[int]) -> None:
    """ValueError where clients cannot be sent differences at any candidate."""
    for client in one_of_each(clients):
        rule, most = client.devices.downlink, _most(client.devices)
        if rule.send != "differences" or most == FLOAT_BITS:
            raise ValueError(
                "FedLQ.both_ways needs trainer.downlink with send: differences and the most bits "
                f"of a layer, 2..16, got {rule} for {client.group} clients"
            )
        if not is_served(candidates, most):
            raise ValueError(
                f"FedLQ.candidates must hold a width of at most {most} besides 0, the bits of "
                f"trainer.downlink for {client.group} clients, got {list(candidates)}"
            )


def _most(devices: Devices) -> int:
    """Bits of a layer down at most."""
    return bits_down(devices.downlink.bits, devices.spec)


def down_bits(x: Tensor, bits: float) -> int:
    """Bits on the wire of a layer that is sent down: codes in whole bytes and a scale for each
    output channel; a scale and the number of codes where it is left out.
    """
    return 8 * math.ceil(x.numel() * bits / 8) + 32 * x.shape[0] if bits else 64


def _beside(tensors: Params, layers: Params, client: Client, server: ServerState) -> int:
    """Bytes of what a client is sent, without codes and scales of the layers."""
    codes: dict[str, QuantizedTensor] = {}
    took = 0
    for name, x in layers.items():
        codes[name] = QuantizedTensor(x, torch.ones(x.shape[0]), 2)
        took += ternary_bytes(x.numel()) + 4 * x.shape[0]
    others = without(tensors, layers)
    return encoded_bytes({**as_sent(others, client, server), **codes}) - took


@dataclass(frozen=True)
class BothWays:
    """Chooses bits down, in sight of what is then left for the way up.

    Args:
        planner: Chooses those of the way up.
    """

    planner: Planner

    def traffic(
        self, server: ServerState, context: Context, client: Client, plan: Tensor, bits: float
    ) -> Traffic:
        """What a client and the server send each other, as `Planner.traffic` says it.

        Args:
            server: The state of the round.
            context: What the run is made of.
            client: The client.
            plan: What it is told besides the model.
            bits: Those of a weight on its way down; 0 to count all but the layers.

        Returns:
            It is of the size of what will be sent.
        """
        found = self.planner.traffic(server, context, client, plan)
        if not has_reference(client, server):
            return found
        sent = {**server.params, **context.buffers(server, client.bits), PLAN: plan}
        down = _beside(sent, found.layers, client, server)
        if bits:
            down += sum(down_bits(x, bits) // 8 for x in found.layers.values())
        return replace(found, downlink_bytes=down)

    def rooms(
        self,
        server: ServerState,
        context: Context,
        cohort: Sequence[Client],
        plan: Tensor,
        examples: Mapping[int, int],
        deadline: float,
    ) -> dict[int, list[float]]:
        """What there is to share out, by id, for each client of a known link that is sent
        differences.

        Args:
            server: The state of the round.
            context: What the run is made of.
            cohort: The clients of the round.
            plan: What they are told besides the model.
            examples: How many examples each of them computes on, by its id.
            deadline: When uploads must have arrived, in seconds.

        Returns:
            The bits up that its seconds carry, those that take as long as one bit down, and what an
            error down weighs.
        """
        assert context.timing is not None
        found = {}
        for client in cohort:
            link = context.timing.link(server.round, client, len(cohort))
            if link is None or not has_reference(client, server):
                continue
            traffic = self.traffic(server, context, client, plan, 0)
            room = self.planner.budget.layer_bits(traffic, link, examples[client.id], deadline)
            rate = link.downloads * link.link.uplink_bps / link.link.downlink_bps
            found[client.id] = [room, rate, _WEIGHT * len(cohort)]
        return found

    def bits(
        self,
        moves: Params,
        client: Client,
        room: Sequence[float],
        curvature: Tensor,
        variances: Tensor,
    ) -> dict[str, int]:
        """The bits of the layers down, by name.

        Args:
            moves: The differences that the client is to be sent, of which layers are some.
            client: Who is sent them.
            room: What `rooms` says of it.
            curvature: That of each layer, [L].
            variances: What the way up is expected to cost, see `Planner.variances`.

        Returns:
            Candidates; what is left of the seconds is for the way up.
        """
        planner = self.planner
        most, rate, weight = room
        names = [name for name in planner.layers if name in moves]
        if not names:
            return {}
        rows = [planner.layers.index(name) for name in names]
        candidates = [bits for bits in planner.candidates if bits <= _most(client.devices)]
        errors = squared_errors([moves[name] for name in names], candidates, coded_move)
        took = []
        for name in names:
            sizes = [down_bits(moves[name], bits) for bits in candidates]
            took.append([math.ceil(rate * size) for size in sizes])
        down = Offer(candidates, took, weight * layer_costs(curvature[rows], errors).numpy())
        up = planner.offer(curvature, variances, client)
        found = allocate_all([up, down], most, solver=planner.solver)
        return dict(zip(names, found.bits[len(planner.layers) :], strict=True))
