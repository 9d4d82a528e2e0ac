"""Models to bytes and back. The cost of a message is ``len(encode(tensors))``, and nothing else."""

import math
import sys
from collections.abc import Mapping

import torch
from torch import Tensor

from bhfl.comm import wire
from bhfl.comm.wire import Entry, PayloadError
from bhfl.quant import QuantizedTensor, pack, packed_bytes, unpack
from bhfl.quant.codes import code_dtype, largest_code
from bhfl.quant.sparse import pack_places, unpack_places
from bhfl.quant.ternary import pack_ternary, unpack_ternary

Tensors = Mapping[str, Tensor | QuantizedTensor]
"""What a payload holds, by name: plain tensors, and codes with their scales."""

MAX_BYTES = 1 << 32
"""The longest payload that is decoded unless the caller says otherwise."""
MAX_GROWTH = 2**14
"""Entries that the sparse tensors of a payload may have for each of its bytes, where its reader has
no other bound.
"""
_unread: bytes | None = None
"""The payload that was made last, until one is read: these very bytes, which nobody can change,
have gone no way on which they could be damaged.
"""


def encode(tensors: Tensors) -> bytes:
    """The payload of some tensors; the format is described in :mod:`bhfl.comm.wire`.

    Args:
        tensors: Dense tensors of any shape, strides and device, in a dtype of ``wire.DTYPES``, and
            quantised ones. The order is kept. Values that are not finite are allowed, except as
            scales.

    Raises:
        PayloadError: :func:`decode` would refuse a tensor or a name.
    """
    global _unread
    _require_little_endian()
    entries = tuple(_describe(name, value) for name, value in tensors.items())
    parts = [memoryview(wire.write_header(entries))]
    for entry in wire.wider_first(entries):
        value = tensors[entry.name]
        parts.append(row_major(value.scale if isinstance(value, QuantizedTensor) else value))
    for name, value in tensors.items():
        if isinstance(value, QuantizedTensor):
            parts += map(row_major, _packed(name, value))
    # part by part, so that the payload is joined once, and no copy is made for its checksum
    crc = 0
    for part in parts:
        crc = wire.crc32(part, crc)
    _unread = b"".join([*parts, crc.to_bytes(wire.CRC_BYTES, "little")])
    return _unread


def encoded_bytes(tensors: Tensors) -> int:
    """``len(encode(tensors))``, computed from shapes, dtypes and widths alone, and for sparse
    tensors from how many codes are not 0.

    Raises:
        PayloadError: :func:`encode` would refuse a name, a dtype or a shape.
    """
    entries = tuple(_describe(name, value) for name, value in tensors.items())
    return wire.payload_bytes(entries, len(wire.write_header(entries)))


def decode(
    data: bytes | bytearray | memoryview,
    *,
    max_bytes: int | None = None,
    max_sparse: int | None = None,
) -> dict[str, Tensor | QuantizedTensor]:
    """The tensors of a payload, bit for bit, on the CPU.

    Args:
        data: Bytes from anywhere. They are data only: nothing in them is executed or imported, and
            no size that they claim is believed before it agrees with their length.
        max_bytes: Longer payloads are refused, and nothing of them is read; so are those that have
            more codes, eight of which can be in a byte. By default `MAX_BYTES`, and any codes.
        max_sparse: Payloads whose sparse tensors have more entries are refused. By default as many
            as `max_bytes`, and where that is not given either, `MAX_GROWTH` for each byte.

    Returns:
        The tensors in the order of :func:`encode`: contiguous, writable, sharing no memory with
        `data`.

    Raises:
        PayloadError: `data` is not exactly one well-formed payload.
    """
    global _unread
    _require_little_endian()
    check = data is not _unread
    # it is held no longer than whoever reads it holds it
    _unread = None
    view = memoryview(data).cast("B")
    limit = MAX_BYTES if max_bytes is None else max_bytes
    if len(view) > limit:
        raise PayloadError(f"payload must be at most {limit} bytes, got {len(view)}")
    entries, offset = wire.read_header(view, check)
    _check_codes(entries, len(view), max_bytes, max_sparse)
    # the one copy: tensors may write to it, and from its own start plain values are aligned
    content = bytearray(view[offset : -wire.CRC_BYTES])
    offset = 0
    plain = {}
    for entry in wire.wider_first(entries):
        plain[entry.name] = _read_plain(content, offset, entry)
        offset += entry.plain_bytes
    tensors: dict[str, Tensor | QuantizedTensor] = {}
    for entry in entries:
        tensors[entry.name] = plain[entry.name]
        if entry.is_quantized:
            tensors[entry.name] = _read_quantized(content, offset, entry, scale=plain[entry.name])
            offset += entry.code_bytes
    return tensors


