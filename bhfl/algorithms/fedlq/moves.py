"""What clients come to by training: whether it can be sent, and how far it is from the start."""

from collections.abc import Callable, Sequence
from itertools import chain

import torch
from torch import Tensor

from bhfl.algorithms.differences import qsgd
from bhfl.algorithms.feedback import keep_error, with_error
from bhfl.comm import Tensors
from bhfl.engine.algorithm import LocalRun
from bhfl.engine.sums import MAX_TERM, largest
from bhfl.engine.types import Client, Params, ServerState, Update
from bhfl.quant import QuantizedTensor
from bhfl.quant.rounding import extremes
from bhfl.quant.signs import signs
from bhfl.quant.sparse import left_out


def coded(x: Tensor, bits: int, generator: torch.Generator | None = None) -> QuantizedTensor:
    """What a layer is sent as.

    Args:
        x: Float tensor, any shape.
        bits: 2..16 for codes; 1 for signs; 0 to leave all of it out.
        generator: Draws rounding without bias; None for the nearest codes, see `qsgd`.
    """
    if bits == 1:
        return signs(x)
    return qsgd(x, bits, "linf", generator) if bits else left_out(x)


def squared_errors(
    tensors: Sequence[Tensor],
    candidates: Sequence[int],
    code: Callable[[Tensor, int], QuantizedTensor],
) -> Tensor:
    """What is left out of differences at each width, squared.

    Args:
        tensors: The differences, of any shapes; L of them.
        candidates: Widths, B of them; 32 leaves nothing out.
        code: What a difference is sent as, at a width below that.

    Returns:
        float64 [L, B].
    """
    rows = torch.zeros(len(tensors), len(candidates), dtype=torch.float64)
    for row, x in zip(rows, tensors, strict=True):
        for place, bits in enumerate(candidates):
            if bits < 32:
                row[place] = (x - code(x, bits).dequantize()).double().square_().sum()
    return rows


def check_trained(values: Params) -> None:
    """ValueError unless all trained weights are finite."""
    # they pass NaN on, and so tell of all values
    ends = torch.stack([*chain.from_iterable(map(extremes, values.values()))])
    if not ends.isfinite().all():
        raise ValueError("its weights are not finite after training")


def corrected(run: LocalRun, values: Params) -> Params:
    """The weights that a client would send: those that it has trained, with what was left out of
    its last difference.
    """
    start = run.received
    return {n: start[n] - with_error(run, n, start[n] - values[n]) for n in values}


def keep_errors(run: LocalRun, wanted: Params, update: Tensors) -> None:
    """Keep what is left out of the differences that are `wanted`, of which codes are some and
    values are the weights that they lead to.
    """
    for name, difference in wanted.items():
        sent = update[name]
        if isinstance(sent, QuantizedTensor):
            keep_error(run, name, difference, sent.dequantize())
        else:
            keep_error(run, name, difference, run.received[name] - sent)


def squared_move(start: Params, end: Params, layers: Sequence[str]) -> float:
    """The squared length of a move of all layers."""
    return float(sum((start[name] - end[name]).double().square_().sum() for name in layers))


def from_server(update: Tensors, client: Client, server: ServerState) -> Tensors:
    """An update whose values are the client's moves from the server's weights: those of a client
    that has other ones, as it is sent differences, would bring back what it has not received yet.

    Args:
        update: Values and codes of differences.
        client: Who sent it.
        server: The state of the round.

    Raises:
        ValueError: A value is too large to average.
    """
    received = update.received if isinstance(update, Update) else {}
    found = dict(update)
    for name in received.keys() & update.keys():
        value = update[name]
        # of a client that has the server's own weights, values are counted to the bit
        if isinstance(value, Tensor) and not torch.equal(received[name], server.params[name]):
            found[name] = moved = server.params[name] - (received[name] - value)
            if not client.weight * largest(moved) < MAX_TERM:
                raise ValueError(f"{name} has a value that is too large to average")
    return found
