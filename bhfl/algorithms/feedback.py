"""Error feedback: what rounding, or sending the largest entries alone, leaves out of a client's
update is added to its next one. Seide et al., Interspeech 2014; Stich et al., NeurIPS 2018,
https://arxiv.org/abs/1809.07599; Karimireddy et al., ICML 2019, https://arxiv.org/abs/1901.09847.
"""

import math

import torch
from torch import Tensor

from bhfl.checks import checked, true_or_false
from bhfl.engine.algorithm import LocalRun
from bhfl.engine.types import Params

_ERROR = "error/"
"""Begins the names of what was left out, in what a client keeps."""


def with_error(run: LocalRun, name: str, difference: Tensor) -> Tensor:
    """A difference, and what was left out of the client's last one, if anything was.

    Args:
        run: The client's work in this round.
        name: The tensor's name.
        difference: What the client is about to send of it.
    """
    error = run.state.get(_ERROR + name)
    return difference if error is None else difference + error.to(difference.device)


def keep_error(run: LocalRun, name: str, wanted: Tensor, sent: Tensor) -> None:
    """Keep what is left out now. It is the client's own state: where its update is lost, it stays
    as it was before the round. Where it is lost itself, as much of one update is, and no more: a
    client may begin it anew.

    Args:
        run: The client's work in this round.
        name: The tensor's name.
        wanted: What the client would send without loss.
        sent: What it sends, in float32, of the same shape.
    """
    run.state[_ERROR + name] = (wanted - sent).cpu()


def carry(run: LocalRun, moves: Params) -> None:
    """Send nothing in this round, and keep all of what would have been sent for the next one.

    Args:
        run: The client's work in this round.
        moves: The differences that it would send without loss, by name.
    """
    run.carries = True
    for name, move in moves.items():
        keep_error(run, name, move, torch.zeros_like(move))


def forget_error(run: LocalRun, name: str) -> bool:
    """Keep nothing of a tensor, of which all is sent now; whether anything was left out of it."""
    return run.state.pop(_ERROR + name, None) is not None


def largest(x: Tensor, share: float) -> Tensor:
    """A share of the entries of a tensor, those of the largest magnitudes, and zeros for the rest.

    Args:
        x: Float tensor, any shape.
        share: How many of its entries are kept, in (0, 1), rounded up to a whole number.
    """
    flat = x.reshape(-1)
    kept = torch.zeros_like(flat)
    if flat.numel():
        # 0.07 of 100 comes out above 7 in floats
        places = flat.abs().topk(math.ceil(round(share * flat.numel(), 6))).indices
        kept[places] = flat[places]
    return kept.view(x.shape)


def needs_differences(method: str, error_feedback: bool, payload: str) -> bool:
    """The option, of a method that can send weights too; ValueError where it does."""
    checked(f"{method}.error_feedback", error_feedback, true_or_false)
    if error_feedback and payload != "delta":
        raise ValueError(
            f"{method}.error_feedback needs {method}.payload: delta, got {payload}: what rounding "
            "leaves out of weights is no part of the next ones"
        )
    return error_feedback
