"""Packing: exact sizes, exact round trips, fixed bytes."""

import pytest
import torch
from torch import Tensor

from bhfl.quant import pack, packed_bytes, unpack

GOLDEN = {  # hexadecimal
    1: "9901",
    2: "72cd12",
    3: "e0df99cc00",
    4: "c82770ff3807",
    6: "00aff0ff72cde0f301",
    7: "005ff0ffe0df99c0cf0f",
    8: "807f00ffc02a7fff803f7f",
    9: "00ff00ff8055ffff007fff9901",
    12: "00ff00ff00aaffff00ffffc82770ff3807",
    16: "00ff00ff00aaffff00ffff807f00ffc02a7fff803f7f",
}


def random_codes(numel: int, bits: int) -> Tensor:
    g = torch.Generator().manual_seed(1000 * numel + bits)
    dtype = torch.int8 if bits <= 8 else torch.int16
    return torch.randint(-(2 ** (bits - 1)), 2 ** (bits - 1), (numel,), generator=g).to(dtype)


@pytest.mark.parametrize("bits", range(1, 17))
def test_round_trip_and_size(bits: int) -> None:
    for numel in range(258):
        codes = random_codes(numel, bits)
        data = pack(codes, bits)
        assert data.numel() == packed_bytes(numel, bits) == -(-numel * bits // 8)
        assert data.dtype == torch.uint8
        found = unpack(data, bits, numel)
        assert found.dtype == codes.dtype
        assert torch.equal(found, codes)


@pytest.mark.parametrize("bits", range(1, 17))
def test_every_code_survives(bits: int) -> None:
    codes = torch.arange(-(2 ** (bits - 1)), 2 ** (bits - 1)).to(
        torch.int8 if bits <= 8 else torch.int16
    )
    assert torch.equal(unpack(pack(codes, bits), bits, codes.numel()), codes)


def golden_codes(bits: int) -> Tensor:
    """Eleven codes: eight in planes and three in the tail, with both ends of the range."""
    least, most = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    values = [least, most, 0, -1, least // 2, most // 3, most, -1, least, most // 2, most]
    return torch.tensor(values, dtype=torch.int16)


@pytest.mark.parametrize("bits", GOLDEN)
def test_the_bytes_are_the_same_on_every_host(bits: int) -> None:
    assert bytes(pack(golden_codes(bits), bits).tolist()).hex() == GOLDEN[bits]


def test_layout_by_hand() -> None:
    """Four bits: byte i of the plane holds code i low and code i + 4 high; the tail is one
    little-endian integer.
    """
    codes = torch.tensor([1, 2, 3, 4, 5, 6, 7, -8, -1, 2], dtype=torch.int8)
    assert bytes(pack(codes, 4).tolist()).hex() == "51627384" + "2f"
    assert (
        bytes(pack(torch.tensor([-2, 0x1234], dtype=torch.int16), 16).tolist()).hex()
        == "fe34" + "ff12"
    )


def test_shape_and_layout_of_the_codes_do_not_matter() -> None:
    codes = random_codes(240, 5)
    assert torch.equal(pack(codes.view(4, 3, 20), 5), pack(codes, 5))
    assert torch.equal(
        pack(codes.view(20, 12).t(), 5), pack(codes.view(20, 12).t().contiguous(), 5)
    )
    assert torch.equal(pack(codes.to(torch.int16), 5), pack(codes, 5))


@pytest.mark.parametrize("bits", [3, 8, 16])
def test_results_own_their_memory(bits: int) -> None:
    codes = random_codes(16, bits)
    data = pack(codes, bits)
    kept, found = data.clone(), unpack(data, bits, 16)
    codes.zero_()
    assert torch.equal(data, kept)
    data.zero_()
    assert torch.equal(found, random_codes(16, bits))


def test_a_view_can_be_unpacked() -> None:
    codes = random_codes(21, 11)
    data = pack(codes, 11)
    padded = torch.cat([torch.zeros(3, dtype=torch.uint8), data, torch.zeros(5, dtype=torch.uint8)])
    assert torch.equal(unpack(padded[3:-5], 11, 21), codes)


def test_refused() -> None:
    codes = torch.zeros(4, dtype=torch.int8)
    for bits in (0, 17, 8.0, True):
        with pytest.raises(ValueError, match=r"^bits must be 1\.\.16, got "):
            packed_bytes(4, bits)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="numel must be at least 0, got -1"):
        packed_bytes(-1, 8)
    with pytest.raises(ValueError, match=r"codes of 9 bits must be int16, got torch\.int8"):
        pack(codes, 9)
    with pytest.raises(
        ValueError, match=r"codes of 4 bits must be int8 or int16, got torch\.float32"
    ):
        pack(codes.float(), 4)
    with pytest.raises(
        ValueError, match=r"codes of 3 bits must be in \[-4, 3\], got values in \[-5, 0\]"
    ):
        pack(torch.tensor([0, -5], dtype=torch.int8), 3)
    with pytest.raises(
        ValueError, match=r"codes of 8 bits must be in \[-128, 127\], got values in \[0, 300\]"
    ):
        pack(torch.tensor([0, 300], dtype=torch.int16), 8)
    with pytest.raises(
        ValueError,
        match=r"9 codes of 3 bits are uint8 of shape \[4\], got torch\.uint8 of shape \[3\]",
    ):
        unpack(torch.zeros(3, dtype=torch.uint8), 3, 9)
    with pytest.raises(
        ValueError, match=r"are uint8 of shape \[1\], got torch\.int8 of shape \[1\]"
    ):
        unpack(torch.zeros(1, dtype=torch.int8), 8, 1)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("bits", range(1, 17))
def test_a_gpu_packs_the_same_bytes(bits: int) -> None:
    codes = random_codes(1003, bits)
    data = pack(codes.cuda(), bits)
    assert torch.equal(data.cpu(), pack(codes, bits))
    assert torch.equal(unpack(data, bits, 1003).cpu(), codes)
