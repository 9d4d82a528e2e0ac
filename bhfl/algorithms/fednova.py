"""FedNova. Wang et al., NeurIPS 2020, https://arxiv.org/abs/2007.07481."""

from collections.abc import Sequence

import torch

from bhfl.algorithms.optimizers import momenta
from bhfl.comm import float_tensors
from bhfl.engine.aggregate import Aggregator, WeightedMean
from bhfl.engine.algorithm import Algorithm, Context, LocalRun
from bhfl.engine.random import RandomKeys
from bhfl.engine.types import Client, Params, ServerState, Tensors

STEPS = ":steps"
"""Name of a client's number of steps among its tensors; no module can have such a one."""


class FedNova(Algorithm):
    """FedAvg whose clients count by direction and not by how many steps they made:

    ``w_{t+1} = w_t - tau * sum_i p_i (w_t - w_i) / a_i`` with ``tau = sum_i p_i a_i``. ``a_i`` is
    the client's number of steps s, and with momentum m the sum of what a gradient comes to in all
    later steps, ``a(s) = (s - m (1 - m^s) / (1 - m)) / (1 - m)`` (section 4.1 of the paper); with
    Nesterov's, whose steps are each one ahead, ``a(s + 1) - 1``.

    Clients send their number of steps, and the model at their bits. Where all make as many steps
    it is FedAvg but for rounding.

    Raises:
        ValueError: In `setup`, the module's optimiser, or that of a group, is not SGD, dampens its
            momentum, or has a schedule of it.
    """

    def setup(self, context: Context) -> None:
        """Find the momenta of the clients' optimisers."""
        self._momenta = momenta(context, "FedNova")

    def expected(self, server: ServerState) -> Params:
        """The model, and a number of steps."""
        return {**server.params, STEPS: torch.zeros(())}

    def uplink(self, run: LocalRun) -> Tensors:
        """The weights, and the number of steps that led to them."""
        return {**(super().uplink(run) or {}), STEPS: torch.tensor(float(run.num_steps))}

    def reconstruct(self, update: Tensors, client: Client, server: ServerState) -> Params:
        """The direction from the model to the weights, and its length in steps.

        Raises:
            ValueError: The number of steps is not at least 1.
        """
        weights = float_tensors(update)
        steps = float(weights[STEPS])
        if not steps >= 1:
            raise ValueError(f"its number of steps must be at least 1, got {steps:g}")
        length = _length(steps, *self._momenta[client.devices])
        moves = {name: (value - weights[name]) / length for name, value in server.params.items()}
        return {**moves, STEPS: torch.tensor(length)}

    def aggregator(self, server: ServerState, clients: Sequence[Client]) -> Aggregator:
        """The mean direction, and the mean length."""
        return WeightedMean(self.expected(server))

    def server_update(self, server: ServerState, aggregate: Params, rng: RandomKeys) -> ServerState:
        """A step of the mean length in the mean direction."""
        length = aggregate[STEPS]
        stepped = {n: value - length * aggregate[n] for n, value in server.params.items()}
        return self.apply_mean(server, stepped)


def _length(steps: float, momentum: float, nesterov: bool = False) -> float:
    """What the gradients of so many steps count together."""
    if nesterov:
        return _length(steps + 1, momentum) - 1
    if momentum == 1:
        return steps * (steps + 1) / 2
    rest = momentum * (1 - momentum**steps) / (1 - momentum)
    return float((steps - rest) / (1 - momentum))
