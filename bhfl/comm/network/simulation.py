"""A simulated network: the seconds that links and devices take for measured payload bytes. Nothing
is sent anywhere.

One participant takes the sum of

    t_down    = latency + download / R_down
    t_compute = FLOPs / (speed * speedup(bits)) * slowdown
    t_up      = latency + upload / R_up

where a transfer of no bytes takes no time. A round takes as long as its slowest participant, or
until the deadline if one of them misses it, plus server time.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bhfl.checks import checked, count, not_negative, or_none, positive, true_or_false
from bhfl.comm.network.links import PROFILES, Link, Profile, ProfileLinks
from bhfl.comm.network.trace import TraceLinks
from bhfl.files import user_path
from bhfl.files.lines import sha256_of
from bhfl.recorded import Recorded

_TOLERANCE = 1e-9
"""A budget spent to the last byte must not be late because a sum of floats rounds up."""


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What one participant does in one round.

    Attributes:
        client: Its id.
        download_bytes: The length of the payload that it receives.
        upload_bytes: The length of the payload that it sends.
        flops: FLOPs of the local training: steps * batch size * 3 * FLOPs of one forward pass,
            less what frozen layers leave out.
        bits: The width that it computes with, which matters with `low_bit_speedup`; where layers
            differ, the mean over their FLOPs.
        profile: Its profile, where that is given and not drawn.
    """

    client: int
    download_bytes: int
    upload_bytes: int
    flops: float = 0.0
    bits: float = 32
    profile: str | None = None


@dataclass(frozen=True, kw_only=True)
class ClientTime:
    """Simulated seconds of one participant."""

    client: int
    download_seconds: float
    compute_seconds: float
    upload_seconds: float

    @property
    def seconds(self) -> float:
        """Seconds from the start of the round to the end of the upload."""
        return self.download_seconds + self.compute_seconds + self.upload_seconds


class SimulatedNetwork(Recorded):
    """Turns the measured bytes of a round into seconds.

    In YAML, a fleet of phones of which three in ten are on Wi-Fi:

        profiles: {phone-4g: 0.7, wifi: 0.3}
        deadline_seconds: 30

    Args:
        profiles: The profile of all clients by name, or the share of the clients that has each; see
            `PROFILES`. Default: wifi.
        custom_profiles: Further profiles by name; they go before those of `PROFILES`.
        trace: A CSV file to read links from instead; see `TraceLinks`.
        seed: The seed of all draws of the network.
        deadline_seconds: When a round ends, even if updates have not arrived; None waits for all.
        shared_uplink: Whether the participants of a round share one uplink: each sends at its rate
            divided by their number.
        low_bit_speedup: Whether compute time falls as 32 / bits. Off by default: it assumes
            hardware, and mixes its effect with that of communication.
        server_seconds: Seconds that are added to every round.

    Raises:
        ValueError: An argument is out of its range, or both `profiles` and `trace` are given.
        FileNotFoundError: There is no file `trace`.
    """

    def __init__(  # noqa: PLR0913
        self,
        profiles: str | dict[str, float] | None = None,
        custom_profiles: dict[str, Profile] | None = None,
        trace: str | Path | None = None,
        seed: int = 0,
        deadline_seconds: float | None = None,
        shared_uplink: bool = False,
        low_bit_speedup: bool = False,
        server_seconds: float = 0.0,
    ) -> None:
        # None by default, not wifi: what stands beside a trace was given by somebody
        if trace is not None and (profiles is not None or custom_profiles is not None):
            raise ValueError(f"trace={trace} replaces profiles and custom_profiles: leave them out")
        if trace is not None and not user_path(trace).is_file():
            raise FileNotFoundError(f"trace must name a file, got {trace!r}")
        checked("seed", seed, count(0, 2**63 - 1))
        self.deadline_seconds = checked("deadline_seconds", deadline_seconds, or_none(positive))
        self._server_seconds = checked("server_seconds", server_seconds, not_negative)
        self.shared_uplink = checked("shared_uplink", shared_uplink, true_or_false)
        self._low_bit_speedup = checked("low_bit_speedup", low_bit_speedup, true_or_false)
        self._links: ProfileLinks | TraceLinks
        if trace is not None:
            self._links = TraceLinks(trace)
            self.file_digests = {"trace": sha256_of(user_path(trace))}
        else:
            shares = {"wifi": 1.0} if profiles is None else profiles
            if isinstance(shares, str):
                shares = {shares: 1.0}
            self._links = ProfileLinks(shares, {**PROFILES, **(custom_profiles or {})}, seed)

    @property
    def profiles(self) -> Mapping[str, Profile]:
        """What the profile of a client can be, by name; none where links come from a trace."""
        return self._links.profiles

    def link(self, round_index: int, client: int, profile: str | None = None) -> Link:
        """The link of one client in one round, the same for every algorithm; see
        `ProfileLinks.link`.
        """
        return self._links.link(round_index, client, profile)

    def round_seconds(self, waited: Sequence[float]) -> float:
        """How long a round takes, server time included.

        Args:
            waited: When each participant is done that is waited for, in seconds; at least one.
        """
        slowest = max(waited)
        seconds = slowest if self.deadline_seconds is None else min(self.deadline_seconds, slowest)
        return seconds + self._server_seconds

    def is_late(self, seconds: float) -> bool:
        """Whether an update that arrives so many seconds after the start of the round misses the
        deadline.
        """
        if self.deadline_seconds is None:
            return False
        return seconds > self.deadline_seconds * (1 + _TOLERANCE)

    def client_times(
        self, round_index: int, workloads: Sequence[Workload], num_participants: int | None = None
    ) -> tuple[ClientTime, ...]:
        """The seconds of each participant, whether it meets the deadline or not.

        Args:
            round_index: Which draws to use.
            workloads: The workload of each participant that is waited for.
            num_participants: How many share the uplink, if others do too.

        Raises:
            ValueError: There are no participants.
        """
        if not workloads:
            raise ValueError("workloads must hold at least one participant, got none")
        sharing = num_participants or len(workloads)
        return tuple(self.client_time(round_index, workload, sharing) for workload in workloads)

    def client_time(
        self, round_index: int, workload: Workload, num_participants: int = 1
    ) -> ClientTime:
        """The seconds of one participant; how many there are matters with `shared_uplink`."""
        link = self.shared_link(round_index, workload, num_participants)
        return ClientTime(
            client=workload.client,
            download_seconds=link.download_seconds(workload.download_bytes),
            compute_seconds=link.compute_seconds(workload.flops),
            upload_seconds=link.upload_seconds(workload.upload_bytes),
        )

    def shared_link(self, round_index: int, workload: Workload, num_participants: int = 1) -> Link:
        """The link and the device of one client as they are in a round with others.

        Args:
            round_index: Which draws to use.
            workload: Who the client is, and the width that it computes with, which matters with
                `low_bit_speedup`.
            num_participants: The participants of the round; they matter with `shared_uplink`.
        """
        link = self.link(round_index, workload.client, workload.profile)
        speedup = 32 / workload.bits if self._low_bit_speedup else 1.0
        sharing = num_participants if self.shared_uplink else 1
        return replace(
            link, uplink_bps=link.uplink_bps / sharing, compute_flops=link.compute_flops * speedup
        )


def met_by(seconds: Sequence[float], fraction: float) -> float:
    """The shortest deadline that a share of some participants meets.

    Args:
        seconds: When each of them is done; at least one.
        fraction: The share, in (0, 1].
    """
    # 0.28 of 25 comes out above 7 in floats
    return sorted(seconds)[max(1, math.ceil(fraction * len(seconds) - _TOLERANCE)) - 1]
