"""Payloads and what a broken or hostile sender makes of them, all drawn from one seed."""

import random
import struct
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import torch

from bhfl.comm import Tensors, encode
from bhfl.quant import QuantizedTensor
from bhfl.quant.codes import largest_code

Rows = list[tuple[int, int, int]]
"""(where the row starts, bytes of its name, its dimensions) of every tensor of a sound payload."""

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.bool, torch.uint8]
DTYPES += [torch.int8, torch.int16, torch.int32, torch.int64]

EXTREMES = [0, 1, 7, 255, 2**15, 2**16 - 1, 2**16, 2**20, 2**31 - 1, 2**31, 2**32 - 2, 2**32 - 1]


def random_codes(
    shape: tuple[int, ...],
    bits: int,
    generator: torch.Generator,
    channel: bool,
    sparse: bool = False,
) -> QuantizedTensor:
    limit = largest_code(bits)
    dtype = torch.int8 if bits <= 8 else torch.int16
    codes = torch.randint(-limit, limit + 1, shape, generator=generator).to(dtype)
    if bits == 1:
        codes[codes == 0] = 1
    if sparse:
        codes *= torch.rand(shape, generator=generator) < 0.2
    scale = torch.rand(shape[:1] if channel else (), generator=generator)
    return QuantizedTensor(codes, scale, bits, sparse)


def corpus() -> list[Tensors]:
    """Small models that between them use every kind of tensor."""
    generator = torch.Generator().manual_seed(0)
    plain = {
        str(dtype): torch.randint(0, 2, (3, 5), generator=generator).to(dtype) for dtype in DTYPES
    }
    codes = {
        f"w{bits}": random_codes((3, 7), bits, generator, bits % 2 == 0) for bits in range(2, 17)
    }
    signs: dict[str, Any] = {}
    for rows in (False, True):
        signs[f"signs{rows}"] = random_codes((3, 7), 1, generator, rows)
    sparse = {f"s{bits}": random_codes((5, 13), bits, generator, False, True) for bits in (2, 4, 9)}
    layer = {
        "conv.weight": random_codes((4, 3, 3, 3), 4, generator, True),
        "conv.bias": torch.randn(4, generator=generator),
        "steps": torch.tensor(7),
        "mask": torch.tensor([True, False, True]),
        "empty": torch.empty(0, 3),
    }
    signs["größe"] = torch.randn(2, 2, 2, generator=generator)
    return [plain, codes, sparse, layer, signs, {}]


def sealed(body: bytes) -> bytes:
    """A body with the checksum that belongs to it."""
    return bytes(body) + struct.pack("<I", zlib.crc32(body))


def rows(body: bytes) -> Rows:
    found, offset = [], 16
    for _ in range(struct.unpack_from("<I", body, 8)[0]):
        _, _, num_dims, name_bytes = struct.unpack_from("<BBBH", body, offset)
        found.append((offset, name_bytes, num_dims))
        offset += 5 + name_bytes + 4 * num_dims
    return found


def one_row(
    name: bytes,
    kind: int,
    bits: int,
    shape: tuple[int, ...],
    content: bytes = b"",
    num_tensors: int = 1,
) -> bytes:
    """A payload of one tensor, as its sender says; repeated for more."""
    row = (
        struct.pack("<BBBH", kind, bits, len(shape), len(name))
        + name
        + struct.pack(f"<{len(shape)}I", *shape)
    )
    version = 3 if kind in (35, 36) else 2
    prelude = struct.pack("<4sIII", b"BHFL", version, num_tensors, 16 + num_tensors * len(row))
    return sealed(prelude + num_tensors * row + num_tensors * content)


