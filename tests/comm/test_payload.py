"""What goes in comes out, to the bit, and takes the bytes that the formulas say."""

import math
import warnings
import zlib

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from bhfl.comm import Tensors, decode, encode, float_tensors, header_bytes, wire
from bhfl.quant import QuantizedTensor, quantize
from bhfl.quant.sparse import place_bytes
from tests.comm.mutations import DTYPES, corpus, random_codes

SHAPES = st.lists(st.integers(0, 5), max_size=4).map(tuple)


def raw(tensor: Tensor) -> bytes:
    """The row-major bytes of a tensor, NaN payloads included."""
    return bytes(tensor.contiguous().reshape(-1).view(torch.uint8).tolist())


def assert_same(got: Tensor | QuantizedTensor, expected: Tensor | QuantizedTensor) -> None:
    assert type(got) is type(expected)
    if isinstance(expected, QuantizedTensor):
        assert (got.bits, got.sparse) == (expected.bits, expected.sparse)
        assert_same(got.codes, expected.codes)
        assert_same(got.scale, expected.scale)
    else:
        assert (got.dtype, got.shape) == (expected.dtype, expected.shape)
        assert raw(got) == raw(expected)


def assert_round_trip(tensors: Tensors) -> None:
    got = decode(encode(tensors))
    assert list(got) == list(tensors)
    for name, expected in tensors.items():
        assert_same(got[name], expected)


def content_bytes(value: Tensor | QuantizedTensor) -> int:
    if isinstance(value, QuantizedTensor):
        numel, bits = value.codes.numel(), value.bits
        scales = 4 * value.scale.numel()
        if value.sparse:
            count = int(value.codes.count_nonzero())
            return place_bytes(count, numel) + math.ceil(count * (bits - (bits == 2)) / 8) + scales
        return (math.ceil(numel / 5) if bits == 2 else math.ceil(numel * bits / 8)) + scales
    return value.numel() * value.element_size()


@st.composite
def plain(draw: st.DrawFn) -> Tensor:
    """Any bit pattern of any dtype."""
    dtype, shape = draw(st.sampled_from(DTYPES)), draw(SHAPES)
    size = math.prod(shape) * dtype.itemsize
    content = draw(
        st.lists(st.integers(0, 1 if dtype == torch.bool else 255), min_size=size, max_size=size)
    )
    return torch.tensor(content, dtype=torch.uint8).view(dtype).view(shape)


@st.composite
def quantized(draw: st.DrawFn) -> QuantizedTensor:
    shape = draw(SHAPES)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    sparse = draw(st.booleans())
    channel = bool(shape) and not sparse and draw(st.booleans())
    bits = draw(st.integers(2 if sparse else 1, 16))
    return random_codes(shape, bits, generator, channel, sparse)


@given(st.dictionaries(st.text(max_size=20), plain() | quantized(), max_size=6))
def test_round_trip_and_size_of_anything(tensors: Tensors) -> None:
    assert_round_trip(tensors)
    payload = encode(tensors)
    assert len(payload) == header_bytes(payload) + sum(map(content_bytes, tensors.values()))
    assert header_bytes(payload) == 20 + sum(
        5
        + len(name.encode())
        + 4 * (value.codes if isinstance(value, QuantizedTensor) else value).ndim
        + 4 * getattr(value, "sparse", False)
        for name, value in tensors.items()
    )


