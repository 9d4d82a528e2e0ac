"""The byte format of a payload, versions 2 and 3: a header that describes every tensor, the
content, and a checksum.

Everything is little-endian; the integers of the header and the checksum are unsigned. With sizes in
bytes::

    prelude   4 magic b"BHFL" | 4 version | 4 number of tensors | 4 size of prelude and table
    table     per tensor: 1 kind | 1 bits | 1 number of dimensions | 2 size of the name
              | name, UTF-8 | 4 per dimension
    content   plain tensors and scales, wider dtypes first and in table order within a width; then
              packed codes, in table order. Row-major, without padding: where the content starts
              aligned, every plain tensor is aligned. Codes lie as in bhfl.quant.packing, those of 2
              bits as in bhfl.quant.ternary; the bits of a last byte that no code fills are 0.
    CRC-32    4, of everything before it (zlib)

A kind is a dtype of ``DTYPES``, whose bits are 0, or ``ONE_SCALE``, ``CHANNEL_SCALES`` or
``SPARSE``: codes of 2..16 bits and float32 scales, or signs.
``n`` plain values take ``n * itemsize`` bytes;
``n`` codes of ``b`` bits with ``s`` scales take ``ceil(n * b / 8) + 4 * s``, and those of 2 bits,
which are ternary, ``ceil(n / 5) + 4 * s``. Of a sparse tensor
with one scale, those ``k`` codes alone are there that are not 0: their places, as in
bhfl.quant.sparse, and then the codes, of which those of 2 bits take one. The last dimension in its
row is ``k``. Signs, of kind ``SIGNS`` or ``CHANNEL_SIGNS``, are codes of 1 bit: 0 stands for the
scale, and 1 for minus the scale. A payload that has any is of version 3, and any other of version
2, so that whoever knows no signs reads all else. Tensors have one encoding only: a payload that is
accepted encodes again to the same bytes.

A CRC finds accidents but authenticates nothing: whoever changes a payload can compute it anew. So
nothing in a header is believed before it agrees with the length of the payload.
"""

import math
import struct
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from zlib_ng.zlib_ng import crc32

from bhfl.quant import packed_bytes
from bhfl.quant.sparse import place_bytes
from bhfl.quant.ternary import ternary_bytes

MAGIC = b"BHFL"
VERSION = 2
SIGNS_VERSION = 3
"""That of a payload with signs."""
CRC_BYTES = 4

# what a hostile header may claim at most, far above what models have
MAX_TENSORS = 65_536
MAX_HEADER_BYTES = 1 << 20
MAX_NAME_BYTES = 512
MAX_DIMS = 8
MAX_DIM = 2**32 - 1
MAX_ELEMENTS = 2**63 - 1
"""Torch counts elements and strides in int64, even those of an empty tensor."""

# the numbers are on the wire: one that has a meaning keeps it
DTYPES: dict[int, torch.dtype] = {
    1: torch.float32,
    2: torch.float64,
    3: torch.float16,
    4: torch.bfloat16,
    5: torch.int8,
    6: torch.int16,
    7: torch.int32,
    8: torch.int64,
    9: torch.uint8,
    10: torch.bool,
}
KINDS = {dtype: kind for kind, dtype in DTYPES.items()}
ONE_SCALE = 32
CHANNEL_SCALES = 33
SPARSE = 34
SIGNS = 35
CHANNEL_SIGNS = 36
_SIGNS = (SIGNS, CHANNEL_SIGNS)
_CODED = (ONE_SCALE, CHANNEL_SCALES, SPARSE, *_SIGNS)
_BY_CHANNEL = (CHANNEL_SCALES, CHANNEL_SIGNS)
CODE_BITS = range(2, 17)

_HEADERS = 16
"""How many different ones are remembered."""
_PRELUDE = struct.Struct("<4sIII")
_ROW = struct.Struct("<BBBH")


class PayloadError(ValueError):
    """Bytes are not a payload, or tensors cannot be in one; the message says why."""


