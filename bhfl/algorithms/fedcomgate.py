"""FedCOMGATE. Haddadpour et al., AISTATS 2021, https://arxiv.org/abs/2007.01154."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from bhfl.algorithms.differences import DifferenceAlgorithm, Norm
from bhfl.engine.algorithm import Context, LocalRun, add_to_gradient_
from bhfl.engine.random import RandomKeys
from bhfl.engine.types import Client, ClientState, Params, ServerState, Tensors

TRACKED = "tracked/"
OWN = "own/"
START = "start/"
_NOTHING: Tensors = {}


class FedCOMGATE(DifferenceAlgorithm):
    """FedCOM with local gradient tracking: clients descend along ``g - delta_i``, and after the
    round

    ``delta_i += (Q(w_t - w_i) - mean_j Q(w_t - w_j)) / sum of the round's learning rates``.

    The client's own *quantised* difference enters, so the deltas sum to zero whatever the quantiser
    does; with the exact one every quantisation error stays in them for ever. The mean goes down in
    float32. A client that was there in the last round rebuilds the model from it and is sent
    nothing else, so that with full participation a round costs one float32 model down.

    Args:
        bits: Bits of a quantised difference; 32 sends float32.
        server_lr: ``gamma``.
        norm: What scales a bucket: its largest magnitude (``linf``) or its length (``l2``).
        bucket_size: Entries that share a norm; null for one bucket a tensor.
        allow_inexact: Run with other optimisers than plain SGD, and with clients of unequal numbers
            of steps, for which the correction is only approximate.

    Raises:
        ValueError: An argument is out of its range; in `setup`, the optimiser or the steps are not
            as above.
    """

    def __init__(
        self,
        bits: int = 8,
        server_lr: float = 1.0,
        norm: Norm = "linf",
        bucket_size: int | None = None,
        allow_inexact: bool = False,
    ) -> None:
        super().__init__(bits, norm, bucket_size, server_lr)
        self.allow_inexact = allow_inexact

    def setup(self, context: Context) -> None:
        """Plain SGD and equal numbers of local steps, or `allow_inexact`."""
        # clients rebuild the model by the server's step, and do not have the optimiser's state
        if self.server_optimizer is not None:
            raise ValueError(
                "FedCOMGATE makes its own server step: trainer.server_optimizer must be null"
            )
        if self.allow_inexact:
            return
        # a move divided by the sum of learning rates is a mean gradient under plain SGD alone
        optimizers = _optimizers(context.module)
        for devices in dict.fromkeys(client.devices for client in context.clients):
            optimizers.append(devices.optimizer(optimizers[0]))
        for optimizer in optimizers:
            momentum = [group.get("momentum") for group in optimizer.param_groups]
            if type(optimizer) is not torch.optim.SGD or any(momentum):
                raise ValueError(
                    "FedCOMGATE needs torch.optim.SGD without momentum, got "
                    f"{type(optimizer).__name__} with momentum {momentum[0]}; set allow_inexact: "
                    "true to run it nevertheless"
                )
        # a client without examples makes no step, and none is expected of it
        able = [client for client in context.clients if client.num_examples]
        # the deltas sum to zero only where all differences are divided by the same sum of rates
        steps = {context.planned_steps(client) for client in able}
        if len(steps) > 1:
            raise ValueError(
                f"FedCOMGATE needs equal numbers of local steps, got {min(steps)} to {max(steps)} "
                "a client; set trainer.local_steps, or allow_inexact: true"
            )

    # ---- server ----------------------------------------------------------------------------------

    def init_server(self, params: Params, clients: list[Client]) -> dict[str, Any]:
        """Nothing to rebuild from yet."""
        return {"mean": None}

    def server_update(self, server: ServerState, aggregate: Params, rng: RandomKeys) -> ServerState:
        """FedCOM's step; the mean difference is kept for `closing`."""
        mean = self.mean_difference(server.params, aggregate)
        stepped = {name: _step(server.params[name], mean[name], self.server_lr) for name in mean}
        return replace(server, params=stepped, extra={**server.extra, "mean": mean})

    def downlink(self, server: ServerState, client: Client) -> Tensors:
        """The model, or nothing for a client that has rebuilt it from the last round's mean."""
        return _NOTHING if client.id in server.participants else server.params

    def closing(self, server: ServerState) -> Tensors:
        """``mean_j Q(w_t - w_j)``, float32."""
        mean: Params = server.extra["mean"]
        return mean

    # ---- client ----------------------------------------------------------------------------------

    def receive(self, received: Params, state: ClientState) -> Params:
        """The weights that were sent, else those rebuilt."""
        started = {name: value for name, value in state.items() if name.startswith(START)}
        rebuilt = {name.removeprefix(START): value for name, value in started.items()}
        return {**rebuilt, **received}

    def client_gradients_(self, run: LocalRun) -> None:
        """``grad -= delta_i``."""
        for name, parameter, _ in run.parameters():
            # there is none in a client's first round: delta_i begins at zero
            if TRACKED + name in run.state:
                add_to_gradient_(parameter, run.state[TRACKED + name], -1)

    def uplink(self, run: LocalRun) -> Tensors:
        """FedCOM's, and a copy kept: the very tensor that was sent enters the tracking."""
        update = super().uplink(run)
        floating = {
            name: tensor for name, tensor in run.received.items() if tensor.is_floating_point()
        }
        sent = self.mean_difference(floating, self.join(update, floating))
        # states last from round to round, and the device is to hold one client's model at a time
        run.state |= {OWN + name: tensor.cpu() for name, tensor in sent.items()}
        run.state |= {START + name: run.received[name].cpu() for name in sent}
        run.state["lr_sum"] = torch.tensor(run.lr_sum, dtype=torch.float64)
        return update

    def client_close(self, client: Client, state: ClientState, closing: Params) -> ClientState:
        """Track, unless nothing could have moved, and rebuild the model."""
        following = {}
        for name, mean in closing.items():
            tracked = state.get(TRACKED + name, torch.zeros_like(mean))
            if state["lr_sum"]:
                correction = (state[OWN + name] - mean) / state["lr_sum"]
                tracked = tracked + correction.float()
            following[TRACKED + name] = tracked
            following[START + name] = _step(state[START + name], mean, self.server_lr)
        return following


def _step(weight: Tensor, difference: Tensor, server_lr: float) -> Tensor:
    """The server's step; the client makes the same operations, so it has the same bits."""
    return weight - server_lr * difference


def _optimizers(module: Any) -> list[torch.optim.Optimizer]:
    # configure_optimizers may return many forms, all of which Lightning's own parser knows
    from lightning.pytorch.core.optimizer import _configure_optimizers

    return list(_configure_optimizers(module.configure_optimizers())[0])
