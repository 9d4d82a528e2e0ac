"""What a client may send: from average bits, or from what its link carries before a deadline."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from bhfl.algorithms.fedlq.allocation import layer_bits
from bhfl.comm import Tensors, encoded_bytes
from bhfl.engine.exchange import ClientLink
from bhfl.engine.timing import Timing
from bhfl.engine.types import Client, Params
from bhfl.quant import QuantizedTensor

Rule = Literal["average", "deadline", "quantile"]


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
        """Size of an upload with all layers at two bits."""
        one = torch.ones(())
        codes = {name: QuantizedTensor(x, one, 2) for name, x in self.layers.items()}
        return encoded_bytes({**self.others, **codes})


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
        quantile: In (0, 1].
    """

    rule: Rule
    average_bits: float
    quantile: float

    def __post_init__(self) -> None:
        if self.rule not in get_args(Rule):
            raise ValueError(
                f"FedLQ.budget must be one of {', '.join(get_args(Rule))}, got {self.rule!r}"
            )
        if not self.average_bits > 0:
            raise ValueError(f"FedLQ.average_bits must be > 0, got {self.average_bits}")
        if not 0 < self.quantile <= 1:
            raise ValueError(f"FedLQ.quantile must be in (0, 1], got {self.quantile}")

    def check(self, timing: Timing | None) -> None:
        """ValueError unless the network is there that this rule reads."""
        if self.rule != "average" and timing is None:
            raise ValueError(
                f"FedLQ.budget: {self.rule} needs a simulated network: set trainer.network"
            )
        if (
            self.rule == "deadline"
            and timing is not None
            and timing.network.deadline_seconds is None
        ):
            raise ValueError("FedLQ.budget: deadline needs network.deadline_seconds, got null")

    def deadline_seconds(
        self,
        timing: Timing | None,
        round: int,
        traffic: Traffic,
        cohort: Sequence[Client],
        examples: Mapping[int, int],
    ) -> float:
        """When uploads must have arrived; infinite with ``average``, and never after the network's
        own deadline.

        Args:
            timing: The simulated network, if there is one.
            round: The round's number.
            traffic: What a client is sent and sends.
            cohort: The clients of the round.
            examples: How many examples each of them computes on, by its id.
        """
        if self.rule == "average" or timing is None:
            return math.inf
        last = timing.network.deadline_seconds
        if self.rule == "deadline":
            assert last is not None
            return last
        layers, down = traffic.layers, traffic.downlink_bytes
        up = traffic.least_bytes() + (self._average(layers) - _least_bits(layers)) // 8
        works = [timing.workload(c, down, up, examples[c.id]) for c in cohort if c.num_examples]
        deadline = timing.network.quantile_deadline(round, works, self.quantile, len(cohort))
        return min(math.inf if last is None else last, deadline)

    def layer_bits(
        self,
        traffic: Traffic,
        link: ClientLink | None,
        num_examples: int,
        deadline_seconds: float,
    ) -> float:
        """Bits that the layers of one payload may take, codes and scales; never below 1.

        Args:
            traffic: What the client was sent and sends.
            link: The client's link.
            num_examples: How many examples it trains on.
            deadline_seconds: What the method above came to.
        """
        if self.rule == "average":
            return self._average(traffic.layers)
        assert link is not None
        room = link.budget_bytes(traffic.downlink_bytes, num_examples, deadline_seconds)
        return max(1, 8 * (room - traffic.least_bytes()) + _least_bits(traffic.layers))

    def _average(self, layers: Params) -> int:
        """Bits of the layers at `average_bits`, codes in whole bytes a layer."""
        return sum(8 * math.ceil(self.average_bits * x.numel() / 8) + 32 for x in layers.values())


def _least_bits(layers: Params) -> int:
    """Of the layers at two bits."""
    return sum(layer_bits(tensor.numel(), 2) for tensor in layers.values())


def rounded_down(value: float) -> Tensor:
    """The float32 number next to `value` that is not above it."""
    number = torch.tensor(value, dtype=torch.float32)
    return number if float(number) <= value else torch.nextafter(number, torch.tensor(-math.inf))
