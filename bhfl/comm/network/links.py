"""How fast the link and the device of each client are in each round, drawn from profiles.

Every draw is keyed by (seed, purpose, round, client), so that all algorithms meet the same network,
whatever else they draw.
"""

import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from bhfl.checks import check_options, checked, choice, not_negative, positive, within

Distribution = Literal["lognormal", "uniform"]
_WIDTH = within("[0, 10]")
"""The check of a width: a wider factor comes to 0 or to infinity."""
_CHECKS = {
    # what a link carries in a second must be a number of bits
    "uplink_bps": positive,
    "downlink_bps": positive,
    "latency_seconds": not_negative,
    "spread": _WIDTH,
    "jitter": _WIDTH,
    "compute_jitter": not_negative,
    "distribution": choice(*get_args(Distribution)),
}


@dataclass(frozen=True, kw_only=True)
class Link:
    """One client's link and device in one round.

    Attributes:
        uplink_bps: Bit/s towards the server.
        downlink_bps: Bit/s from the server.
        latency_seconds: Seconds that every transfer takes besides.
        compute_flops: FLOP/s in training at float32; if infinite, computing takes no time.
        slowdown: The factor on the compute time of this round, at least 1.
    """

    uplink_bps: float
    downlink_bps: float
    latency_seconds: float = 0.0
    compute_flops: float = math.inf
    slowdown: float = 1.0

    def download_seconds(self, num_bytes: int) -> float:
        """How long a message from the server takes; an empty one takes no time."""
        return self._seconds(num_bytes, self.downlink_bps)

    def compute_seconds(self, flops: float) -> float:
        """How long local training takes."""
        # an infinite speed makes it 0
        return flops / self.compute_flops * self.slowdown

    def upload_seconds(self, num_bytes: int) -> float:
        """How long a message to the server takes; an empty one takes no time."""
        return self._seconds(num_bytes, self.uplink_bps)

    def uplink_budget_bits(self, download_bytes: int, flops: float, deadline_seconds: float) -> int:
        """The bits that a client can still send, after a download and local training, so that they
        arrive before a deadline: whole bytes, and 0 if it is too late.

        Raises:
            ValueError: The deadline is not positive and finite.
        """
        checked("deadline_seconds", deadline_seconds, positive)
        download = self.download_seconds(download_bytes)
        spent = download + self.compute_seconds(flops) + self.latency_seconds
        left = max(0.0, deadline_seconds - spent)
        return 8 * math.floor(left * self.uplink_bps / 8)

    def _seconds(self, num_bytes: int, bps: float) -> float:
        return self.latency_seconds + 8 * num_bytes / bps if num_bytes else 0.0


@dataclass(frozen=True, kw_only=True)
class Profile:
    """A kind of client: its medians, and how far clients and rounds differ from them.

    Each client draws two factors once, one for its link (for both directions, so that their ratio
    stays) and one for its device, and another factor for its link in every round. "lognormal"
    factors are `exp(width * z)` with a standard normal z, "uniform" ones `1 + width * u` with u in
    [-1, 1]. With width 0 a factor is 1.

    Attributes:
        uplink_bps: Median bit/s towards the server.
        downlink_bps: Median bit/s from the server.
        latency_seconds: Seconds that every transfer takes besides.
        compute_flops: Median FLOP/s in training at float32.
        spread: The width across clients, for link and device, at most 10.
        jitter: The width across rounds, for the link, at most 10.
        compute_jitter: Mean of the exponential part of the shifted-exponential compute time,
            relative to the constant part (as in FedPAQ, Reisizadeh et al. 2020, section 5).
        distribution: The family of the factors.
    """

    uplink_bps: float
    downlink_bps: float
    latency_seconds: float = 0.05
    compute_flops: float = math.inf
    spread: float = 0.5
    jitter: float = 0.2
    compute_jitter: float = 0.2
    distribution: Distribution = "lognormal"

    def __post_init__(self) -> None:
        check_options("Profile", self, _CHECKS)
        if self.compute_flops != math.inf:
            checked("Profile.compute_flops", self.compute_flops, positive)
        if self.distribution == "uniform" and max(self.spread, self.jitter) >= 1:
            raise ValueError(
                f"Profile.spread and jitter must be < 1 when uniform, got {self.spread}, "
                f"{self.jitter}"
            )


