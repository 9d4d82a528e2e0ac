"""Links that were measured: what is made of bytes and seconds, and how plans follow from it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from bhfl.algorithms import FedLQ
from bhfl.algorithms.fedlq import Budget, Sensitivity
from bhfl.engine import FederatedTrainer
from bhfl.engine.links import MeasuredLinks, Passage
from bhfl.engine.types import Client
from bhfl.quant import BitSpec
from tests.engine.hand_made import HandMade, Module, client_rows, points

COHORT = [Client(id, BitSpec.parse(8), num_examples=10) for id in range(4)]
EXAMPLES = {client.id: 20 for client in COHORT}


def links(**options: Any) -> MeasuredLinks:
    return MeasuredLinks(FederatedTrainer({8: 4}, logger=False).settings, **options)


def passage(num_bytes: int, transport: float, training: float = 0.5) -> Passage:
    return Passage(num_bytes, transport + training, training, num_examples=10)


def told(**options: Any) -> MeasuredLinks:
    found = links(**options)
    found.read_by("it")
    return found


def test_fixed_seconds_and_a_rate_are_told_apart_where_sizes_differ() -> None:
    found = told()
    for size in (1_000_000, 3_000_000, 2_000_000):
        found.measure(0, passage(size, 4.0 + 8 * size / 1e6))
    link = found.link(3, COHORT[0], 4)
    assert link is not None
    assert link.link.uplink_bps == pytest.approx(1e6)
    # two transfers of half a megabyte, and twice as many examples as were measured
    assert link.seconds(500_000, 500_000, 20) == pytest.approx(4 + 8 + 1)


@pytest.mark.parametrize(
    ("sizes", "seconds"),
    [
        ((1_000_000, 1_000_000), (9.0, 7.0)),
        # too alike: a line through them would be chance
        ((1_000_000, 1_010_000), (7.96, 8.12)),
        # faster with more bytes, which no link is
        ((1_000_000, 3_000_000), (20.0, 12.0)),
        # below nothing without bytes
        ((1_000_000, 3_000_000), (2.0, 30.0)),
    ],
)
def test_all_counts_by_bytes_where_they_are_not(sizes: Any, seconds: Any) -> None:
    found = told()
    for size, its in zip(sizes, seconds, strict=True):
        found.measure(0, passage(size, its))
    link = found.link(2, COHORT[0], 4)
    assert link is not None
    assert link.link.latency_seconds == 0
    assert link.link.uplink_bps == pytest.approx(8 * sum(sizes) / sum(seconds))


def test_the_last_rounds_count() -> None:
    found = told()
    found.measure(0, passage(10**6, 1e6))
    for _ in range(8):
        found.measure(0, passage(10**6, 8.0))
    link = found.link(9, COHORT[0], 4)
    assert link is not None
    assert link.link.uplink_bps == pytest.approx(1e6)


def test_training_that_takes_longer_than_the_round_leaves_a_rate() -> None:
    found = told()
    found.measure(0, Passage(1000, 1.0, training_seconds=2.0, num_examples=0))
    link = found.link(1, COHORT[0], 4)
    assert link is not None
    assert math.isfinite(link.link.uplink_bps)
    assert link.link.compute_flops == math.inf


def test_who_was_not_measured_has_no_link_and_sets_no_deadline() -> None:
    found = told()
    assert found.link(0, COHORT[0], 4) is None
    assert found.quantile_deadline(0, COHORT, (0, 10**6), EXAMPLES, 0.8) == math.inf
    for client, seconds in ((0, 8.0), (1, 16.0), (2, 32.0)):
        found.measure(client, passage(10**6, seconds))
    for share, deadline in ((0.3, 9.0), (0.5, 17.0), (1.0, 33.0)):
        its = found.quantile_deadline(1, COHORT, (0, 10**6), EXAMPLES, share)
        assert its == pytest.approx(deadline)


def test_nothing_is_told_where_no_option_reads_it() -> None:
    found = links(tells=True)
    found.measure(0, passage(10**6, 1.0))
    assert found.link(1, COHORT[0], 4) is None
    with pytest.warns(UserWarning, match=r"^budget follows links as they are measured: "):
        found.read_by("budget")
    assert found.link(1, COHORT[0], 4) is not None


# ---- FedLQ ---------------------------------------------------------------------------------------


def planned(folder: Path, measured: dict[int, float], budget: Budget) -> list[dict[str, str]]:
    """The rows of the clients of a round, of which some were measured before."""
    trainer = FederatedTrainer(
        {32: 4},
        FedLQ(budget=budget, sensitivity=Sensitivity(shrinkage=0)),
        max_rounds=1,
        monitor="train/loss",
        mode="min",
        logger=False,
        devices=1,
        default_root_dir=str(folder),
    )
    trainer.links = MeasuredLinks(trainer.settings, 60.0)
    for client, seconds in measured.items():
        trainer.links.measure(client, Passage(1000, seconds, 0.0, num_examples=8))
    torch.manual_seed(0)
    held_out = points(9, 99)
    trainer.fit(Module(), HandMade([points(8, i) for i in range(4)], held_out=held_out))
    return client_rows(trainer.run.folder)


def test_the_first_round_has_the_average_bits(tmp_path: Path) -> None:
    found = planned(tmp_path / "quantile", {}, Budget("quantile", 3))
    average = planned(tmp_path / "average", {}, Budget("average", 3))
    assert [row["uplink_bytes"] for row in found] == [row["uplink_bytes"] for row in average]
    # real seconds are not simulated ones
    assert not any(row.get("simulated_seconds") for row in found)


def test_a_slow_client_sends_less_and_one_that_is_new_the_average(tmp_path: Path) -> None:
    average = planned(tmp_path / "average", {}, Budget("average", 4))
    sent = planned(tmp_path / "measured", {0: 1.0, 1: 1.0, 2: 1.2}, Budget("quantile", 4, 0.6))
    most, same, less, new = (int(row["uplink_bytes"]) for row in sent)
    usual = int(average[3]["uplink_bytes"])
    assert less < usual == new
    assert most == same
    assert usual - 20 < most <= usual + 20


def test_a_deadline_is_that_of_the_server(tmp_path: Path) -> None:
    found = planned(tmp_path / "fast", {0: 1.0, 1: 1e6}, Budget("deadline", 4))
    fast, slow, *new = (int(row["uplink_bytes"]) for row in found)
    assert slow < new[0] == new[1] < fast
