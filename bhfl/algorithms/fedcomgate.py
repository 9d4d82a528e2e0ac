"""FedCOMGATE. Haddadpour et al., AISTATS 2021, https://arxiv.org/abs/2007.01154."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from bhfl.algorithms.differences import DifferenceAlgorithm, Norm
from bhfl.algorithms.optimizers import check_plain, configured_by
from bhfl.checks import checked, positive, true_or_false
from bhfl.engine.algorithm import Context, LocalRun, add_to_gradient_
from bhfl.engine.context import named
from bhfl.engine.downlink import check_whole, is_coarse
from bhfl.engine.random import RandomKeys
from bhfl.engine.roster import one_of_each
from bhfl.engine.types import Client, ClientState, Params, ServerState, Tensors, without
from bhfl.quant import QuantizedTensor
from bhfl.quant.spec import FLOAT_BITS

TRACKED = "tracked/"
START = "start/"
OWN = "own/"
CODES = "codes/"
SCALES = "scales/"
_NOTHING: Tensors = {}
_REMEDY = "; set allow_inexact: true to run it nevertheless"


class FedCOMGATE(DifferenceAlgorithm):
    """FedCOM with local gradient tracking: clients descend along ``g - delta_i``, and after the
    round

    ``delta_i += (Q(w_t - w_i) - mean_j Q(w_t - w_j)) / sum of the round's learning rates``, for
    each parameter those of its group in the optimiser.

    The client's own *quantised* difference enters, so the deltas sum to zero whatever the quantiser
    does; with the exact one every quantisation error stays in them for ever. The mean goes down in
    float32. A client that was there in the last round rebuilds the model from it and is sent
    nothing else, so that with full participation a round costs one float32 model down. Under a
    ``trainer.downlink`` below float32 it is sent the model in each round, as its own is another
    one; the mean stays float32, as rounding it would stay in the deltas for ever. A client that has
    lost its ``delta_i`` is refused: with zero in its place the deltas would not sum to zero again.

    Args:
        bits: Bits of a quantised difference; 32 sends float32.
        server_lr: ``gamma``.
        norm: What scales a bucket: its largest magnitude (``linf``) or its length (``l2``).
        bucket_size: Entries that share a norm; null for one bucket a tensor.
        allow_inexact: Run with other optimisers than plain SGD, and with clients of unequal numbers
            of steps or learning rates, for which the correction is only approximate.
        top_k: The share of a tensor's entries that are sent, those of the largest magnitudes.
            What is left out lasts in the tracking, which is an error feedback of its own.

    Raises:
        ValueError: An argument is out of its range; in `setup`, the optimiser or the steps are not
            as above.
    """

    descends = True
    begins_anew = False

    # all clients of a round rebuild the same model
    common = (START,)

    def __init__(
        self,
        bits: int = 8,
        server_lr: float = 1.0,
        norm: Norm = "linf",
        bucket_size: int | None = None,
        allow_inexact: bool = False,
        top_k: float | None = None,
    ) -> None:
        super().__init__(bits, norm, bucket_size, top_k=top_k)
        self.server_lr = checked("FedCOMGATE.server_lr", server_lr, positive)
        self.allow_inexact = checked("FedCOMGATE.allow_inexact", allow_inexact, true_or_false)

    def setup(self, context: Context) -> None:
        """Plain SGD and equal numbers of local steps, or `allow_inexact`; at 32 bits a whole
        downlink.
        """
        # of a group whose bits change, for all rounds: what it was sent before is not the model
        each = one_of_each(context.clients)
        self._coarse = {client.group for client in each if is_coarse(client.devices)}
        # weights that travel as values are moves from the model of the server alone
        if self.bits == FLOAT_BITS:
            check_whole("FedCOMGATE with bits: 32", context.clients)
        # clients rebuild the model by the server's step, and do not have the optimiser's state
        if self.server_optimizer is not None:
            raise ValueError(
                "FedCOMGATE makes its own server step: trainer.server_optimizer must be null"
            )
        if self.allow_inexact:
            return
        _check_rates(context)
        availability = context.settings.fleet.availability
        if availability and availability.has_stragglers:
            raise ValueError(
                "FedCOMGATE needs equal numbers of local steps, and trainer.availability has "
                "stragglers, which make a part of theirs; set allow_inexact: true to run with them"
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
        batches = {min(*steps, context.data.num_batches(client.id)) for client in able}
        _, schedules = configured_by(context)
        by_epoch = (one.interval == "epoch" and not one.reduce_on_plateau for one in schedules)
        if len(batches) > 1 and any(by_epoch):
            raise ValueError(
                "FedCOMGATE needs learning rates that all clients share, and those of a schedule "
                f"by epochs differ between clients of {min(batches)} batches and of more: set "
                f"lr_interval, or the schedule's interval, to step{_REMEDY}"
            )

    # ---- server ----------------------------------------------------------------------------------

    def init_server(self, params: Params, clients: Sequence[Client]) -> dict[str, Any]:
        """Nothing to rebuild from yet."""
        return {"mean": None}

    def server_update(self, server: ServerState, aggregate: Params, rng: RandomKeys) -> ServerState:
        """FedCOM's step; the mean difference is kept for `closing`."""
        mean = self.mean_difference(server.params, aggregate)
        stepped = {name: self.stepped(name, server.params[name], mean[name]) for name in mean}
        return replace(server.with_extra(mean=mean), params=stepped)

    def downlink(self, server: ServerState, client: Client) -> Tensors:
        """The model, or nothing for a client that has rebuilt it from the last round's mean."""
        rebuilt = client.id in server.participants and client.group not in self._coarse
        return _NOTHING if rebuilt else server.params

    def closing(self, server: ServerState) -> Tensors:
        """``mean_j Q(w_t - w_j)``, float32."""
        mean: Params = server.extra["mean"]
        return mean

    # ---- client ----------------------------------------------------------------------------------

    def receive(self, received: Params, state: ClientState) -> Params:
        """The weights that were sent, else those rebuilt."""
        return {**named(state, START), **received}

    def client_gradients_(self, run: LocalRun) -> None:
        """``grad -= delta_i``."""
        for name, parameter, _ in run.parameters():
            # there is none in a client's first round: delta_i begins at zero
            if TRACKED + name in run.state:
                add_to_gradient_(parameter, run.state[TRACKED + name], -1)

    def uplink(self, run: LocalRun) -> Tensors:
        """FedCOM's, and what it stands for kept: the very difference that was sent enters the
        tracking.
        """
        update = super().uplink(run)
        # without what is the client's own
        given = self.receive(run.message, run.state)
        floating = {name: run.received[name] for name in given if given[name].is_floating_point()}
        coded = {key: value for key, value in update.items() if isinstance(value, QuantizedTensor)}
        plain = self.join(without(update, coded), floating)
        differences = self.mean_difference(floating, plain)
        # states last from round to round, and the device is to hold one client's model at a time
        run.state |= {OWN + name: tensor.cpu() for name, tensor in differences.items()}
        # as codes, which take far fewer bytes than what they stand for
        run.state |= {CODES + key: value.codes.cpu() for key, value in coded.items()}
        run.state |= {SCALES + key: value.scale.cpu() for key, value in coded.items()}
        run.state |= {START + name: tensor.cpu() for name, tensor in floating.items()}
        rates = run.lr_sums_by_name()
        sums = [rates.get(name, 0.0) for name in sorted(floating)]
        run.state["lr_sums"] = torch.tensor(sums, dtype=torch.float64)
        return update

    def client_close(self, client: Client, state: ClientState, closing: Params) -> ClientState:
        """Track, and rebuild the model."""
        start = named(state, START)
        scales = named(state, SCALES)
        coded = {
            key: QuantizedTensor(codes, scales[key], self.bits)
            for key, codes in named(state, CODES).items()
        }
        own = self.join({**named(state, OWN), **coded}, start)
        sums = dict(zip(sorted(start), state["lr_sums"], strict=True))
        following = {}
        for name, mean in closing.items():
            tracked = state.get(TRACKED + name, torch.zeros_like(mean))
            # nothing could have moved without a learning rate
            if rate := sums[name]:
                tracked = (own[name] - mean).div_(rate).add_(tracked)
            following[TRACKED + name] = tracked
            following[START + name] = self.stepped(name, start[name], mean)
        return following


def _check_rates(context: Context) -> None:
    """ValueError where clients differ in their learning rates: the deltas sum to zero only where
    all differences are divided by the same sum of them.
    """
    rates = set()
    for optimizer in check_plain(context, "FedCOMGATE", _REMEDY):
        # before any schedule, which all follow
        first = [group.get("initial_lr", group["lr"]) for group in optimizer.param_groups]
        rates.add(tuple(first))
    if len(rates) > 1:
        raise ValueError(
            "FedCOMGATE needs the same learning rates in all groups of clients, got "
            f"{sorted(rates)}{_REMEDY}"
        )
    _, schedules = configured_by(context)
    restarts = context.settings.training.lr_schedule == "restart"
    if restarts and any(one.reduce_on_plateau for one in schedules):
        raise ValueError(
            "FedCOMGATE needs learning rates that all clients share, and ReduceLROnPlateau "
            "follows what each client logs under trainer.lr_schedule: restart; set "
            f"lr_schedule: continue{_REMEDY}"
        )
