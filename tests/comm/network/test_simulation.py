"""Simulated seconds: the arithmetic by hand, the draws by key, and what a configuration can get
wrong.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bhfl.comm.network import (
    PROFILES,
    ClientTime,
    Profile,
    SimulatedNetwork,
    Workload,
)
from bhfl.comm.network.simulation import met_by

STEADY = Profile(
    uplink_bps=8e6,
    downlink_bps=3.2e7,
    latency_seconds=0.5,
    compute_flops=1e9,
    spread=0,
    jitter=0,
    compute_jitter=0,
)
WORK = {"download_bytes": 4_000_000, "upload_bytes": 1_000_000, "flops": 2e9}
MIXED = {"phone-4g": 0.6, "wifi": 0.4}


def steady(**options: Any) -> SimulatedNetwork:
    """A network of clients that all take 1.5 s down, 2 s to compute and 1.5 s up for `WORK`."""
    return SimulatedNetwork("steady", {"steady": STEADY}, **options)


def fleet(num_clients: int, **changes: Any) -> list[Workload]:
    return [Workload(client=client, **(WORK | changes)) for client in range(num_clients)]


class Round(NamedTuple):
    """What a round comes to, of which the engine asks part by part."""

    seconds: float
    clients: Sequence[ClientTime]
    late: set[int]


def round_time(
    network: SimulatedNetwork,
    round: int,
    work: Sequence[Workload],
    num_participants: int | None = None,
) -> Round:
    clients = network.client_times(round, work, num_participants)
    seconds = [client.seconds for client in clients]
    late = {client.client for client in clients if network.is_late(client.seconds)}
    return Round(network.round_seconds(seconds), clients, late)


# --- time -----------------------------------------------------------------------------------------


def test_a_round_by_hand() -> None:
    found = round_time(steady(server_seconds=0.25), 0, fleet(3))
    client = found.clients[1]
    assert (client.download_seconds, client.compute_seconds, client.upload_seconds) == (
        1.5,
        2.0,
        1.5,
    )
    assert client.seconds == 5.0
    assert found.seconds == 5.25
    assert found.late == set()


def test_a_round_lasts_as_long_as_its_slowest_participant() -> None:
    network = SimulatedNetwork(MIXED)
    work = fleet(8)
    times = [client.seconds for client in network.client_times(3, work)]
    assert round_time(network, 3, work).seconds == max(times)
    lengths = [round_time(network, 3, work[:count]).seconds for count in range(1, 9)]
    assert lengths == sorted(lengths)


def test_halving_the_bandwidth_doubles_a_round_of_pure_transfer() -> None:
    rates = [
        Profile(
            uplink_bps=8e6 / half, downlink_bps=3.2e7 / half, latency_seconds=0.0, compute_jitter=0
        )
        for half in (1, 2)
    ]
    full, halved = (
        round_time(SimulatedNetwork("x", {"x": rate}), 1, fleet(5)).seconds for rate in rates
    )
    assert halved == pytest.approx(2 * full)


@given(st.integers(0, 10**6), st.integers(0, 10**6), st.integers(0, 50))
@settings(max_examples=40, deadline=None)
def test_fewer_bytes_never_take_longer(fewer: int, more: int, round_index: int) -> None:
    network = SimulatedNetwork(MIXED)
    less, much = sorted((fewer, more))
    short, long = (
        round_time(network, round_index, fleet(4, upload_bytes=size)).seconds
        for size in (less, much)
    )
    assert short <= long


def test_a_shared_uplink_is_divided_among_the_participants() -> None:
    found = round_time(steady(shared_uplink=True), 0, fleet(4))
    assert found.clients[0].upload_seconds == 0.5 + 4 * 1.0
    assert found.clients[0].download_seconds == 1.5


def test_low_bits_compute_faster_only_when_asked() -> None:
    work = fleet(1, bits=4)
    assert round_time(steady(), 0, work).clients[0].compute_seconds == 2.0
    assert round_time(steady(low_bit_speedup=True), 0, work).clients[0].compute_seconds == 2.0 / 8


# --- deadlines and budgets ------------------------------------------------------------------------


def test_the_deadline_ends_the_round_and_names_the_late() -> None:
    network = steady(deadline_seconds=5.5, server_seconds=1.0)
    work = [*fleet(2), Workload(client=7, **(WORK | {"upload_bytes": 3_000_000}))]
    found = round_time(network, 0, work)
    assert found.seconds == 6.5
    assert found.late == {7}
    assert round_time(network, 0, fleet(2)).seconds == 6.0
    assert round_time(steady(deadline_seconds=8.0), 0, work).late == set()
    assert round_time(steady(deadline_seconds=0.1), 0, fleet(2)).late == {0, 1}


def test_nothing_to_send_takes_no_time() -> None:
    found = round_time(steady(), 0, fleet(1, download_bytes=0, upload_bytes=0)).clients[0]
    assert (found.download_seconds, found.upload_seconds) == (0.0, 0.0)


def budget(
    network: SimulatedNetwork,
    work: Workload,
    deadline: float,
    round_index: int = 0,
    sharing: int = 1,
) -> int:
    link = network.shared_link(round_index, work, sharing)
    return link.uplink_budget_bits(work.download_bytes, work.flops, deadline)


@given(st.integers(0, 100), st.floats(0.5, 60), st.booleans())
@settings(max_examples=60, deadline=None)
def test_a_budget_spent_to_the_last_byte_is_in_time(
    round_index: int, deadline: float, shared: bool
) -> None:
    network = SimulatedNetwork(MIXED, shared_uplink=shared, deadline_seconds=deadline)
    work = fleet(3, flops=1e9, download_bytes=100_000)
    budgets = [budget(network, one, deadline, round_index, len(work)) for one in work]
    spent = [
        Workload(client=i, upload_bytes=bits // 8, download_bytes=100_000, flops=1e9)
        for i, bits in enumerate(budgets)
    ]
    times = network.client_times(round_index, spent)
    if all(budgets):
        assert round_time(network, round_index, spent).late == set()
    for bits, one in zip(budgets, times, strict=True):
        assert bits % 8 == 0
        byte = 8 / network.link(round_index, one.client).uplink_bps * (len(work) if shared else 1)
        assert not bits or one.seconds + byte >= deadline * (1 - 1e-9)


def test_a_client_without_time_has_no_budget() -> None:
    assert budget(steady(), fleet(1)[0], 4.0) == 0
    assert budget(steady(), fleet(1)[0], 5.0) == 8_000_000


def test_a_deadline_is_met_by_its_share() -> None:
    network, work = SimulatedNetwork(MIXED), fleet(10)
    for fraction, on_time in [(0.8, 8), (0.75, 8), (0.3, 3), (1.0, 10), (1e-11, 1)]:
        seconds = [client.seconds for client in network.client_times(4, work)]
        deadline = met_by(seconds, fraction)
        found = round_time(SimulatedNetwork(MIXED, deadline_seconds=deadline), 4, work)
        assert len(work) - len(found.late) == on_time
        assert found.seconds == deadline


# --- draws ----------------------------------------------------------------------------------------


def test_draws_depend_on_seed_round_and_client_alone() -> None:
    first = SimulatedNetwork(MIXED, seed=5)
    second = SimulatedNetwork(MIXED, seed=5, deadline_seconds=9.0)
    np.random.seed(0)
    forward = [first.link(r, c) for r in range(4) for c in range(4)]
    backward = [second.link(r, c) for r in reversed(range(4)) for c in reversed(range(4))]
    assert forward == backward[::-1]
    assert len({link.uplink_bps for link in forward}) == 16
    assert SimulatedNetwork(MIXED, seed=6).link(0, 0) != first.link(0, 0)
    state = np.random.get_state()[1]
    np.random.seed(0)
    assert np.array_equal(state, np.random.get_state()[1])


def test_medians_spreads_and_shares_are_those_of_the_profiles() -> None:
    profile = Profile(
        uplink_bps=1e6,
        downlink_bps=4e6,
        compute_flops=1e9,
        spread=0.5,
        jitter=0.2,
        compute_jitter=0.3,
    )
    network = SimulatedNetwork("x", {"x": profile})
    links = [network.link(1, client) for client in range(3000)]
    logs = np.log([link.uplink_bps / 1e6 for link in links])
    assert logs.mean() == pytest.approx(0, abs=0.03)
    assert logs.std() == pytest.approx(math.hypot(0.5, 0.2), rel=0.05)
    assert np.mean([link.slowdown for link in links]) == pytest.approx(1.3, rel=0.03)
    assert min(link.slowdown for link in links) >= 1
    assert all(link.downlink_bps == pytest.approx(4 * link.uplink_bps) for link in links)
    of_one = np.log([network.link(round_index, 0).uplink_bps for round_index in range(1000)])
    assert of_one.std() == pytest.approx(0.2, rel=0.1)
    assert len({network.link(round_index, 0).compute_flops for round_index in range(5)}) == 1
    latencies = [SimulatedNetwork(MIXED).link(0, client).latency_seconds for client in range(2000)]
    assert np.mean(
        [latency == PROFILES["phone-4g"].latency_seconds for latency in latencies]
    ) == pytest.approx(0.6, abs=0.05)


def test_uniform_factors_stay_in_their_range() -> None:
    profile = Profile(
        uplink_bps=1e6, downlink_bps=1e6, spread=0.5, jitter=0, distribution="uniform"
    )
    network = SimulatedNetwork("x", {"x": profile})
    rates = [network.link(0, client).uplink_bps for client in range(2000)]
    assert 0.5e6 <= min(rates) < 0.51e6
    assert 1.49e6 < max(rates) <= 1.5e6


# --- configuration --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"profiles": "phone-9g"},
            "profiles must be one of iot, phone-4g, phone-5g, wifi, ethernet, got 'phone-9g'; did "
            "you mean 'phone-5g'?",
        ),
        ({"profiles": {}}, "profiles must name at least one profile, got none"),
        ({"profiles": {"wifi": 0.7, "iot": 0.4}}, "profiles: shares must sum to 1, got 1.1"),
        ({"profiles": {"wifi": 0.0}}, "profiles[wifi] must be positive and finite, got 0.0"),
        ({"profiles": {"wifi": math.nan}}, "profiles[wifi] must be positive and finite, got nan"),
        ({"profiles": {"wifi": "all"}}, "profiles[wifi] must be positive and finite, got 'all'"),
        ({"shared_uplink": "no"}, "shared_uplink must be true or false, got 'no'"),
        ({"low_bit_speedup": 1}, "low_bit_speedup must be true or false, got 1"),
        (
            {"profiles": "wifi", "trace": "a.csv"},
            "trace=a.csv replaces profiles and custom_profiles: leave them out",
        ),
        ({"seed": -1}, "seed must be an integer from 0 to 9,223,372,036,854,775,807, got -1"),
        ({"deadline_seconds": 0.0}, "deadline_seconds must be positive and finite, got 0.0"),
        ({"deadline_seconds": math.inf}, "deadline_seconds must be positive and finite, got inf"),
        ({"server_seconds": -1.0}, "server_seconds must be finite and at least 0, got -1.0"),
    ],
)
def test_network_errors(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as error:
        SimulatedNetwork(**options)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"uplink_bps": 0.0}, "Profile.uplink_bps must be positive and finite, got 0.0"),
        ({"uplink_bps": math.inf}, "Profile.uplink_bps must be positive and finite, got inf"),
        ({"downlink_bps": math.nan}, "Profile.downlink_bps must be positive and finite, got nan"),
        ({"compute_flops": math.nan}, "Profile.compute_flops must be positive and finite, got nan"),
        ({"compute_flops": "1"}, "Profile.compute_flops must be positive and finite, got '1'"),
        (
            {"latency_seconds": -1.0},
            "Profile.latency_seconds must be finite and at least 0, got -1.0",
        ),
        ({"spread": math.inf}, "Profile.spread must be in [0, 10], got inf"),
        ({"jitter": 300}, "Profile.jitter must be in [0, 10], got 300"),
        (
            {"distribution": "cauchy"},
            "Profile.distribution must be one of lognormal, uniform, got 'cauchy'",
        ),
        (
            {"distribution": "uniform", "spread": 1.0},
            "Profile.spread and jitter must be < 1 when uniform, got 1.0, 0.2",
        ),
    ],
)
def test_profile_errors(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as error:
        Profile(**({"uplink_bps": 1e6, "downlink_bps": 1e6} | change))
    assert str(error.value) == message


def test_errors_of_calls() -> None:
    with pytest.raises(ValueError, match="workloads must hold at least one participant, got none"):
        round_time(steady(), 0, [])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_network_can_be_written_in_yaml() -> None:
    jsonargparse = pytest.importorskip("jsonargparse")
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--network", type=SimulatedNetwork)
    config = """
network:
  class_path: bhfl.comm.network.SimulatedNetwork
  init_args:
    profiles: {phone-4g: 0.7, tractor: 0.3}
    custom_profiles:
      tractor: {uplink_bps: 1.0e+5, downlink_bps: 4.0e+5}
    deadline_seconds: 30
    shared_uplink: true
"""
    network = parser.instantiate_classes(parser.parse_string(config)).network
    assert network.deadline_seconds == 30
    expected = SimulatedNetwork(
        {"phone-4g": 0.7, "tractor": 0.3}, {"tractor": Profile(uplink_bps=1e5, downlink_bps=4e5)}
    )
    assert [network.link(0, c) for c in range(9)] == [expected.link(0, c) for c in range(9)]
