"""FedDyn. Acar et al., ICLR 2021, https://arxiv.org/abs/2111.04263."""

from collections.abc import Sequence
from typing import Any

import torch

from bhfl.algorithms.shares import SHARE, ShareMean
from bhfl.algorithms.trained import OfTrained
from bhfl.checks import checked, positive
from bhfl.comm import float_tensors
from bhfl.engine.aggregate import Aggregator
from bhfl.engine.algorithm import Context, LocalRun, add_to_gradient_
from bhfl.engine.downlink import check_whole
from bhfl.engine.random import RandomKeys
from bhfl.engine.types import Client, Params, ServerState, Tensors

DUAL = "dual/"
"""Begins the names of a client's dual variables in its state."""


class FedDyn(OfTrained):
    """Each client minimises ``F_i(w) - <h_i, w> + alpha/2 * ||w - w_t||^2``, and after the round

    ``h_i -= alpha * (w_i - w_t)``; the server keeps ``h``, the mean of all clients' ``h_i``, and
    moves to ``mean_i w_i - h / alpha``.

    ``w_i`` is what the client sent, at its bits, on both sides: so ``h`` stays that mean. A coarse
    grid moves weights much farther than training does; low-bit clients then need a small ``alpha``.
    With momentum it may diverge. A client that has lost its ``h_i`` is refused: ``h`` holds it
    still, and would never again be the mean of those that there are.

    Args:
        alpha: Weight of the terms. The paper uses 0.01 to 0.1.

    Raises:
        ValueError: `alpha` is not positive.
    """

    descends = True

    def __init__(self, alpha: float = 0.01) -> None:
        self.alpha = checked("FedDyn.alpha", alpha, positive)

    def setup(self, context: Context) -> None:
        """Refuse what would make the server's ``h`` another one than the mean of the clients'.

        Raises:
            ValueError: Clients do not receive ``w_t`` as it is.
        """
        check_whole("FedDyn", context.clients)

    def init_server(self, params: Params, clients: Sequence[Client]) -> dict[str, Any]:
        """``h``, zero, and the weight of the fleet."""
        dual = {name: torch.zeros_like(value) for name, value in params.items()}
        return {"dual": dual, "weight": sum(client.weight for client in clients)}

    def aggregator(self, server: ServerState, clients: Sequence[Client]) -> Aggregator:
        """The mean of the models, and how much of the fleet it is of."""
        return ShareMean(server.params, server.extra["weight"])

    def server_update(self, server: ServerState, aggregate: Params, rng: RandomKeys) -> ServerState:
        """``h`` moves by the clients' share of the fleet, and the model by ``h``."""
        model = {}
        duals = {}
        for name, value in server.params.items():
            # buffers of the module's own have no dual, and are averaged
            move = aggregate[SHARE] * (aggregate[name].double() - value) * (name in self._trained)
            dual = server.extra["dual"][name] - (self.alpha * move).float()
            model[name] = aggregate[name] - dual / self.alpha
            duals[name] = dual
        return self.apply_mean(server, model).with_extra(dual=duals)

    def client_gradients_(self, run: LocalRun) -> None:
        """``grad += alpha * (w - w_t) - h_i``."""
        for name, parameter, received in run.parameters():
            add_to_gradient_(parameter, parameter.detach() - received, self.alpha)
            if DUAL + name in run.state:
                add_to_gradient_(parameter, run.state[DUAL + name], -1)

    def uplink(self, run: LocalRun) -> Tensors:
        """FedAvg's; the very weights that are sent enter the client's own ``h_i``."""
        update = super().uplink(run) or {}
        for name, value in float_tensors(update).items():
            if name in self._trained:
                own = run.state.get(DUAL + name, torch.zeros_like(value))
                run.state[DUAL + name] = (own - self.alpha * (value - run.received[name])).cpu()
        return update