class Entry(NamedTuple):
    """A row of the table: the name of one tensor, and how its content is read."""

    name: str
    kind: int
    bits: int
    shape: tuple[int, ...]
    num_codes: int = 0
    """The codes of a sparse tensor that are not 0."""

    @property
    def is_quantized(self) -> bool:
        """Whether the content is scales and codes."""
        return self.kind not in DTYPES

    @property
    def numel(self) -> int:
        """The number of elements of the tensor."""
        return math.prod(self.shape)

    @property
    def plain_dtype(self) -> torch.dtype:
        """Dtype of the values that are not packed: the tensor's own, or that of the scales."""
        return DTYPES.get(self.kind, torch.float32)

    @property
    def plain_shape(self) -> tuple[int, ...]:
        """Shape of the values that are not packed: the tensor's own, or that of the scales."""
        if self.kind in _BY_CHANNEL:
            return self.shape[:1]
        return () if self.is_quantized else self.shape

    @property
    def plain_bytes(self) -> int:
        """Bytes of the values that are not packed."""
        return math.prod(self.plain_shape) * self.plain_dtype.itemsize

    @property
    def code_bytes(self) -> int:
        """Bytes of the packed codes, and of their places."""
        if self.kind == SPARSE:
            return self.place_bytes + packed_bytes(self.num_codes, self.sparse_bits)
        if not self.is_quantized:
            return 0
        return ternary_bytes(self.numel) if self.bits == 2 else packed_bytes(self.numel, self.bits)

    @property
    def place_bytes(self) -> int:
        """Bytes of the places of a sparse tensor's codes."""
        return place_bytes(self.num_codes, self.numel)

    @property
    def sparse_bits(self) -> int:
        """Bits of a code that is not 0: of 2 bits, the sign alone is left."""
        return 1 if self.bits == 2 else self.bits


def wider_first(entries: Sequence[Entry]) -> list[Entry]:
    """The order of plain tensors and scales in the content."""
    # a stable sort keeps the order of the table within a width
    return sorted(entries, key=lambda entry: -entry.plain_dtype.itemsize)


def payload_bytes(entries: Sequence[Entry], header_bytes: int) -> int:
    """The bytes of a payload with prelude and table of `header_bytes`."""
    return header_bytes + sum(entry.plain_bytes + entry.code_bytes for entry in entries) + CRC_BYTES


# clients of the same bits send the same header
@lru_cache(maxsize=_HEADERS)
def write_header(entries: tuple[Entry, ...]) -> bytes:
    """The bytes of prelude and table.

    Raises:
        PayloadError: The entries break a rule or a limit of the format.
    """
    if len(entries) > MAX_TENSORS:
        raise PayloadError(f"payload must hold at most {MAX_TENSORS} tensors, got {len(entries)}")
    table = b"".join(map(_write_row, entries))
    size = _PRELUDE.size + len(table)
    if size > MAX_HEADER_BYTES:
        raise PayloadError(f"payload header must be at most {MAX_HEADER_BYTES} bytes, got {size}")
    return _PRELUDE.pack(MAGIC, _version(entries), len(entries), size) + table


def _version(entries: Iterable[Entry]) -> int:
    """The version of a payload of these tensors."""
    return SIGNS_VERSION if any(entry.kind in _SIGNS for entry in entries) else VERSION


def _write_row(entry: Entry) -> bytes:
    _check_row(entry)
    try:
        name = entry.name.encode()
    except UnicodeEncodeError as error:
        raise PayloadError(f"tensor name must be encodable as UTF-8, got {entry.name!r}") from error
    if len(name) > MAX_NAME_BYTES:
        raise PayloadError(f"tensor name must be at most {MAX_NAME_BYTES} bytes, got {len(name)}")
    dims = (*entry.shape, entry.num_codes) if entry.kind == SPARSE else entry.shape
    row = _ROW.pack(entry.kind, entry.bits, len(dims), len(name))
    return row + name + struct.pack(f"<{len(dims)}I", *dims)


def read_header(data: memoryview, check: bool) -> tuple[list[Entry], int]:
    """The table of a payload and where its content starts, with every size checked against the
    bytes at hand.

    Args:
        data: A whole payload, as unsigned bytes.
        check: Whether the checksum is compared too.

    Raises:
        PayloadError: The payload is damaged or contradicts itself.
    """
    num_tensors, size = read_prelude(data)
    stored = int.from_bytes(data[-CRC_BYTES:], "little")
    # before the table: an accident is told as damage, not as what it does to names and shapes
    if check and (computed := crc32(data[:-CRC_BYTES])) != stored:
        raise PayloadError(
            f"payload is damaged: its CRC-32 must be {stored:08x}, got {computed:08x}"
        )
    entries = list(_read_table(bytes(data[:size]), num_tensors))
    # integers of Python do not overflow, whatever the shapes claim
    if (told := payload_bytes(entries, size)) != len(data):
        raise PayloadError(f"payload must be {told} bytes by its header, got {len(data)}")
    return entries, size


def read_prelude(data: memoryview) -> tuple[int, int]:
    """The number of tensors, and the bytes of prelude and table.

    Raises:
        PayloadError: The prelude is too short, does not start with the magic, is of another
            version, or claims more than the payload has.
    """
    if len(data) < _PRELUDE.size + CRC_BYTES:
        raise PayloadError(
            f"payload must be at least {_PRELUDE.size + CRC_BYTES} bytes, got {len(data)}"
        )
    magic, version, num_tensors, size = _PRELUDE.unpack_from(data)
    if magic != MAGIC:
        raise PayloadError(f"payload must start with {MAGIC!r}, got {magic!r}")
    if version not in (VERSION, SIGNS_VERSION):
        raise PayloadError(f"payload version must be {VERSION} or {SIGNS_VERSION}, got {version}")
    if num_tensors > MAX_TENSORS:
        raise PayloadError(f"payload must hold at most {MAX_TENSORS} tensors, got {num_tensors}")
    if not _PRELUDE.size <= size <= min(MAX_HEADER_BYTES, len(data) - CRC_BYTES):
        raise PayloadError(
            f"payload header must be at most {MAX_HEADER_BYTES} bytes and inside the payload, got "
            f"{size}"
        )
    return num_tensors, size


