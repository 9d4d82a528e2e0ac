"""AdaQuantFL. Jhunjhunwala, Gadhikar, Joshi, Eldar, ICASSP 2021,
https://arxiv.org/abs/2102.04487.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from bhfl.algorithms.differences import DifferenceAlgorithm, Norm
from bhfl.checks import checked, count
from bhfl.comm import Tensors
from bhfl.engine.aggregate import WeightedMean
from bhfl.engine.algorithm import LocalRun
from bhfl.engine.random import RandomKeys
from bhfl.engine.types import Client, ClientState, Params, ServerState, without

BITS, LOSS = ":bits", ":loss"
"""The round's bits, sent down; a client's mean training loss, sent up: a float32 number each."""


class AdaQuantFL(DifferenceAlgorithm):
    """FedPAQ with bits that grow as the loss falls: ``s_t = ceil(sqrt(F_0 / F_t) * s_0)`` levels,
    the same for all.

    Coarse differences at first, while large steps forgive them, and finer ones later. The loss is
    the clients' mean training loss of the round before; the levels are rounded up to those that the
    next whole number of bits has.

    Args:
        bits: Bits of a quantised difference in the first rounds, ``s_0 = 2**(bits-1) - 1``.
        max_bits: The most bits, up to 16.
        norm: What scales a tensor: its largest magnitude (``linf``) or its length (``l2``).
        error_feedback: Whether a client adds to its differences what rounding, to the nearest
            codes, left out of its last ones; with `linf`.
        top_k: The share of a tensor's entries that are sent, those of the largest magnitudes.

    Raises:
        ValueError: An argument is out of its range.
    """

    def __init__(
        self,
        bits: int = 2,
        max_bits: int = 16,
        norm: Norm = "linf",
        error_feedback: bool = False,
        top_k: float | None = None,
    ) -> None:
        checked("AdaQuantFL.bits", bits, count(2, 16))
        super().__init__(bits, norm, None, error_feedback, top_k)
        self.max_bits = checked("AdaQuantFL.max_bits", max_bits, count(bits, 16))

    def init_server(self, params: Params, clients: Sequence[Client]) -> dict[str, Any]:
        """The bits of the first round, as they are sent; no loss is known."""
        return {"bits": torch.tensor(float(self.bits)), "first_loss": None}

    def downlink(self, server: ServerState, client: Client) -> Tensors:
        """The model and the bits, the same tensors for all."""
        return {**server.params, BITS: server.extra["bits"]}

    def receive(self, received: Params, state: ClientState) -> Params:
        """The model."""
        return without(received, [BITS])

    def bits_of(self, run: LocalRun) -> int:
        """The bits that the server says."""
        return int(run.message[BITS])

    def bits_asked(self, server: ServerState) -> int:
        """The bits that were sent."""
        return int(server.extra["bits"])

    def uplink(self, run: LocalRun) -> Tensors:
        """Quantised differences, and the loss.

        Raises:
            ValueError: There is no training loss.
        """
        if "train/loss" not in run.metrics:
            raise ValueError(
                "AdaQuantFL follows the training loss: training_step must return or log it"
            )
        return {**super().uplink(run), LOSS: torch.tensor(run.metrics["train/loss"])}

    def expected(self, server: ServerState) -> Params:
        """The loss too."""
        return {**super().expected(server), LOSS: torch.zeros(())}

    def reconstruct(self, update: Tensors, client: Client, server: ServerState) -> Params:
        """The loss beside the differences."""
        loss = update[LOSS]
        assert isinstance(loss, Tensor)
        return {**super().reconstruct(update, client, server), LOSS: loss}

    def aggregator(self, server: ServerState, clients: Sequence[Client]) -> WeightedMean:
        """A mean of both."""
        return WeightedMean({**server.params, LOSS: torch.zeros(())})

    def server_update(self, server: ServerState, aggregate: Params, rng: RandomKeys) -> ServerState:
        """The step, and the bits of the next round."""
        # left in, the step below would take it for a tensor of the model
        loss = float(aggregate.pop(LOSS))
        first = loss if server.extra["first_loss"] is None else server.extra["first_loss"]
        # a loss above the first one does not take bits away: the first ones are the fewest
        growth = math.sqrt(max(1.0, first / loss)) if loss > 0 else math.inf
        # 16 bits have no more levels than that, and the infinity of a loss of 0 has no ceil
        levels = math.ceil(min(growth * (2 ** (self.bits - 1) - 1), 2**15))
        # b bits have 2**(b-1) - 1 levels: these are the fewest that have enough
        bits = min(self.max_bits, 1 + math.ceil(math.log2(levels + 1)))
        extra = {**server.extra, "bits": torch.tensor(float(bits)), "first_loss": first}
        metrics = {"adaquantfl/bits": float(server.extra["bits"])}
        return super().server_update(replace(server, extra=extra, metrics=metrics), aggregate, rng)
