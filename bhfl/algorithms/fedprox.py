"""FedProx. Li et al., MLSys 2020, https://arxiv.org/abs/1812.06127."""

from __future__ import annotations

import math

from bhfl.engine.algorithm import Algorithm, LocalRun


class FedProx(Algorithm):
    """FedAvg with a proximal term: each client minimises ``F_i(w) + mu/2 * ||w - w_received||^2``.

    Args:
        mu: Weight of the term; 0 is FedAvg to the bit. The paper tunes it over {0.001, 0.01, 0.1, 1}.

    Raises:
        ValueError: `mu` is negative or not finite.
    """

    def __init__(self, mu: float = 0.01) -> None:
        if not 0 <= mu < math.inf:
            raise ValueError(f"FedProx.mu must be >= 0 and finite, got {mu}")
        self.mu = mu

    def client_gradients_(self, run: LocalRun) -> None:
        """``grad += mu * (w - w_received)``."""
        if self.mu:
            for _, parameter, received in run.parameters():
                if parameter.grad is not None:
                    parameter.grad.add_(parameter.detach() - received, alpha=self.mu)
