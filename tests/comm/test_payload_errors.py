"""Every rule of the format, by the message that names it."""

import math
import struct
import sys

import pytest
import torch
from torch import Tensor

from bhfl.comm import PayloadError, decode, encode, header_bytes
from bhfl.quant import QuantizedTensor
from bhfl.quant.signs import signs
from tests.comm.mutations import one_row, sealed

ONES = torch.ones(3, dtype=torch.int8)
ONE = torch.tensor(1.0)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (
            torch.ones(2, dtype=torch.complex64),
            "must be a dense tensor with memory, of torch.float32",
        ),
        (torch.ones(2).to_sparse(), "got torch.float32, torch.sparse_coo, cpu"),
        (torch.ones(2, device="meta"), "got torch.float32, torch.strided, meta"),
        (torch.ones([1] * 9), "dimensions must be at most 8, got 9"),
        (torch.empty(2**32, 0), "a dimension must be at most 4294967295, got 4294967296"),
        (QuantizedTensor(ONES, ONE, 0), "bits must be 2..16, got 0"),
        (QuantizedTensor(ONES, ONE, 1, sparse=True), "bits must be 2..16, got 1"),
        (QuantizedTensor(0 * ONES, ONE, 1), "signs must not be 0"),
        (QuantizedTensor(3 * ONES, ONE, 1), "codes of 1 bits must be in -1..1, got 3..3"),
        (QuantizedTensor(ONES, ONE, 17), "bits must be 2..16, got 17"),
        (
            QuantizedTensor(ONES.short(), ONE, 8),
            "codes of 8 bits must be torch.int8, got torch.int16",
        ),
        (QuantizedTensor(ONES, ONE, 9), "codes of 9 bits must be torch.int16, got torch.int8"),
        (QuantizedTensor(ONES, ONE.double(), 8), "scale must be float32, 0-dim or one a channel"),
        (
            QuantizedTensor(ONES, torch.ones(2), 8),
            r"one a channel of codes \(3,\), got torch.float32 \(2,\)",
        ),
        (
            QuantizedTensor(ONES, torch.ones(3, 1), 8),
            r"one a channel of codes \(3,\), got torch.float32 \(3, 1\)",
        ),
        (
            QuantizedTensor(ONES[0], torch.ones(1), 8),
            "one scale a channel needs at least 1 dimension, got none",
        ),
        (
            QuantizedTensor(ONES, ONE * math.nan, 8),
            "scale must be finite and at least 0, got nan..nan",
        ),
        (
            QuantizedTensor(ONES, ONE * math.inf, 8),
            "scale must be finite and at least 0, got inf..inf",
        ),
        (
            QuantizedTensor(ONES, -torch.arange(3.0), 8),
            r"scale must be finite and at least 0, got -2.0..-?0.0",
        ),
        (QuantizedTensor(-2 * ONES, ONE, 2), r"codes of 2 bits must be in -1..1, got -2..-2"),
        (QuantizedTensor(8 * ONES, ONE, 4), r"codes of 4 bits must be in -7..7, got 8..8"),
        (
            QuantizedTensor(-128 * ONES, ONE, 8),
            r"codes of 8 bits must be in -127..127, got -128..-128",
        ),
    ],
)
def test_encode_refuses_what_decode_would(value: Tensor | QuantizedTensor, message: str) -> None:
    with pytest.raises(PayloadError, match=rf"^tensor 'a\.b': .*{message}"):
        encode({"a.b": value})


def test_encode_refuses_names_and_numbers_beyond_the_format() -> None:
    one = torch.ones(())
    with pytest.raises(
        PayloadError, match=r"tensor name must be encodable as UTF-8, got '\\ud800'"
    ):
        encode({"\ud800": one})
    with pytest.raises(PayloadError, match=r"tensor name must be at most 512 bytes, got 514"):
        encode({"ä" * 257: one})
    assert list(decode(encode({"ä" * 256: one, "": one, "a\0b\n": one}))) == [
        "ä" * 256,
        "",
        "a\0b\n",
    ]
    with pytest.raises(PayloadError, match=r"payload must hold at most 65536 tensors, got 65537"):
        encode(dict.fromkeys(map(str, range(65_537)), one))
    with pytest.raises(
        PayloadError, match=r"payload header must be at most 1048576 bytes, got 1137416"
    ):
        encode({f"{i:0512}": one for i in range(2_200)})


