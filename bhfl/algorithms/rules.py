"""Algorithms that bring updates together in another way, and leave all else to another one."""

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, TypeVar, cast

from bhfl.engine.aggregate import WeightedMean
from bhfl.engine.algorithm import Algorithm, Context
from bhfl.engine.types import Client, Params, ServerState

Hook = TypeVar("Hook", bound=Callable[..., Any])


def _of_client(hook: Hook) -> Hook:
    """A hook of a rule that is the one of its `client`."""

    @wraps(hook)
    def handed_on(self: Any, *args: Any, **kwargs: Any) -> Any:
        return getattr(self.client, hook.__name__)(*args, **kwargs)

    return cast(Hook, handed_on)


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
        if client is not None and not isinstance(client, Algorithm):
            raise ValueError(
                f"{type(self).__name__}.client must be an Algorithm such as SCAFFOLD(), got "
                f"{client!r}"
            )
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

    # what `client` does, and nothing of the rule's
    prepare = _of_client(Algorithm.prepare)
    regroup = _of_client(Algorithm.regroup)
    begin_round = _of_client(Algorithm.begin_round)
    downlink = _of_client(Algorithm.downlink)
    bits_down = _of_client(Algorithm.bits_down)
    expected = _of_client(Algorithm.expected)
    coded = _of_client(Algorithm.coded)
    statistics_aggregator = _of_client(Algorithm.statistics_aggregator)
    server_update = _of_client(Algorithm.server_update)
    closing = _of_client(Algorithm.closing)
    summarize = _of_client(Algorithm.summarize)
    group_params = _of_client(Algorithm.group_params)
