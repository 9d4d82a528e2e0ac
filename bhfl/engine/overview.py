"""What TensorBoard shows first: accuracy by bit group, loss and bytes, under names that come before
all others, and charts that hold several curves.
"""

import re
from typing import Any

from bhfl.engine.types import Row
from bhfl.tags import ACCURACIES

OVERVIEW = "0_overview"
"""TensorBoard opens on the tags in the order of their names: this word comes before all others."""
_ACCURACY = re.compile(rf"val/(?:{'|'.join(ACCURACIES)})_(?!min$|local_)(.+)")
_OVER_CLIENTS = re.compile(rf"clients_val/(?:{'|'.join(ACCURACIES)})_(mean|worst10)")
_OTHERS = {
    "train/loss": "loss_train",
    "val/loss_avg": "loss_val",
    "comm/uplink_MB": "sent_up_MB",
    "comm/downlink_MB": "sent_down_MB",
}


def overview(row: Row) -> Row:
    """The numbers of a row that are shown first, by the tags that they have there.

    >>> overview({"val/acc_int8": 0.5, "val/acc_min": 0.4, "train/loss": 2.0, "fedlq/bits": 4.0})
    {'0_overview/accuracy_int8': 0.5, '0_overview/loss_train': 2.0}
    """
    found = {}
    for tag, value in row.items():
        name = _OTHERS.get(tag)
        if match := _ACCURACY.fullmatch(tag):
            name = f"accuracy_{match[1]}"
        elif match := _OVER_CLIENTS.fullmatch(tag):
            name = f"accuracy_clients_{match[1]}"
        if name:
            found[f"{OVERVIEW}/{name}"] = value
    return found


def layout(row: Row) -> dict[str, Any]:
    """The charts of the tab Custom Scalars, as ``SummaryWriter.add_custom_scalars`` takes them: all
    groups in one, losses in one, bytes in one.

    Args:
        row: One with the tags that the charts are to hold.
    """
    shown = list(overview(row))
    charts = {}
    for title, word in {"accuracy": "accuracy_", "loss": "loss_", "MB sent": "sent_"}.items():
        # TensorBoard reads them as expressions
        tags = [rf"^{re.escape(tag)}$" for tag in shown if f"/{word}" in tag]
        if tags:
            charts[title] = ["Multiline", tags]
    return {"bhfl": charts}
