"""SCAFFOLD. Karimireddy et al., ICML 2020, https://arxiv.org/abs/1910.06378."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from bhfl.algorithms.differences import qsgd
from bhfl.algorithms.optimizers import check_plain
from bhfl.algorithms.shares import SHARE, ShareMean
from bhfl.algorithms.trained import OfTrained
from bhfl.checks import bits_or, checked, or_none, positive
from bhfl.engine.aggregate import Aggregator
from bhfl.engine.algorithm import Context, LocalRun, add_to_gradient_
from bhfl.engine.context import named
from bhfl.engine.random import RandomKeys
from bhfl.engine.types import Client, ClientState, Params, ServerState, Tensors

CONTROL = "control/"
"""Begins the names of control variates, in messages and in states."""


class SCAFFOLD(OfTrained):
    """Clients descend along ``g - c_i + c``, with control variates as in option II of the paper:

    ``c_i += Q((w_t - w_i) / lr - c)`` with ``lr`` the sum of the round's learning rates, for each
    parameter those of its group in the optimiser, and ``c += sum_i p_i Q(...)`` over the round's
    clients, with ``p_i`` a client's share of the fleet.

    What a client sends of its control variate enters its own too, quantised as it is, so that
    ``c`` stays the mean of the ``c_i`` whatever the quantiser does. The model goes up at the
    client's bits, and the server's control variate comes down in float32 beside the model.

    A client that has lost its ``c_i`` is refused: ``c`` holds it still, and would never again be
    the mean of those that there are.

    Args:
        server_lr: ``eta_g``: the server moves to ``w_t + eta_g * (mean_i w_i - w_t)``.
        control_bits: Bits at which control variates go up, rounded stochastically: 2..16, 32 for
            float32, or null for those of the client's weights. Tensors of one dimension are
            float32.

    Raises:
        ValueError: An argument is out of its range; in `setup`, a client trains with momentum, or
            not by SGD.
    """

    descends = True

    def __init__(self, server_lr: float = 1.0, control_bits: int | None = None) -> None:
        self.server_lr = checked("SCAFFOLD.server_lr", server_lr, positive)
        self.control_bits = checked("SCAFFOLD.control_bits", control_bits, or_none(bits_or()))

    def setup(self, context: Context) -> None:
        """Plain SGD, under which alone a move over the sum of rates is a mean gradient."""
        check_plain(context, "SCAFFOLD")

    # ---- server ----------------------------------------------------------------------------------

    def init_server(self, params: Params, clients: Sequence[Client]) -> dict[str, Any]:
        """The server's control variate, zero, and the weight of the fleet."""
        control = {name: torch.zeros_like(value) for name, value in params.items()}
        return {"control": control, "weight": sum(client.weight for client in clients)}

    def downlink(self, server: ServerState, client: Client) -> Tensors:
        """The model and the control variate."""
        return self._both(server)

    def expected(self, server: ServerState) -> Mapping[str, Tensor]:
        """The model, and a move of the control variate."""
        return self._both(server)

    def coded(
        self, server: ServerState, client: Client, layers: list[str]
    ) -> Mapping[str, Collection[int]]:
        """Weights as ever, and moves of control variates at their bits."""
        allowed = dict(super().coded(server, client, layers))
        if (bits := self._bits(client)) < 32:
            for name, value in server.params.items():
                if value.ndim >= 2:
                    allowed[CONTROL + name] = (bits,)
        return allowed

    def aggregator(self, server: ServerState, clients: Sequence[Client]) -> Aggregator:
        """Means of the models and of the moves, and how much of the fleet they are of."""
        return ShareMean(self._both(server), server.extra["weight"])

    def server_update(self, server: ServerState, aggregate: Params, rng: RandomKeys) -> ServerState:
        """Step to the mean model; the control variate moves by the clients' share of the fleet."""
        model = {}
        control = {}
        for name, value in server.params.items():
            mean = aggregate[name]
            # w + (mean - w) differs from the mean in its last bits
            step = value + self.server_lr * (mean - value)
            model[name] = step if self.server_lr != 1 and name in self._trained else mean
            move = aggregate[SHARE] * aggregate[CONTROL + name].double()
            control[name] = server.extra["control"][name] + move.float()
        return self.apply_mean(server, model).with_extra(control=control)

    # ---- client ----------------------------------------------------------------------------------

    def receive(self, received: Params, state: ClientState) -> Params:
        """The model without the control variate."""
        return {n: value for n, value in received.items() if not n.startswith(CONTROL)}

    def client_gradients_(self, run: LocalRun) -> None:
        """``grad += c - c_i``."""
        for name, parameter, _ in run.parameters():
            add_to_gradient_(parameter, run.message[CONTROL + name])
            if CONTROL + name in run.state:
                add_to_gradient_(parameter, run.state[CONTROL + name], -1)

    def uplink(self, run: LocalRun) -> Tensors:
        """The weights, and how far the client's control variate moves."""
        update = dict(super().uplink(run) or {})
        values = run.module.state_dict()
        generator = run.rng.torch("quant_up", device=run.device)
        bits = self._bits(run.client)
        rates = run.lr_sums_by_name()
        for name, control in named(run.message, CONTROL).items():
            key = CONTROL + name
            move = torch.zeros_like(control)
            # a round without a learning rate has found no gradient
            if rate := rates.get(name):
                move = (run.received[name] - values[name]) / rate - control
            sent = qsgd(move, bits, "linf", generator) if bits < 32 and move.ndim >= 2 else move
            update[key] = sent
            moved = move if sent is move else sent.dequantize()
            own = run.state.get(key, torch.zeros_like(move))
            # states last from round to round, and the device is to hold one client's model
            run.state[key] = (own + moved).cpu()
        return update

    def _bits(self, client: Client) -> int:
        """Bits of the client's moves of its control variate."""
        own = client.devices.spec.sent_bits
        return own if self.control_bits is None else self.control_bits

    def _both(self, server: ServerState) -> Params:
        control = server.extra["control"]
        return {**server.params, **{CONTROL + name: control[name] for name in server.params}}
