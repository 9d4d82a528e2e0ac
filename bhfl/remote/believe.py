"""What the server believes of what a client says: nothing that the client could gain by."""

import math
import re
from collections.abc import Mapping
from dataclasses import replace

from bhfl.checks import said
from bhfl.engine.exchange import Fault, Measured, Reply, Task
from bhfl.engine.types import Client, Metrics
from bhfl.remote.messages import MessageError
from bhfl.tags import Status

_NAME = re.compile(r"[\w.:/@ \[\]-]{1,200}")
_SERVERS = ("val/", "test/", "comm/", "clients/", "clients_", "time/", "round", "problems")
"""How the names begin of what the server alone measures and counts."""
_FAULTS: tuple[Status, ...] = ("failed", "rejected", "skipped")
"""What a client may say of itself: who is late or was away, the server alone knows."""
MOST_NAMES = 200
"""Names of metrics that a client may use in a run."""
_MOST = 1e12
"""The largest metric that is believed, with either sign: sums of larger ones may leave the range of
numbers.
"""
_PASSES = 4
"""Times the planned examples that a client may have seen: uplinks are measured on some, and models
of its own are trained besides.
"""


class Names:
    """The names of metrics that each client has used: so many in a run, and no more. Each name is a
    column of the run's rows for ever, and rows go to all clients.
    """

    def __init__(self) -> None:
        self._known: dict[int, set[str]] = {}

    def known(self, client: int, metrics: Mapping[str, float]) -> Metrics:
        """The metrics of a client whose names it has used, or may begin to use."""
        known = self._known.setdefault(client, set())
        found = {}
        for name, value in metrics.items():
            if name in known or len(known) < MOST_NAMES:
                known.add(name)
                found[name] = value
        return found


def believed_reply(reply: Reply, task: Task, client: Client, communicates: bool) -> Reply:
    """A reply as far as it can be that to a task.

    Args:
        reply: What came.
        task: What was asked.
        client: Who was asked.
        communicates: Whether clients send updates at all.

    Returns:
        The reply, without the metrics that are not a client's to report, and with no more examples
        than the client can have seen. A reply that has neither an update nor a reason has failed.

    Raises:
        MessageError: It answers another task, or its numbers cannot be right.
    """
    if (reply.client, reply.round) != (task.client, task.round):
        raise MessageError(
            f"the reply is that of client {reply.client} in round {reply.round}, and client "
            f"{task.client} was asked in round {task.round}"
        )
    numbers = {
        "num_examples": reply.num_examples,
        "num_steps": reply.num_steps,
        "seconds": reply.seconds,
    }
    for name, value in numbers.items():
        if not 0 <= value < math.inf:
            raise MessageError(f"{name} must be a number from 0 on, got {value}")
    fault = reply.fault
    if fault is not None:
        # a status of its own, which cannot be that of an update, and no error of the server's hooks
        status = fault.status if fault.status in _FAULTS else "failed"
        reason, origin = said(fault.reason), said(fault.origin)
        fault = replace(fault, status=status, reason=reason, origin=origin, broken_hook=False)
        # whoever came to nothing has nothing to send later
        fault = replace(fault, carried=fault.carried and status == "skipped")
    # one that lacks what is frozen has done nothing, and is asked again
    elif communicates and reply.payload is None and not (task.frozen and reply.holds is False):
        fault = Fault("failed", "the client sent neither an update nor a reason")
    training = task.training
    passes = 1 if training is None else training.local_steps or training.local_epochs
    # a client can have seen no more examples in a round
    most = _PASSES * passes * max(1, client.num_examples)
    return replace(
        reply,
        fault=fault,
        num_examples=min(reply.num_examples, most),
        num_steps=min(reply.num_steps, most),
        metrics=_believed_metrics(reply.metrics, client.group),
        measured=_in_range(reply.measured),
    )


def believed_measured(measured: Measured, task: Task, num_samples: int) -> Measured:
    """What a client says of its model, if it is what it was asked for.

    Args:
        measured: What came.
        task: What was asked.
        num_samples: The samples that all models are measured on.

    Raises:
        MessageError: It is not.
    """
    if (measured.client, measured.stage) != (task.client, task.stage):
        raise MessageError(
            f"client {measured.client} measured {measured.stage}, and client {task.client} was "
            f"asked for {task.stage}"
        )
    metrics, own = _in_range(measured.metrics), _in_range(measured.own)
    digits = re.fullmatch("[01]*", measured.correct) and len(measured.correct) == num_samples
    correct = measured.correct if digits else ""
    return replace(measured, metrics=metrics, own=own, correct=correct)


def _believed_metrics(metrics: Mapping[str, float], group: str) -> Metrics:
    """The metrics that a client may report: those of its training, and of its own model."""
    local = re.compile(rf"val/.+_local(_before)?_{re.escape(group)}")
    return {
        name: value
        for name, value in _in_range(metrics).items()
        if local.fullmatch(name) or not name.startswith(_SERVERS)
    }


def _in_range(metrics: Mapping[str, float]) -> Metrics:
    """The metrics with names and values that can be written."""
    return {
        name: value
        for name, value in metrics.items()
        if _NAME.fullmatch(name) and abs(value) <= _MOST
    }
