"""Bits down and up from one budget of seconds."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from bhfl.algorithms import FedLQ
from bhfl.algorithms.fedlq import Budget, Sensitivity
from bhfl.algorithms.fedlq.allocation import Offer, allocate_all
from bhfl.algorithms.fedlq.both import BothWays, down_bits
from bhfl.algorithms.fedlq.moves import from_server
from bhfl.algorithms.fedlq.planning import Planner
from bhfl.algorithms.fedlq.sides import Sides
from bhfl.comm import decode, encode, header_bytes, payload
from bhfl.comm.network import Profile, SimulatedNetwork
from bhfl.downlink import Downlink
from bhfl.engine.downlink import coded_move, sent_as
from bhfl.engine.outgoing import Outgoing
from bhfl.engine.types import Client, Update
from bhfl.quant import BitSpec, QuantizedTensor
from tests.engine.test_references import devices
from tests.federation import fake, fit, same

FLEET = {"ternary": 1, 32: 3}
RULE = Downlink(8, "differences")


def both(rule: Any = "quantile", **options: Any) -> FedLQ:
    budget = Budget(rule, average_bits=1.5)
    options = {"error_feedback": True, "both_ways": True, "budget": budget, **options}
    return FedLQ("delta", (0, 1, 2, 4, 8), **options)


def network(deadline: float | None = None, down: float = 6e4) -> SimulatedNetwork:
    slow = Profile(uplink_bps=1e4, downlink_bps=down, compute_flops=1e9, spread=0.4)
    return SimulatedNetwork("slow", {"slow": slow}, deadline_seconds=deadline)


def run(folder: Path, algorithm: FedLQ, deadline: float | None = None, **options: Any) -> Any:
    options = {"data": fake(holdout=16), "downlink": RULE, "network": network(deadline), **options}
    return fit(folder, algorithm, FLEET, **options)


@pytest.fixture
def messages(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What clients are sent in the runs of a test, by round."""
    sent: list[Any] = []
    message = Outgoing.message

    def spy(self: Any, client: Any) -> Any:
        found = message(self, client)
        sent.append((self.server.round, client.id, found))
        return found

    monkeypatch.setattr(Outgoing, "message", spy)
    return sent


# ---- the choice ----------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", [60, 100, 170, 400])
def test_both_ways_are_one_knapsack(budget: int) -> None:
    offers = [
        Offer((1, 4), [[10, 40], [20, 80]], [[9.0, 1.0], [5.0, 2.0]]),
        Offer((0, 2, 8), [[5, 15, 60]], [[8.0, 3.0, 0.0]]),
    ]
    rows = [*zip(offers[0].sizes, offers[0].costs, strict=True)]
    rows += [*zip(offers[1].sizes, offers[1].costs, strict=True)]
    fitting = []
    for choice in itertools.product(range(2), range(2), range(3)):
        size = sum(row[0][one] for row, one in zip(rows, choice, strict=True))
        cost = sum(row[1][one] for row, one in zip(rows, choice, strict=True))
        if size <= budget:
            bits = [offers[0].candidates[one] for one in choice[:2]]
            fitting.append((cost, (*bits, offers[1].candidates[choice[2]])))
    assert allocate_all(offers, budget).bits == min(fitting)[1]


def test_a_slower_downlink_is_spared_and_a_larger_cohort_is_not() -> None:
    generator = torch.Generator().manual_seed(0)
    moves = {name: torch.randn(9, 40, generator=generator) for name in ("a", "b")}
    planner = Planner(
        layers=["a", "b"],
        sizes=[360, 360],
        candidates=(0, 1, 2, 3, 4, 6, 8),
        budget=Budget("quantile"),
        sensitivity=Sensitivity(),
        solver="dp",
        sides=Sides(feedback=True),
    )
    its = devices(RULE, "float32")
    client = Client(0, its.spec, 1, 1.0, its)

    def total(rate: float, weight: float) -> int:
        room, curvature = [4000.0, rate, weight], torch.ones(2)
        variances = planner.variances(moves)
        return sum(BothWays(planner).bits(moves, client, room, curvature, variances).values())

    slower = [total(rate, 1.0) for rate in (0.1, 0.5, 2.0)]
    assert slower[0] > slower[1] > slower[2]
    larger = [total(0.5, weight) for weight in (0.1, 1.0, 10.0)]
    assert larger[0] < larger[1] <= larger[2]


@pytest.mark.parametrize("bits", [0, 1, 2, 4, 8])
def test_the_size_of_a_layer_down_is_never_more_than_planned(bits: int) -> None:
    move = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    message = encode({"w": coded_move(move, bits)})
    # in its row, one that is left out has a number more
    took = 8 * (len(message) - header_bytes(message)) + 32 * (bits == 0)
    assert took <= down_bits(move, bits)
    assert took == down_bits(move, bits) or bits == 2


@pytest.mark.parametrize("bits", [0, 1])
def test_what_is_not_sent_down_is_in_the_next_difference(bits: int) -> None:
    model = {"net.0.weight": torch.randn(5, 7, generator=torch.Generator().manual_seed(0))}
    before = {"net.0.weight": torch.zeros(5, 7)}
    first = sent_as(model, devices(), model, before, {"net.0.weight": bits})
    assert first.message["net.0.weight"].bits == (bits or 2)
    assert torch.equal(first.weights["net.0.weight"], before["net.0.weight"]) == (bits == 0)
    rest = sent_as(model, devices(), model, first.weights, {"net.0.weight": 8})
    assert torch.allclose(rest.weights["net.0.weight"], model["net.0.weight"], atol=0.02)


# ---- runs ----------------------------------------------------------------------------------------


