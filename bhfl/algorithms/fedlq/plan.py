"""The server's choice of a client's bits, as it goes down, and the clients it can be made for."""

from collections.abc import Sequence

import torch
from torch import Tensor

from bhfl.algorithms.fedlq.allocation import Allocation
from bhfl.algorithms.fedlq.candidates import is_served
from bhfl.engine.roster import one_of_each
from bhfl.engine.types import Client

PLAN = ":plan"
"""What goes down beside the model: with ``plan: client`` the curvatures and the deadline, float32
[L + 1]; with ``plan: server`` the layers' bits, uint8 [L], all zero for a client that is to send
nothing, and all with the highest bit set where not even the least payload fits.
"""
INFEASIBLE = 128
"""The highest bit of a uint8, which no width needs: the largest is 32."""


def plan_of(allocation: Allocation, sends_anyway: bool) -> Tensor:
    """The plan of an allocation, uint8 [L], marked as infeasible where nothing fits.

    Args:
        allocation: The bits that were chosen for the client's layers.
        sends_anyway: Whether the client sends the least payload where none fits.
    """
    plan = torch.tensor(allocation.bits, dtype=torch.uint8)
    if allocation.feasible:
        return plan
    return (plan if sends_anyway else torch.zeros_like(plan)) | INFEASIBLE


def widths(plan: Tensor) -> list[int]:
    """The layers' bits."""
    return (plan % INFEASIBLE).tolist()


def check_clients(clients: Sequence[Client], candidates: Sequence[int]) -> None:
    """Refuse clients that no width can be chosen for.

    Raises:
        ValueError: A client sends fewer bits than any candidate, or its group says the bits
            of its layers.
    """
    for client in one_of_each(clients):
        if client.devices.group.layers:
            raise ValueError(
                "FedLQ chooses the bits of each layer itself: clients must leave out layers, got "
                f"them in group {client.group!r}"
            )
        if not is_served(candidates, client.spec.sent_bits):
            raise ValueError(
                f"FedLQ.candidates must hold a width of at most {client.spec.sent_bits} besides 0 "
                f"for {client.group} clients, got {list(candidates)}"
            )
