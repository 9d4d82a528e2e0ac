"""Whatever arrives, decode returns exactly what was encoded or raises PayloadError."""

import warnings

import pytest

from bhfl.comm import PayloadError, decode, encode, header_bytes
from tests.comm.mutations import mutations

RULES = [
    "must be at least",
    "must start with",
    "version must be 2 or 3, got 255",
    "by its table, got 3",
    "CRC-32",
    "at most 65536 tensors",
    "header must be at most",
    "ends inside its table",
    "by its table",
    "by its header",
    "must be unique",
    "must be UTF-8",
    "must be at most 512 bytes",
    "kind must be",
    "bits must be 0",
    "bits must be 2..16",
    "bits must be 1 of signs",
    "dimensions must be at most 8",
    "at least 1 dimension",
    "less than 2**63",
    "scale must be",
    "codes of",
    "after its last code",
    "byte of 0 or 1",
    "ternary digits",
    "places, got",
    "places must increase",
    "sparse codes must not be 0",
    "can be other than 0",
    "needs the number",
]


def fuzz(number: int, seed: int) -> tuple[int, set[str]]:
    """How many were accepted, and which rules refused the others."""
    accepted, refused = 0, set()
    for original, payload, resealed in mutations(number, seed):
        try:
            tensors = decode(payload)
        except PayloadError as error:
            refused.update(rule for rule in RULES if rule in str(error))
            continue
        assert encode(tensors) == payload  # one encoding only, so equal tensors too
        assert resealed or payload == original
        assert 0 < header_bytes(payload) <= len(payload)
        accepted += 1
    return accepted, refused


def test_mutated_payloads_raise_payload_error_only() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        accepted, refused = fuzz(30_000, seed=1)
    assert 0 < accepted < 1_000  # other values in the content, under a checksum computed anew
    assert refused == set(RULES)  # the mutations reach every rule, not only the checksum


@pytest.mark.slow
def test_many_mutated_payloads_raise_payload_error_only() -> None:
    accepted, refused = fuzz(100_000, seed=2)
    assert 0 < accepted < 5_000
    assert refused == set(RULES)


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
