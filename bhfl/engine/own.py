"""What a client has of its own: the tensors of the model that it is not sent."""

from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor

from bhfl.engine.algorithm import Algorithm
from bhfl.engine.buffers import Buffers
from bhfl.engine.types import Params, ServerState

KEPT = "staying"
"""Key of these tensors in what a client keeps between rounds."""
MODEL = "own_model"
"""Key of a whole model that it keeps, see `Algorithm.own_model`."""


class Own:
    """Where a client takes from what it is not sent: from what it kept, else from the first model.

    A tensor becomes a client's own when a round begins without it. From then on the client keeps
    its value at the end of every round. What any client has of its own is known to all processes
    and checkpoints, with the value that it had in the first model
    (``ServerState.buffers["first"]``), so that clients of later rounds begin with that too.

    Args:
        first: The whole first model, the same on every process; copied.
        always: Names of tensors that never travel.
    """

    def __init__(self, first: Mapping[str, Tensor], always: Collection[str]) -> None:
        self.first = {name: tensor.clone() for name, tensor in first.items()}
        self.always = frozenset(always)

    @classmethod
    def of(cls, server: ServerState, buffers: Buffers, bits: str, algorithm: Algorithm) -> "Own":
        """What clients have of their own in a run.

        Args:
            server: The state before its first round.
            buffers: What becomes of the model's buffers.
            bits: Those of the first group of the fleet.
            algorithm: What it leaves with clients never travels.
        """
        first = {**server.params, **buffers.of(server, bits)}
        return cls(first, [name for name in first if not buffers.sent(name, algorithm)])

    def missing(self, given: Mapping[str, Tensor]) -> list[str]:
        """Names of the tensors that `given` lacks, or that never travel."""
        return [name for name in self.first if name not in given or name in self.always]

    def whole(self, given: Params, kept: Mapping[str, Any]) -> Params:
        """The whole model of a client.

        Args:
            given: What the client was sent.
            kept: What it kept of rounds before, if there were any.
        """
        if not (names := self.missing(given)):
            return given
        own = kept.get(KEPT, {})
        return {**given, **{name: own.get(name, self.first[name]) for name in names}}

    def following(self, server: ServerState, names: Collection[str]) -> Params:
        """The next ``buffers["first"]``, after a round in which clients began without `names`."""
        known: Params = server.buffers["first"]
        # sorted, because a checkpoint's digest follows the order, and sets of text have one by
        # chance
        return {**known, **{name: self.first[name] for name in sorted(names) if name not in known}}