def flipped(rng: random.Random, payload: bytes) -> bytes:
    out = bytearray(payload)
    for bit in rng.sample(range(8 * len(out)), rng.choice([1, 1, 2, 3, 8])):
        out[bit // 8] ^= 1 << bit % 8
    return bytes(out)


def resized(rng: random.Random, payload: bytes) -> bytes:
    if rng.random() < 0.5:
        return payload[: rng.randrange(len(payload))]
    return payload + rng.randbytes(rng.randint(1, 64))


def noise(rng: random.Random, payload: bytes) -> bytes:
    start = rng.choice([b"", b"BHFL", b"BHFL\2\0\0\0", payload[:12], payload[:16]])
    return start + rng.randbytes(rng.randrange(300))


def lie(rng: random.Random, payload: bytes) -> bytes:
    """A structured lie with the checksum computed anew."""
    body = bytearray(payload[:-4])
    table = rows(body)
    choices: list[Callable[[random.Random, bytearray, Rows], bytes]] = [
        _prelude,
        _content,
        _section,
    ]
    choices += [_row, _shape, _name, _twice, _whole] if table else [_whole]
    return sealed(rng.choice(choices)(rng, body, table))


def _prelude(rng: random.Random, body: bytearray, table: Rows) -> bytes:
    value = rng.choice([*EXTREMES, 2, 3, len(body), len(body) - 1, 17])
    # version (255 among them), tensors, header size
    struct.pack_into("<I", body, rng.choice([4, 8, 12]), value)
    return bytes(body)


def _content(rng: random.Random, body: bytearray, table: Rows) -> bytes:
    for _ in range(rng.randint(1, 4)):
        body[rng.randrange(len(body))] = rng.choice([0, 1, 2, 127, 128, 255, rng.randrange(256)])
    return bytes(body)


def _section(rng: random.Random, body: bytearray, table: Rows) -> bytes:
    return (
        bytes(body[: rng.randrange(16, len(body) + 1)])
        if rng.random() < 0.7
        else bytes(body) + bytes(rng.randint(1, 9))
    )


def _row(rng: random.Random, body: bytearray, table: Rows) -> bytes:
    start, _, _ = rng.choice(table)
    # kind, bits, dimensions
    body[start + rng.randrange(3)] = rng.choice([*range(18), *range(31, 38), 64, 128, 255])
    return bytes(body)


def _shape(rng: random.Random, body: bytearray, table: Rows) -> bytes:
    start, name_bytes, num_dims = rng.choice(table)
    for dim in range(num_dims):
        if rng.random() < 0.6:
            struct.pack_into(
                "<I",
                body,
                start + 5 + name_bytes + 4 * dim,
                rng.choice([*EXTREMES, rng.randrange(64)]),
            )
    return bytes(body)


def _name(rng: random.Random, body: bytearray, table: Rows) -> bytes:
    start, name_bytes, _ = rng.choice(table)
    if rng.random() < 0.5 and name_bytes:
        # no UTF-8
        body[start + 5 + rng.randrange(name_bytes)] = rng.choice([0x80, 0xC0, 0xED, 0xFF])
    else:
        struct.pack_into("<H", body, start + 3, rng.choice([0, 1, 511, 512, 513, 2**15, 2**16 - 1]))
    return bytes(body)


def _twice(rng: random.Random, body: bytearray, table: Rows) -> bytes:
    """Two tensors of one name, and the content to go with both."""
    name, dims = rng.choice([b"", b"w", b"x" * 512, b"x" * 1000]), (rng.randrange(4),)
    return one_row(name, 1, 0, dims, bytes(4 * dims[0]), num_tensors=rng.choice([2, 3]))[:-4]


def _whole(rng: random.Random, body: bytearray, table: Rows) -> bytes:
    """A well-formed header of any figures, over content that has little to do with it."""
    shape = tuple(rng.choice([*EXTREMES, 2, 3]) for _ in range(rng.choice([0, 1, 2, 4, 8, 9])))
    kind, bits = rng.choice([*range(12), 32, 33, 35, 36]), rng.choice([0, 0, *range(18), 32, 255])
    return one_row(
        b"w" * rng.choice([0, 3, 512, 513]), kind, bits, shape, rng.randbytes(rng.randrange(40))
    )[:-4]


def mutations(number: int, seed: int) -> Iterator[tuple[bytes, bytes, bool]]:
    """(the payload as it was, what became of it, whether its checksum was computed anew), `number`
    times.
    """
    rng = random.Random(seed)
    payloads = [encode(tensors) for tensors in corpus()]
    for _ in range(number):
        payload = rng.choice(payloads)
        mutate = rng.choices([flipped, resized, noise, lie], [40, 20, 20, 20])[0]
        yield payload, mutate(rng, payload), mutate is lie
