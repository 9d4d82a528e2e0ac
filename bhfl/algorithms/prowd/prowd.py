"""ProWD. Yoon, Park, Jeong, Hwang, ICML 2022, https://arxiv.org/abs/2202.11453."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal, Optional, Union

from bhfl.algorithms.grouped import precision
from bhfl.algorithms.prowd.aggregation import Fill, MaskOptions, Scope, Selected, SelectiveMean
from bhfl.algorithms.prowd.selection import mask_limit
from bhfl.comm import float_tensors
from bhfl.engine.algorithm import Algorithm, Context
from bhfl.engine.sampling import RandomKeys
from bhfl.engine.types import Client, Params, ServerState, Tensors


class ProWD(Algorithm):
    """Progressive weight dequantisation and selective weight aggregation.

    Args:
        mask: Average only those entries of a low-bit client that agree with the high-bit clients' move.
        tau: Largest share of entries (a float in (0, 1]) or number of them (an int) that a mask keeps.
        scope: One mask a weight tensor (``layer``) or one for all of them (``model``).
        per: One mask a ``client``, or one a bit ``group`` from the group's mean.
        fill: What stands for dropped entries: nothing, the rest is ``renorm``-alised; no change (``delta``); the
            ``high`` group's mean; or zero, as the paper's formula reads (``literal``).
        global_models: ``single``, or ``dual``: low-bit clients get the unmasked mean instead.
        high_max_age: Rounds for which the last high-bit move serves when a round has no high-bit client.

    Raises:
        ValueError: An argument is out of its range; in `setup`, the fleet has no high-bit group.
    """

    def __init__(
        self,
        mask: bool = True,
        tau: Union[float, int] = 0.5,
        scope: Scope = "layer",
        per: Literal["client", "group"] = "client",
        fill: Fill = "renorm",
        global_models: Literal["single", "dual"] = "single",
        high_max_age: int = 5,
    ) -> None:
        mask_limit(tau, 1)
        self.mask = MaskOptions(mask, tau, scope, per, fill)
        self.global_models, self.high_max_age = global_models, high_max_age

    def setup(self, context: Context) -> None:
        specs = {client.group: client.spec for client in context.clients}
        self.top = max(specs, key=lambda group: precision(specs[group]))

    def init_server(self, params: Params, clients: list[Client]) -> dict[str, Any]:
        return {"move": None, "low": params if self.global_models == "dual" else None}

    def downlink(self, server: ServerState, client: Client) -> Tensors:
        return self.group_params(server, client.group)

    def group_params(self, server: ServerState, group: str) -> Params:
        if self.global_models == "dual" and group != self.top:
            low: Params = server.extra["low"]
            return low
        return server.params

    def reconstruct(self, update: Tensors, client: Client, server: ServerState) -> Any:
        return float_tensors(update) if client.group == self.top else update

    def aggregator(self, server: ServerState, clients: list[Client]) -> SelectiveMean:
        move = server.extra["move"]
        past = move["params"] if move and server.round - move["round"] <= self.high_max_age else None
        return SelectiveMean(
            server.params,
            lambda client: client.group == self.top,
            lambda update, client: float_tensors(update),
            past,
            self.mask,
            pool_size=0,
            keep_plain=self.global_models == "dual",
        )

    def server_update(self, server: ServerState, aggregate: Selected, rng: RandomKeys) -> ServerState:
        extra = dict(server.extra)
        if aggregate.high is not None:
            move = {name: value - server.params[name] for name, value in aggregate.high.items()}
            extra["move"] = {"params": move, "round": server.round}
        if aggregate.plain is not None:
            extra["low"] = aggregate.plain
        return self.apply_mean(replace(server, extra=extra, metrics=aggregate.metrics), aggregate.params)
