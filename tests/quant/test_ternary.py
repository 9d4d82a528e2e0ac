"""Ternary codes five a byte, and the places of a few entries."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bhfl.quant.sparse import pack_places, place_bytes, unpack_places
from bhfl.quant.ternary import pack_ternary, ternary_bytes, unpack_ternary

CODES = st.lists(st.integers(-1, 1), max_size=40)


@given(CODES)
def test_ternary_codes_come_back(codes: list[int]) -> None:
    tensor = torch.tensor(codes, dtype=torch.int8)
    packed = pack_ternary(tensor)
    assert packed.numel() == ternary_bytes(len(codes)) == math.ceil(len(codes) / 5)
    assert torch.equal(unpack_ternary(packed, len(codes)), tensor)


def test_bytes_of_ternary_codes() -> None:
    codes = torch.tensor([[1, -1, 0, 0, -1, 1], [0, 0, 1, 1, -1, 0]], dtype=torch.int8)
    # bytes 0 and 1 have the codes 0, 2, 4, 6, 8 and 1, 3, 5, 7, 9, and the third one the last two
    low = 2 + 3 * 1 + 9 * 0 + 27 * 1 + 81 * 2
    high = 0 + 3 * 1 + 9 * 2 + 27 * 1 + 81 * 2
    assert pack_ternary(codes).tolist() == [low, high, 0 + 3 * 1]
    assert pack_ternary(torch.zeros(7, dtype=torch.int8)).tolist() == [121, 1 + 3]


@pytest.mark.parametrize(("data", "numel"), [([243], 5), ([9], 2), ([121, 3], 6), ([1, 1], 5)])
def test_bytes_that_are_no_ternary_codes(data: list[int], numel: int) -> None:
    with pytest.raises(ValueError, match=r"ternary digits|take 1 bytes"):
        unpack_ternary(torch.tensor(data, dtype=torch.uint8), numel)


@given(st.integers(1, 5000), st.data())
def test_places_come_back(numel: int, data: st.DataObject) -> None:
    found = data.draw(st.sets(st.integers(0, numel - 1), max_size=60))
    places = torch.tensor(sorted(found), dtype=torch.int64)
    packed = pack_places(places, numel)
    assert packed.numel() == place_bytes(len(found), numel)
    assert torch.equal(unpack_places(packed, len(found), numel), places)


@pytest.mark.parametrize("share", [1.0, 0.1, 0.01, 1e-3, 2e-5])
def test_places_take_few_bits(share: float) -> None:
    numel = 1_000_000
    count = round(share * numel)
    places = torch.randperm(numel, generator=torch.Generator().manual_seed(0))[:count].sort()[0]
    packed = pack_places(places, numel)
    assert torch.equal(unpack_places(packed, count, numel), places)
    assert 8 * packed.numel() <= count * (math.log2(1 / share) + 2) + 16


def test_bytes_that_are_no_places() -> None:
    packed = pack_places(torch.tensor([3, 70, 71, 99]), 100)
    accepted = 0
    for bit in range(8 * packed.numel()):
        other = packed.clone()
        other[bit // 8] ^= 1 << bit % 8
        try:
            places = unpack_places(other, 4, 100)
        except ValueError:
            continue
        # another set of places, with bytes of its own
        accepted += 1
        assert torch.equal(pack_places(places, 100), other)
    assert 0 < accepted < 8 * packed.numel()
