"""The words of this folder: a client, the server's state, and what the engine asks of a data
module.
"""

import math
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeVar, runtime_checkable

from torch import Tensor

from bhfl.comm.payload import Tensors as Tensors
from bhfl.engine.devices import Devices
from bhfl.engine.random import RandomKeys
from bhfl.quant import BitSpec, QuantizedTensor

Params = dict[str, Tensor]
"""State-dict names to float32 tensors: every floating entry of the model but the running statistics
of norm layers.
"""

ClientState = dict[str, Tensor]
"""What a client keeps between rounds, by names of the algorithm's."""
Metrics = dict[str, float]
"""Numbers by tag, such as ``val/acc_int8``, or by the names that a module logs."""
Row = dict[str, Any]
"""A round's metrics by tag, and what else its line of ``rounds.jsonl`` holds."""
T = TypeVar("T")


def only(values: Mapping[str, T], names: Container[str]) -> dict[str, T]:
    """The values with some names, in their order."""
    return {name: value for name, value in values.items() if name in names}


def without(values: Mapping[str, T], names: Container[str]) -> dict[str, T]:
    """The values but for those with some names, in their order."""
    return {name: value for name, value in values.items() if name not in names}


class Update(dict[str, Tensor | QuantizedTensor]):
    """One client's update as decoded, beside the payload that it came as: an aggregator that has to
    keep updates may keep their payloads instead, which take less room.

    Args:
        tensors: The tensors of the model and what was sent besides; no running statistics.
        payload: What `bhfl.comm.decode` decodes.
        received: The weights that its client was sent as differences, as it has them.
    """

    def __init__(self, tensors: Tensors, payload: bytes, received: Params | None = None) -> None:
        super().__init__(tensors)
        self.payload = payload
        self.received = received or {}


@dataclass(frozen=True)
class Client:
    """One client of the fleet."""

    id: int
    """Position in the fleet, from 0."""
    spec: BitSpec
    """The bit-widths it computes, stores and sends with."""
    num_examples: int
    """Training samples it holds."""
    weight: float = 1.0
    """Its weight in averages, not normalised: `num_examples`, or 1 for uniform weights."""
    devices: Devices = field(default=None, repr=False, compare=False)  # type: ignore[assignment]
    """What the fleet says of its group; by default the bits of `spec` alone."""

    def __post_init__(self) -> None:
        if self.devices is None:
            object.__setattr__(self, "devices", Devices.of(self.spec))

    @property
    def group(self) -> str:
        """The name of its group of the fleet, as in the tag ``val/acc_int8``."""
        return self.devices.group.label

    @property
    def bits(self) -> str:
        """The label of all clients that compute with the same bits, whatever their groups are
        called: what exists because of bits, such as a model for each width, goes by it.
        """
        return self.devices.bits


@dataclass
class ServerState:
    """All that lasts on the server between rounds, and all of it goes into a checkpoint."""

    params: Params
    """The global model, float32, without what is frozen: see `buffers`."""
    round: int = 0
    """Rounds finished."""
    extra: dict[str, Any] = field(default_factory=dict)
    """What the algorithm keeps: nested dicts and lists of tensors, numbers and strings only."""
    metrics: Metrics = field(default_factory=dict)
    """Numbers that the algorithm wants logged for the round that made this state."""
    participants: list[int] = field(default_factory=list)
    """The engine's: ids of the clients whose updates made this state."""
    accepted: dict[int, int] = field(default_factory=dict)
    """The engine's: rounds that were finished when an update of a client was last taken, or was
    kept by it for later, by id.
    """
    holders: list[int] = field(default_factory=list)
    """The engine's: ids of the clients that hold the frozen parameters, as far as they said so."""
    channels_last: bool = False
    """The engine's: whether images and convolution weights lie in channels_last, as decided before
    the first round.
    """
    buffers: dict[str, Any] = field(default_factory=dict)
    """The engine's: running statistics by group, and integer counters (see `bhfl.engine.buffers`);
    ``frozen``: the parameters that are not trained, as all clients have them.
    """

    def with_extra(self, **entries: Any) -> "ServerState":
        """The state with other entries of `extra`."""
        return replace(self, extra={**self.extra, **entries})

    def failed(self) -> "ServerState":
        """The state after a round that came to nothing."""
        return replace(self, round=self.round + 1, metrics={})


@runtime_checkable
class FederatedData(Protocol):
    """What the engine asks of a data module; `bhfl.data.FederatedDataModule` is one."""

    def prepare_data(self) -> None:
        """Bring the data to this machine; called by one process a node."""

    def setup(self, stage: str) -> None:
        """Load the data; called by every process."""

    def federate(self, num_clients: int, seed: int) -> list[int]:
        """Split the training set; the numbers of examples, one a client. ValueError where it cannot
        be split.
        """

    def partition_record(self) -> dict[str, Any]:
        """The split as JSON-able values, with its hash, for the run folder."""

    def client_batches(self, client_id: int, rng: RandomKeys, epoch: int) -> Iterable[Any]:
        """One local epoch of training batches; order and augmentation come from `rng` alone."""

    def num_batches(self, client_id: int) -> int:
        """Training batches in one local epoch of the client."""

    def client_val_batches(self, client_id: int) -> Iterable[Any] | None:
        """The client's own validation batches, or None where it has none."""

    def val_batches(self) -> Iterable[Any]:
        """Batches held out of the training split, the same in every process."""

    def test_batches(self) -> Iterable[Any]:
        """Batches of the test split, the same in every process."""


@runtime_checkable
class ServerData(FederatedData, Protocol):
    """What algorithms and analyses ask of a data module besides; `server_data`
    gives any data module the methods that it lacks.
    """

    def num_holdout(self) -> int:
        """Training samples that no client has, kept for the server."""

    def holdout_batches(self, limit: int | None = None) -> Iterable[Any]:
        """Batches of these, not augmented.

        Args:
            limit: Samples that are needed: evenly spread ones, where a data module can choose.
        """

    def val_batches(self, limit: int | None = None) -> Iterable[Any]:
        """Batches held out of the training split, the same in every process.

        Args:
            limit: Samples that are needed, where a data module can choose.
        """

    def client_test_batches(self, client_id: int) -> Iterable[Any] | None:
        """The client's own test batches, or None where it has none; for the final test alone."""

    def client_batch_size(self, client: Client) -> int:
        """Samples in a training batch of the client; the last one may be smaller."""


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

    def client_test_batches(self, client_id: int) -> Iterable[Any] | None:
        """Its own answer; None where it gives none."""
        own = getattr(self._data, "client_test_batches", None)
        batches: Iterable[Any] | None = None if own is None else own(client_id)
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
    return data if isinstance(data, ServerData | _Foreign) else _Foreign(data)
