"""FedExP. Jhunjhunwala et al., ICLR 2023, https://arxiv.org/abs/2301.09604."""

from collections.abc import Sequence

import torch

from bhfl.algorithms.trained import OfTrained
from bhfl.checks import checked, not_negative
from bhfl.comm import float_tensors
from bhfl.engine.aggregate import Aggregator, WeightedMean
from bhfl.engine.random import RandomKeys
from bhfl.engine.types import Client, Params, ServerState, Tensors

SQUARES = ":squares"
"""Name of a client's squared distance among its tensors; no module can have such a one."""


class FedExP(OfTrained):
    """FedAvg whose server extrapolates: ``w_{t+1} = w_t - eta * D`` with ``D = sum_i p_i D_i``,
    ``D_i = w_t - w_i``, and

    ``eta = max(1, sum_i p_i ||D_i||^2 / (2 * (||D||^2 + eps)))``: the less the moves of the clients
    agree, the longer the step. At ``eta = 1`` it is FedAvg to the bit.

    Args:
        eps: Keeps the step short where the mean move nearly vanishes.

    Raises:
        ValueError: `eps` is negative.
    """

    def __init__(self, eps: float = 1e-3) -> None:
        self.eps = checked("FedExP.eps", eps, not_negative)

    def reconstruct(self, update: Tensors, client: Client, server: ServerState) -> Params:
        """The weights, and the square of how far they are from the model."""
        weights = float_tensors(update)
        squares = torch.zeros((), dtype=torch.float64)
        for name in self._trained:
            squares += (server.params[name] - weights[name]).double().square().sum()
        return {**weights, SQUARES: squares.float()}

    def aggregator(self, server: ServerState, clients: Sequence[Client]) -> Aggregator:
        """Means of both."""
        return WeightedMean({**server.params, SQUARES: torch.zeros(())})

    def server_update(self, server: ServerState, aggregate: Params, rng: RandomKeys) -> ServerState:
        """The step with ``eta``."""
        squares = float(aggregate.pop(SQUARES))
        # buffers of the module's own are averaged
        moves = {name: server.params[name] - aggregate[name] for name in self._trained}
        length = sum(float(move.double().square().sum()) for move in moves.values())
        eta = squares / (2 * (length + self.eps)) if length + self.eps else 1.0
        if eta > 1:
            aggregate |= {name: server.params[name] - eta * move for name, move in moves.items()}
        return self.apply_mean(server, aggregate)
