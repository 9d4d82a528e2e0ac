"""Places of a few entries of a tensor, packed: k increasing places below n take about
``log2(n / k) + 2`` bits each, and how many bytes in all follows from k and n alone.

The layout is that of Elias (JACM 1974) and Fano (1971). With ``l = floor(log2(n / k))``, at most
15, first come the l low bits of each place, then a sequence of bits for what is above them: of the
place number i with high part h, bit ``h + i`` is 1, and all others are 0. Both are packed as in
`bhfl.quant.packing`, the bits of the sequence as codes of one bit.
"""

import torch
from torch import Tensor

from bhfl.quant.codes import QuantizedTensor
from bhfl.quant.packing import pack, packed_bytes, unpack

_MOST_LOW_BITS = 15
"""Low bits at most, whose codes are int16."""


def _low_bits(count: int, numel: int) -> int:
    """The bits of a place that are packed as they are."""
    return min(_MOST_LOW_BITS, (numel // count).bit_length() - 1) if count else 0


def _length(count: int, numel: int) -> int:
    """The length of the sequence of bits."""
    return count + ((numel - 1) >> _low_bits(count, numel)) if count else 0


def _bytes(count: int, numel: int) -> tuple[int, int]:
    """The bytes of the low bits, and of the sequence."""
    low = _low_bits(count, numel)
    return packed_bytes(count, low) if low else 0, packed_bytes(_length(count, numel), 1)


def place_bytes(count: int, numel: int) -> int:
    """The size of packed places.

    Args:
        count: How many there are, k.
        numel: The number of entries of the tensor, n, at least k.
    """
    return sum(_bytes(count, numel))


def pack_places(places: Tensor, numel: int) -> Tensor:
    """Pack increasing places.

    Args:
        places: int64 [k], increasing, in [0, numel).
        numel: The number of entries of the tensor.

    Returns:
        uint8 [place_bytes(k, numel)].
    """
    count = places.numel()
    low = _low_bits(count, numel)
    sequence = torch.zeros(_length(count, numel), dtype=torch.int8, device=places.device)
    # -1 is the one code of one bit that is not 0
    sequence[(places >> low) + torch.arange(count, device=places.device)] = -1
    parts = [pack(sequence, 1)]
    if low:
        half = 1 << (low - 1)
        # (u ^ half) - half is the signed code with the same bits
        codes = ((places & (2 * half - 1)) ^ half) - half
        parts.insert(0, pack(codes.to(torch.int16), low))
    return torch.cat(parts)


def unpack_places(data: Tensor, count: int, numel: int) -> Tensor:
    """Unpack bytes of :func:`pack_places`.

    Args:
        data: uint8 [place_bytes(count, numel)].
        count: How many places there are.
        numel: The number of entries of the tensor.

    Returns:
        int64 [count].

    Raises:
        ValueError: The bytes are not those that increasing places below `numel` have.
    """
    low = _low_bits(count, numel)
    size, _ = _bytes(count, numel)
    sequence = unpack(data[size:], 1, _length(count, numel))
    found = sequence.nonzero().view(-1)
    if found.numel() != count:
        raise ValueError(f"there must be {count} places, got {found.numel()}")
    places = (found - torch.arange(count, device=data.device)) << low
    if low:
        places |= unpack(data[:size], low, count).to(torch.int64) & ((1 << low) - 1)
    if count and not (int(places[-1]) < numel and bool((places.diff() > 0).all())):
        raise ValueError(f"places must increase and stay below {numel}")
    if not torch.equal(pack_places(places, numel), data):
        raise ValueError("the bits after the last place must be 0")
    return places


def left_out(x: Tensor) -> QuantizedTensor:
    """A tensor of which nothing is sent, which is read as zeros: sparse codes, of which none is
    there.

    Args:
        x: Any shape.

    Returns:
        Codes of 2 bits in the shape of x, all 0, with a scale, 0-dim, on which nothing depends.
    """
    # the smallest scale that is let through
    scale = torch.full((), torch.finfo(torch.float32).tiny, device=x.device)
    return QuantizedTensor(torch.zeros_like(x, dtype=torch.int8), scale, bits=2, sparse=True)
