"""What an algorithm's author writes: hooks, each defaulting to FedAvg's, client half and server
half in one class.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from bhfl.comm import float_tensors
from bhfl.engine.aggregate import Aggregator, WeightedMean
from bhfl.engine.calls import call_step
from bhfl.engine.exchange import ClientLink
from bhfl.engine.handed import ReturnError, check_tensors, name_of
from bhfl.engine.hooks import Guard, HookError
from bhfl.engine.random import RandomKeys
from bhfl.engine.server_optimizer import ServerOptimizer
from bhfl.engine.types import Client, ClientState, Params, Row, ServerData, ServerState, Tensors
from bhfl.quant import quantized_state
from bhfl.recorded import Recorded
from bhfl.settings import LocalTraining, Settings

# A small device trains with torch alone, so Lightning is imported for type checks only.
if TYPE_CHECKING:
    import lightning as L
    from lightning.fabric import Fabric

    from bhfl.engine.client.worker import Worker
    from bhfl.engine.timing import Timing


@dataclass(frozen=True)
class Context:
    """What a run is made of."""

    clients: list[Client]
    module: L.LightningModule
    data: ServerData
    fabric: Fabric
    settings: Settings
    """The trainer's settings."""
    worker: Worker
    """This process's module and what trains and evaluates it; idle before and after the clients of
    a round.
    """
    buffers: Callable[[ServerState, str], Params]
    """The norm statistics and counters that travel with the parameters of a bit group, both ways.
    """
    timing: Timing | None
    """The simulated network, where there is one."""

    def planned_steps(self, client: Client) -> int:
        """Optimiser steps that a round has for `client`, by its batches and the settings;
        none without examples. `Algorithm.num_steps` may make fewer of them.
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
    """The weights it started from, as decoded from what the server sent, on the module's device."""
    message: Params
    """The downlink as decoded; `received` is what `Algorithm.receive` made of it."""
    state: ClientState
    """What this client keeps between rounds (see `Algorithm.init_client`); hooks replace its
    entries.
    """
    rng: RandomKeys
    evaluate: Callable[[int], dict[str, float]]
    """The module's validation metrics, as it stands, on so many of the client's own training
    examples, in batches.
    """
    history: Sequence[Row] = ()
    """The server's metrics, a row for each past round."""
    link: ClientLink | None = None
    """The client's in this round, where a network is simulated."""
    downlink_bytes: int = 0
    """Received at the start of the round."""
    num_examples: int = 0
    """Training examples seen so far, each as often as it was seen."""
    num_steps: int = 0
    """Optimiser steps taken so far."""
    lr_sum: float = 0.0
    """Sum of the learning rates of those steps (first parameter group of the first optimiser)."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Numbers to be averaged over the cohort and logged."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        """What the module's own ``training_step`` returns, which may take ``batch_idx`` or leave it
        out.
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


def add_to_gradient_(parameter: nn.Parameter, value: Tensor, alpha: float = 1.0) -> None:
    """Add ``alpha * value`` to the gradient of a parameter, for `Algorithm.client_gradients_`.

    A sparse gradient becomes a dense one. A parameter without a gradient, which the loss does not
    reach, stays so.
    """
    if parameter.grad is None:
        return
    if parameter.grad.layout != torch.strided:
        parameter.grad = parameter.grad.to_dense()
    parameter.grad.add_(value.to(parameter.grad.device), alpha=alpha)


