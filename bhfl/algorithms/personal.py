"""Methods whose clients keep a part of the model for themselves: FedPer, FedRep, FedBN."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from bhfl.checks import are_all, checked, count, suggestion
from bhfl.engine.aggregate import Aggregator, WeightedMean
from bhfl.engine.algorithm import Algorithm, Context, LocalRun
from bhfl.engine.availability import part_of
from bhfl.engine.types import Client, Params, ServerState, Tensors, only


class Personal(Algorithm, ABC):
    """FedAvg of a part of the model. The rest neither goes up nor down: it is each client's own,
    begins as in the first model, and is measured with the client's. A client that has lost it
    begins it anew, as one that is sampled late does: nothing of the server's is made of it.
    """

    begins_anew = True

    @abstractmethod
    def is_personal(self, name: str) -> bool:
        """Whether a parameter is its client's own."""

    def setup(self, context: Context) -> None:
        """Some parameters are personal, and others are not.

        Raises:
            ValueError: All of them or none is.
        """
        names = _trained(context.module)
        personal = [name for name in names if self.is_personal(name)]
        if not 0 < len(personal) < len(names):
            raise ValueError(
                f"{type(self).__name__} needs personal parameters and shared ones, got "
                f"{len(personal)} personal ones of {len(names)}"
            )

    def downlink(self, server: ServerState, client: Client) -> Tensors:
        """The shared part."""
        return self._shared(server.params)

    def expected(self, server: ServerState) -> Params:
        """The shared part."""
        return self._shared(server.params)

    def aggregator(self, server: ServerState, clients: Sequence[Client]) -> Aggregator:
        """The mean of it."""
        return WeightedMean(self._shared(server.params))

    def group_params(self, server: ServerState, group: str) -> Params:
        """The shared part: each client's own model is measured."""
        return self._shared(server.params)

    def uplink(self, run: LocalRun) -> Tensors:
        """What was sent to the client: the shared part, at its bits, and running statistics."""
        return only(super().uplink(run) or {}, run.message)

    def _shared(self, params: Params) -> Params:
        return {name: value for name, value in params.items() if not self.is_personal(name)}


class FedPer(Personal):
    """Personal layers (Arivazhagan et al. 2019, https://arxiv.org/abs/1912.00818): a client trains
    all of its model, and the personal layers stay with it.

    Args:
        personal: Names of modules or parameters, or patterns of them such as ``net.head*``; all
            that is inside a module that matches is personal.

    Raises:
        ValueError: `personal` is empty; in `setup`, a pattern matches nothing, or they match all.
    """

    def __init__(self, personal: Sequence[str]) -> None:
        self.personal = checked(f"{type(self).__name__}.personal", personal, _names)

    def is_personal(self, name: str) -> bool:
        """Whether a pattern matches the name, or that of a module around it."""
        return any(_matches(pattern, name) for pattern in self.personal)

    def setup(self, context: Context) -> None:
        """Every pattern matches something, and not all is personal."""
        names = _trained(context.module)
        modules = {name.rpartition(".")[0] for name in names} - {""}
        for pattern in self.personal:
            if not any(_matches(pattern, name) for name in names):
                raise ValueError(
                    f"{type(self).__name__}.personal must match parameters of the model that are "
                    f"trained, got {pattern!r}{suggestion(pattern, [*sorted(modules), *names])}"
                )
        super().setup(context)


class FedRep(FedPer):
    """FedPer whose clients train one part after the other (Collins et al., ICML 2021,
    https://arxiv.org/abs/2102.07078): first the personal layers on the representation that was
    sent, then the representation below the layers so found.

    Args:
        personal: The head, see `FedPer`.
        head_steps: The optimiser steps of a round that train the head; all others train the
            representation.

    Raises:
        ValueError: An argument is out of its range; in `setup`, as for `FedPer`, or a client makes
            no more steps than `head_steps`.
    """

    def __init__(self, personal: Sequence[str], head_steps: int) -> None:
        super().__init__(personal)
        self.head_steps = checked("FedRep.head_steps", head_steps, count(1))

    def setup(self, context: Context) -> None:
        """What `FedPer` asks for, and that steps are left for the representation."""
        super().setup(context)
        availability = context.settings.fleet.availability
        for client in context.clients:
            part = availability.least_part(client.id) if availability else 1.0
            steps = part_of(context.planned_steps(client), part)
            if client.num_examples and steps <= self.head_steps:
                least = f" as a straggler of part {part}" if part < 1 else ""
                raise ValueError(
                    f"FedRep.head_steps must be below the steps of each client, client {client.id} "
                    f"makes {steps}{least}, got {self.head_steps}"
                )

    def client_gradients_(self, run: LocalRun) -> None:
        """The part whose turn it is not has no gradient, and the optimiser leaves it as it is."""
        heads_turn = run.num_steps < self.head_steps
        for name, parameter in run.module.named_parameters():
            if self.is_personal(name) != heads_turn:
                parameter.grad = None


class FedBN(Personal):
    """Personal BatchNorm layers (Li et al., ICLR 2021, https://arxiv.org/abs/2102.07623): scale,
    shift and, with ``trainer.norm: local``, statistics stay with each client.

    Raises:
        ValueError: In `setup`, the model has no BatchNorm, or ``trainer.norm`` is not local.
    """

    def is_personal(self, name: str) -> bool:
        """Whether a parameter is a BatchNorm's."""
        return name in self._norms

    def prepare(self, module: nn.Module, clients: Sequence[Client]) -> None:
        """Find the BatchNorm layers."""
        self._norms: set[str] = set()
        for path, layer in module.named_modules():
            if isinstance(layer, _BatchNorm):
                self._norms |= {f"{path}.{name}" for name, _ in layer.named_parameters()}

    def setup(self, context: Context) -> None:
        """There are such layers, and their statistics stay too."""
        if not self._norms:
            raise ValueError("FedBN needs BatchNorm layers, and the model has none")
        if context.settings.aggregation.norm != "local":
            raise ValueError(
                "FedBN keeps the statistics of BatchNorm on the clients: trainer.norm must be "
                f"local, got {context.settings.aggregation.norm!r}"
            )
        super().setup(context)


def _trained(module: nn.Module) -> list[str]:
    """The names of the parameters that are trained: others are no client's own."""
    return [name for name, parameter in module.named_parameters() if parameter.requires_grad]


def _matches(pattern: str, name: str) -> bool:
    parts = name.split(".")
    return any(fnmatchcase(".".join(parts[:end]), pattern) for end in range(1, len(parts) + 1))


def _names(value: Sequence[str]) -> str:
    """What is wrong with a list of patterns; a text alone is a sequence of letters."""
    named = are_all(value, lambda one: isinstance(one, str) and bool(one))
    if named and len(value) and not isinstance(value, str):
        return ""
    return f"must be a list of at least one module or parameter, got {value!r}"