@pytest.mark.parametrize("bits", range(2, 17))
@pytest.mark.parametrize("channel", [False, True])
def test_every_code_of_every_width(bits: int, channel: bool) -> None:
    limit = 2 ** (bits - 1) - 1
    codes = torch.arange(-limit, limit + 1).to(torch.int8 if bits <= 8 else torch.int16)
    scale = torch.rand(len(codes)) if channel else torch.tensor(0.5)
    assert_round_trip({"w": QuantizedTensor(codes, scale, bits)})


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "shape", [(), (0,), (3, 0, 2), (1,), (7,), (2, 3), (1, 2, 3, 1, 2, 1, 1, 2)]
)
def test_every_dtype_in_every_shape(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    assert_round_trip({"x": torch.ones(shape).to(dtype)})


def test_values_that_are_not_finite_travel() -> None:
    assert_round_trip({"x": torch.tensor([math.nan, math.inf, -math.inf, -0.0])})


def test_content_is_row_major_whatever_the_strides() -> None:
    maps = torch.randn(2, 3, 4, 5)
    views = {
        "transposed": maps.transpose(0, 3),
        "channels_last": maps.to(memory_format=torch.channels_last),
        "every second": maps[:, ::2, :, 1:],
        "expanded": torch.randn(3, 1).expand(3, 4),
    }
    assert encode(views) == encode({name: view.contiguous() for name, view in views.items()})
    codes = random_codes((4, 6, 2), 5, torch.Generator().manual_seed(0), channel=False)
    assert_round_trip(
        {**views, "codes": QuantizedTensor(codes.codes.permute(2, 0, 1), codes.scale, 5)}
    )


def test_parameters_buffers_and_tied_weights() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 4))
    model[2].bias = model[0].bias
    assert_round_trip(
        {name: value.detach() for name, value in model.state_dict(keep_vars=True).items()}
    )
    assert encode(model.state_dict(keep_vars=True)) == encode(model.state_dict())


def test_decoded_tensors_are_writable_and_own_their_memory() -> None:
    payload = bytearray(
        encode({"a": torch.ones(5), "b": torch.ones(5), "q": quantize(torch.ones(16), 8)})
    )
    before = bytes(payload)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tensors = decode(payload)
    tensors["a"].zero_()
    tensors["q"].codes.zero_()
    assert payload == before
    payload[:] = bytes(len(payload))
    assert torch.equal(tensors["b"], torch.ones(5))
    assert torch.equal(tensors["q"].scale, quantize(torch.ones(16), 8).scale)
    # saving one tensor does not save the message
    assert tensors["b"].untyped_storage().nbytes() == 20


def test_plain_tensors_are_aligned_whatever_travels_with_them() -> None:
    for tensors in corpus():
        for value in decode(encode(tensors)).values():
            plain_part = value.scale if isinstance(value, QuantizedTensor) else value
            assert plain_part.data_ptr() % plain_part.element_size() == 0


@pytest.mark.parametrize(
    "wrap", [bytes, bytearray, memoryview, lambda payload: memoryview(payload).cast("B", (4, 10))]
)
def test_any_buffer_is_read(wrap: type[bytes]) -> None:
    payload = encode({"abc": torch.ones(2)})
    assert len(payload) == 40
    assert torch.equal(decode(wrap(payload))["abc"], torch.ones(2))
    assert header_bytes(wrap(payload)) == 32


def test_float_tensors_dequantizes_and_leaves_the_rest() -> None:
    weight = quantize(torch.randn(4, 9), 4, granularity="channel")
    steps, bias = torch.tensor(3), torch.randn(4)
    floats = float_tensors(decode(encode({"weight": weight, "steps": steps, "bias": bias})))
    assert list(floats) == ["weight", "steps", "bias"]
    assert torch.equal(floats["weight"], weight.dequantize())
    assert torch.equal(floats["steps"], steps)
    assert torch.equal(floats["bias"], bias)


GOLDEN = bytes.fromhex(
    "4248464c 02000000 04000000 39000000"  # magic, version, tensors, bytes of prelude and table
    "21 04 02 0100 77 02000000 03000000"  # w: a scale per channel, 4 bits
    "01 00 01 0100 62 02000000"  # b: float32
    "08 00 00 0100 6e"  # n: int64
    "0a 00 01 0200 ceb2 02000000"  # β: bool
    "0201000000000000"  # n
    "0000003f 00000040 0000803f 0000c0bf"  # scales of w, b
    "0100"  # β
    "e1c395"  # codes of w
    "5625bbc9"  # CRC-32 of all above
)


def test_golden_bytes() -> None:
    tensors = {
        "w": QuantizedTensor(
            torch.tensor([[1, -2, 3], [-4, 5, -7]], dtype=torch.int8), torch.tensor([0.5, 2.0]), 4
        ),
        "b": torch.tensor([1.0, -1.5]),
        "n": torch.tensor(258),
        "β": torch.tensor([True, False]),
    }
    assert encode(tensors) == GOLDEN
    assert encode(decode(GOLDEN)) == GOLDEN
    assert_round_trip(tensors)


