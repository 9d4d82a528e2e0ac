"""The server half of an algorithm: hooks held to what they may return before anything goes on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from bhfl.comm import Tensors
from bhfl.engine.aggregate import Aggregator
from bhfl.engine.algorithm import Algorithm, Context
from bhfl.engine.contents import lost_key
from bhfl.engine.handed import (
    ReturnError,
    ServerReturnError,
    check_aggregate,
    check_metrics,
    check_server,
    check_tensors,
    name_of,
)
from bhfl.engine.random import RandomKeys
from bhfl.engine.refusal import RefusedError
from bhfl.engine.types import Client, Metrics, Params, ServerState


@dataclass
class ServerHooks:
    """Calls the hooks of the server half.

    What is wrong with what one returns ends the run, as `ServerReturnError`; what is wrong with one
    client's update is that client's.

    Args:
        algorithm: Its hooks.
        model: The first model, by name, for the names, shapes and dtypes of its tensors.
        extra: The first `ServerState.extra`, for its keys and the kinds of what they hold.
    """

    algorithm: Algorithm
    model: Mapping[str, Tensor]
    extra: Mapping[str, Any]

    def name(self, hook: str) -> str:
        """What errors call a hook."""
        return name_of(self.algorithm, hook)

    def begin_round(
        self, server: ServerState, cohort: Sequence[Client], context: Context
    ) -> ServerState:
        """The state that the round is done with; what is the engine's in it stays as it was."""
        started = self.algorithm.begin_round(server, cohort, context)
        self._check_state("begin_round", started, server)
        return replace(server, params=started.params, extra=started.extra, metrics=started.metrics)

    def regroup(
        self, server: ServerState, clients: Sequence[Client], origins: Mapping[str, str]
    ) -> ServerState:
        """The state for other bits; what is the engine's in it stays as it was."""
        regrouped = self.algorithm.regroup(server, clients, origins)
        self._check_state("regroup", regrouped, server)
        return replace(server, params=regrouped.params, extra=regrouped.extra)

    def _check_state(self, hook: str, returned: Any, before: ServerState) -> None:
        check_server(self.name(hook), returned, before)
        # here, so that it is the hook's error, and not one of whoever resumes the run
        if problem := lost_key(returned.extra, self.extra):
            raise ReturnError(f"{self.name(hook)}: {problem}")

    def expected(self, server: ServerState) -> Mapping[str, Tensor]:
        """What an update must be."""
        expected = self.algorithm.expected(server)
        check_tensors(self.name("expected"), expected)
        return expected

    def check_downlink(self, tensors: Any, server: ServerState) -> None:
        """ServerReturnError unless it can be sent, and is of the model where clients take it for
        that.
        """
        hook = self.name("downlink")
        receives = type(self.algorithm.client_half).receive is not Algorithm.receive
        try:
            check_tensors(hook, tensors, codes=True)
            # where a `receive` takes the message apart, it may hold more than tensors of the model
            model = {
                name: value
                for name, value in tensors.items()
                if not receives or name in server.params
            }
            check_tensors(hook, model, self.model, codes=True, known=server.params)
        except ReturnError as error:
            # a plain ReturnError would be laid on the client whose task is being made
            raise ServerReturnError(str(error)) from None

    def fold(
        self, update: Tensors, client: Client, server: ServerState, updates: Aggregator
    ) -> None:
        """Add one client's update to the round's; whatever is raised by it rejects this client
        alone.
        """
        hook = self.name("reconstruct")
        mine = type(self.algorithm).reconstruct is not Algorithm.reconstruct
        try:
            reconstructed = self.algorithm.reconstruct(update, client, server)
            hook = f"{hook}: {name_of(updates, 'add')}" if mine else name_of(updates, "add")
            updates.add(reconstructed, client)
        # what was reconstructed is of another kind than what is added up
        except ReturnError as error:
            raise ReturnError(f"{hook}: {error}") from None
        except Exception as error:
            raise RefusedError(f"{hook} raised {type(error).__name__}: {error}") from error

    def server_update(
        self, server: ServerState, aggregate: Any, updates: Aggregator, rng: RandomKeys
    ) -> ServerState:
        """The state with the new model, from what the aggregator `updates` came to."""
        check_aggregate(name_of(updates, "reduce"), aggregate, server.params)
        following = self.algorithm.server_update(server, aggregate, rng)
        self._check_state("server_update", following, server)
        return following

    def summarize(self, server: ServerState, metrics: Mapping[str, float]) -> Metrics:
        """More numbers of a round."""
        found = self.algorithm.summarize(server, metrics)
        check_metrics(f"{self.name('summarize')} must return", found)
        return found

    def closing(self, server: ServerState) -> Tensors | None:
        """What closes a round."""
        message = self.algorithm.closing(server)
        if message is not None:
            check_tensors(self.name("closing"), message, codes=True)
        return message

    def group_params(self, server: ServerState, group: str) -> Params:
        """The model of a group, without what its clients have of their own."""
        params, hook = self.algorithm.group_params(server, group), self.name("group_params")
        check_tensors(hook, params, server.params, known=server.params)
        dropped = server.params.keys() - params.keys()
        # what clients have of their own is known from the first update on
        if server.accepted and (lost := dropped - server.buffers["first"].keys()):
            raise ReturnError(f"{hook} must return {min(lost)!r}, which no client has of its own")
        return params
