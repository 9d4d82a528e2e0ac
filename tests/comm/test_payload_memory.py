"""A header that lies allocates nothing; an honest one allocates what its payload justifies."""

import contextlib
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest

from bhfl.comm import PayloadError, decode
from tests.comm.mutations import mutations

UNDER_A_LIMIT = """
import resource

import torch

from bhfl.comm import PayloadError, decode, encode
from bhfl.quant import QuantizedTensor
from tests.comm.mutations import mutations, one_row

MIB = 1 << 20
torch.set_num_threads(1)
floats = encode({"w": torch.ones(8 * MIB)})  # 32 MiB
codes = encode({"w": QuantizedTensor(torch.ones(32 * MIB, dtype=torch.int8), torch.tensor(1.0), 2)})  # 8 MiB
samples = [payload for _, payload, _ in mutations(2_000, seed=4)]
for kind, bits, dims in (1, 0, 2), (10, 0, 3), (32, 2, 4), (33, 16, 8), (35, 1, 2):
    samples += [one_row(b"w", kind, bits, (size,) * dims, bytes(99)) for size in (2**7, 2**12, 2**15, 2**32 - 1)]

used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 128 * MIB, -1))
try:
    torch.empty(256 * MIB, dtype=torch.uint8)
except RuntimeError:
    print("the limit holds")
assert decode(floats)["w"].numel() == 8 * MIB  # limit: twice the payload and 64 MiB
assert decode(codes)["w"].codes.numel() == 32 * MIB
for payload in samples:
    try:
        decode(payload)
    except PayloadError:
        pass
print("and was never met")
"""  # noqa: E501


@pytest.mark.skipif(
    not Path("/proc/self/statm").exists(), reason="needs Linux to know and limit the address space"
)
def test_lies_allocate_nothing_under_a_limit() -> None:
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", UNDER_A_LIMIT], cwd=root, capture_output=True, text=True, timeout=120
    )
    assert done.stdout.splitlines() == ["the limit holds", "and was never met"], done.stderr


def test_python_memory_stays_within_the_length_of_the_payload() -> None:
    samples = [payload for _, payload, _ in mutations(1_000, seed=5)]
    tracemalloc.start()
    try:
        for payload in samples:
            tracemalloc.reset_peak()
            before, _ = tracemalloc.get_traced_memory()
            with contextlib.suppress(PayloadError):
                decode(payload)
            assert tracemalloc.get_traced_memory()[1] - before < 2 * len(payload) + (1 << 16)
    finally:
        tracemalloc.stop()
