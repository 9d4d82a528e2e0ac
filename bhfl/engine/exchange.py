"""What crosses between the two halves of a round: bytes and plain values, and nothing else.

The server makes a `Task` for each client of a cohort. A client answers it with a `Reply`, and
learns by a `Verdict` what became of it. Where models are whole on clients alone, the server asks
by tasks of another stage for them to be measured, and is told by a `Measured` what came of it.
Whoever trains on tasks is `Clients`: this process (`bhfl.engine.client.local.LocalClients`),
another one, or devices behind a network.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from bhfl.comm.network import Link
from bhfl.engine.types import Row
from bhfl.settings import LocalTraining, Measures
from bhfl.tags import Status

Stage = Literal["val", "test"]

NO_EXAMPLES = "the client has no examples"
"""The reason of a client that was not asked to train."""


@dataclass(frozen=True)
class ClientLink:
    """One client's link and device in one round, as far as both halves of it must know them."""

    link: Link
    """Its share of the link, and the device at its bits."""
    example_flops: float
    """FLOPs of training on one example."""
    downloads: int = 1
    """How often it is sent the model and trains: more than once where it had dropped out."""

    def seconds(self, download_bytes: int, upload_bytes: int, num_examples: int) -> float:
        """The time from the start of the round until an upload has arrived, after as many downloads
        and trainings as there are.
        """
        trained = self._trained_seconds(download_bytes, num_examples)
        return self.downloads * trained + self.link.upload_seconds(upload_bytes)

    def _trained_seconds(self, download_bytes: int, num_examples: int) -> float:
        link = self.link
        trained = link.compute_seconds(self.example_flops * num_examples)
        return link.download_seconds(download_bytes) + trained

    def budget_bytes(self, download_bytes: int, num_examples: int, deadline_seconds: float) -> int:
        """Bytes that can still be sent before a deadline, after all downloads and trainings; 0 if
        it is too late.
        """
        flops = self.example_flops * num_examples
        if again := self.downloads - 1:
            deadline_seconds -= again * self._trained_seconds(download_bytes, num_examples)
            if deadline_seconds <= 0:
                return 0
        return self.link.uplink_budget_bits(download_bytes, flops, deadline_seconds) // 8


@dataclass(frozen=True, kw_only=True)
class Task:
    """What one client is asked to do, and all that it is told."""

    client: int
    """Its id."""
    round: int
    """Rounds finished."""
    stage: Literal["train"] | Stage = "train"
    downlink: bytes
    """The payload that it is sent; empty where nothing is."""
    reference: int = 0
    """The version of `keeps` that the payload has differences to, by the rounds that were finished
    when the client kept it; 0 where it has the weights themselves.
    """
    keeps: Sequence[str] = ()
    """Names of the weights that the client keeps as it has received them, for such differences."""
    frozen: str = ""
    """The digest of the frozen tensors that it is to hold, see `bhfl.engine.frozen`; empty where
    none are meant.
    """
    body: bytes = b""
    """The payload of these, where it does not hold them."""
    version: int
    """Rounds that were finished when the server last took an update of its; 0 if it never did. The
    client goes on with what it kept then.
    """
    channels_last: bool
    """Whether images and convolution weights lie in that format."""
    seed: int = 0
    """The run's, which every draw is keyed by."""
    training: LocalTraining | None = None
    """How long and in what manner it trains, before it is measured too; None where it does not."""
    part: float = 1.0
    """The part of its planned steps that it makes, less than 1 for a straggler."""
    measures: Measures = "none"
    """When it also measures its model in a round of training."""
    common: bool = True
    """Whether a model that is measured is so on the samples of all."""
    own: bool = False
    """Whether it is measured on the client's own test samples."""
    link: ClientLink | None = None
    """Its link, where a network is simulated."""
    history: Sequence[Row] = ()
    """The server's metrics, a row for each past round."""


@dataclass(frozen=True)
class Fault:
    """Why there is no update of a client, in fields that `ClientRecord` has too."""

    status: Status
    reason: str
    traceback: str = ""
    origin: str = ""
    """Type and line of an error that is likely to come again."""
    lost: bool = False
    """Whether the client no longer has what it was sent before, and is to be sent whole weights."""
    carried: bool = False
    """Whether the client keeps what it came to all the same, and sends it in a later round."""
    broken_hook: bool = False
    """Whether `reason` is what a hook of the algorithm returned, and no fault of the client's."""


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What a client came to. One that never comes is a `Reply` too, whose fault is that it is
    ``late`` or ``failed``.
    """

    client: int
    round: int
    payload: bytes | None = None
    """Its update; None where there is none."""
    num_examples: int = 0
    """Examples trained on, each as often as it was seen."""
    num_steps: int = 0
    """Optimiser steps made."""
    seconds: float = 0.0
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Numbers to be averaged over the cohort and logged."""
    measured: Mapping[str, float] = field(default_factory=dict)
    """What its model is worth on its own validation samples: ``acc`` after its training,
    ``acc_before``.
    """
    own: Sequence[str] = ()
    """Names of the tensors without which its round began."""
    holds: bool | None = None
    """Whether it holds the frozen tensors of the task: without them it has done nothing, and is to
    be asked again with their payload. None where it says nothing of them.
    """
    anew: bool = False
    """Whether what it kept is lost on its machine, so that it has begun its state anew."""
    fault: Fault | None = None
    """Why there is no update."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What a client's model is worth."""

    client: int
    stage: Stage
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Means over the common samples, by name; none where it was not asked for."""
    correct: str = ""
    """Whether it was right about each of the common samples, a digit each, 1 for right; empty where
    its step does not say.
    """
    own: Mapping[str, float] = field(default_factory=dict)
    """Means over its own test samples, likewise."""
    holds: bool | None = None
    """See `Reply.holds`."""


@dataclass(frozen=True)
class Verdict:
    """What becomes of a client's round."""

    keep: bool
    """Whether its update was folded in, so that it keeps what it came to."""
    closing: bytes | None = None
    """The payload that closes the round, where the algorithm has anything to say."""


class Clients(Protocol):
    """Whoever trains on tasks; in this process, in another one, or behind a network."""

    def train(self, tasks: Iterator[Task]) -> Iterator[Reply]:
        """A reply for each task, as they come; tasks are taken one by one, when they are begun."""

    def evaluate(self, tasks: Iterator[Task]) -> Iterator[Measured]:
        """What each client's own model is worth, as they come."""

    def close(self, round: int, verdicts: Mapping[int, Verdict]) -> None:
        """End a round: what a client came to is kept or dropped, as its verdict says.

        Args:
            round: Rounds finished with this one.
            verdicts: The verdict on each client; what has none is dropped.
        """
