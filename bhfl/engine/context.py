"""What the hooks of an algorithm are given: what a run is made of, and one client's work in one
round.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from bhfl.engine.calls import call_step
from bhfl.engine.exchange import ClientLink
from bhfl.engine.random import RandomKeys
from bhfl.engine.types import Client, ClientState, Metrics, Params, Row, ServerData, ServerState
from bhfl.settings import LocalTraining, Settings

# A small device trains with torch alone, so Lightning is imported for type checks only.
if TYPE_CHECKING:
    import lightning as L
    from lightning.fabric import Fabric

    from bhfl.engine.client.worker import Worker
    from bhfl.engine.links import Links


@dataclass(frozen=True)
class Context:
    """What a run is made of."""

    clients: Sequence[Client]
    module: "L.LightningModule"
    data: ServerData
    fabric: "Fabric"
    settings: Settings
    """The trainer's settings."""
    worker: "Worker"
    """This process's module and what trains and evaluates it; idle before and after the clients of
    a round.
    """
    buffers: Callable[[ServerState, str], Params]
    """The norm statistics and counters that travel with the parameters of a bit group, both ways.
    """
    timing: "Links | None"
    """The links: those of the simulated network, where there is one, or measured ones."""

    def planned_steps(self, client: Client) -> int:
        """Optimiser steps that a round has for `client`, by its batches and the settings;
        none without examples. Stragglers make a part of them, and `Algorithm.num_steps` may make
        fewer.
        """
        if not client.num_examples:
            return 0
        training = client.devices.training(self.settings.training)
        return training.planned_steps(self.data.num_batches(client.id))


@dataclass
class LocalRun:
    """One client's work in one round, as the client half of an algorithm sees it."""

    client: Client
    round: int
    module: nn.Module
    device: torch.device
    """Where the module computes."""
    training: LocalTraining
    """How long and in what manner it trains."""
    received: Params
    """The weights it started from, as decoded from what the server sent, on the module's device.
    Where `own` is not None it started from that.
    """
    message: Params
    """The downlink as decoded; `received` is what `Algorithm.receive` made of it."""
    state: ClientState
    """What this client keeps between rounds (see `Algorithm.init_client`); hooks replace its
    entries.
    """
    rng: RandomKeys
    evaluate: Callable[[int], Metrics]
    """The module's validation metrics, as it stands, on so many of the client's own training
    examples, in batches.
    """
    history: Sequence[Row] = ()
    """The server's metrics, a row for each past round."""
    link: ClientLink | None = None
    """The client's in this round, where a network is simulated."""
    part: float = 1.0
    """The part of its planned steps that it makes, less than 1 for a straggler."""
    own: Params | None = None
    """The client's own model as this training found it, which starts from it; None where the model
    is trained that the client sends. See `Algorithm.own_model`.
    """
    downlink_bytes: int = 0
    """Received at the start of the round."""
    num_examples: int = 0
    """Training examples seen so far, each as often as it was seen."""
    num_steps: int = 0
    """Optimiser steps taken so far."""
    lr_sums: dict[int, float] = field(default_factory=dict)
    """Sums of the learning rates of those steps, by the ``id`` of a parameter of the first
    optimiser: each group of parameters may have a rate of its own.
    """
    reach: float = 0.0
    """How far a gradient of 1 would have gone in those steps, over the rate that the first
    optimiser was made with: their number, at that rate and without momentum.
    """
    speed: float = 0.0
    """What the momentum of that optimiser would have made of such gradients by now."""
    carries: bool = False
    """Set by a hook that sends nothing, and has put into `state` what would have been sent: the
    client keeps its state nevertheless, and what it was sent.
    """
    metrics: Metrics = field(default_factory=dict)
    """Numbers to be averaged over the cohort and logged."""

    @property
    def saves_in_int8(self) -> bool:
        """Whether what its training keeps for the backward pass are codes of 8 bits: they are fine
        enough only for activations that have no more.
        """
        return self.training.save_in_int8 and self.client.devices.most_activation_bits <= 8

    @property
    def lr_sum(self) -> float:
        """That of the first parameter."""
        return next(iter(self.lr_sums.values()), 0.0)

    def lr_sums_by_name(self) -> dict[str, float]:
        """Those of all parameters of the module, 0 for one that no optimiser has."""
        own = self.module.named_parameters()
        return {name: self.lr_sums.get(id(parameter), 0.0) for name, parameter in own}

    def add_rates(self, optimizer: Optimizer) -> None:
        """Count the learning rates of a step of an optimiser, and how far it reaches."""
        if not self.lr_sums:
            # the first step of a training
            self.reach = self.speed = 0.0
        # an optimiser of a user's own may have no rates, and no method that needs them takes it
        rates = [float(group.get("lr", 0.0)) for group in optimizer.param_groups]
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            for key in map(id, group["params"]):
                self.lr_sums[key] = self.lr_sums.get(key, 0.0) + rate
        first = optimizer.param_groups[0]
        momentum = first.get("momentum") or 0.0
        self.speed = 1 + momentum * self.speed
        step = 1 + momentum * self.speed if first.get("nesterov") else self.speed
        # a group may be held at 0, and the others move on
        self.reach += step * max(rates) / float(optimizer.defaults.get("lr") or 1.0)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        """What the module's own ``training_step`` returns, which may take ``batch_idx`` or leave it
        out.

        Args:
            batch: A batch of the client's, on the module's device.
            batch_idx: Its place in the local epoch, from 0.

        Returns:
            A loss, a mapping with a ``loss``, or None, as Lightning has it.
        """
        module: Any = self.module
        return call_step(module.training_step, batch, batch_idx)

    def parameters(self) -> Iterator[tuple[str, nn.Parameter, Tensor]]:
        """(name, parameter, the received value) of every trainable parameter that the server
        sent.
        """
        for name, parameter in self.module.named_parameters():
            if parameter.requires_grad and name in self.received:
                yield name, parameter, self.received[name]


def named(tensors: Mapping[str, Tensor], beginning: str) -> Params:
    """The tensors whose names begin so, without that."""
    return {
        name.removeprefix(beginning): value
        for name, value in tensors.items()
        if name.startswith(beginning)
    }


def add_to_gradient_(parameter: nn.Parameter, value: Tensor, alpha: float = 1.0) -> None:
    """Add ``alpha * value`` to the gradient of a parameter, for `Algorithm.client_gradients_`.

    A sparse gradient becomes a dense one. A parameter without a gradient, which the loss does not
    reach, stays so.

    Args:
        parameter: A weight of any shape, whose gradient is changed in place.
        value: What is added, of the same shape, on any device.
        alpha: Its factor.
    """
    if parameter.grad is None:
        return
    if parameter.grad.layout != torch.strided:
        parameter.grad = parameter.grad.to_dense()
    parameter.grad.add_(value.to(parameter.grad.device), alpha=alpha)