# clients of the same bits send the same header
@lru_cache(maxsize=_HEADERS)
def _read_table(header: bytes, num_tensors: int) -> tuple[Entry, ...]:
    """The rows of a header, which must end where the last row does."""
    entries: dict[str, Entry] = {}
    offset = _PRELUDE.size
    for _ in range(num_tensors):
        entry, offset = _read_row(header, offset)
        if entry.name in entries:
            raise PayloadError(f"tensor names must be unique, got {entry.name!r} twice")
        entries[entry.name] = entry
    if offset != len(header):
        raise PayloadError(f"payload header must be {offset} bytes by its table, got {len(header)}")
    version = _PRELUDE.unpack_from(header)[1]
    if version != (told := _version(entries.values())):
        raise PayloadError(f"payload version must be {told} by its table, got {version}")
    return tuple(entries.values())


def _read_row(header: bytes, offset: int) -> tuple[Entry, int]:
    """The row at `offset` and where the next one starts."""
    start = offset + _ROW.size
    if start > len(header):
        raise PayloadError(
            f"payload header ends inside its table: it must have a row at byte {offset}"
        )
    kind, bits, num_dims, name_bytes = _ROW.unpack_from(header, offset)
    if name_bytes > MAX_NAME_BYTES:
        raise PayloadError(f"tensor name must be at most {MAX_NAME_BYTES} bytes, got {name_bytes}")
    dims = start + name_bytes
    end = dims + 4 * num_dims
    if end > len(header):
        raise PayloadError(
            f"payload header ends inside its table: the row at byte {offset} must end at {end}"
        )
    try:
        name = header[start:dims].decode()
    except UnicodeDecodeError as error:
        raise PayloadError(f"tensor name must be UTF-8, got {header[start:dims]!r}") from error
    shape = struct.unpack_from(f"<{num_dims}I", header, dims)
    entry = Entry(name, kind, bits, shape)
    if kind == SPARSE and shape:
        entry = Entry(name, kind, bits, shape[:-1], shape[-1])
    elif kind == SPARSE:
        raise PayloadError(f"tensor {name!r}: one that is sparse needs the number of its codes")
    _check_row(entry)
    return entry, end


def _check_row(entry: Entry) -> None:
    """PayloadError for a row that breaks a rule of the format, whether it is written or read."""
    name, kind, bits, _, _ = entry
    if kind not in DTYPES and kind not in _CODED:
        raise PayloadError(
            f"tensor {name!r}: kind must be 1..{max(DTYPES)} or {ONE_SCALE}..{CHANNEL_SIGNS}, "
            f"got {kind}"
        )
    if kind in DTYPES and bits:
        raise PayloadError(f"tensor {name!r}: bits must be 0 where nothing is packed, got {bits}")
    if kind in _SIGNS and bits != 1:
        raise PayloadError(f"tensor {name!r}: bits must be 1 of signs, got {bits}")
    if kind in (ONE_SCALE, CHANNEL_SCALES, SPARSE) and bits not in CODE_BITS:
        raise PayloadError(
            f"tensor {name!r}: bits must be {CODE_BITS.start}..{CODE_BITS.stop - 1}, got {bits}"
        )
    _check_shape(entry)


def _check_shape(entry: Entry) -> None:
    name, kind, _, shape, count = entry
    # in the row of a sparse tensor, the number of its codes stands as one more
    if len(shape) > (most := MAX_DIMS - (kind == SPARSE)):
        raise PayloadError(f"tensor {name!r}: dimensions must be at most {most}, got {len(shape)}")
    if kind in _BY_CHANNEL and not shape:
        raise PayloadError(
            f"tensor {name!r}: one scale a channel needs at least 1 dimension, got none"
        )
    if max(shape, default=0) > MAX_DIM:
        raise PayloadError(
            f"tensor {name!r}: a dimension must be at most {MAX_DIM}, got {max(shape)}"
        )
    # a dimension of 0 counts as 1, as it does in torch's strides
    if math.prod(max(dim, 1) for dim in shape) > MAX_ELEMENTS:
        raise PayloadError(f"tensor {name!r}: shape must multiply to less than 2**63, got {shape}")
    if count > entry.numel:
        raise PayloadError(
            f"tensor {name!r}: at most {entry.numel} codes can be other than 0, got {count}"
        )
