"""What messages took on their way: ``wire.csv`` of a run folder, a row a client and round."""

import csv
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bhfl.engine.exchange import Reply, Task
from bhfl.engine.links import MeasuredLinks, Passage
from bhfl.files import TableFile

COLUMNS = [
    "round",
    "client",
    "reply",
    "downlink_bytes",
    "task_bytes",
    "uplink_bytes",
    "reply_bytes",
    "num_examples",
    "training_seconds",
    "total_seconds",
]


class Wire:
    """Takes down every task and its reply.

    Bytes of payloads are as in the ledger; those of whole messages have the heads of bhfl besides,
    and not Flower's. What passes between the task's start and its reply's coming, and is not
    training, is transport and waiting.

    Args:
        path: The file; rows of rounds that are still to come, of a run that was killed, are cut.
        round: Rounds finished.
        links: Learn from each reply that has come, also from those before a run went on.
    """

    def __init__(self, path: Path, round: int, links: MeasuredLinks | None = None) -> None:
        self._file = TableFile(path, COLUMNS)
        self._file.cut(lambda row: row["round"].isdecimal() and int(row["round"]) <= round)
        self._sent: dict[int, tuple[float, int]] = {}
        self._rows: list[dict[str, Any]] = []
        self._links = links
        with path.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                self._measure(row)

    def sent(self, task: Task, data: bytes) -> None:
        """A task has gone out."""
        self._sent[task.client] = time.monotonic(), len(data)

    def received(self, task: Task, reply: Reply, data: bytes) -> None:
        """A reply has come, or what stands for one that has not."""
        start, task_bytes = self._sent.pop(task.client, (time.monotonic(), 0))
        row = {
            "round": task.round + 1,
            "client": task.client,
            "reply": reply.fault.status if reply.fault else "ok",
            "downlink_bytes": len(task.downlink) + len(task.body),
            "task_bytes": task_bytes,
            "uplink_bytes": len(reply.payload or b""),
            "reply_bytes": len(data),
            "num_examples": reply.num_examples,
            "training_seconds": round(reply.seconds, 3),
            "total_seconds": round(time.monotonic() - start, 3),
        }
        self._rows.append(row)
        self._measure(row)

    def _measure(self, row: Mapping[str, Any]) -> None:
        """Learn from a row how fast its client's link is."""
        # one that sends nothing because its link is slow must be heard when it no longer is
        if self._links is None or row["reply"] not in ("ok", "skipped"):
            return
        passage = Passage(
            num_bytes=int(row["task_bytes"]) + int(row["reply_bytes"]),
            seconds=float(row["total_seconds"]),
            training_seconds=float(row["training_seconds"]),
            num_examples=int(row["num_examples"]),
        )
        self._links.measure(int(row["client"]), passage)

    def write(self) -> None:
        """Write the rows of a round."""
        self._rows.sort(key=lambda row: int(row["client"]))
        self._file.append(self._rows)
        self._rows = []
