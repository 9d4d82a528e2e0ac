"""What a client may send: from average bits, or from what its link carries before a deadline."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import Tensor

from bhfl.algorithms.fedlq.allocation import layer_bits
from bhfl.checks import check_options, choice, within
from bhfl.comm import Tensors, encoded_bytes
from bhfl.engine.exchange import ClientLink
from bhfl.engine.types import Client, Params
from bhfl.quant import QuantizedTensor, packed_bytes
from bhfl.quant.ternary import ternary_bytes

# A small device trains with torch alone, so Lightning is imported for type checks only.
if TYPE_CHECKING:
    from bhfl.engine.links import Links

Rule = Literal["average", "deadline", "quantile"]

_CHECKS = {
    "rule": choice(*get_args(Rule)),
    "average_bits": within("(0, 1e9]"),
    "quantile": within("(0, 1]"),
}


@dataclass(frozen=True)
class Traffic:
    """What a client and the server send each other in a round."""

    layers: Params
    """The layers' weights; their shapes count."""
    others: Tensors
    """What travels up beside them, as it is."""
    downlink_bytes: int
    """Size of what the client is sent."""

    def least_bytes(self) -> int:
        """Size of an upload with all layers at two bits, of which ternary packing takes a fifth:
        plans go by the bound that grows evenly with bits.
        """
        one = torch.ones(())
        codes = {name: QuantizedTensor(x, one, 2) for name, x in self.layers.items()}
        saved = 0
        for x in self.layers.values():
            saved += packed_bytes(x.numel(), 2) - ternary_bytes(x.numel())
        return encoded_bytes({**self.others, **codes}) + saved

    def least_bits(self) -> int:
        """Bits of the layers alone at two bits."""
        return sum(layer_bits(x.numel(), 2) for x in self.layers.values())


@dataclass(frozen=True)
class Budget:
    """How many bits the layers of a client's payload may take: their codes, in whole bytes a layer,
    and their scales.

    Args:
        rule: ``average``: `average_bits` a weight, whatever the link. ``deadline``: what the
            client's link carries until the network's deadline. ``quantile``: until the shortest
            deadline by which a share `quantile` of the cohort can send `average_bits` a weight;
            nobody is dropped for missing it.
        average_bits: Codes of a weight; scales come on top.
        quantile: Share of the cohort, in (0, 1].

    Over a real network without ``trainer.network``, links are those that were measured in a
    client's last rounds, and the deadline is when the server stops waiting. A client that was not
    measured yet sends `average_bits` a weight.

    Raises:
        ValueError: An option is out of its range.
    """

    rule: Rule = "average"
    average_bits: int | float = 4
    quantile: float = 0.8

    def __post_init__(self) -> None:
        """Check the options."""
        check_options("FedLQ.budget", self, _CHECKS)

    def check(self, links: "Links | None") -> None:
        """ValueError unless the links are there that this rule reads."""
        if self.rule == "average":
            return
        if links is None:
            raise ValueError(
                f"FedLQ.budget.rule: {self.rule} needs a simulated network: set trainer.network"
            )
        if self.rule == "deadline" and links.deadline_seconds is None:
            raise ValueError("FedLQ.budget.rule: deadline needs network.deadline_seconds, got null")
        links.read_by(f"FedLQ.budget.rule: {self.rule}")

    def deadline_seconds(
        self,
        links: "Links | None",
        round: int,
        traffic: Traffic,
        cohort: Sequence[Client],
        examples: Mapping[int, int],
    ) -> float:
        """When uploads must have arrived; infinite with ``average`` or where no link is known, and
        never after the network's own deadline.

        Args:
            links: What is known of links, if anything.
            round: The round's number.
            traffic: What a client is sent and sends.
            cohort: The clients of the round.
            examples: How many examples each of them computes on, by its id.
        """
        if self.rule == "average" or links is None:
            return math.inf
        own = links.deadline_seconds
        last = math.inf if own is None else own
        if self.rule == "deadline":
            return last
        down = traffic.downlink_bytes
        up = traffic.least_bytes() + (self._average(traffic.layers) - traffic.least_bits()) // 8
        found = links.quantile_deadline(round, cohort, (down, up), examples, self.quantile)
        return min(last, found)

    def layer_bits(
        self, traffic: Traffic, link: ClientLink | None, num_examples: int, deadline_seconds: float
    ) -> float:
        """Bits that the layers of one payload may take, codes and scales; never below 1.

        Args:
            traffic: What the client was sent and sends.
            link: The client's link; where none is known, `average_bits` hold.
            num_examples: How many examples it trains on.
            deadline_seconds: What the method above came to.
        """
        if self.rule == "average" or link is None:
            return self._average(traffic.layers)
        # what travels beside the codes, headers too, is the upload at two bits without its codes
        room = link.budget_bytes(traffic.downlink_bytes, num_examples, deadline_seconds)
        # an allocation needs a positive budget: a single bit fits nothing, so it is infeasible
        return max(1, 8 * (room - traffic.least_bytes()) + traffic.least_bits())

    def _average(self, layers: Params) -> int:
        """Bits of the layers at `average_bits`, codes in whole bytes a layer."""
        return sum(8 * math.ceil(self.average_bits * x.numel() / 8) + 32 for x in layers.values())


def rounded_down(value: float) -> Tensor:
    """The float32 number next to `value` that is not above it."""
    number = torch.tensor(value, dtype=torch.float32)
    return number if float(number) <= value else torch.nextafter(number, torch.tensor(-math.inf))
