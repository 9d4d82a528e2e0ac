"""What a client is sent, read; and what of it the client keeps for the next differences."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from bhfl.comm import decode, float_tensors
from bhfl.engine.exchange import Task
from bhfl.engine.types import Params, without

_SENT = "sent last/"
"""Begins the names of weights as they were received, among what clients keep alike."""
_ROUND = "sent in round"
"""The name of the number of finished rounds, of that kind too."""


class Messages:
    """Reads messages; one that is the same as the last is not decoded again.

    Args:
        place: Brings what a message holds to where it is needed.
        max_sparse: Entries of a message's sparse tensors at most, see `decode`: a few bytes may
            stand for layers of any size of which nothing is sent.
    """

    def __init__(self, place: Callable[[Params], Params], max_sparse: int | None = None) -> None:
        self.place = place
        self.max_sparse = max_sparse
        self.keeps: Params = {}
        """What a client keeps of the last message."""
        self._payload = b""
        self._kept: tuple[int | str, ...] = ()
        """The number of finished rounds, and the names of the weights that are kept."""
        self._before: Mapping[str, Tensor] = {}
        self._tensors: Params = {}

    def read(self, payload: bytes) -> Params:
        """What a message holds; nothing where it is empty."""
        return self._read(payload, {}, (), 0)

    def receive(self, task: Task, before: Mapping[str, Tensor]) -> Params:
        """What a client receives: differences become weights, on the CPU as on the server.

        Args:
            task: Its task.
            before: What it keeps in common with others, which has all that is asked for.
        """
        # one and the same mapping for all clients that have the same, so that it need not be
        # compared entry by entry
        before = before if task.reference else {}
        return self._read(task.downlink, before, task.keeps, task.round + 1)

    def _read(
        self, payload: bytes, before: Mapping[str, Tensor], keeps: Sequence[str], round: int
    ) -> Params:
        # a whole cohort is mostly sent the same: to compare bytes costs far less than to decode
        # them; of the same bytes clients of other bits keep other weights
        same = payload == self._payload and (round, *keeps) == self._kept
        if same and (before is self._before or not (before or self._before)):
            return self._tensors
        sent = decode(payload, max_sparse=self.max_sparse) if payload else {}
        tensors = float_tensors(sent)
        for name in keeps if before else ():
            tensors[name] = before[_SENT + name] + tensors[name]
        self.keeps = {_SENT + name: tensors[name] for name in keeps}
        if keeps:
            self.keeps[_ROUND] = torch.tensor(round)
        self._tensors = self.place(tensors)
        self._payload = payload
        self._kept = (round, *keeps)
        self._before = before
        return self._tensors

    def forget(self) -> None:
        """Hold no message any longer."""
        self._payload = b""
        self._kept = ()
        self._before = {}
        self._tensors = {}
        self.keeps = {}


def has_reference(task: Task, before: Mapping[str, Tensor]) -> bool:
    """Whether a client has what its task's differences are to, if they are any.

    Args:
        task: Its task.
        before: What it keeps in common with others.
    """
    if not task.reference:
        return True
    there = all(_SENT + name in before for name in task.keeps)
    return there and _ROUND in before and int(before[_ROUND]) == task.reference


def split(kept: Mapping[str, Tensor]) -> tuple[Params, Params]:
    """What clients keep in common: the algorithm's part, and what they were sent last."""
    sent = {n: tensor for n, tensor in kept.items() if n == _ROUND or n.startswith(_SENT)}
    return without(kept, sent), sent
