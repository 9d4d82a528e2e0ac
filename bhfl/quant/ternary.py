"""Packing of ternary codes, five a byte: 1.6 bits a code, where log2(3) = 1.585 are needed.

A byte is a number of five digits to the base 3, each a code plus one, so that 0 to 242 are used. Of
n codes, the first ``n // 5 * 5`` lie as in `bhfl.quant.packing`: byte i holds the codes i, i + L,
i + 2L, i + 3L, i + 4L, from its lowest digit upwards, L the number of such bytes; so every step is
one operation on contiguous bytes. The last ``n % 5`` codes follow as one byte of so many digits.
"""

import torch
from torch import Tensor

_DIGITS = 5
_WEIGHTS = [3**digit for digit in range(_DIGITS)]
_ONES = sum(_WEIGHTS)
"""The number whose digits are all 1, which stand for codes of 0."""


def _codes(weight: int) -> bytes:
    """The code, as a signed byte, of the digit of this weight in each byte."""
    return bytes((byte // weight % 3 - 1) & 255 for byte in range(256))


_CODES = [_codes(weight) for weight in _WEIGHTS]


def ternary_bytes(numel: int) -> int:
    """The size of packed ternary codes, ``ceil(numel / 5)`` bytes."""
    return -(-numel // _DIGITS)


def pack_ternary(codes: Tensor) -> Tensor:
    """Pack ternary codes into bytes.

    Args:
        codes: int8, any shape, of -1, 0 and 1.

    Returns:
        uint8 [ternary_bytes(numel)] on the device of the codes; owns its memory.
    """
    flat = codes.reshape(-1)
    length, rest = divmod(flat.numel(), _DIGITS)
    out = torch.empty(ternary_bytes(flat.numel()), dtype=torch.uint8, device=codes.device)
    rows = flat[: length * _DIGITS].view(torch.uint8).view(_DIGITS, length)
    head = out[:length].copy_(rows[-1])
    # modulo 256, where a code of -1 is 255 and the sum comes out as it should
    for row in reversed(rows[:-1].unbind()):
        head.mul_(3).add_(row)
    head.add_(_ONES)
    if rest:
        digits = [code + 1 for code in flat[-rest:].tolist()]
        out[-1] = sum(digit * weight for digit, weight in zip(digits, _WEIGHTS, strict=False))
    return out


def unpack_ternary(data: Tensor, numel: int) -> Tensor:
    """Unpack bytes of :func:`pack_ternary`.

    Args:
        data: uint8 [ternary_bytes(numel)].
        numel: The number of codes.

    Returns:
        int8 [numel] on the device of the data; owns its memory.

    Raises:
        ValueError: The data have another size, or a byte that is no number of so many digits.
    """
    if data.shape != (ternary_bytes(numel),):
        raise ValueError(f"{numel} codes take {ternary_bytes(numel)} bytes, got {list(data.shape)}")
    length, rest = divmod(numel, _DIGITS)
    most = 3 ** (rest or _DIGITS)
    if numel and (int(data.max()) >= 3**_DIGITS or int(data[-1]) >= most):
        raise ValueError("a byte must be a number of ternary digits")
    out = torch.empty(numel, dtype=torch.int8)
    packed = data.cpu().numpy().tobytes()
    for digit, table in enumerate(_CODES):
        # a look-up a byte is several times faster than divisions of tensors
        part = bytearray(packed[:length].translate(table))
        if part:
            out[digit * length : (digit + 1) * length] = torch.frombuffer(part, dtype=torch.int8)
    for digit in range(rest):
        out[length * _DIGITS + digit] = packed[-1] // _WEIGHTS[digit] % 3 - 1
    return out.to(data.device)
