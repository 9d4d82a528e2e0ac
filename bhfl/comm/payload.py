"""Models to bytes and back. ``len(encode(tensors))`` is what a message costs, and nothing else
is.
"""

import sys
import zlib
from collections.abc import Mapping

import torch
from torch import Tensor

from bhfl.comm import wire
from bhfl.comm.wire import Entry, PayloadError
from bhfl.quant import QuantizedTensor, pack, unpack
from bhfl.quant.functional import code_dtype

Tensors = Mapping[str, Tensor | QuantizedTensor]
"""What a payload holds, by name: plain tensors, and codes with their scales."""

MAX_BYTES = 1 << 32
"""The longest payload that is decoded unless the caller says otherwise."""


def encode(tensors: Tensors) -> bytes:
    """The payload of some tensors; the format is described in :mod:`bhfl.comm.wire`.

    Args:
        tensors: Dense tensors of any shape, strides and device, in a dtype of ``wire.DTYPES``, and
            quantised ones. The order is kept. Values that are not finite are allowed, except as
            scales.

    Raises:
        PayloadError: A tensor or a name is nothing that :func:`decode` would accept.
    """
    _require_little_endian()
    entries = [_describe(name, value) for name, value in tensors.items()]
    header = wire.write_header(entries)
    plain = (row_major(_plain_part(tensors[entry.name])) for entry in wire.wider_first(entries))
    codes = (
        row_major(_packed(name, q)) for name, q in tensors.items() if isinstance(q, QuantizedTensor)
    )
    parts = [memoryview(header), *plain, *codes]
    crc = 0
    for part in parts:
        crc = zlib.crc32(part, crc)
    return b"".join([*parts, crc.to_bytes(wire.CRC_BYTES, "little")])


def encoded_bytes(tensors: Tensors) -> int:
    """``len(encode(tensors))`` without the work: of quantised tensors only the shape and the width
    matter.

    Raises:
        PayloadError: As of :func:`encode`, for names and dtypes.
    """
    entries = [_describe(name, value) for name, value in tensors.items()]
    content = sum(entry.plain_bytes + entry.code_bytes for entry in entries)
    return len(wire.write_header(entries)) + content + wire.CRC_BYTES


def decode(
    data: bytes | bytearray | memoryview, *, max_bytes: int = MAX_BYTES
) -> dict[str, Tensor | QuantizedTensor]:
    """The tensors of a payload, bit for bit, on the CPU.

    Args:
        data: Bytes from anywhere. They are data only: nothing in them is executed or imported, and
            no size that they claim is believed before it agrees with their length.
        max_bytes: Longer payloads are refused unread.

    Returns:
        The tensors in the order of :func:`encode`: contiguous, writable, sharing no memory with
        `data`.

    Raises:
        PayloadError: `data` is not exactly one well-formed payload.
    """
    _require_little_endian()
    view = memoryview(data).cast("B")
    if len(view) > max_bytes:
        raise PayloadError(f"payload must be at most {max_bytes} bytes, got {len(view)}")
    entries, offset = wire.read_header(view)
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


def header_bytes(data: bytes | bytearray | memoryview) -> int:
    """Bytes of a payload that are not tensor content: magic, version, names, shapes and the
    checksum.

    Raises:
        PayloadError: `data` does not start as a payload does. The rest of it is not read.
    """
    _, size = wire.read_prelude(memoryview(data).cast("B"))
    return size + wire.CRC_BYTES


def float_tensors(tensors: Tensors) -> dict[str, Tensor]:
    """Quantised tensors as the float32 they stand for; all others as they are."""
    return {
        name: t.dequantize() if isinstance(t, QuantizedTensor) else t for name, t in tensors.items()
    }


def _require_little_endian() -> None:
    if sys.byteorder != "little":
        raise PayloadError(
            f"payloads hold memory as little-endian machines do, got a {sys.byteorder}-endian one"
        )


