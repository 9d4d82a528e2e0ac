"""What comes from elsewhere and was changed on its way: taken as it was, or refused by the one
error for it.
"""

from __future__ import annotations

import io
import json
import random
import struct
import zipfile
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bhfl.comm import PayloadError, decode, encode
from bhfl.engine.checkpoint import CheckpointError, digest, load, save
from bhfl.export import QuantizedFileError, load_quantized, restore_, save_quantized
from bhfl.quant import quantize_
from tests.comm.mutations import mutations

PAYLOADS, FILES = 2000, 60
"""Mutations in one attempt."""


def payloads(rng: random.Random, folder: Path, number: int = PAYLOADS) -> Counter[str]:
    """Mutated payloads raise PayloadError alone, or are another payload that is sound."""
    counts: Counter[str] = Counter()
    for original, payload, resealed in mutations(number, rng.randrange(10**9)):
        counts["payloads"] += 1
        try:
            tensors = decode(payload)
        except PayloadError:
            counts["refused"] += 1
            continue
        assert encode(tensors) == payload, "a payload has two encodings"
        assert resealed or payload == original, "a changed payload was taken"
    return counts


def damaged(rng: random.Random, content: bytes) -> bytes:
    """A file with bits turned, a part cut off, put in, put twice or made zeros."""
    out, start = bytearray(content), rng.randrange(len(content))
    end = min(len(content), start + rng.choice([1, 8, 64, 4096]))
    match rng.randrange(6):
        case 0:
            for bit in rng.sample(range(8 * len(out)), rng.choice([1, 2, 8])):
                out[bit // 8] ^= 1 << bit % 8
        case 1:
            del out[start:]
        case 2:
            del out[start:end]
        case 3:
            out[start:end] = bytes(end - start)
        case 4:
            out[start:start] = out[start:end]
        case 5:
            out[start:end] = rng.randbytes(end - start)
    return bytes(out)


def member_damaged(rng: random.Random, content: bytes) -> bytes:
    """A zip file, one member of which is damaged, with the checksums that belong to it."""
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(made, "w") as new:
        victim = rng.choice(old.namelist())
        for name in old.namelist():
            data = old.read(name)
            new.writestr(name, damaged(rng, data) if name == victim and data else data)
    return made.getvalue()


@cache
def sound_checkpoint() -> tuple[bytes, str]:
    """The bytes of a checkpoint, and the digest of what is in it."""
    generator = torch.Generator().manual_seed(0)
    state = {
        "server": {
            "params": {"w": torch.randn(7, 5, generator=generator), "empty": torch.zeros(0)},
            "round": 3,
        },
        "run": {"history": json.dumps([{"round": 1, "val/acc": 0.5}]), "best": None},
        "list": [1, 2.5, "x", True, torch.tensor(3)],
    }
    return written(lambda path: save(path, state)), digest(state)


def written(write: Callable[[Path], object]) -> bytes:
    """What a function writes to a path."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder, "file"))
        return Path(folder, "file").read_bytes()


def checkpoints(rng: random.Random, folder: Path, number: int = FILES) -> Counter[str]:
    """Damaged checkpoints raise CheckpointError alone, or are taken where the damage changes
    nothing.
    """
    counts: Counter[str] = Counter()
    content, sound = sound_checkpoint()
    for _ in range(number):
        change = rng.choice([damaged, damaged, member_damaged])
        path = folder / "a.ckpt"
        path.write_bytes(change(rng, content))
        counts["checkpoints"] += 1
        try:
            assert digest(load(path)) == sound, "a changed checkpoint was taken"
        except CheckpointError:
            counts["refused"] += 1
    return counts


def network() -> nn.Module:
    """Layers of two kinds, one of them tied to nothing, and a norm."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 9), nn.BatchNorm1d(9), nn.ReLU(), nn.Linear(9, 3)).eval()


@cache
def sound_export(bits: int | str) -> bytes:
    """The bytes of an exported model."""
    return written(lambda path: save_quantized(quantize_(network(), bits), path))


def header_changed(rng: random.Random, content: bytes) -> bytes:
    """A safetensors file whose header says something else, its length as it should be."""
    (size,) = struct.unpack_from("<Q", content)
    header: Any = json.loads(content[8 : 8 + size])
    place: Any = header
    for _ in range(rng.randint(1, 3)):
        if not isinstance(place, dict) or not place:
            break
        key = rng.choice(sorted(place))
        if rng.random() < 0.5 or not isinstance(place[key], dict):
            place[key] = rng.choice(
                [None, [], {}, "text", -1, 2**63, [2**40, 2], "F32", "I8", [0, 4]]
            )
            break
        place = place[key]
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + content[8 + size :]


def exports(rng: random.Random, folder: Path, number: int = FILES) -> Counter[str]:
    """Damaged exports raise QuantizedFileError alone, or hold other numbers, for they carry no
    checksum.
    """
    counts: Counter[str] = Counter()
    for _ in range(number):
        content = sound_export(rng.choice(["ternary", 4, 8]))
        path = folder / "a.safetensors"
        path.write_bytes(rng.choice([damaged, header_changed])(rng, content))
        counts["exports"] += 1
        try:
            load_quantized(path)
            restore_(network(), path)(torch.ones(2, 6))
        except QuantizedFileError:
            counts["refused"] += 1
    return counts


CAMPAIGNS = {"payloads": payloads, "checkpoints": checkpoints, "exports": exports}
