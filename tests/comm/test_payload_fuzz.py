"""Whatever arrives, decode returns exactly what was encoded or raises PayloadError."""

import warnings
from collections import Counter

import pytest

from bhfl.comm import PayloadError, decode, encode, header_bytes
from tests.comm.mutations import mutations


def fuzz(number: int, seed: int) -> Counter[str]:
    outcome: Counter[str] = Counter()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for original, payload, resealed in mutations(number, seed):
            try:
                tensors = decode(payload)
            except PayloadError as error:
                outcome[str(error).split(", got")[0].split(": ")[-1][:24]] += 1
                continue
            assert encode(tensors) == payload  # one encoding only, so equal tensors too
            assert resealed or payload == original
            assert 0 < header_bytes(payload) <= len(payload)
            outcome["accepted"] += 1
    return outcome


def test_mutated_payloads_raise_payload_error_only() -> None:
    outcome = fuzz(20_000, seed=1)
    assert 0 < outcome["accepted"] < 2_000
    assert len(outcome) > 20  # the mutations reach the rules, not only the checksum


@pytest.mark.slow
def test_many_mutated_payloads_raise_payload_error_only() -> None:
    assert fuzz(100_000, seed=2)["accepted"] < 10_000


def test_every_truncation_and_every_bit_of_a_small_payload() -> None:
    original = next(iter(mutations(1, seed=3)))[0]
    for size in range(len(original)):
        with pytest.raises(PayloadError):
            decode(original[:size])
    for bit in range(8 * len(original)):
        damaged = bytearray(original)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(PayloadError):
            decode(damaged)
