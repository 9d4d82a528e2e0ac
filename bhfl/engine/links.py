"""Links of a run's clients, as plans need them: simulated, or as they were measured."""

import math
import warnings
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from bhfl.comm.network import Link
from bhfl.comm.network.simulation import met_by
from bhfl.engine.availability import course_of, part_of
from bhfl.engine.exchange import ClientLink
from bhfl.engine.types import Client, FederatedData, server_data
from bhfl.settings import Settings

_ROUNDS = 8
"""Rounds of a client that count for its link."""
_ALIKE = 0.1
"""Standard deviation of sizes, by their mean, up to which a line through them would be chance."""
_LEAST_SECONDS = 1e-3
"""Seconds of transport at least, so that no rate is infinite."""


class Links(ABC):
    """What is known of the links and devices of a run.

    Attributes:
        settings: The trainer's settings.
        deadline_seconds: When a round ends, even if updates have not arrived; None where it waits
            for all.
    """

    settings: Settings
    deadline_seconds: float | None

    @abstractmethod
    def link(self, round: int, client: Client, num_participants: int) -> ClientLink | None:
        """What a client knows of its link in a round, which it shares with the other participants;
        None where nobody knows it.
        """

    @abstractmethod
    def read_by(self, key: str) -> None:
        """Hear of an option by which plans follow from links."""

    def quantile_deadline(
        self,
        round: int,
        cohort: Sequence[Client],
        sizes: tuple[int, int],
        examples: Mapping[int, int],
        fraction: float,
    ) -> float:
        """The shortest deadline that a share of a cohort meets, in seconds, with all downloads and
        trainings of clients that are asked again; infinite where no link is known.

        Args:
            round: Rounds finished.
            cohort: The clients of the round; those that have no samples do not count.
            sizes: Bytes that each of them receives and sends.
            examples: How many examples each of them computes on, by its id.
            fraction: The share, in (0, 1].
        """
        seconds = []
        for client in cohort:
            link = self.link(round, client, len(cohort))
            if link is not None and client.num_examples:
                seconds.append(link.seconds(*sizes, examples[client.id]))
        return met_by(seconds, fraction) if seconds else math.inf

    def planned(self, client: Client, data: FederatedData, round: int) -> int:
        """Examples that a client will train on in a round, if all goes as planned."""
        training = client.devices.training(self.settings.training)
        batches = max(1, data.num_batches(client.id))
        part = course_of(self.settings, round, client.id).part
        epochs, rest = divmod(part_of(training.planned_steps(batches), part), batches)
        batch_size = server_data(data).client_batch_size(client)
        seen = epochs * client.num_examples + min(rest * batch_size, client.num_examples)
        # who has a model of its own trains that too
        return int(seen * (1 + self.settings.aggregation.algorithm.own_model))


@dataclass(frozen=True)
class Passage:
    """What one client and the server did in a round, as the server measured it."""

    num_bytes: int
    """Those of the messages both ways."""
    seconds: float
    """Seconds from the task's start to its reply's coming."""
    training_seconds: float
    """The part of them that the client says it trained."""
    num_examples: int
    """Examples that it says it trained on."""


class MeasuredLinks(Links):
    """Links of clients on other machines: each as fast as its last rounds were.

    Transport takes a fixed time and a time for each byte, fitted by least squares to the client's
    last rounds; where their sizes are too alike to tell the two apart, all counts by bytes. Both
    directions are taken for equally fast, since only their sum is measured. Training takes the mean
    seconds an example. A client that has not answered in any round yet has no link.

    Args:
        settings: The trainer's settings.
        round_seconds: How long a round waits for a reply.
        tells: Whether to warn that plans by measured links cannot be reproduced.
    """

    def __init__(
        self, settings: Settings, round_seconds: float = math.inf, *, tells: bool = False
    ) -> None:
        self.settings = settings
        self.deadline_seconds = round_seconds
        self._tells = tells
        self._is_read = False
        self._passages: dict[int, deque[Passage]] = {}

    def read_by(self, key: str) -> None:
        """Tell links from now on, and warn of it."""
        self._is_read = True
        if self._tells:
            warnings.warn(
                f"{key} follows links as they are measured: the run cannot be reproduced; with "
                "trainer.network it would plan by simulated ones, and could be",
                stacklevel=2,
            )

    def measure(self, client: int, passage: Passage) -> None:
        """Take down what a client that answered did in a round."""
        self._passages.setdefault(client, deque(maxlen=_ROUNDS)).append(passage)

    def link(self, round: int, client: Client, num_participants: int) -> ClientLink | None:
        """See the base; None too where no option reads links."""
        passages = self._passages.get(client.id)
        if not passages or not self._is_read:
            return None
        fixed, by_byte = _fitted(passages)
        examples = sum(one.num_examples for one in passages)
        trained = sum(one.training_seconds for one in passages)
        bps = 8 / by_byte
        link = Link(
            uplink_bps=bps,
            downlink_bps=bps,
            # each of two transfers takes it
            latency_seconds=fixed / 2,
            # an example counts as one operation
            compute_flops=examples / trained if examples and trained else math.inf,
        )
        downloads = course_of(self.settings, round, client.id).downloads
        return ClientLink(link, 1.0, downloads)


def _fitted(passages: Sequence[Passage]) -> tuple[float, float]:
    """Seconds of transport that a round takes whatever its bytes, and those of a byte."""
    sizes = [one.num_bytes for one in passages]
    # transport and waiting
    seconds = [max(one.seconds - one.training_seconds, _LEAST_SECONDS) for one in passages]
    size, mean = fmean(sizes), fmean(seconds)
    spread = sum((one - size) ** 2 for one in sizes)
    if spread > len(sizes) * (_ALIKE * size) ** 2:
        products = zip(sizes, seconds, strict=True)
        by_byte = sum((one - size) * (its - mean) for one, its in products) / spread
        if 0 < by_byte * size <= mean:
            return mean - by_byte * size, by_byte
    return 0.0, mean / max(size, 1.0)