def _describe(name: str, value: Tensor | QuantizedTensor) -> Entry:
    if isinstance(value, QuantizedTensor):
        kind = wire.CHANNEL_SCALES if value.scale.ndim else wire.ONE_SCALE
        return Entry(name, kind, value.bits, tuple(value.codes.shape))
    if value.layout != torch.strided or value.is_meta or value.dtype not in wire.KINDS:
        raise PayloadError(
            f"tensor {name!r}: must be a dense tensor with memory, of "
            f"{', '.join(map(str, wire.KINDS))}, got {value.dtype}, {value.layout}, {value.device}"
        )
    return Entry(name, wire.KINDS[value.dtype], 0, tuple(value.shape))


def _packed(name: str, value: QuantizedTensor) -> Tensor:
    """The packed codes, once codes and scales are what :func:`decode` would give back."""
    codes, scale = value.codes, value.scale
    if codes.dtype != (dtype := code_dtype(value.bits)):
        raise PayloadError(
            f"tensor {name!r}: codes of {value.bits} bits must be {dtype}, got {codes.dtype}"
        )
    if scale.dtype != torch.float32 or scale.shape not in ((), codes.shape[:1]):
        raise PayloadError(
            f"tensor {name!r}: scale must be float32, 0-dim or one a channel of codes "
            f"{tuple(codes.shape)}, got {scale.dtype} {tuple(scale.shape)}"
        )
    _check_values(name, value)
    return pack(codes, value.bits)


def _check_values(name: str, value: QuantizedTensor) -> None:
    """Refuse values outside the range of a scale or of the codes; the comparisons are also false
    for NaN.
    """
    if value.scale.numel():
        low, high = (float(bound) for bound in torch.aminmax(value.scale))
        if not 0 <= low <= high < float("inf"):
            raise PayloadError(
                f"tensor {name!r}: scale must be finite and at least 0, got {low}..{high}"
            )
    if value.codes.numel():
        limit = 2 ** (value.bits - 1) - 1
        low, high = (int(bound) for bound in torch.aminmax(value.codes))
        if not -limit <= low <= high <= limit:
            raise PayloadError(
                f"tensor {name!r}: codes of {value.bits} bits must be in -{limit}..{limit}, got "
                f"{low}..{high}"
            )


def _plain_part(value: Tensor | QuantizedTensor) -> Tensor:
    return value.scale if isinstance(value, QuantizedTensor) else value


def row_major(tensor: Tensor) -> memoryview:
    """The row-major bytes of a tensor: of its own memory where that is row-major and on the CPU,
    else of a copy.
    """
    flat = tensor.detach().cpu().contiguous()
    # a view may keep a stride of its own where there is one element
    flat = flat.as_strided((flat.numel(),), (1,))
    return flat.view(torch.uint8).numpy().data


def _read_plain(content: bytearray, offset: int, entry: Entry) -> Tensor:
    dtype, count = entry.plain_dtype, entry.plain_bytes // entry.plain_dtype.itemsize
    if dtype == torch.bool and content[offset : offset + count].translate(None, b"\0\1"):
        raise PayloadError(f"tensor {entry.name!r}: a bool must be a byte of 0 or 1")
    return _over(content, offset, dtype, count).view(entry.plain_shape)


def _read_quantized(
    content: bytearray, offset: int, entry: Entry, scale: Tensor
) -> QuantizedTensor:
    size = entry.code_bytes
    if size and content[offset + size - 1] >> (8 - (8 * size - entry.numel * entry.bits)):
        raise PayloadError(f"tensor {entry.name!r}: the bits after its last code must be 0")
    codes = unpack(_over(content, offset, torch.uint8, size), entry.bits, entry.numel).view(
        entry.shape
    )
    value = QuantizedTensor(codes, scale, entry.bits)
    _check_values(entry.name, value)
    return value


def _over(content: bytearray, offset: int, dtype: torch.dtype, count: int) -> Tensor:
    """A flat tensor over its own stretch of `content`, which it keeps alive."""
    if not count:
        return torch.empty(0, dtype=dtype)
    return torch.frombuffer(content, dtype=dtype, count=count, offset=offset)
