"""Data modules that are not ours: what they lack of what algorithms and analyses ask for."""

import math
from collections.abc import Iterable
from typing import Any

from bhfl.engine.types import Client, FederatedData, ServerData


class _Foreign:
    """A data module, with a default for each method of `ServerData` that others may lack."""

    def __init__(self, data: Any) -> None:
        self._data = data

    def __getattr__(self, name: str) -> Any:
        """All else is the data module's own."""
        return getattr(self._data, name)

    def num_holdout(self) -> int:
        """Its own answer, or what its attribute `holdout` says; 0 where it hands none out."""
        if not hasattr(self._data, "holdout_batches"):
            return 0
        own = getattr(self._data, "num_holdout", None)
        return int(getattr(self._data, "holdout", 0) if own is None else own())

    def holdout_batches(self, limit: int | None = None) -> Iterable[Any]:
        """All that it has."""
        return self._data.holdout_batches() if self.num_holdout() else ()

    def val_batches(self, limit: int | None = None) -> Iterable[Any]:
        """All that it has."""
        batches: Iterable[Any] = self._data.val_batches()
        return batches

    def client_batch_size(self, client: Client) -> int:
        """Its own answer, what its attribute `batch_size` says, or as its batches have it."""
        own = getattr(self._data, "client_batch_size", None)
        if own is not None:
            return int(own(client))
        batches = max(1, self._data.num_batches(client.id))
        return int(getattr(self._data, "batch_size", math.ceil(client.num_examples / batches)))


def server_data(data: FederatedData) -> ServerData:
    """The data module itself where it has `num_holdout` and what belongs to it, or else one that
    has defaults for them.
    """
    # of a protocol, isinstance looks for the names of its methods alone
    return data if isinstance(data, ServerData) else _Foreign(data)
