"""The words in which a run's rows are written, for who writes them and for who reads them.

A tag such as ``val/acc_float32`` is a stage, a metric and a bit group; ``clients/late`` is the
number of clients that ended a round with that status.
"""

from typing import Literal, get_args

ACCURACIES = ("acc", "accuracy")
"""What a model may call its accuracy; the first that it logs counts."""

Status = Literal["ok", "failed", "rejected", "late", "skipped", "dropped", "lost"]
"""An update was folded in; training raised; the update was refused; it came after the deadline;
none was sent; the client dropped out before it could; the update was lost on its way.
"""
STATUSES: tuple[Status, ...] = get_args(Status)
LOST = STATUSES[1:]
"""What becomes of clients whose updates do not count."""
ABSENT: tuple[Status, ...] = ("dropped", "lost")
"""Those of them that ``trainer.availability`` keeps away, which is nobody's fault."""
BYTES = ("uplink_bytes", "downlink_bytes", "header_bytes", "whole_bytes")
"""Fields of a client's record that a run's ledger adds up."""
SPREAD = ("mean", "std", "worst10", "jain")
"""How a metric is spread over clients, in the tags ``clients_val/acc_mean_<group>``."""
CLIENTS_CSV = "clients.csv"
"""File of a run folder: every client's numbers, a row a client and round."""
CORRECT_JSON = "correct.json"
"""File of a run folder: which test samples its models were right about."""
