"""What is no layer at fewer bits, and what clients carry that cannot send in time."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from bhfl.algorithms import FedLQ
from bhfl.algorithms.fedlq import Budget, Sensitivity
from bhfl.comm import decode
from bhfl.comm.network import Profile, SimulatedNetwork
from bhfl.downlink import Downlink
from bhfl.quant import QuantizedTensor
from tests.algorithms.fedlq.test_fedlq import SIDE, SIZES, payloads  # noqa: F401  # a fixture
from tests.algorithms.test_feedback import watched
from tests.federation import fit, same

SIDES = {"net.0.bias": 5, "net.3.bias": 13, "net.5.bias": 4}
FLEET = {32: 4}


def method(**options: Any) -> FedLQ:
    """FedLQ-delta that takes what its links carry."""
    given = {"budget": Budget("deadline"), "sensitivity": Sensitivity(shrinkage=0.0), **options}
    return FedLQ("delta", range(1, 9), error_feedback=True, **given)


def links(deadline: float, jitter: float = 0.0) -> SimulatedNetwork:
    slow = Profile(uplink_bps=6e3, downlink_bps=1e5, compute_flops=1e9, spread=0.3, jitter=jitter)
    return SimulatedNetwork("slow", {"slow": slow}, deadline_seconds=deadline)


# ---- what is no layer ----------------------------------------------------------------------------


@pytest.mark.parametrize(("bits", "took"), [(8, 22 + 3 * 4), (16, 44 + 3 * 4), (32, 4 * SIDE)])
def test_biases_take_the_bits_that_were_asked_for(
    tmp_path: Path,
    payloads: list[Any],  # noqa: F811
    bits: int,
    took: int,
) -> None:
    lq = FedLQ("delta", sensitivity=Sensitivity(shrinkage=0.0), side_bits=bits)
    fit(tmp_path, lq, FLEET, max_rounds=2)
    for _, _, message in payloads:
        found = decode(message)
        assert found.keys() == {*SIZES, *SIDES}
        content = 0
        for name, size in SIDES.items():
            value = found[name]
            coded = isinstance(value, QuantizedTensor)
            assert coded == (bits < 32)
            content += size * bits // 8 + 4 * coded
        assert content == took


def test_bytes_that_biases_do_not_take_are_for_layers(tmp_path: Path) -> None:
    rows = []
    for bits in (32, 8):
        lq = method(side_bits=bits)
        rows.append(fit(tmp_path, lq, FLEET, network=links(1.3), max_rounds=1).run.history[0])
    assert rows[0]["fedlq/bits"] < rows[1]["fedlq/bits"]
    assert all(row["clients/late"] == 0 and row["fedlq/infeasible"] == 0 for row in rows)


# ---- what is carried -----------------------------------------------------------------------------


def carried(folder: Path, **options: Any) -> Any:
    """A run in which links are at times too slow."""
    algorithm = options.pop("algorithm", None) or method(infeasible="carry", side_bits=8)
    given = {"network": links(1.0, jitter=0.7), "max_rounds": 5, **options}
    return fit(folder, algorithm, FLEET, **given)


@pytest.mark.filterwarnings("ignore:round")
@pytest.mark.parametrize("side_bits", [8, 32])
def test_what_cannot_be_sent_in_time_is_in_the_next_upload(tmp_path: Path, side_bits: int) -> None:
    algorithm, seen = watched(method(infeasible="carry", side_bits=side_bits))
    history = carried(tmp_path, algorithm=algorithm).run.history
    silent = [client.id for client, *_, update, _ in seen if update is None]
    assert sum(row["clients/skipped"] for row in history) == len(silent)
    assert 3 < len(silent) < len(seen) - 3
    came_back = 0
    held: dict[int, dict[str, torch.Tensor]] = {}
    for client, before, received, end, update, kept in seen:
        # what a client has kept of a round in which it sent nothing is there in its next one
        assert same(before, held.get(client.id, {}))
        held[client.id] = kept
        for name in (*SIZES, *SIDES):
            left = before.get("error/" + name, torch.zeros(()))
            wanted = received[name] - end[name] + left
            sent = torch.zeros(())
            if update is not None:
                value = update[name]
                coded = isinstance(value, QuantizedTensor)
                sent = value.dequantize() if coded else received[name] - value
            rest = kept.get("error/" + name, torch.zeros(()))
            assert torch.allclose(sent + rest, wanted, atol=1e-6)
        came_back += bool(before) and update is not None
    assert came_back


@pytest.mark.filterwarnings("ignore:round")
def test_nobody_waits_for_what_is_carried(tmp_path: Path) -> None:
    options = {"network": links(100.0, jitter=0.7), "max_rounds": 4}
    rule = Budget("quantile", average_bits=4, quantile=0.5)
    rows = {}
    for infeasible in ("late", "skip", "carry"):
        lq = method(infeasible=infeasible, budget=rule)
        run = carried(tmp_path, algorithm=lq, **options).run
        rows[infeasible] = run.history[-1]["time/simulated_s"]
        absent = sum(row["clients/skipped"] for row in run.history)
        assert bool(absent) == (infeasible != "late")
    assert rows["carry"] < rows["late"]
    assert rows["carry"] <= rows["skip"]


def test_who_carries_has_received_what_it_was_sent(
    tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    """It is sent differences in the next round, to what it got in the one without an upload."""
    rule = Downlink(8, "differences")
    run = carried(tmp_path, downlink=rule, max_rounds=3)
    assert run.server.accepted == dict.fromkeys(range(4), 3)
    assert [row["whole_bytes"] > 0 for row in run.run.history] == [True, False, False]
    assert sum(row["clients/skipped"] for row in run.run.history)
    # as it was asked for
    assert not [one for one in recwarn if "skipped" in str(one.message)]
    table = run.session.references.table()
    assert dict(zip(table["ids"].tolist(), table["rounds"].tolist(), strict=True)) == (
        run.server.accepted
    )


@pytest.mark.filterwarnings("ignore:round")
def test_a_skipped_round_leaves_what_is_carried_as_it_was(tmp_path: Path) -> None:
    run = carried(
        tmp_path,
        network=links(1.1, jitter=0.5),
        min_clients=3,
        downlink=Downlink(8, "differences"),
        max_rounds=4,
    )
    history = run.run.history
    kept = [number for number, row in enumerate(history, 1) if row["clients/ok"] >= 3]
    assert 0 < len(kept) < 4
    for store in (run.session.store, run.session.references):
        table = store.table()
        assert set(table["rounds"].tolist()) == {kept[-1]}
    assert run.server.accepted == dict.fromkeys(range(4), kept[-1])


@pytest.mark.filterwarnings("ignore:round")
def test_a_resumed_run_carries_the_same(tmp_path: Path) -> None:
    options = {"downlink": Downlink(8, "differences")}
    whole = carried(tmp_path / "a", **options)
    carried(tmp_path / "b", **options, max_rounds=2)
    again = carried(tmp_path / "b", **options, ckpt_path="last")
    assert same(whole.server.params, again.server.params)
    assert whole.server.accepted == again.server.accepted
    tables = [one.session.store.table()["sha256"] for one in (whole, again)]
    assert torch.equal(*tables)


# ---- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"payload": "weights"}, "FedLQ.side_bits below 32 needs FedLQ.payload: delta, got weig"),
        ({"side_bits": 1}, "FedLQ.side_bits must be 2..16 or 32, got 1"),
        (
            {"infeasible": "carry", "side_bits": 32},
            "FedLQ.infeasible: carry needs FedLQ.error_feedback: true and FedLQ.budget.rule: "
            "deadline or quantile, got False and average",
        ),
    ],
)
def test_options_that_do_not_fit(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        FedLQ(**{"payload": "delta", "side_bits": 8, **options})
