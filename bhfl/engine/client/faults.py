"""What went wrong with one client's round, and whether it is likely to come again."""

import os
import traceback
from pathlib import Path

import torch

import bhfl
from bhfl.checks import said, spoken
from bhfl.comm import PayloadError
from bhfl.engine.exchange import Fault
from bhfl.engine.handed import ReturnError
from bhfl.engine.refusal import RefusedError

_OURS = f"{Path(bhfl.__file__).parent}{os.sep}"
# torch says by a plain RuntimeError that a CPU has no memory, or that a signal killed a worker of a
# DataLoader
_PASSING = (
    "out of memory",
    "t allocate memory",
    "cannot allocate",
    "timed out",
    "killed by signal",
)
"""Words of errors that come from the machine and may pass, where their type does not say so."""


def fault_of(error: BaseException, channels_last: bool) -> Fault:
    """What an error in a client's round comes to.

    Args:
        error: The error, which is being handled.
        channels_last: Whether the client's images lay in that format.
    """
    told = said(spoken(error))
    if isinstance(error, ReturnError):
        return Fault("rejected", told, broken_hook=True)
    if isinstance(error, (PayloadError, RefusedError)):
        cause = error.__cause__
        # an error of the algorithm's own code, whose line tells whether all clients failed at it
        if isinstance(cause, Exception):
            return Fault("rejected", told, traceback.format_exc(), origin(cause))
        return Fault("rejected", told)
    reason = said(f"{type(error).__name__}: {spoken(error)}") + advice(error, channels_last)
    return Fault("failed", reason, traceback.format_exc(), origin(error))


def advice(error: BaseException, channels_last: bool) -> str:
    """What a user can do about an error in a step of the model, to be put after its message; empty
    where unknown.

    Args:
        error: An error in the model's own step.
        channels_last: Whether its images lay in that format.
    """
    text = spoken(error)
    if "Expected more than 1 value per channel when training" in text:
        return (
            "; BatchNorm cannot train on a batch of one sample: data.drop_last: true leaves small "
            "last batches out, where data.batch_size is at least 2 and each client has 2 samples"
        )
    formats = ("view size is not compatible", "is_contiguous", "contiguous(", "channels_last")
    if channels_last and any(words in text for words in formats):
        return "; images lie in channels_last here: set trainer.channels_last: false"
    return ""


def origin(error: BaseException) -> str:
    """Type and place of an error that is likely to come again: the innermost line outside `bhfl`.

    An empty string for what may pass, which is want of memory, an OSError or a time-out, and for
    what happened in our own code alone, such as a client that drops out.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, (MemoryError, OSError, TimeoutError, torch.OutOfMemoryError)):
            return ""
        # subprocess.TimeoutExpired, and those of many libraries, derive from no TimeoutError
        if "Timeout" in type(cause).__name__ or any(
            words in spoken(cause).lower() for words in _PASSING
        ):
            return ""
        cause = cause.__cause__
    frames = traceback.extract_tb(error.__traceback__)
    outside = [frame for frame in frames if not frame.filename.startswith(_OURS)]
    if not outside:
        return ""
    return f"{type(error).__qualname__} at {outside[-1].filename}:{outside[-1].lineno}"
