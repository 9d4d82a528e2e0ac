"""Means of clipped moves. Andrew et al., NeurIPS 2021, https://arxiv.org/abs/1905.03871."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from bhfl.algorithms.clipping import RATE, clipped, following_bound
from bhfl.algorithms.robust import Median
from bhfl.algorithms.rules import Rule
from bhfl.checks import checked, or_none, positive, within
from bhfl.comm import float_tensors
from bhfl.engine.aggregate import Aggregator, WeightedMean
from bhfl.engine.algorithm import Algorithm
from bhfl.engine.random import RandomKeys
from bhfl.engine.types import Client, Metrics, Params, ServerState, Tensors

if TYPE_CHECKING:
    from lightning.fabric import Fabric

_INSIDE = ":inside"
"""Name of what tells whether a client's move was within the bound; no module has such a one."""


class _Clipped:
    """The means of clipped updates, and of whether they were within the bound."""

    def __init__(self, means: Any) -> None:
        self.means = means
        self.inside = WeightedMean({_INSIDE: torch.zeros(())})

    def expect(self, cohort: Sequence[Client]) -> None:
        self.means.expect(cohort)
        self.inside.expect(cohort)

    def add(self, update: Params, client: Client) -> None:
        # first: it may refuse
        self.means.add(update, client)
        self.inside.add(update, client)

    def reduce(self, fabric: "Fabric") -> Params | None:
        means = self.means.reduce(fabric)
        inside = self.inside.reduce(fabric)
        return None if inside is None else {**means, **inside}


class ClippedMean(Rule):
    """Moves of bounded length in the mean: ``w_{t+1} = w_t + mean_i clip(w_i - w_t)``, which
    streams. Running statistics of BatchNorm have no such bound: they are kept until the round
    ends, and go by their median.

    With `quantile` the bound follows the moves (Andrew et al., NeurIPS 2021,
    https://arxiv.org/abs/1905.03871): after each round it becomes ``bound * exp(-rate * (b -
    quantile))``, with ``b`` the weighted share of clients whose move was within it.

    Args:
        bound: The largest length of a client's move, over all that it sends: what is no weight
            moves from zero.
        quantile: The share of moves that are to be within the bound, in [0, 1]; null for a fixed
            bound.
        rate: How fast it follows, in (0, 10].
        client: See `Rule`.

    Raises:
        ValueError: An argument is out of its range.
    """

    withstands = True

    def __init__(
        self,
        bound: float = 1.0,
        quantile: float | None = None,
        rate: float = 0.2,
        client: Algorithm | None = None,
    ) -> None:
        super().__init__(client)
        self.bound = checked("ClippedMean.bound", bound, positive)
        self.quantile = checked("ClippedMean.quantile", quantile, or_none(within("[0, 1]")))
        self.rate = checked("ClippedMean.rate", rate, RATE)

    def init_server(self, params: Params, clients: Sequence[Client]) -> dict[str, Any]:
        """The bound."""
        return {**super().init_server(params, clients), "bound": self.bound}

    def reconstruct(self, update: Tensors, client: Client, server: ServerState) -> Params:
        """The weights at the bound, and whether they were within it."""
        weights = float_tensors(update)
        start = {name: server.params.get(name, torch.zeros(())) for name in weights}
        weights, inside = clipped(weights, start, server.extra["bound"])
        return {**weights, _INSIDE: torch.tensor(float(inside))}

    def aggregator(self, server: ServerState, clients: Sequence[Client]) -> Aggregator:
        """Means of both."""
        return _Clipped(self.client.aggregator(server, clients))

    def statistics_aggregator(self, like: Params) -> Aggregator:
        """The median of each entry: what bounds a move says nothing of statistics."""
        return Median().statistics_aggregator(like)

    def server_update(self, server: ServerState, aggregate: Params, rng: RandomKeys) -> ServerState:
        """The mean, and the next bound."""
        inside = float(aggregate.pop(_INSIDE))
        following = super().server_update(server, aggregate, rng)
        bound = following_bound(server.extra["bound"], inside, self.quantile, self.rate)
        return following.with_extra(bound=bound)

    def summarize(self, server: ServerState, metrics: Mapping[str, float]) -> Metrics:
        """The next bound."""
        return {**super().summarize(server, metrics), "clipping/bound": server.extra["bound"]}
