"""Streaming means of models: exact sums (`bhfl.engine.sums`), divided by the weights."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from bhfl.engine.handed import ReturnError
from bhfl.engine.sums import MAX_TERM, ExactSum, Grid, all_reduce_sum, largest
from bhfl.engine.types import Client, Params

if TYPE_CHECKING:
    from lightning.fabric import Fabric


class Flattener:
    """Params to one flat float32 vector and back, in the order of `like`."""

    def __init__(self, like: Params) -> None:
        self.shapes = {name: tensor.shape for name, tensor in like.items()}
        self.sizes = [tensor.numel() for tensor in like.values()]
        self.numel = sum(self.sizes)

    def flatten(self, params: Params) -> Tensor:
        """Float [numel].

        Raises:
            ReturnError: `params` lacks a tensor of `like`, or has one of another shape.
        """
        pieces = self.pieces(params)
        return torch.cat(pieces) if pieces else torch.zeros(0)

    def pieces(self, params: Params) -> list[Tensor]:
        """What `flatten` puts one after the other; it raises the same."""
        if not isinstance(params, Mapping):
            raise ReturnError(f"must be a dict of tensors by name, got {type(params).__name__}")
        for name, shape in self.shapes.items():
            value = params.get(name)
            if not isinstance(value, Tensor):
                got = "is missing" if value is None else f"got {value!r}"
                raise ReturnError(f"{name!r} must be a tensor, {got}")
            if value.shape != shape:
                raise ReturnError(
                    f"{name!r} must have shape {tuple(shape)}, got {tuple(value.shape)}"
                )
        return [params[name].reshape(-1) for name in self.shapes]

    def unflatten(self, flat: Tensor) -> Params:
        """The inverse: float32 tensors, none of which shares its memory with another, because to
        pickle one would pickle all that share it.
        """
        params = {}
        pieces = torch.split(flat, self.sizes)
        for (name, shape), piece in zip(self.shapes.items(), pieces, strict=True):
            params[name] = piece.to(torch.float32, copy=True).view(shape)
        return params


class Aggregator(Protocol):
    """What an algorithm folds a round's updates into: `add` streams on this process, `reduce` ends
    the round.

    One with a method ``expect(cohort)`` is first told of the clients of the round, on all
    processes, each of which `add` then sees at most once.
    """

    def add(self, update: Any, client: Client) -> None:
        """Take one client's reconstructed update."""

    def reduce(self, fabric: "Fabric") -> Any:
        """Combine over processes, as by `bhfl.engine.processes.gather`; the same value on each of
        them.
        """


class WeightedMean:
    """``sum_i weight_i * params_i / sum_i weight_i``: one model in memory, whatever the cohort."""

    def __init__(self, like: Params) -> None:
        self.like = like
        self.flattener = Flattener(like)
        self.sum = ExactSum(self.flattener.numel)
        # weights are whole numbers, of samples or 1, whose sums are exact in float64 up to 2^53
        self.weight = torch.zeros((), dtype=torch.float64)

    def expect(self, cohort: Sequence[Client]) -> None:
        """Sum in a third of the room, and several times as fast."""
        self.sum = ExactSum(self.flattener.numel, Grid.of(self.like, cohort))

    def add(self, update: Params, client: Client) -> None:
        """Fold `update` in with the client's weight.

        Raises:
            ValueError: It has a value that is not finite, or too large for the sum to be exact;
                nothing was added.
        """
        pieces = self.flattener.pieces(update)
        terms = [client.weight * largest(piece) for piece in pieces]
        # `not <` refuses NaN too
        if not all(term < MAX_TERM for term in terms):
            raise ValueError("it has a value that is not finite or too large to average")
        self.sum.add_pieces(pieces, client.weight, max(terms, default=0.0))
        self.weight += client.weight

    def reduce(self, fabric: "Fabric") -> Params | None:
        """The mean over all processes' clients, float32; None where there was no client."""
        self.sum.reduce(fabric)
        self.weight = all_reduce_sum(fabric, self.weight)
        if not self.weight > 0:
            return None
        return self.flattener.unflatten(self.sum.value() / self.weight)


class GroupedMean:
    """One `WeightedMean` per bit group, or what is `made` in its place; groups are fixed up front,
    so that all processes reduce the same shapes.
    """

    def __init__(
        self, like: Params, groups: list[str], made: Callable[[Params], Any] = WeightedMean
    ) -> None:
        self.means = {group: made(like) for group in groups}

    def expect(self, cohort: Sequence[Client]) -> None:
        """The same grid for all groups: a client counts alike in a group and among all."""
        for mean in self.means.values():
            mean.expect(cohort)

    def add(self, update: Params, client: Client) -> None:
        """Fold `update` into the mean of the clients of the same bits."""
        self.means[client.bits].add(update, client)

    def reduce(self, fabric: "Fabric") -> dict[str, Params]:
        """The means of the groups that had a client."""
        reduced = {group: mean.reduce(fabric) for group, mean in self.means.items()}
        return {group: params for group, params in reduced.items() if params is not None}
