"""The rows of all rounds as a checkpoint keeps them: their names once, every value exact,
compressed as they come.

The text is lines of JSON: one for each set of names that is new, ``{"keys": [NAME or place of a
known NAME, ...]}``, and one for each row, ``[number of its set of names, value, ...]``. Numbers are
written as Python prints them, which reads back to the same bits; integers, truth values, null and
text stay apart.
"""

import json
import zlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from bhfl.engine.checkpoint import CheckpointError
from bhfl.engine.types import Row

LEVEL = 6
MAX_TEXT = 2**25
"""Bytes of text that are read from any history; what they stand for takes up to some twenty times
as many in memory.
"""
MAX_GROWTH = 128
"""Bytes of text that are read beyond these for each of the history's own: rows that hardly change
take so little.
"""
ROW_BYTES = 12
"""Bytes of text that a row itself counts for."""


class PackedHistory:
    """Packs rows one by one, so that a round's checkpoint costs no more for all the rounds
    before.
    """

    def __init__(self) -> None:
        self._stream = zlib.compressobj(LEVEL)
        self._packed = bytearray()
        self._names: dict[str, int] = {}
        self._sets: dict[tuple[str, ...], int] = {}

    def append(self, row: Row) -> None:
        """Add the row of a round: names to what JSON can hold."""
        keys = tuple(row)
        if keys not in self._sets:
            self._sets[keys] = len(self._sets)
            self._write({"keys": [self._names.get(key, key) for key in keys]})
            for key in keys:
                self._names.setdefault(key, len(self._names))
        self._write([self._sets[keys], *row.values()])

    def _write(self, line: Any) -> None:
        self._packed += self._stream.compress(
            json.dumps(line, separators=(",", ":")).encode() + b"\n"
        )

    def tensor(self) -> Tensor:
        """All rows so far, uint8."""
        # a copy of the stream is ended, so that the stream itself takes the rows to come
        packed = self._packed + self._stream.copy().flush()
        # the tensor shares its memory with a bytearray that nobody appends to
        return torch.frombuffer(packed, dtype=torch.uint8)


def unpack(packed: Any) -> list[Row]:
    """The rows in what `PackedHistory.tensor` gave.

    Raises:
        CheckpointError: It is no such thing, or would be larger than any history of its size.
    """
    if not isinstance(packed, Tensor) or packed.dtype != torch.uint8 or packed.ndim != 1:
        raise CheckpointError("its history must be packed rows, which it is not")
    names: list[str] = []
    sets = []
    rows = []
    try:
        for line in _lines(packed.numpy().tobytes()):
            found = json.loads(line)
            if isinstance(found, dict):
                keys = [key if isinstance(key, str) else names[key] for key in found["keys"]]
                names += [key for key in found["keys"] if isinstance(key, str)]
                sets.append(keys)
            else:
                rows.append(dict(zip(sets[found[0]], found[1:], strict=True)))
    except (ValueError, TypeError, KeyError, IndexError, RecursionError, zlib.error) as error:
        raise CheckpointError(f"its history cannot be read ({type(error).__name__})") from None
    return rows


def _lines(packed: bytes) -> Iterator[bytes]:
    """The lines of compressed text, decompressed piece by piece; CheckpointError beyond the
    limit.
    """
    stream = zlib.decompressobj()
    left = MAX_TEXT + MAX_GROWTH * len(packed)
    begun = bytearray()
    while not stream.eof:
        # piece by piece, because a few hostile bytes can stand for any length of text
        piece = stream.decompress(packed, 2**16)
        packed = stream.unconsumed_tail
        left -= len(piece) + ROW_BYTES * piece.count(b"\n")
        if left < 0:
            raise CheckpointError(
                f"its history is larger than {MAX_TEXT:,} bytes and {MAX_GROWTH} times its own size"
            )
        if not piece and not packed and not stream.eof:
            raise ValueError("it is cut off")
        *whole, rest = piece.split(b"\n")
        for line in whole:
            yield bytes(begun) + line
            begun.clear()
        begun += rest
    if begun:
        raise ValueError("its last line is cut off")
