"""Algorithms that bring updates together in another way, and leave all else to another one."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from bhfl.engine.aggregate import WeightedMean
from bhfl.engine.algorithm import Algorithm, Context
from bhfl.engine.random import RandomKeys
from bhfl.engine.types import Client, Params, ServerState, Tensors


class Rule(Algorithm):
    """Another rule in the place of the means of `client`: what its clients do and send, and what
    its server does with what the updates come to, stay as they are.

    Args:
        client: An algorithm whose server averages what clients send as it is, such as FedProx,
            SCAFFOLD, FedDyn, MOON, Ditto or FedPer; null for FedAvg.

    Raises:
        ValueError: In `init_server`, it makes something else of updates.
    """

    def __init__(self, client: Algorithm | None = None) -> None:
        name = f"{type(self).__name__}.client"
        if client is not None and not isinstance(client, Algorithm):
            raise ValueError(f"{name} must be an Algorithm such as SCAFFOLD(), got {client!r}")
        self.client = client or Algorithm()
        self.own_model = self.client.own_model

    @property
    def client_half(self) -> Algorithm:
        """That of `client`."""
        return self.client.client_half

    @property
    def _adds(self) -> bool:
        """Whether the server of `client` makes more of a round than the mean model."""
        return type(self.client).aggregator is not Algorithm.aggregator

    def prepare(self, module: nn.Module, clients: Sequence[Client]) -> None:
        """What `client` does here, as in all hooks below."""
        self.client.prepare(module, clients)

    def setup(self, context: Context) -> None:
        """The server's optimiser is one for both."""
        self.client.server_optimizer = self.server_optimizer
        self.client.setup(context)

    def init_server(self, params: Params, clients: Sequence[Client]) -> dict[str, Any]:
        """See, too, whether the rule can take the place of means."""
        inner = self.client
        extra = inner.init_server(params, clients)
        means = inner.aggregator(ServerState(params, extra=extra), clients)
        as_it_is = type(inner).reconstruct is Algorithm.reconstruct
        if not (inner.communicates and as_it_is and isinstance(means, WeightedMean)):
            raise ValueError(
                f"{type(self).__name__}.client must average what clients send as it is, as FedAvg, "
                f"SCAFFOLD and FedDyn do, got {type(inner).__name__}"
            )
        return extra

    def regroup(
        self, server: ServerState, clients: Sequence[Client], origins: Mapping[str, str]
    ) -> ServerState:
        """Nothing of the rule's."""
        return self.client.regroup(server, clients, origins)

    def begin_round(
        self, server: ServerState, cohort: Sequence[Client], context: Context
    ) -> ServerState:
        """Nothing of the rule's."""
        return self.client.begin_round(server, cohort, context)

    def downlink(self, server: ServerState, client: Client) -> Tensors:
        """Nothing of the rule's."""
        return self.client.downlink(server, client)

    def bits_down(self, server: ServerState, client: Client, moves: Params) -> Mapping[str, int]:
        """Nothing of the rule's."""
        return self.client.bits_down(server, client, moves)

    def expected(self, server: ServerState) -> Mapping[str, Tensor]:
        """Nothing of the rule's."""
        return self.client.expected(server)

    def coded(
        self, server: ServerState, client: Client, layers: list[str]
    ) -> Mapping[str, Collection[int]]:
        """Nothing of the rule's."""
        return self.client.coded(server, client, layers)

    def server_update(self, server: ServerState, aggregate: Any, rng: RandomKeys) -> ServerState:
        """What `client` makes of what the rule came to."""
        return self.client.server_update(server, aggregate, rng)

    def closing(self, server: ServerState) -> Tensors | None:
        """Nothing of the rule's."""
        return self.client.closing(server)

    def summarize(self, server: ServerState, metrics: Mapping[str, float]) -> dict[str, float]:
        """Nothing of the rule's."""
        return self.client.summarize(server, metrics)

    def group_params(self, server: ServerState, group: str) -> Params:
        """Nothing of the rule's."""
        return self.client.group_params(server, group)
