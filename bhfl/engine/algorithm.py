"""What an algorithm's author writes: the hooks of both halves, which are FedAvg's by default."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from bhfl.comm import float_tensors
from bhfl.engine.aggregate import Aggregator, WeightedMean
from bhfl.engine.context import Context, LocalRun, add_to_gradient_
from bhfl.engine.handed import check_mean, name_of
from bhfl.engine.hooks import Guard
from bhfl.engine.random import RandomKeys
from bhfl.engine.server_optimizer import ServerOptimizer, stepped
from bhfl.engine.types import Client, ClientState, Metrics, Params, ServerState, Tensors
from bhfl.quant import quantized_state
from bhfl.recorded import Recorded

__all__ = ["ALGORITHM_HOOKS", "Algorithm", "Context", "LocalRun", "add_to_gradient_"]


class Algorithm(Recorded):
    """FedAvg, hook by hook (McMahan et al. 2017, arXiv 1602.05629): override what differs.

    State goes in and comes out: what lasts is in `ServerState.extra` and the client's own state,
    never in attributes, so that checkpoints and several processes need no more than an `Aggregator`
    that brings together what each process holds. The constructor's arguments are its options.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Refuse a class with a method that looks like a hook and is none."""
        super().__init_subclass__(**kwargs)
        ALGORITHM_HOOKS.check_class(cls)

    # ---- server ----------------------------------------------------------------------------------

    communicates: bool = True
    """False for clients that train alone: nothing is sent, and each keeps its own model."""

    private: bool = False
    """True for a method that promises something of what clients send: what it did not ask for stays
    with them, norm statistics and counters, and a round without any update is combined too.
    """

    withstands: bool = False
    """Whether a few clients that are far off cannot make the model their own: no warning then."""

    descends: bool = False
    """Whether it changes losses or gradients for optimisers that go down: `maximize` is refused."""

    server_optimizer: ServerOptimizer | None = None
    """Set by the trainer; `apply_mean` goes through it."""

    def setup(self, context: Context) -> None:
        """See what the run is made of, before any work is done and after `prepare`.

        Raises:
            ValueError: This method cannot run with it.
        """

    def init_server(self, params: Params, clients: Sequence[Client]) -> dict[str, Any]:
        """The first `ServerState.extra`; later ones have its keys too, with values of its kinds.

        Args:
            params: The first global model: float32 tensors by name.
            clients: The whole fleet, as it is in the first round.

        Returns:
            Nested dicts and lists of tensors, numbers and strings.
        """
        return {}

    def begin_round(
        self, server: ServerState, cohort: Sequence[Client], context: Context
    ) -> ServerState:
        """The state that the round is done with, from the one that the last round left.

        Planning, probing and training before anything is sent belong here. Every process calls it
        and must come to the same: ``fabric.broadcast`` hands on what rank 0 alone has made. It is
        dropped if the round is skipped. `extra` may hold keys that `server_update` takes out again.

        Args:
            server: The state before the round; it is not to be changed.
            cohort: The clients of the round, in the order of their ids.
            context: What the run is made of, and the steps that are planned for each client.

        Returns:
            The state that every other hook of the round is given.
        """
        return server

    def regroup(
        self, server: ServerState, clients: Sequence[Client], origins: Mapping[str, str]
    ) -> ServerState:
        """The state before a round in which groups' bits change, and what `extra` holds by bits
        with them. It stays so even if the round is skipped.

        Args:
            server: The state that the last round left; it is not to be changed.
            clients: The whole fleet, as it is from now on.
            origins: The bits before of clients whose bits (`Client.bits`) are new, by the new ones.

        Returns:
            The state that the round begins with.
        """
        return server

    def downlink(self, server: ServerState, client: Client) -> Tensors:
        """What `client` is sent at the start of a round. What is made of the same tensors for
        several clients is encoded once.

        A tensor of the model that neither this sends nor `receive` makes is the client's own: it
        goes on from where the client's last round left it, and begins as in the first model.

        Args:
            server: The state of the round.
            client: Who is sent it.

        Returns:
            Tensors by name, of the model's shapes or others that `receive` knows.
        """
        return server.params

    def bits_down(self, server: ServerState, client: Client, moves: Params) -> Mapping[str, int]:
        """Bits of the differences that a client is sent, where not all go by ``trainer.downlink``.

        Args:
            server: The state of the round.
            client: Who is sent them.
            moves: The differences, in float32.

        Returns:
            0..16 by name: 1 for signs, 0 to leave all of one for later.
        """
        return {}

    def expected(self, server: ServerState) -> Mapping[str, Tensor]:
        """Names, shapes and dtypes that every uplink must have, or else it is rejected."""
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

        Returns:
            The widths that are taken, by the name of the tensor.
        """
        bits = {name: client.devices.spec_of(name).sent_bits for name in layers}
        return {name: (width,) for name, width in bits.items() if width < 32}

    def reconstruct(self, update: Tensors, client: Client, server: ServerState) -> Any:
        """A decoded uplink as the aggregator takes it; by default dequantised to float32.

        Args:
            update: A `bhfl.engine.types.Update`: its tensors by name, beside its payload.
            client: Who sent it.
            server: The state of the round.

        Returns:
            What `aggregator` adds; by default float32 tensors by name.
        """
        return float_tensors(update)

    def aggregator(self, server: ServerState, clients: Sequence[Client]) -> Aggregator:
        """A fresh aggregator for this round; one that has `expect` is told who takes part.

        Args:
            server: The state of the round.
            clients: The whole fleet, as it is in this round.

        Returns:
            It has taken nothing in yet.
        """
        return WeightedMean(server.params)

    def statistics_aggregator(self, like: Params) -> Aggregator:
        """A fresh aggregator, with `expect`, for running statistics that clients share."""
        return WeightedMean(like)

    def server_update(self, server: ServerState, aggregate: Any, rng: RandomKeys) -> ServerState:
        """The state with the new model. Runs on rank 0.

        Args:
            server: The state of the round; it is not to be changed.
            aggregate: What `Aggregator.reduce` came to.
            rng: The round's source of random draws.

        Returns:
            A new state, as by `apply_mean` or `dataclasses.replace`.
        """
        return self.apply_mean(server, aggregate)

    def apply_mean(self, server: ServerState, mean: Params) -> ServerState:
        """The state with `mean`, or where the server optimiser's step on ``w_t - mean`` leads.

        Args:
            server: The state of the round.
            mean: Float32 tensors by name. What clients are not asked for may be missing, and stays.

        Returns:
            A new state; `server` is as it was.

        Raises:
            ValueError: `mean` lacks one that clients are asked for, or has other shapes.
        """
        hook = f"{name_of(self, 'apply_mean')}(mean)"
        check_mean(hook, mean, server.params, self.expected(server))
        return stepped(server, mean, self.server_optimizer)

    def closing(self, server: ServerState) -> Tensors | None:
        """What the round's clients are sent at its end, besides the next downlink, or None."""
        return None

    def summarize(self, server: ServerState, metrics: Mapping[str, float]) -> Metrics:
        """More numbers to log, from those of a finished round.

        Args:
            server: The state after it.
            metrics: Its row, by tag.

        Returns:
            Numbers by tag, which the row gets too.
        """
        return {}

    def group_params(self, server: ServerState, group: str) -> Params:
        """The global model that clients of a bit group run: ``val/acc_<group>`` is measured on it.

        Leave out what is the clients' own (see `downlink`), and the group's value is the mean over
        its clients' models; otherwise the model is measured with the server's value of it.

        Args:
            server: The state after a round.
            group: The label, as in `Client.bits`.

        Returns:
            Float32 tensors by name, of the shapes of `ServerState.params`.
        """
        return server.params

    # ---- client ----------------------------------------------------------------------------------

    own_model: bool = False
    """True for clients that each keep a whole model of their own beside the one that they send. It
    is trained after that one, on the same batches and by the same hooks, as `LocalRun.own` tells,
    begins as the first model received, and is what is measured.
    """

    @property
    def client_half(self) -> "Algorithm":
        """Whose client hooks are called: its own, or those of an algorithm that it is built on."""
        return self

    common: Sequence[str] = ()
    """How the names of those tensors begin that a client keeps and most clients of its round keep
    too, to the bit. They are held and written once for all of them, and not to be changed in place.
    """

    begins_anew: bool = False
    """Whether a client that has lost its state may begin it anew: no state of others needs it."""

    def prepare(self, module: nn.Module, clients: Sequence[Client]) -> None:
        """See the model and the fleet, as they were handed over: called first of all hooks, once in
        every process that trains clients. The client hooks live on what this found and on what
        they are given.

        Args:
            module: The user's module, in float32.
            clients: The whole fleet, as it is in the first round; `one_of_each` knows all bits.
        """

    def init_client(self, client: Client, received: Params) -> ClientState:
        """What the client keeps between rounds, at its first one; empty for stateless clients.

        Args:
            client: Who keeps it.
            received: The first downlink as decoded.

        Returns:
            Tensors by name.
        """
        return {}

    def receive(self, received: Params, state: ClientState) -> Params:
        """The weights that a client starts from.

        Args:
            received: The downlink as decoded: float32 tensors by name.
            state: What the client kept.

        Returns:
            Float32 tensors by name, of the shapes of the model's.
        """
        return received

    def num_steps(self, run: LocalRun, planned: int) -> int:
        """The optimiser steps that the client makes.

        Args:
            run: Its work in this round, before the first step.
            planned: The steps by its batches and the settings, of a straggler its part of them.

        Returns:
            At most `planned`; 0 for a client that drops out.
        """
        return planned

    def client_loss(self, run: LocalRun, batch: Any, batch_idx: int) -> Any:
        """The local loss; by default the module's own `training_step`.

        Args:
            run: The client's work in this round.
            batch: A batch of the client's, on the module's device.
            batch_idx: Its place in the local epoch, from 0.

        Returns:
            What a `training_step` may: a scalar tensor, a dict with ``loss``, None for no step.
        """
        return run.training_step(batch, batch_idx)

    def client_gradients_(self, run: LocalRun) -> None:
        """Change the gradients in place, after backward and before they are clipped and used."""

    def uplink(self, run: LocalRun) -> Tensors | None:
        """What the client sends, or None: by default its weights, at the bits of its spec."""
        return quantized_state(run.module, sent=True)

    def client_close(self, client: Client, state: ClientState, closing: Params) -> ClientState:
        """The client's state after it received the round's `closing` message.

        Args:
            client: Whose state it is.
            state: What its round left.
            closing: The message as decoded.

        Returns:
            What the client keeps from now on.
        """
        return state


ALGORITHM_HOOKS = Guard(Algorithm, by_trainer=["server_optimizer"])
"""What an algorithm's hooks are, and the check of them."""
