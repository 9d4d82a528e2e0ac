"""Buffers that are not the algorithm's business: running statistics of normalisation layers, and
integer counters.
"""

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from bhfl.engine.aggregate import GroupedMean
from bhfl.engine.types import Client, Params, ServerState, Tensors, only, without

if TYPE_CHECKING:
    from lightning.fabric import Fabric

    from bhfl.engine.algorithm import Algorithm

NormPolicy = Literal["average", "local", "group"]


def tracks_statistics(module: nn.Module) -> bool:
    """Whether a module has normalisation layers with running statistics."""
    norms = (layer for layer in module.modules() if isinstance(layer, _NormBase))
    return any(layer.track_running_stats for layer in norms)


class Buffers:
    """What becomes of running means and variances, and of integer buffers, when clients' models are
    combined.

    Statistics of activations differ by bit-width, so their policy is explicit: ``average`` over all
    clients, ``group`` inside each bit group, ``local`` never leaves the client. Counters such as
    ``num_batches_tracked`` take the maximum: an average of counters is no counter.

    Args:
        module: The model; buffers are found by the type of the layer that owns them.
        state: The model's state by name; tensors with several names once.
        policy: What becomes of statistics.
        groups: Labels of the fleet's bit groups.
        frozen: Names of parameters that are not trained.
    """

    def __init__(
        self,
        module: nn.Module,
        state: Mapping[str, Tensor],
        policy: NormPolicy,
        groups: list[str],
        frozen: Collection[str] = (),
    ) -> None:
        self.policy = policy
        self.groups = groups if policy == "group" else ["all"]
        named = module.named_modules(remove_duplicate=False)
        # by type, because what a user's own layer calls running_mean is averaged as others are
        owners = {name: layer for name, layer in named if isinstance(layer, _NormBase)}
        self.statistics = [
            key
            for key in state
            if key.rpartition(".")[0] in owners and key.endswith(("running_mean", "running_var"))
        ]
        self.frozen = [key for key in state if key in frozen]
        counts = [key for key, tensor in state.items() if not tensor.is_floating_point()]
        self.counters = [key for key in counts if key not in frozen]
        self.names = frozenset((*self.statistics, *self.counters, *self.frozen))

    def owns(self, name: str) -> bool:
        """Whether `name` is a buffer of this class's, and so none of the algorithm's parameters."""
        return name in self.names

    def split(self, update: Tensors) -> tuple[Tensors, Tensors]:
        """An update without its buffers, and these."""
        return without(update, self.names), only(update, self.names)

    def first_state(self, state: Mapping[str, Tensor]) -> ServerState:
        """The state before the first round, without what the algorithm keeps.

        Args:
            state: The model's state by name; copied.
        """
        state = {name: tensor.detach().cpu().clone() for name, tensor in state.items()}
        params = {n: tensor.contiguous() for n, tensor in state.items() if not self.owns(n)}
        return ServerState(params, buffers=self.init(state))

    def init(self, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """The first `ServerState.buffers`."""
        statistics = {name: state[name].clone() for name in self.statistics}
        return {
            # groups share the first tensors, which nobody changes in place
            "statistics": dict.fromkeys(self.groups, statistics),
            "counters": {name: state[name].clone() for name in self.counters},
            "frozen": {name: state[name].contiguous() for name in self.frozen},
            "first": {},
        }

    def of(self, server: ServerState, group: str) -> Params:
        """The buffers that `group` runs with; under ``local``, those of a client that has not
        trained yet.
        """
        return {**server.buffers["statistics"][self.key(group)], **server.buffers["counters"]}

    def regrouped(self, buffers: Mapping[str, Any], origins: Mapping[str, str]) -> dict[str, Any]:
        """`ServerState.buffers` in which new bits begin with the statistics of those before, see
        `bhfl.engine.roster.Roster.origins`.
        """
        statistics = dict(buffers["statistics"])
        if self.policy == "group":
            statistics |= {new: buffers["statistics"][old] for new, old in origins.items()}
        return {**buffers, "statistics": statistics}

    def key(self, group: str) -> str:
        """What the statistics that `group` shares are kept under."""
        return group if self.policy == "group" else "all"

    def sent(self, name: str, algorithm: "Algorithm") -> bool:
        """Whether a tensor of the model travels: all do but the statistics under ``local``, and but
        statistics and counters for a private method.
        """
        if algorithm.private:
            return not self.owns(name)
        return algorithm.communicates and (self.policy != "local" or name not in self.statistics)


class BufferSum:
    """Folds the buffers of a round's updates: statistics by policy, as the algorithm brings them
    together, and maxima of counters.
    """

    def __init__(self, buffers: Buffers, server: ServerState, algorithm: "Algorithm") -> None:
        self.buffers = buffers
        self.server = server
        like = {}
        # under ``local`` no statistics arrive; else those of any group have the shapes of all
        if buffers.policy != "local":
            like, *_ = server.buffers["statistics"].values()
        self.means = GroupedMean(like, buffers.groups, algorithm.statistics_aggregator)
        self.maxima = {name: tensor.clone() for name, tensor in server.buffers["counters"].items()}

    def add(self, update: Mapping[str, Tensor], client: Client) -> None:
        """Fold in what the client sent."""
        self.means.means[self.buffers.key(client.bits)].add(dict(update), client)
        for name, value in self.maxima.items():
            self.maxima[name] = torch.maximum(value, update[name].to(value.dtype))

    def reduce(self, fabric: "Fabric") -> dict[str, Any]:
        """The new `ServerState.buffers`; a group without a client keeps what it had, as all do
        under ``local``.
        """
        statistics = dict(self.server.buffers["statistics"])
        if self.buffers.policy != "local":
            statistics.update(self.means.reduce(fabric))
        if fabric.world_size > 1:
            for name, value in self.maxima.items():
                # not every backend reduces int16 or truth values; int64 holds all kinds of counters
                wide = value.to(fabric.device, torch.int64)
                highest: Tensor = fabric.all_reduce(wide, reduce_op="max")  # type: ignore[assignment]
                self.maxima[name] = highest.to("cpu", value.dtype)
        frozen = self.server.buffers["frozen"]
        return {"statistics": statistics, "counters": self.maxima, "frozen": frozen}