def _check_codes(
    entries: list[Entry], size: int, max_bytes: int | None, max_sparse: int | None
) -> None:
    """PayloadError for more codes than the reader of a payload of `size` bytes takes."""
    codes = sum(entry.numel for entry in entries if entry.is_quantized)
    if max_bytes is not None and codes > max_bytes:
        raise PayloadError(f"payload must have at most {max_bytes} codes, got {codes}")
    # of few bytes, they may claim to stand for any number of entries; who knows what to expect
    # takes a tensor of zeros of any size
    sparse = sum(entry.numel for entry in entries if entry.kind == wire.SPARSE)
    if max_sparse is None:
        max_sparse = min(MAX_BYTES, MAX_GROWTH * size) if max_bytes is None else max_bytes
    if sparse > max_sparse:
        raise PayloadError(f"sparse tensors must have at most {max_sparse} entries, got {sparse}")


def header_bytes(data: bytes | bytearray | memoryview) -> int:
    """The bytes of a payload that are not tensor content: magic, version, names, shapes and the
    checksum.

    Raises:
        PayloadError: `data` does not start as a payload does; the rest of it is not read.
    """
    _, size = wire.read_prelude(memoryview(data).cast("B"))
    return size + wire.CRC_BYTES


def _require_little_endian() -> None:
    """PayloadError on a machine whose memory is not what a payload holds: it is copied as it is."""
    if sys.byteorder != "little":
        raise PayloadError(
            f"payloads hold memory as little-endian machines do, got a {sys.byteorder}-endian one"
        )


def _describe(name: str, value: Tensor | QuantizedTensor) -> Entry:
    """The row of the table for a tensor."""
    if isinstance(value, QuantizedTensor) and value.sparse:
        count = int(value.codes.count_nonzero())
        return Entry(name, wire.SPARSE, value.bits, tuple(value.codes.shape), count)
    if isinstance(value, QuantizedTensor):
        kinds = (wire.ONE_SCALE, wire.CHANNEL_SCALES)
        if value.bits == 1:
            kinds = (wire.SIGNS, wire.CHANNEL_SIGNS)
        kind = kinds[value.scale.ndim > 0]
        return Entry(name, kind, value.bits, tuple(value.codes.shape))
    if value.layout != torch.strided or value.is_meta or value.dtype not in wire.KINDS:
        raise PayloadError(
            f"tensor {name!r}: must be a dense tensor with memory, of "
            f"{', '.join(map(str, wire.KINDS))}, got {value.dtype}, {value.layout}, {value.device}"
        )
    return Entry(name, wire.KINDS[value.dtype], 0, tuple(value.shape))


def _packed(name: str, value: QuantizedTensor) -> list[Tensor]:
    """The packed codes, after their places where it is sparse; PayloadError for codes or scales
    that :func:`decode` would refuse.
    """
    codes = value.codes
    scale = value.scale
    if codes.dtype != (dtype := code_dtype(value.bits)):
        raise PayloadError(
            f"tensor {name!r}: codes of {value.bits} bits must be {dtype}, got {codes.dtype}"
        )
    shapes = [()] if value.sparse else [(), codes.shape[:1]]
    if scale.dtype != torch.float32 or scale.shape not in shapes:
        raise PayloadError(
            f"tensor {name!r}: scale must be float32, 0-dim or one a channel of codes "
            f"{tuple(codes.shape)}, got {scale.dtype} {tuple(scale.shape)}"
        )
    _check_values(name, value)
    if value.bits == 1:
        return [_pack_signs(codes)]
    if not value.sparse:
        return [pack_ternary(codes) if value.bits == 2 else pack(codes, value.bits)]
    flat = codes.reshape(-1)
    places = flat.nonzero().view(-1)
    chosen = flat[places]
    if value.bits == 2:
        return [pack_places(places, flat.numel()), _pack_signs(chosen)]
    return [pack_places(places, flat.numel()), pack(chosen, value.bits)]


def _pack_signs(codes: Tensor) -> Tensor:
    """Codes of 1 and -1 as the two of one bit, 0 and -1."""
    return pack(codes.clamp(max=0), 1)


