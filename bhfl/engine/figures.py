"""What was measured and sent, by bit group, as the rows of a table."""

from collections.abc import Mapping
from typing import Any

from bhfl.comm import decode, encoded_bytes
from bhfl.comm.wire import MAX_ELEMENTS
from bhfl.tags import ACCURACIES

WAYS = ("uplink_bytes", "downlink_bytes")


def metric_names(metrics: Mapping[str, Any], stage: str) -> list[str]:
    """The metrics that were measured by bit group, without stage and group."""
    tags = [tag for tag in metrics if tag.startswith(f"{stage}/") and tag.endswith("_avg")]
    return [tag[len(stage) + 1 : -4] for tag in tags if f"{tag[:-4]}_min" in metrics]


def group_rows(
    metrics: Mapping[str, float],
    stage: str,
    sizes: Mapping[str, int],
    sent: Mapping[str, Mapping[str, int]] | None,
    first: str,
) -> list[list[str]]:
    """A head, a row for each bit group, and one for all clients; accuracies in per cent.

    Args:
        metrics: What was measured, by tag.
        stage: ``val`` or ``test``.
        sizes: The number of clients of each group.
        sent: Bytes by group and way, as `bhfl.engine.records.Ledger` counts them; None where no run
            has been.
        first: The metric of the first column.
    """
    names = sorted(metric_names(metrics, stage) or [first], key=lambda one: (one != first, one))
    ways = WAYS if sent is not None else ()
    counted = sent or {}
    # on samples of the clients' own, where they have some
    over = f"clients_{stage}/{names[0]}"
    own = {"mean": "clients' mean", "worst10": "worst 10 %"} if f"{over}_mean" in metrics else {}

    def row(label: str, size: int, key: str, bytes: Mapping[str, int]) -> list[str]:
        measured = [_figure(metrics.get(f"{stage}/{name}_{key}"), name) for name in names]
        group = "" if key == "avg" else f"_{key}"
        for word in own:
            measured.append(_figure(metrics.get(f"{over}_{word}{group}"), names[0]))
        return [label, str(size), *measured, *(megabytes(bytes.get(way, 0)) for way in ways)]

    head = ["group", "clients", *(f"{stage} {name}" for name in names), *own.values()]
    rows = [[*head, "up MB", "down MB"] if ways else head]
    for group, size in sizes.items():
        rows.append(row(group, size, group, counted.get(group, {})))
    totals = {way: total(counted, way) for way in ways}
    return [*rows, row("all", sum(sizes.values()), "avg", totals)]


def total(sent: Mapping[str, Mapping[str, int]], way: str) -> int:
    """Bytes of one way over all groups."""
    return sum(counts.get(way, 0) for counts in sent.values())


def megabytes(count: float) -> str:
    """Bytes as megabytes (10^6 bytes), to three digits."""
    value = count / 1e6
    return f"{value:.2f}" if value >= 1 else f"{value:.3g}"


def _figure(value: float | None, metric: str) -> str:
    if value is None:
        return "-"
    return f"{100 * value:.2f} %" if metric in ACCURACIES else f"{value:.4g}"


def tensor_bytes(payload: bytes) -> dict[str, int]:
    """The bytes of a payload by tensor, each with its part of the header; none of an empty one."""
    if not payload:
        return {}
    empty = encoded_bytes({})
    # of this process's own making
    tensors = decode(payload, max_sparse=MAX_ELEMENTS)
    return {name: encoded_bytes({name: tensor}) - empty for name, tensor in tensors.items()}