def test_seconds_are_shared_out_and_nobody_is_late(tmp_path: Path) -> None:
    for deadline in (1.7, 2.0):
        history = run(tmp_path, both("deadline"), deadline, max_rounds=4).run.history
        for row in history:
            assert row["clients/late"] == row["fedlq/infeasible"] == 0
            assert row["time/simulated_round_s"] <= deadline
        assert history[-1]["time/simulated_round_s"] > 0.8 * deadline
        # what clients receive in the first round is whole
        assert "comm/bits_down" not in history[0]
        assert 0 < history[-1]["comm/bits_down"] <= 8


def test_of_a_model_of_any_size_a_client_may_be_sent_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nothing(self: Any, server: Any, client: Any, moves: Any) -> dict[str, int]:
        return dict.fromkeys(moves, 0)

    monkeypatch.setattr(FedLQ, "bits_down", nothing)
    # as if layers were of far more weights than the message has bytes
    monkeypatch.setattr(payload, "MAX_GROWTH", 0)
    last = run(tmp_path, both(), max_rounds=2).run.history[-1]
    assert last["clients/ok"] == 4
    assert last["comm/bits_down"] == 0


def test_what_a_client_has_not_received_yet_is_not_brought_back(tmp_path: Path) -> None:
    """Its layers in float32 count as moves, as those of all other bits do."""

    class Frugal(FedLQ):
        def bits_down(self, server: Any, client: Any, moves: Any) -> dict[str, int]:
            return dict.fromkeys(moves, 0)

    found = []
    for bits in (16, 32):
        lq = Frugal("delta", (bits,), Budget(average_bits=32), Sensitivity(shrinkage=0))
        found.append(fit(tmp_path / str(bits), lq, {32: 2}, downlink=RULE, max_rounds=4).server)
    codes, values = (server.params["net.3.weight"] for server in found)
    # moves at 16 bits are those at 32 to some 1e-5 of them
    assert torch.allclose(codes, values, atol=1e-4)


def test_values_too_large_to_average_are_refused() -> None:
    start = {"w": torch.full((2, 2), 3e38)}
    server: Any = SimpleNamespace(params=start)
    update = Update({"w": torch.zeros(2, 2)}, b"", {"w": torch.zeros(2, 2)})
    client = Client(0, BitSpec(), 8)
    with pytest.raises(ValueError, match="w has a value that is too large to average"):
        from_server(update, client, server)
    fine = torch.rand(2, 2) * 1e-6
    same_weights = Update({"w": fine}, b"", {"w": start["w"].clone()})
    assert from_server(same_weights, client, server)["w"] is fine
    assert from_server({"w": fine}, client, server)["w"] is fine


def test_clients_are_sent_the_bits_that_were_chosen(tmp_path: Path, messages: list[Any]) -> None:
    run(tmp_path, both(), network=network(down=5e3))
    chosen = {tuple(one.bits.values()) for round, _, one in messages if round}
    assert len(chosen) > 3
    for round, _, one in messages:
        for name, bits in one.bits.items():
            sent = decode(one.payload)[name]
            assert isinstance(sent, QuantizedTensor)
            assert (sent.bits, sent.sparse) == (bits or 2, not bits)
        assert bool(one.bits) == (round > 0)


def test_a_quantile_is_of_what_the_average_takes_both_ways(tmp_path: Path) -> None:
    rows = run(tmp_path, both(), max_rounds=2).run.history
    assert rows[1]["time/simulated_round_s"] < rows[0]["time/simulated_round_s"]
    most = run(tmp_path, both(budget=Budget("quantile", 6)), max_rounds=2).run.history[1]
    assert most["time/simulated_round_s"] > rows[1]["time/simulated_round_s"]
    assert most["comm/bits_down"] > rows[1]["comm/bits_down"]


def test_a_resumed_run_chooses_the_same(tmp_path: Path) -> None:
    options = {"clients_per_round": 3, "sampling": "uniform"}
    whole = run(tmp_path / "a", both(), max_rounds=4, **options)
    run(tmp_path / "b", both(), max_rounds=2, **options)
    again = run(tmp_path / "b", both(), max_rounds=4, **options, ckpt_path="last")
    assert same(whole.server.params, again.server.params)
    tables = [one.session.references.table()["sha256"] for one in (whole, again)]
    assert torch.equal(*tables)


# ---- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budget": Budget()}, "deadline or quantile and FedLQ.plan: client, got average and cli"),
        ({"plan": "server", "candidates": (1, 2)}, "FedLQ.plan: client, got quantile and server"),
        ({"both_ways": 1}, "FedLQ.both_ways must be true or false, got 1"),
    ],
)
def test_options_that_do_not_fit(options: dict[str, Any], message: str) -> None:
    known = {"budget": Budget("quantile"), "both_ways": True, "error_feedback": True, **options}
    with pytest.raises(ValueError, match=re.escape(message)):
        FedLQ("delta", **known)


@pytest.mark.parametrize(
    ("rule", "candidates", "message"),
    [
        ("float32", (2, 4), "send: differences and the most bits of a layer, 2..16, got float32"),
        (Downlink(8), (2, 4), "send: differences and the most bits of a layer, 2..16, got 8"),
        (RULE, (16, 32), "at most 8 besides 0, the bits of trainer.downlink for float32 clients"),
        (RULE, (0, 16), "at most 8 besides 0, the bits of trainer.downlink for float32 clients"),
    ],
)
def test_downlinks_that_do_not_fit(
    tmp_path: Path, rule: Any, candidates: Any, message: str
) -> None:
    budget = Budget("quantile", 16)
    lq = FedLQ("delta", candidates, budget, error_feedback=True, both_ways=True)
    options = {"data": fake(holdout=16), "network": network(), "downlink": rule}
    with pytest.raises(ValueError, match=re.escape(message)):
        fit(tmp_path, lq, {32: 1}, **options)