def resnet18(bits: int) -> dict[str, Tensor | QuantizedTensor]:
    """The state of a torchvision ResNet-18; convolutions and the last layer with a scale per
    channel below 32 bits.
    """
    generator = torch.Generator().manual_seed(0)
    state: dict[str, Tensor | QuantizedTensor] = {}

    def weight(name: str, *shape: int) -> None:
        state[f"{name}.weight"] = (
            torch.empty(shape) if bits == 32 else random_codes(shape, bits, generator, channel=True)
        )

    def unit(conv: str, norm: str, *shape: int) -> None:
        weight(conv, *shape)
        for key in ("weight", "bias", "running_mean", "running_var"):
            state[f"{norm}.{key}"] = torch.ones(shape[0])
        state[f"{norm}.num_batches_tracked"] = torch.tensor(0)

    unit("conv1", "bn1", 64, 3, 7, 7)
    width = 64
    for stage, wider in enumerate((64, 128, 256, 512), start=1):
        for block in range(2):
            name = f"layer{stage}.{block}"
            unit(f"{name}.conv1", f"{name}.bn1", wider, width, 3, 3)
            unit(f"{name}.conv2", f"{name}.bn2", wider, wider, 3, 3)
            if width != wider:
                unit(f"{name}.downsample.0", f"{name}.downsample.1", wider, width, 1, 1)
            width = wider
    weight("fc", 1000, 512)
    state["fc.bias"] = torch.zeros(1000)
    return state


@pytest.mark.parametrize(("bits", "share"), [(8, 0.253), (4, 0.129)])
def test_resnet18_share_of_float32(bits: int, share: float) -> None:
    full, packed = encode(resnet18(32)), encode(resnet18(bits))
    parameters = 11_689_512
    statistics = 4 * 2 * 4_800 + 8 * 20
    assert len(full) - header_bytes(full) == 4 * parameters + statistics
    assert len(packed) <= share * len(full)
    assert decode(packed).keys() == decode(full).keys()


def test_header_of_a_small_model_is_small() -> None:
    model = {f"features.{i}.conv.weight": torch.zeros(8, 8, 3, 3) for i in range(20)}
    assert header_bytes(encode(model)) < 1_000


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_tensors_on_a_gpu_encode_as_on_the_cpu() -> None:
    for tensors in corpus():
        there = {
            name: QuantizedTensor(value.codes.cuda(), value.scale.cuda(), value.bits)
            if isinstance(value, QuantizedTensor)
            else value.cuda()
            for name, value in tensors.items()
        }
        assert encode(there) == encode(tensors)


@pytest.mark.parametrize("shape", [(1,), (1, 1), (1, 1, 3)])
def test_a_part_of_a_larger_tensor_travels_whatever_its_strides(shape) -> None:
    part = torch.randn(5, 9, 3).as_strided(shape, (7,) * len(shape))
    received = decode(
        encode({"part": part, "codes": QuantizedTensor(part.to(torch.int8), part.abs().amax(), 4)})
    )
    assert torch.equal(received["part"], part)
    assert torch.equal(received["codes"].codes, part.to(torch.int8))


def test_the_checksum_is_that_of_zlib() -> None:
    for size in (0, 1, 3, 15, 64, 1000, 70_001):
        payload = encode({"a": torch.arange(size, dtype=torch.int16)})
        assert int.from_bytes(payload[-4:], "little") == zlib.crc32(payload[:-4])


def test_only_the_very_bytes_that_were_just_made_are_not_checked(monkeypatch) -> None:
    checked = []
    monkeypatch.setattr(wire, "crc32", lambda *data: checked.append(data) or zlib.crc32(*data))
    payload = encode({"a": torch.arange(5)})
    checked.clear()
    decode(payload)
    assert not checked
    # read once, they may have been anywhere; equal bytes are others
    others = encode({"a": torch.arange(5)})
    checked.clear()
    for data in (payload, bytes(bytearray(payload)), bytearray(others), memoryview(others)):
        decode(data)
    assert len(checked) == 4