# Round orders of magnitude, chosen and not measured; radio links with downlink : uplink = 4 : 1.
PROFILES: Mapping[str, Profile] = {
    "iot": Profile(uplink_bps=5e4, downlink_bps=2e5, latency_seconds=1.0, compute_flops=1e8),
    "phone-4g": Profile(
        uplink_bps=8e6, downlink_bps=3.2e7, latency_seconds=0.05, compute_flops=2e10
    ),
    "phone-5g": Profile(
        uplink_bps=2.5e7, downlink_bps=1e8, latency_seconds=0.02, compute_flops=5e10
    ),
    "wifi": Profile(uplink_bps=2e7, downlink_bps=8e7, latency_seconds=0.01, compute_flops=1e11),
    "ethernet": Profile(
        uplink_bps=1e9,
        downlink_bps=1e9,
        latency_seconds=0.001,
        compute_flops=1e13,
        spread=0.0,
        jitter=0.05,
    ),
}


class ProfileLinks:
    """Links drawn from profiles.

    Args:
        shares: The share of the clients that has each profile; each client draws its profile, so
            that shares hold on average.
        profiles: The profiles by name.
        seed: The seed of all draws.
    """

    def __init__(
        self, shares: Mapping[str, float], profiles: Mapping[str, Profile], seed: int
    ) -> None:
        for name, share in shares.items():
            checked("profiles", name, choice(*profiles))
            checked(f"profiles[{name}]", share, positive)
        if not shares:
            raise ValueError("profiles must name at least one profile, got none")
        if not math.isclose(total := math.fsum(shares.values()), 1.0):
            raise ValueError(f"profiles: shares must sum to 1, got {total:g}")
        self._names = list(shares)
        self._cumulative = np.cumsum(list(shares.values())) / total
        self.profiles = profiles
        self._seed = seed

    def link(self, round_index: int, client: int, profile: str | None = None) -> Link:
        """The link of one client in one round; the same at every call.

        Args:
            round_index: Which draws to use.
            client: Its id.
            profile: Its profile, where that is given and not drawn.
        """
        # the same in every round
        fixed = _stream(self._seed, "network_client", 0, client)
        # without the last bound, which rounding may leave below a draw
        drawn = int(np.searchsorted(self._cumulative[:-1], fixed.random(), "right"))
        kind = self.profiles[profile or self._names[drawn]]
        rate = _factor(fixed, kind.spread, kind.distribution)
        speed = _factor(fixed, kind.spread, kind.distribution)
        varying = _stream(self._seed, "network_round", round_index, client)
        rate *= _factor(varying, kind.jitter, kind.distribution)
        return Link(
            uplink_bps=kind.uplink_bps * rate,
            downlink_bps=kind.downlink_bps * rate,
            latency_seconds=kind.latency_seconds,
            compute_flops=kind.compute_flops * speed,
            slowdown=1 + kind.compute_jitter * float(varying.standard_exponential()),
        )


def _stream(seed: int, purpose: str, round_index: int, client: int) -> np.random.Generator:
    """The random stream of one client in one round, for one purpose."""
    # a checksum of the purpose, since hash() of text is another in each process
    return np.random.default_rng([seed, zlib.crc32(purpose.encode()), round_index, client])


def _factor(rng: np.random.Generator, width: float, distribution: Distribution) -> float:
    """A factor of :class:`Profile`."""
    if distribution == "uniform":
        return 1 + width * float(rng.uniform(-1, 1))
    return math.exp(width * float(rng.standard_normal()))
