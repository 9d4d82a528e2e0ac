"""Every client's numbers: the rows of ``clients.csv``, and how metrics are spread over clients."""

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np

from bhfl.engine.exchange import Stage
from bhfl.engine.monitor import doubt
from bhfl.engine.records import ClientRecord
from bhfl.engine.types import Client, Metrics
from bhfl.tags import SPREAD

COLUMNS = (
    "round", "stage", "client", "group", "status", "samples", "examples", "steps", "loss",
    "uplink_bytes", "downlink_bytes", "simulated_seconds", "seconds",
)  # fmt: skip
"""What ``clients.csv`` begins with; metrics follow."""
_WORST = 0.1
"""The share of clients that are the worst."""


def training_rows(
    round: int,
    records: Sequence[ClientRecord],
    clients: Sequence[Client],
    *,
    availability: bool = False,
) -> Iterator[dict[str, Any]]:
    """What became of each client in a round.

    Args:
        round: The number of the round, from 1.
        records: Those of the round.
        clients: The fleet.
        availability: Whether ``trainer.availability`` has a say in it.
    """
    for record in records:
        yield {
            "round": round,
            "stage": "train",
            "client": record.client,
            "group": record.group,
            "status": record.status,
            "samples": clients[record.client].num_examples,
            "examples": record.num_examples,
            "steps": record.num_steps,
            "loss": record.metrics.get("train/loss"),
            "uplink_bytes": record.uplink_bytes,
            "downlink_bytes": record.downlink_bytes,
            "simulated_seconds": record.simulated_seconds,
            "seconds": record.seconds,
            **(_absences(record) if availability else {}),
            **_tagged("val", record.measured),
        }


def _absences(record: ClientRecord) -> Metrics:
    course = record.course
    return {
        "part": course.part,
        "dropouts": course.failures.count("dropout"),
        "losses": course.failures.count("loss"),
        "retries": course.retries,
    }


def test_rows(
    round: int, measured: Mapping[int, Mapping[str, float]], clients: Sequence[Client]
) -> Iterator[dict[str, Any]]:
    """What each client's model is worth in the final test.

    Args:
        round: The number of the last round.
        measured: Metrics by name, of each client that has test samples.
        clients: The fleet.
    """
    for id, metrics in measured.items():
        client = clients[id]
        row = {"round": round, "stage": "test", "client": id, "group": client.group}
        row["samples"] = client.num_examples
        yield {**row, **_tagged("test", metrics)}


def _tagged(stage: Stage, metrics: Mapping[str, float]) -> Metrics:
    return {f"{stage}/{name}": value for name, value in metrics.items()}


# ---- the spread over clients ---------------------------------------------------------------------


def spread(
    stage: Stage, measured: Mapping[int, Mapping[str, float]], clients: Sequence[Client]
) -> Metrics:
    """How metrics are spread over clients, each of which counts alike, by tag: over all, and by
    group.

    ``clients_test/acc_mean``, ``_std`` (of the population), ``_worst10`` (the mean of the worst
    tenth, at least of one client), and ``_jain``, Jain's index ``(sum x)^2 / (n sum x^2)``: 1 where
    all have the same, 1/n where one has all (Jain, Chiu and Hawe 1984, DEC-TR-301).

    Args:
        stage: What the clients' own samples are for.
        measured: Metrics by name, of some clients by id.
        clients: The fleet.
    """
    tags: Metrics = {}
    for name in dict.fromkeys(chain.from_iterable(measured.values())):
        having = {id: metrics[name] for id, metrics in measured.items() if name in metrics}
        by_group: dict[str, list[float]] = {}
        for id, value in having.items():
            by_group.setdefault(clients[id].group, []).append(value)
        # the higher the worse, where its name says so
        falls = bool(doubt(name, "max"))
        tags |= _statistics(f"clients_{stage}/{name}", "", list(having.values()), falls)
        for group, values in by_group.items():
            tags |= _statistics(f"clients_{stage}/{name}", f"_{group}", values, falls)
    return tags


def _statistics(tag: str, group: str, values: Sequence[float], falls: bool) -> Metrics:
    worst = sorted(values, reverse=falls)[: math.ceil(_WORST * len(values))]
    squares = float(np.square(values).sum())
    found = {
        "mean": float(np.mean(values)),
        "std": float(np.std(values)),
        "worst10": float(np.mean(worst)),
        # nobody has anything, and all the same
        "jain": float(np.sum(values)) ** 2 / (len(values) * squares) if squares else 1.0,
    }
    # an order of values that are no numbers would be one by chance
    broken = not np.isfinite(values).all()
    return {f"{tag}_{word}{group}": math.nan if broken else found[word] for word in SPREAD}