class Algorithm(Recorded):
    """FedAvg, hook by hook (McMahan et al. 2017, arXiv 1602.05629): override what your method does
    differently.

    State goes in and comes out: what lasts lives in `ServerState.extra` and in the client's own
    state, never in attributes of the algorithm, so checkpoints and several processes need no help
    from its author, but for an aggregator of its own, which brings together what each process holds
    (`Aggregator.reduce`). The arguments of its constructor are its options: a run is resumed only
    with the same ones.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Refuse a class with a method that looks like a hook and is none."""
        super().__init_subclass__(**kwargs)
        ALGORITHM_HOOKS.check_class(cls)
        # the trainer sets it on the object, over whatever the class says, and nobody would notice
        if cls.server_optimizer is not None:
            raise HookError(
                f"{cls.__name__}.server_optimizer is set by the trainer: give it "
                "trainer.server_optimizer"
            )

    # ---- server ----------------------------------------------------------------------------------

    communicates: bool = True
    """False for clients that train alone: nothing is sent, and each keeps its own model between
    rounds.
    """

    server_optimizer: ServerOptimizer | None = None
    """Set by the trainer; `apply_mean` goes through it."""

    def setup(self, context: Context) -> None:
        """See what the run is made of, before any work is done and after `prepare`; ValueError
        where this method cannot run with it.
        """

    def init_server(self, params: Params, clients: list[Client]) -> dict[str, Any]:
        """The first `ServerState.extra`; every later one has its keys too, with values of the same
        kinds.
        """
        return {}

    def begin_round(
        self, server: ServerState, cohort: Sequence[Client], context: Context
    ) -> ServerState:
        """The state that the round is done with, from the one that the last round left.

        Whatever a round needs before anything is sent belongs here: planning, probing, training a
        model of the server's. Every process calls it, and it must return the same in each:
        ``context.fabric.broadcast`` hands on what rank 0 alone has made. Every other hook of the
        round gets its result, which is dropped as a whole if the round is skipped. `extra` may
        hold more keys than `init_server` made; what is not meant to last is taken out again in
        `server_update`.

        Args:
            server: The state before the round; it is not to be changed.
            cohort: The clients of the round, in the order of their ids.
            context: What the run is made of, and the steps that are planned for each client.
        """
        return server

    def downlink(self, server: ServerState, client: Client) -> Tensors:
        """What `client` is sent at the start of a round. What is made of the same tensors for
        several clients is encoded once.

        A tensor of the model that neither this sends nor `receive` makes is the client's own: it
        goes on from its value at the end of the client's last round, and begins as in the first
        model.
        """
        return server.params

    def expected(self, server: ServerState) -> Mapping[str, Tensor]:
        """Names, shapes and dtypes that every uplink must have; an update that differs is
        rejected.
        """
        return server.params

    def coded(
        self, server: ServerState, client: Client, layers: list[str]
    ) -> Mapping[str, Collection[int]]:
        """Bits at which `client` may send tensors as codes, by name; other codes are rejected,
        plain values never.

        Args:
            server: The state of the round.
            client: Who sends.
            layers: Names of the weights that low-bit clients compute with as codes.
        """
        allowed = {}
        for name in layers:
            bits = client.devices.spec_of(name).weights
            if bits < 32:
                allowed[name] = (bits,)
        return allowed

    def reconstruct(self, update: Tensors, client: Client, server: ServerState) -> Any:
        """A decoded uplink as the aggregator takes it; by default linear dequantisation to
        float32.

        Args:
            update: A `bhfl.engine.types.Update`: its tensors by name, beside its payload.
            client: Who sent it.
            server: The state of the round.
        """
        return float_tensors(update)

    def aggregator(self, server: ServerState, clients: list[Client]) -> Aggregator:
        """A fresh aggregator for this round; `clients` is the whole fleet."""
        return WeightedMean(server.params)

    def server_update(self, server: ServerState, aggregate: Any, rng: RandomKeys) -> ServerState:
        """The state with the new model. Runs on rank 0; `server` itself is not to be changed."""
        return self.apply_mean(server, aggregate)

    def apply_mean(self, server: ServerState, mean: Params) -> ServerState:
        """The state whose model is `mean`, or where the server optimiser's step on ``w_t - mean``
        leads.

        Tensors that clients are not asked for may be missing in `mean`: they stay as they are.

        Raises:
            ValueError: `mean` lacks one that clients are asked for, or has other shapes than the
                model.
        """
        hook = f"{name_of(self, 'apply_mean')}(mean)"
        check_tensors(hook, mean, server.params)
        if missing := (self.expected(server).keys() & server.params.keys()) - mean.keys():
            raise ReturnError(
                f"{hook} must hold every tensor that clients send, {min(missing)!r} is missing"
            )
        if self.server_optimizer is None:
            return replace(server, params={**server.params, **mean})
        # its state is kept in `extra`, so that moments are in checkpoints like all that lasts
        params, state = self.server_optimizer.step(
            server.params, mean, server.extra.get("server_optimizer")
        )
        return replace(server, params=params, extra={**server.extra, "server_optimizer": state})

    def closing(self, server: ServerState) -> Tensors | None:
        """What the clients of the round are sent when it has ended, besides the next downlink; None
        for nothing.
        """
        return None

    def summarize(self, server: ServerState, metrics: Mapping[str, float]) -> dict[str, float]:
        """More numbers to log, from those of a finished round."""
        return {}

    def group_params(self, server: ServerState, group: str) -> Params:
        """The global model that clients of a bit group run, which is told by its label,
        `Client.bits`: what ``val/acc_<group>`` is measured on.

        Leave out what is the clients' own (see `downlink`), and the group's value is the mean over
        its clients' models; otherwise the model is measured with the server's value of it.
        """
        return server.params

    # ---- client ----------------------------------------------------------------------------------

    def prepare(self, module: nn.Module, clients: list[Client]) -> None:
        """See the model and the fleet, as they were handed over: called first of all hooks, once in
        every process that trains clients. The client hooks live on what this found and on what
        they are given.
        """

    def init_client(self, client: Client, received: Params) -> ClientState:
        """What the client keeps between rounds, at its first round; empty for stateless clients."""
        return {}

    def receive(self, received: Params, state: ClientState) -> Params:
        """The weights that a client starts from, given a downlink and what it kept."""
        return received

    def num_steps(self, run: LocalRun, planned: int) -> int:
        """Optimiser steps that the client makes of the `planned` ones; 0 for a client that drops
        out.
        """
        return planned

    def client_loss(self, run: LocalRun, batch: Any, batch_idx: int) -> Any:
        """The local loss; by default the module's own `training_step`."""
        return run.training_step(batch, batch_idx)

    def client_gradients_(self, run: LocalRun) -> None:
        """Change the gradients in place, after backward and before clipping and the optimiser's
        step.
        """

    def uplink(self, run: LocalRun) -> Tensors | None:
        """What the client sends: by default its weights as it computes with them, at its own bits;
        None for nothing.
        """
        return quantized_state(run.module)

    def client_close(self, client: Client, state: ClientState, closing: Params) -> ClientState:
        """The client's state after it received the round's `closing` message."""
        return state


ALGORITHM_HOOKS = Guard(Algorithm)
"""What an algorithm's hooks are, and the check of them."""
