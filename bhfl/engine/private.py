"""What clients of a private method learn of past rounds: nothing that clients have measured.

A client's rate may follow the metrics of past rounds, and no noise is on what clients measure.
"""

import warnings
from collections.abc import Collection, Sequence
from contextlib import suppress

import lightning as L

from bhfl.engine.client.optim import configured
from bhfl.engine.client.recorder import tag_of
from bhfl.engine.types import Row


def is_public(tag: str, groups: Collection[str]) -> bool:
    """Whether a metric is of the global model, measured by the server on common samples.

    >>> [is_public(tag, ["int8"]) for tag in ("val/acc_int8", "val/acc_local_int8", "train/loss")]
    [True, False, False]
    """
    own: list[str] = []
    for group in groups:
        own += [f"_local_{group}", f"_local_before_{group}"]
    return tag.startswith("val/") and not tag.endswith(tuple(own))


def public_rows(history: Sequence[Row], groups: Collection[str]) -> list[Row]:
    """The rows of past rounds with such metrics alone.

    Args:
        history: The server's metrics, a row for each past round.
        groups: Labels of the bit groups; none where validation measures models of the clients'
            own, of which nothing is public.
    """
    rows: list[Row] = []
    for row in history:
        kept = {tag: value for tag, value in row.items() if groups and is_public(tag, groups)}
        rows.append(kept)
    return rows


def followed(module: L.LightningModule) -> list[str]:
    """Tags of the metrics that the module's ReduceLROnPlateau schedules follow over rounds; none
    where it makes optimisers for a client alone.
    """
    # such errors are left to the first client
    with suppress(Exception), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _, schedules = configured(module)
        return [tag_of(one.monitor or "") for one in schedules if one.reduce_on_plateau]
    return []
