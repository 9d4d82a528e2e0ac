"""AdaQuantFL's bits follow the loss, and everything that says so is paid for."""

import math

import pytest

from bhfl.algorithms import AdaQuantFL
from tests.federation import fit

WEIGHTS, SIDE = 45 + 1040 + 52, 5 + 13 + 4


def test_bits_follow_the_rule(tmp_path):
    run = fit(tmp_path, AdaQuantFL(2), {32: 3}, max_rounds=12)
    losses = [row["train/loss"] for row in run.run.history]
    for before, row in zip(losses, run.run.history[1:], strict=False):
        levels = math.ceil(math.sqrt(max(1.0, losses[0] / before)))
        assert row["adaquantfl/bits"] == 1 + math.ceil(math.log2(levels + 1))
    assert run.run.history[-1]["adaquantfl/bits"] > run.run.history[0]["adaquantfl/bits"] == 2


def test_bytes_are_those_of_the_bits_and_two_numbers(tmp_path):
    run = fit(tmp_path, AdaQuantFL(3), {32: 2}, max_rounds=1)
    row = run.run.history[0]
    layers = sum(math.ceil(size * 3 / 8) + 4 for size in (45, 1040, 52))
    content = 2 * (layers + 4 * SIDE + 4) + 2 * (4 * (WEIGHTS + SIDE) + 4)
    assert row["uplink_bytes"] + row["downlink_bytes"] - row["header_bytes"] == content


def test_never_more_than_the_most(tmp_path):
    run = fit(tmp_path, AdaQuantFL(2, max_bits=2), {32: 2}, max_rounds=3)
    assert all(row["adaquantfl/bits"] == 2 for row in run.run.history)
    with pytest.raises(
        ValueError, match=r"AdaQuantFL\.max_bits must be an integer from 4 to 16, got 3"
    ):
        AdaQuantFL(4, max_bits=3)
    with pytest.raises(
        ValueError, match=r"AdaQuantFL\.bits must be an integer from 2 to 16, got 32"
    ):
        AdaQuantFL(32)
