"""GroupedAvg and GroupedAvg-Asymmetric: one global model per bit-width (baselines of ProWD, Yoon et
al. 2022).
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from bhfl.checks import checked, choice
from bhfl.engine.aggregate import Aggregator, GroupedMean
from bhfl.engine.algorithm import Algorithm
from bhfl.engine.random import RandomKeys
from bhfl.engine.roster import one_of_each
from bhfl.engine.types import Client, Params, ServerState


class GroupedAvg(Algorithm):
    """FedAvg inside each bit group: groups never mix, a group without a client in the round keeps
    its model.

    `ServerState.params` is the model of the group with the most bits.
    """

    def init_server(self, params: Params, clients: Sequence[Client]) -> dict[str, Any]:
        """One model a group, all the same at first."""
        models = dict.fromkeys((client.bits for client in one_of_each(clients)), params)
        return {"groups": _ascending(clients), "models": models}

    def regroup(
        self, server: ServerState, clients: Sequence[Client], origins: Mapping[str, str]
    ) -> ServerState:
        """New bits go on from the model of those before; a model that no group has is dropped."""
        groups = _ascending(clients)
        extra = {**server.extra, "groups": groups}
        for key in ("models", "states"):
            before = server.extra.get(key, {})
            taken = {group: origins.get(group, group) for group in groups}
            extra[key] = {new: before[old] for new, old in taken.items() if old in before}
        return replace(server, params=extra["models"][groups[-1]], extra=extra)

    def downlink(self, server: ServerState, client: Client) -> Params:
        """The model of the client's bit group."""
        return self.group_params(server, client.bits)

    def group_params(self, server: ServerState, group: str) -> Params:
        """The model of `group`; ValueError if there is none, as in a checkpoint of another
        fleet.
        """
        models: dict[str, Params] = server.extra["models"]
        if group not in models:
            raise ValueError(
                f"clients must be of {', '.join(models)}, the groups that have a model, got {group}"
            )
        return models[group]

    def sources(self, server: ServerState, group: str) -> list[str]:
        """The groups whose clients enter the model of a group.

        Args:
            server: The state of the round, whose ``extra["groups"]`` are all groups by width.
            group: The label of the group.

        Returns:
            Their labels.
        """
        return [group]

    def aggregator(self, server: ServerState, clients: Sequence[Client]) -> Aggregator:
        """One mean a group, each of the updates of its sources."""
        sources = {group: self.sources(server, group) for group in server.extra["groups"]}
        return _RoutedMeans(server.params, sources)

    def server_update(
        self, server: ServerState, aggregate: dict[str, Params], rng: RandomKeys
    ) -> ServerState:
        """Each group's new model; the server optimiser has a state for each."""
        models = dict(server.extra["models"])
        states = dict(server.extra.get("states", {}))
        for group, mean in aggregate.items():
            # apply_mean knows one model and one state of the optimiser, so each group lends it its
            # own
            own = {**server.extra, "server_optimizer": states.get(group)}
            stepped = self.apply_mean(replace(server, params=models[group], extra=own), mean)
            models[group] = stepped.params
            states[group] = stepped.extra["server_optimizer"]
        extra = {**server.extra, "models": models, "states": states}
        return replace(server, params=models[server.extra["groups"][-1]], extra=extra)


class GroupedAvgAsymmetric(GroupedAvg):
    """GroupedAvg in which knowledge flows from high bits to low: a group also averages in those
    above it.

    The name is the ProWD paper's; its rule is inferred (no public text gives it).

    Args:
        rule: ``ge``: a group averages all clients with at least its bits; ``all``: every group but
            the highest averages all clients. The highest averages only its own.

    Raises:
        ValueError: `rule` is neither.
    """

    def __init__(self, rule: Literal["ge", "all"] = "ge") -> None:
        self.rule = checked("GroupedAvgAsymmetric.rule", rule, choice("ge", "all"))

    def sources(self, server: ServerState, group: str) -> list[str]:
        """This group and those above, or all for any but the highest."""
        groups: list[str] = server.extra["groups"]
        if self.rule == "all" and group != groups[-1]:
            return groups
        return groups[groups.index(group) :]


class _RoutedMeans(GroupedMean):
    """Means by group, an update entering every group that has its sender's among its sources."""

    def __init__(self, like: Params, sources: dict[str, list[str]]) -> None:
        super().__init__(like, list(sources))
        self.sources = sources

    def add(self, update: Params, client: Client) -> None:
        for group, sources in self.sources.items():
            if client.bits in sources:
                self.means[group].add(update, client)


def by_precision(client: Client) -> tuple[tuple[int, int, int], str]:
    """Sorts clients from the lowest to the highest precision, one way whatever their order."""
    return client.spec.precision, client.spec.label


def _ascending(clients: Sequence[Client]) -> list[str]:
    """The bits of all groups, so that a group's sources are a slice up to the end, and the last one
    has the most bits.
    """
    found = sorted((by_precision(client), client.bits) for client in one_of_each(clients))
    return list(dict.fromkeys(bits for _, bits in found))
