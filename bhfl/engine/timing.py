"""What a run would have taken on a simulated network: from measured bytes and counted FLOPs to
seconds.
"""

import math
from collections.abc import Sequence

from bhfl.comm.network import SimulatedNetwork, Workload
from bhfl.engine.availability import course_of
from bhfl.engine.client.worker import Worker
from bhfl.engine.devices import Devices
from bhfl.engine.exchange import ClientLink
from bhfl.engine.flops import Flops, count_flops
from bhfl.engine.links import Links
from bhfl.engine.random import RandomKeys
from bhfl.engine.records import ClientRecord
from bhfl.engine.roster import at
from bhfl.engine.types import Client, FederatedData
from bhfl.settings import Settings


class Timing(Links):
    """Simulated seconds of the clients and rounds of one run.

    Args:
        network: Links and devices.
        clients: The fleet.
        settings: The trainer's settings.

    Raises:
        ValueError: The network's trace has too few clients.
    """

    def __init__(
        self, network: SimulatedNetwork, clients: Sequence[Client], settings: Settings
    ) -> None:
        # asked for the last client, which a trace that is too short does not have
        network.link(0, len(clients) - 1)
        self.network = network
        self.deadline_seconds = network.deadline_seconds
        self.clients = clients
        self.settings = settings
        self.flops = Flops({}, {})
        """What is computed on one example."""

    def measure_(self, worker: Worker, data: FederatedData) -> None:
        """Count the FLOPs of a validation step on a client's first batch, per example.

        Raises:
            ValueError: There are none, and devices take their time to compute.
        """
        client = next((client for client in self.clients if client.num_examples), None)
        if client is None:
            return
        keys = RandomKeys(self.settings.cohort.seed, 0, client.id)
        batch = next(iter(data.client_batches(client.id, keys, 0)))
        self.flops = count_flops(worker, batch)
        # a device of infinite rate computes in no time, whatever there is to compute
        if not self.flops.example and any(map(self._takes_time, self.clients)):
            raise ValueError(
                "trainer.network counts the FLOPs of "
                f"{type(worker.module).__name__}.validation_step, which computes "
                "nothing: define it, or give devices no compute_flops"
            )

    def _takes_time(self, client: Client) -> bool:
        """Whether computing takes the device of a client any time."""
        link = self.network.link(0, client.id, client.devices.group.profile)
        return math.isfinite(link.compute_flops)

    def workload(
        self, client: Client, download_bytes: int, upload_bytes: int, num_examples: int
    ) -> Workload:
        """What a client does in a round in which it trains on `num_examples`, each counted as often
        as it is seen.
        """
        return Workload(
            client=client.id,
            download_bytes=download_bytes,
            upload_bytes=upload_bytes,
            flops=self.flops.training_example * num_examples,
            bits=self._bits(client.devices),
            profile=client.devices.group.profile,
        )

    def _bits(self, devices: Devices) -> float:
        """The bits that devices compute with; of layers with bits of their own, such as frozen
        ones in float32, the mean over what is computed.
        """
        bits = devices.spec.weights
        training = self.flops.training
        more = 0
        for name, spec in devices.layers.items():
            more += training.get(name, 0) * (spec.weights - bits)
        return bits + more / sum(training.values()) if more else bits

    def read_by(self, key: str) -> None:
        """Whoever reads them, simulated links are the same."""

    def check_deadline(self, download_bytes: int, data: FederatedData) -> None:
        """Refuse a deadline that no client can meet.

        Raises:
            ValueError: In round 0 all would still be at work when it comes, however little they
                sent.
        """
        if self.network.deadline_seconds is None:
            return
        idle = []
        for client in self.clients:
            if client.num_examples:
                work = self.workload(client, download_bytes, 0, self.planned(client, data, 0))
                idle.append(self.network.client_time(0, work).seconds)
        fastest = min(idle)
        if self.network.is_late(fastest):
            raise ValueError(
                f"network.deadline_seconds={self.network.deadline_seconds:g} is met by no client: "
                f"the fastest has received {download_bytes} bytes and trained after {fastest:.3g} s"
            )

    def link(self, round: int, client: Client, num_participants: int) -> ClientLink:
        """See the base."""
        link = self.network.shared_link(round, self.workload(client, 0, 0, 0), num_participants)
        downloads = course_of(self.settings, round, client.id).downloads
        return ClientLink(link, self.flops.training_example, downloads)

    def metrics(
        self, round: int, records: Sequence[ClientRecord], seconds_before: float
    ) -> dict[str, float]:
        """``time/simulated_round_s`` of a finished round and ``time/simulated_s`` of all.

        A client that failed is known to have, and waited for by nobody; nor is one that carries
        what it came to, as the server knows its link.
        """
        waited = []
        closing = 0.0
        clients = at(self.clients, round)
        for record in records:
            last = self.workload(clients[record.client], record.closing_bytes, 0, 0)
            closing = max(closing, self.network.client_time(round, last).seconds)
            if record.status != "failed" and not record.carried:
                waited.append(record.simulated_seconds or 0.0)
        seconds = self.network.round_seconds(waited) + closing if waited else closing
        return {"time/simulated_round_s": seconds, "time/simulated_s": seconds_before + seconds}