BODY = encode({"w": torch.ones(3)})[:-4]


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (b"", "payload must be at least 20 bytes, got 0"),
        (BODY, "payload is damaged: its CRC-32 must be [0-9a-f]{8}, got [0-9a-f]{8}"),
        (sealed(b"PK\3\4" + BODY[4:]), r"payload must start with b'BHFL', got b'PK\\x03\\x04'"),
        (
            sealed(BODY[:4] + struct.pack("<I", 255) + BODY[8:]),
            "payload version must be 2 or 3, got 255",
        ),
        (
            sealed(BODY[:8] + b"\xff" * 4 + BODY[12:]),
            "payload must hold at most 65536 tensors, got 4294967295",
        ),
        (
            sealed(BODY[:12] + b"\xff" * 4 + BODY[16:]),
            "header must be at most 1048576 bytes and inside the payload, got 4",
        ),
        (
            sealed(BODY[:12] + b"\x0f\0\0\0" + BODY[16:]),
            "header must be at most 1048576 bytes and inside the payload",
        ),
        (
            sealed(BODY[:12] + b"\x1b\0\0\0" + BODY[16:]),
            "payload header must be 26 bytes by its table, got 27",
        ),
        (
            sealed(BODY[:8] + b"\2" + BODY[9:]),
            "ends inside its table: it must have a row at byte 26",
        ),
        (
            sealed(BODY[:18] + b"\3" + BODY[19:]),
            "ends inside its table: the row at byte 16 must end at 34",
        ),
        (sealed(BODY[:-1]), "payload must be 42 bytes by its header, got 41"),
        (sealed(BODY + b"\0"), "payload must be 42 bytes by its header, got 43"),
        (
            one_row(b"w", 1, 0, (2**32 - 1,)),
            "payload must be 17179869210 bytes by its header, got 30",
        ),
        (
            one_row(b"w", 1, 0, (2**31, 2**31)),
            "payload must be 18446744073709551650 bytes by its header, got 34",
        ),
        (
            one_row(b"w", 33, 2, (2**31, 2**31, 1)),
            "payload must be 92233721[0-9]* bytes by its header",
        ),
        (
            one_row(b"w", 1, 0, (2**32 - 1,) * 8),
            r"tensor 'w': shape must multiply to less than 2\*\*63",
        ),
        (
            one_row(b"w", 1, 0, (2**32 - 1, 2**32 - 1, 0)),
            r"tensor 'w': shape must multiply to less than 2\*\*63",
        ),
        (one_row(b"w", 1, 0, (0,) * 9), "tensor 'w': dimensions must be at most 8, got 9"),
        (one_row(b"w", 0, 0, ()), "tensor 'w': kind must be 1..10 or 32..36, got 0"),
        (
            one_row(b"w", 1, 8, (1,), bytes(4)),
            "tensor 'w': bits must be 0 where nothing is packed, got 8",
        ),
        (one_row(b"w", 32, 17, (1,), bytes(7)), "tensor 'w': bits must be 2..16, got 17"),
        (
            one_row(b"w", 33, 8, (), bytes(5)),
            "tensor 'w': one scale a channel needs at least 1 dimension",
        ),
        (one_row(b"w", 1, 0, (0,), num_tensors=2), "tensor names must be unique, got 'w' twice"),
        (one_row(b"\xff", 1, 0, (0,)), r"tensor name must be UTF-8, got b'\\xff'"),
        (one_row(b"\xed\xa0\x80", 1, 0, (0,)), "tensor name must be UTF-8"),
        (one_row(b"w" * 513, 1, 0, (0,)), "tensor name must be at most 512 bytes, got 513"),
        (one_row(b"w", 10, 0, (2,), b"\1\2"), "tensor 'w': a bool must be a byte of 0 or 1"),
        (
            one_row(b"w", 32, 3, (3,), bytes(4) + b"\0\x40"),
            "tensor 'w': the bits after its last code must be 0",
        ),
        (
            one_row(b"w", 32, 2, (3,), bytes(4) + b"\x1b"),
            "tensor 'w': a byte must be a number of ternary digits",
        ),
        (
            one_row(b"w", 35, 1, (3,), bytes(4) + b"\x08"),
            "tensor 'w': the bits after its last code must be 0",
        ),
        (one_row(b"w", 36, 1, (), bytes(5)), "tensor 'w': one scale a channel needs at least 1"),
        (one_row(b"w", 35, 2, (1,), bytes(5)), "tensor 'w': bits must be 1 of signs, got 2"),
        (one_row(b"w", 35, 1, (2**32 - 1, 9), bytes(99)), "must be 4831838245 bytes by its header"),
        # the version says whether there are signs, and only it
        (
            sealed(BODY[:4] + struct.pack("<I", 3) + BODY[8:]),
            "payload version must be 2 by its table, got 3",
        ),
        (one_row(b"w", 34, 4, ()), "tensor 'w': one that is sparse needs the number of its codes"),
        (
            one_row(b"w", 34, 4, (2, 3), bytes(9)),
            "tensor 'w': at most 2 codes can be other than 0, got 3",
        ),
        (
            one_row(b"w", 34, 4, (8, 1), bytes(4) + b"\0\0\1"),
            "tensor 'w': there must be 1 places, got 0",
        ),
        (
            one_row(b"w", 34, 4, (8, 1), bytes(4) + b"\0\1\0"),
            "tensor 'w': sparse codes must not be 0",
        ),
        # a few bytes that stand for a tensor of four billion entries
        (
            one_row(b"w", 34, 4, (2**32 - 1, 0), bytes(4)),
            "sparse tensors must have at most [0-9]* entries, got 4294967295",
        ),
        (
            one_row(b"w", 32, 4, (2,), bytes(4) + b"\x81"),
            "tensor 'w': codes of 4 bits must be in -7..7, got -8..1",
        ),
        (
            one_row(b"w", 32, 4, (2,), struct.pack("<f", math.nan) + b"\0"),
            "tensor 'w': scale must be finite",
        ),
        (
            one_row(b"w", 32, 4, (2,), struct.pack("<f", -1.0) + b"\0"),
            "tensor 'w': scale must be finite",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_decode_names_the_rule_and_the_value(payload: bytes, message: str) -> None:
    with pytest.raises(PayloadError, match=message):
        decode(payload)


def test_decode_refuses_long_payloads_unread() -> None:
    payload = encode({"w": torch.ones(3)})
    decode(payload, max_bytes=len(payload))
    with pytest.raises(PayloadError, match="payload must be at most 41 bytes, got 42"):
        decode(payload, max_bytes=len(payload) - 1)


def test_header_bytes_of_nothing() -> None:
    with pytest.raises(PayloadError, match="payload must be at least 20 bytes, got 3"):
        header_bytes(b"BHF")
    assert header_bytes(encode({})) == len(encode({})) == 20
    assert decode(encode({})) == {}


def test_a_payload_error_is_a_value_error() -> None:
    assert issubclass(PayloadError, ValueError)


def test_big_endian_machines_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    payload = encode({})
    monkeypatch.setattr(sys, "byteorder", "big")
    for call in (lambda: encode({}), lambda: decode(payload)):
        with pytest.raises(PayloadError, match="little-endian machines do, got a big-endian one"):
            call()


def test_who_knows_what_to_expect_takes_a_sparse_tensor_of_zeros_of_that_size() -> None:
    codes = torch.zeros(4_000_000, dtype=torch.int8)
    payload = encode({"w": QuantizedTensor(codes, torch.tensor(1.0), 4, sparse=True)})
    assert torch.equal(decode(payload, max_bytes=codes.numel())["w"].codes, codes)
    with pytest.raises(PayloadError, match="at most 3999999 codes, got 4000000"):
        decode(payload, max_bytes=codes.numel() - 1)
    assert torch.equal(decode(payload, max_sparse=codes.numel())["w"].codes, codes)
    with pytest.raises(PayloadError, match="sparse tensors must have at most"):
        decode(payload, max_sparse=codes.numel() - 1)


def test_a_payload_of_signs_has_no_more_of_them_than_it_may_have_bytes() -> None:
    """Eight of them are in a byte, so that a payload of the longest would be far more in memory."""
    payload = encode({"w": signs(torch.ones(800))})
    assert len(payload) < 200
    assert decode(payload, max_bytes=800).keys() == {"w"}
    with pytest.raises(PayloadError, match="payload must have at most 799 codes, got 800"):
        decode(payload, max_bytes=799)
