"""FedNova. Wang et al., NeurIPS 2020, https://arxiv.org/abs/2007.07481."""

import math
from collections.abc import Sequence

import torch

from bhfl.algorithms.optimizers import check_sgd
from bhfl.algorithms.trained import OfTrained
from bhfl.comm import float_tensors
from bhfl.engine.aggregate import Aggregator, WeightedMean
from bhfl.engine.algorithm import Context, LocalRun
from bhfl.engine.random import RandomKeys
from bhfl.engine.types import Client, Params, ServerState, Tensors

REACH = ":reach"
"""Name of how far a client's steps reach among its tensors; no module can have such a one."""


class FedNova(OfTrained):
    """FedAvg whose clients count by direction and not by how far their steps led:

    ``w_{t+1} = w_t - tau * sum_i p_i (w_t - w_i) / a_i`` with ``tau = sum_i p_i a_i``. ``a_i`` is
    what the client's gradients count together (section 4.1 of the paper): the sum of its learning
    rates, and with momentum, Nesterov's too, of all that a gradient comes to in later steps. At one
    rate without momentum it is the number of its steps, those without a loss left out.

    Clients send ``a_i`` over the rate that their optimiser was made with, and the model at their
    bits. Where all make as many steps at the same rates it is FedAvg but for rounding. Schedules
    must change the rates of all groups of parameters alike.

    Raises:
        ValueError: In `setup`, the module's optimiser, or that of a group, is not SGD, dampens its
            momentum, or has a schedule of it.
    """

    def setup(self, context: Context) -> None:
        """See the clients' optimisers, and the rates that they were made with."""
        found = check_sgd(context, "FedNova").items()
        rates = {key: float(one.defaults["lr"] or 1.0) for key, one in found}
        # in units of one of them, which are numbers of steps where all are equal
        unit = max(rates.values())
        self._units = {key: rate / unit for key, rate in rates.items()}

    def expected(self, server: ServerState) -> Params:
        """The model, and how far the client's steps reach."""
        return {**server.params, REACH: torch.zeros(())}

    def uplink(self, run: LocalRun) -> Tensors:
        """The weights, and how far the steps that led to them reach."""
        return {**(super().uplink(run) or {}), REACH: torch.tensor(run.reach)}

    def reconstruct(self, update: Tensors, client: Client, server: ServerState) -> Params:
        """The direction from the model to the weights, and its length.

        Raises:
            ValueError: The length is negative.
        """
        weights = float_tensors(update)
        length = float(weights[REACH]) * self._units[client.devices]
        if length < 0:
            raise ValueError(f"what its steps reach must be at least 0, got {length:g}")
        # steps at a rate of 0 lead nowhere
        divisor = length or math.inf
        moves = {name: value - weights[name] for name, value in server.params.items()}
        # buffers of the module's own are averaged
        moves |= {name: moves[name] / divisor for name in self._trained}
        return {**moves, REACH: torch.tensor(length)}

    def aggregator(self, server: ServerState, clients: Sequence[Client]) -> Aggregator:
        """The mean direction, and the mean length."""
        return WeightedMean(self.expected(server))

    def server_update(self, server: ServerState, aggregate: Params, rng: RandomKeys) -> ServerState:
        """A step of the mean length in the mean direction."""
        moves = aggregate | {n: aggregate[REACH] * aggregate[n] for n in self._trained}
        stepped = {n: value - moves[n] for n, value in server.params.items()}
        return self.apply_mean(server, stepped)
