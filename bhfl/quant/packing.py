"""Bit packing of codes of 1..16 bits: n codes of b bits take exactly ``ceil(n*b/8)`` bytes.

The layout is the same on every host:

* Codes of more than 8 bits: first the low bytes of all codes, then their high parts as codes of
  ``b - 8`` bits.
* Codes of up to 8 bits: the first ``n // 8 * 8`` codes lie in planes, one for each power of two in
  b, the largest first, which holds the lowest bits. In a plane of width f, byte i holds the f bits
  of the codes i, i + L, i + 2L, ... from its lowest bit upwards, L the number of bytes of the
  plane; so every step is one operation on contiguous bytes.
* The last ``n % 8`` codes follow as one little-endian integer, code j in its bits ``j*b`` to
  ``(j+1)*b - 1``.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from bhfl.quant.rounding import extremes


def packed_bytes(numel: int, bits: int) -> int:
    """The size of codes when they are packed, ``ceil(numel * bits / 8)`` bytes.

    Args:
        numel: The number of codes.
        bits: The bits of each.

    Returns:
        Bytes, without any header.

    Raises:
        ValueError: bits is not 1..16, or numel is negative.
    """
    if type(bits) is not int or not 1 <= bits <= 16:
        raise ValueError(f"bits must be 1..16, got {bits!r}")
    if numel < 0:
        raise ValueError(f"numel must be at least 0, got {numel}")
    return (numel * bits + 7) // 8


def pack(codes: Tensor, bits: int) -> Tensor:
    """Pack signed codes into bytes.

    Args:
        codes: int8 or int16, any shape, any device, in ``[-2**(bits-1), 2**(bits-1) - 1]`` (with
            one bit: -1 and 0).
        bits: 1..16; codes of more than 8 bits must be int16.

    Returns:
        uint8 [ceil(numel*bits/8)] on the device of the codes; owns its memory.

    Raises:
        ValueError: Another dtype, bits out of range, or a code that needs more bits.
    """
    size = packed_bytes(codes.numel(), bits)
    if codes.dtype != torch.int16 and (codes.dtype != torch.int8 or bits > 8):
        wanted = "int16" if bits > 8 else "int8 or int16"
        raise ValueError(f"codes of {bits} bits must be {wanted}, got {codes.dtype}")
    _check_codes(codes, bits)
    out = torch.empty(size, dtype=torch.uint8, device=codes.device)
    flat = codes.reshape(-1)
    if bits > 8:
        # the cast keeps the low byte, on hosts of either byte order
        out[: flat.numel()].copy_(flat)
        _pack_planes((flat >> 8).to(torch.uint8), bits - 8, out[flat.numel() :])
    else:
        _pack_planes(flat.to(torch.int8).view(torch.uint8), bits, out)
    return out


def unpack(data: Tensor, bits: int, numel: int) -> Tensor:
    """Unpack bytes of :func:`pack` to signed codes.

    Args:
        data: uint8 [ceil(numel*bits/8)].
        bits: 1..16.
        numel: The number of codes.

    Returns:
        int8 (up to 8 bits) or int16, [numel], on the device of the data; owns its memory.

    Raises:
        ValueError: Another dtype or size of the data, bits out of range, or numel negative.
    """
    size = packed_bytes(numel, bits)
    if data.dtype != torch.uint8 or data.shape != (size,):
        raise ValueError(
            f"{numel} codes of {bits} bits are uint8 of shape [{size}], got {data.dtype} of shape "
            f"{list(data.shape)}"
        )
    if bits <= 8:
        return _sign_extended(_unpack_planes(data, bits, numel), bits)
    high = _sign_extended(_unpack_planes(data[numel:], bits - 8, numel), bits - 8)
    return high.to(torch.int16).bitwise_left_shift_(8).bitwise_or_(data[:numel])


def _check_codes(codes: Tensor, bits: int) -> None:
    """ValueError for a code that needs more bits; where the dtype has as many, none does."""
    least, most = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    if codes.numel() and bits != codes.element_size() * 8:
        low, high = torch.stack(extremes(codes)).tolist()
        if low < least or high > most:
            raise ValueError(
                f"codes of {bits} bits must be in [{least}, {most}], got values in [{low}, {high}]"
            )


def _planes(data: Tensor, num_codes: int, bits: int) -> Iterator[tuple[int, int, Tensor]]:
    """Views of the planes of packed codes of up to 8 bits.

    Args:
        data: uint8, the packed bytes, of which the first are the planes.
        num_codes: A multiple of 8.
        bits: 1..8.

    Yields:
        The first bit of the codes in a plane, how many, and its bytes: for n codes of 7 bits
        (0, 4, [n / 2]), (4, 2, [n / 4]), (6, 1, [n / 8]).
    """
    first = offset = 0
    for width in (8, 4, 2, 1):
        if bits & width:
            length = num_codes * width // 8
            yield first, width, data[offset : offset + length]
            first += width
            offset += length


def _pack_planes(codes: Tensor, bits: int, out: Tensor) -> None:
    """Write the low bits of uint8 codes [n] to uint8 [ceil(n*bits/8)]."""
    head = codes.numel() // 8 * 8
    for first, width, plane in _planes(out, head, bits):
        # a view of [-1, 0] is ambiguous: of fewer than 8 codes the planes are empty
        for j, chunk in enumerate(codes[:head].view(-1, max(len(plane), 1))):
            part = (chunk >> first if first else chunk) & ((1 << width) - 1)
            if j == 0:
                plane.copy_(part)
            else:
                # in place, a product is faster than a shift
                plane.bitwise_or_(part.mul_(1 << (j * width)))
    if head < codes.numel():
        tail = 0
        for j, code in enumerate(codes[head:].tolist()):
            tail |= (code & ((1 << bits) - 1)) << (j * bits)
        stored = tail.to_bytes(out.numel() - head * bits // 8, "little")
        out[head * bits // 8 :] = torch.tensor(list(stored), dtype=torch.uint8, device=out.device)


def _unpack_planes(data: Tensor, bits: int, numel: int) -> Tensor:
    """The inverse of _pack_planes: uint8 [numel] in [0, 2**bits - 1]."""
    out = torch.empty(numel, dtype=torch.uint8, device=data.device)
    head = numel // 8 * 8
    for first, width, plane in _planes(data, head, bits):
        for j, chunk in enumerate(out[:head].view(-1, max(len(plane), 1))):
            # the first plane sets all bits of a code, the others add theirs
            target = None if first else chunk
            part = torch.bitwise_right_shift(plane, j * width, out=target)
            part.bitwise_and_((1 << width) - 1)
            if first:
                chunk.bitwise_or_(part.mul_(1 << first))
    if head < numel:
        mask = (1 << bits) - 1
        tail = int.from_bytes(bytes(data[head * bits // 8 :].tolist()), "little")
        codes = [(tail >> (j * bits)) & mask for j in range(numel - head)]
        out[head:] = torch.tensor(codes, dtype=torch.uint8, device=data.device)
    return out


def _sign_extended(codes: Tensor, bits: int) -> Tensor:
    """Read uint8 codes in [0, 2**bits - 1] as two's complement of ``bits`` bits: int8, in place."""
    # (u ^ half) - half extends the sign of a two's complement number
    half = 1 << (bits - 1)
    return (codes.bitwise_xor_(half).sub_(half) if bits < 8 else codes).view(torch.int8)