def _check_values(name: str, value: QuantizedTensor) -> None:
    """PayloadError for scales and codes outside their ranges; a scale of NaN is, too."""
    # written so that comparisons, which are all false for NaN, refuse it
    if value.scale.numel():
        low, high = map(float, torch.aminmax(value.scale))
        if not 0 <= low <= high < float("inf"):
            raise PayloadError(
                f"tensor {name!r}: scale must be finite and at least 0, got {low}..{high}"
            )
    if value.codes.numel():
        # -2^(b-1) is no code, so that grids are symmetric
        limit = largest_code(value.bits)
        least, most = map(int, torch.aminmax(value.codes))
        if not -limit <= least <= most <= limit:
            raise PayloadError(
                f"tensor {name!r}: codes of {value.bits} bits must be in -{limit}..{limit}, got "
                f"{least}..{most}"
            )
        if value.bits == 1 and not value.codes.all():
            raise PayloadError(f"tensor {name!r}: signs must not be 0")


def row_major(tensor: Tensor) -> memoryview:
    """The row-major bytes of a tensor: its own memory where that is row-major and on the CPU, else
    that of a copy.
    """
    flat = tensor.detach().cpu().contiguous()
    # contiguous() may leave a tensor of one element its stride, with which view(uint8) fails
    flat = flat.as_strided((flat.numel(),), (1,))
    return flat.view(torch.uint8).numpy().data


def _read_plain(content: bytearray, offset: int, entry: Entry) -> Tensor:
    """The plain tensor, or the scales, of an entry."""
    dtype = entry.plain_dtype
    count = math.prod(entry.plain_shape)
    # any other byte would be a bool that torch does not know
    if dtype == torch.bool and content[offset : offset + count].translate(None, b"\0\1"):
        raise PayloadError(f"tensor {entry.name!r}: a bool must be a byte of 0 or 1")
    return _over(content, offset, dtype, count).view(entry.plain_shape)


def _read_quantized(
    content: bytearray, offset: int, entry: Entry, scale: Tensor
) -> QuantizedTensor:
    """The quantised tensor of an entry; PayloadError for what :func:`encode` would not write."""
    is_sparse = entry.kind == wire.SPARSE
    try:
        if is_sparse:
            codes = _read_sparse(content, offset, entry)
        elif entry.bits == 2:
            packed = _over(content, offset, torch.uint8, entry.code_bytes)
            codes = unpack_ternary(packed, entry.numel)
        elif entry.bits == 1:
            codes = _read_codes(content, offset, entry.numel, 1).mul_(2).add_(1)
        else:
            codes = _read_codes(content, offset, entry.numel, entry.bits)
    except ValueError as error:
        raise PayloadError(f"tensor {entry.name!r}: {error}") from None
    value = QuantizedTensor(codes.view(entry.shape), scale, entry.bits, is_sparse)
    _check_values(entry.name, value)
    return value


def _read_codes(content: bytearray, offset: int, count: int, bits: int) -> Tensor:
    """So many codes of so many bits, flat; ValueError for what :func:`encode` would not write."""
    size = packed_bytes(count, bits)
    # other bits there would be a second encoding of the same tensor
    if size and content[offset + size - 1] >> (8 - (8 * size - count * bits)):
        raise ValueError("the bits after its last code must be 0")
    return unpack(_over(content, offset, torch.uint8, size), bits, count)


def _read_sparse(content: bytearray, offset: int, entry: Entry) -> Tensor:
    """The codes of a sparse tensor, flat; ValueError for what :func:`encode` would not write."""
    packed = _over(content, offset, torch.uint8, entry.place_bytes)
    places = unpack_places(packed, entry.num_codes, entry.numel)
    offset += entry.place_bytes
    found = _read_codes(content, offset, entry.num_codes, entry.sparse_bits)
    if entry.bits == 2:
        found = found.mul_(2).add_(1)
    if not found.all():
        raise ValueError("sparse codes must not be 0")
    codes = torch.zeros(entry.numel, dtype=code_dtype(entry.bits))
    codes[places] = found
    return codes


def _over(content: bytearray, offset: int, dtype: torch.dtype, count: int) -> Tensor:
    """A flat tensor over its own stretch of `content`, which it keeps alive."""
    # torch.frombuffer refuses an empty stretch
    if not count:
        return torch.empty(0, dtype=dtype)
    return torch.frombuffer(content, dtype=dtype, count=count, offset=offset)
