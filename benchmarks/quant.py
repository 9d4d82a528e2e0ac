"""Quantisation-aware training against float32; rounding, packing and encoding."""

from __future__ import annotations

import io
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial

import torch
from torch import nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from benchmarks.contest import contest, line, ratio


class TinyViT(nn.Module):
    """A vision transformer of width 192 and depth 6 on patches of 4x4 pixels, of which torch has
    none so small.
    """

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 192, 4, 4)
        self.place = nn.Parameter(torch.randn(64, 192) / 50)
        blocks = (
            nn.TransformerEncoderLayer(192, 3, 768, 0.0, "gelu", batch_first=True) for _ in range(6)
        )
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(192, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        patches = self.patches(x).flatten(2).transpose(1, 2)
        return self.head(self.blocks(patches + self.place).mean(1))


class WideMLP(nn.Sequential):
    """Two hidden layers of 1024 units."""

    def __init__(self) -> None:
        super().__init__(
            nn.Flatten(), nn.Linear(3072, 1024), nn.ReLU(), nn.Linear(1024, 1024), nn.ReLU()
        )
        self.append(nn.Linear(1024, 10))


class FedAvgCNN(nn.Sequential):
    """The network for CIFAR-10 of McMahan et al. 2017, larger than ``bhfl.models.build("cnn")``."""

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 32, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2))
        self.extend([nn.Conv2d(32, 64, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()])
        self.extend([nn.Linear(4096, 512), nn.ReLU(), nn.Linear(512, 10)])


OWN = {"vit-tiny": (TinyViT, 32), "mlp-1024": (WideMLP, 512), "fedavg-cnn": (FedAvgCNN, 128)}
OURS = {"resnet18": 32, "resnet8": 128, "cnn": 128}
"""Networks and their batch sizes, on images of 32x32 pixels."""


def network(name: str) -> tuple[nn.Module, int]:
    from bhfl.models import build

    if name in OWN:
        make, batch = OWN[name]
        return make(), batch
    return build(name, 10, (3, 32, 32)), OURS[name]


def step(
    bits: int,
    name: str = "resnet18",
    backend: str = "fake",
    threads: int = 1,
    bfloat16: bool = False,
    lean: bool = False,
) -> Callable[[], None]:
    """Training steps of a network.

    Args:
        bits: The bits of its weights and activations.
        name: The network, a key of `OWN` or `OURS`.
        backend: How its layers compute.
        threads: The threads of this process.
        bfloat16: Compute within bfloat16 autocast.
        lean: Keep activations for the backward pass within ``save_in_int8``.
    """
    from bhfl.engine.system import keep_freed_memory
    from bhfl.quant import quantize_, save_in_int8, seed_

    torch.set_num_threads(threads)
    keep_freed_memory()
    torch.manual_seed(0)
    model, batch = network(name)
    quantize_(model, bits, backend=backend).to(memory_format=torch.channels_last)
    seed_(model, torch.Generator().manual_seed(0))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    x = torch.randn(batch, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    y = torch.randint(0, 10, (batch,))

    def turn() -> None:
        optimizer.zero_grad()
        with (
            torch.autocast("cpu", torch.bfloat16, enabled=bfloat16),
            save_in_int8() if lean else nullcontext(),
        ):
            loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()

    return turn


def linear(backend: str, threads: int = 1) -> Callable[[], None]:
    """Ten times forward and backward through one layer, 512x1024x1024. The backend "float32" is a
    plain ``nn.Linear``.
    """
    from bhfl.engine.system import keep_freed_memory
    from bhfl.quant import quantize_, seed_

    torch.set_num_threads(threads)
    keep_freed_memory()
    layer = nn.Linear(1024, 1024)
    if backend != "float32":
        seed_(quantize_(layer, 8, backend=backend), torch.Generator().manual_seed(0))
    x, error = torch.randn(512, 1024, requires_grad=True), torch.randn(512, 1024)

    def turn() -> None:
        for _ in range(10):
            layer.zero_grad()
            layer(x).backward(error)

    return turn


BOUNDS: dict[str, dict[str, float | None]] = {  # of a step / the float32 step
    "resnet18": {"fake": 1.07, "auto-bfloat16": 0.80, "auto-integer": 0.50},
    "resnet8": {"fake": 1.07, "auto-bfloat16": 1.00, "auto-integer": None},
    "cnn": {"fake": 1.07, "auto-bfloat16": 0.72, "auto-integer": None},
    "fedavg-cnn": {"fake": 1.07, "auto-bfloat16": 0.72, "auto-integer": None},
    "mlp-1024": {"fake": 1.07, "auto-bfloat16": 0.65, "auto-integer": 0.48},
    "vit-tiny": {"fake": 1.07, "auto-bfloat16": 0.50, "auto-integer": 0.40},
}


def backends(threads: int, turns: int = 7) -> None:
    """Training steps at 8 bits by each backend, against float32 and bfloat16 autocast."""
    for name, bounds in BOUNDS.items():
        contestants = {backend: (step, (8, name, backend, threads)) for backend in bounds}
        contestants |= {"float32": (step, (32, name, "fake", threads))}
        contestants |= {"bfloat16": (step, (32, name, "fake", threads, True))}
        contestants |= {
            "auto-integer, save_in_int8": (step, (8, name, "auto-integer", threads, False, True))
        }
        seconds = contest(contestants, turns)
        for backend in contestants:
            if backend != "float32":
                what = f"{name}, {threads} threads: {backend} / float32 step"
                bound = bounds.get(backend)
                ratio(what, seconds[backend], seconds["float32"], bound, by_wall=threads > 1)
    names = ("float32", "fake", "int8", "int8-bfloat16", "integer")
    seconds = contest({backend: (linear, (backend, threads)) for backend in names}, turns)
    for backend in names[1:]:
        bound = 0.22 if backend == "integer" else None
        what = f"Linear 512x1024x1024, {threads} threads: {backend} / float32"
        ratio(what, seconds[backend], seconds["float32"], bound, by_wall=threads > 1)


def kept_for_backward() -> None:
    """Measure the bytes of activations held from the forward to the backward pass: the fully
    integer step against float32.
    """
    from bhfl.quant import QuantLayer, quantize_, save_in_int8, seed_

    def held(model: nn.Module, x: torch.Tensor, lean: bool = False) -> int:
        saving = save_in_int8() if lean else nullcontext()
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found, saving:
            y = model(x.clone())
        codes = sum(
            m.weight.numel()
            for m in model.modules()
            if isinstance(m, QuantLayer) and m.backend == "integer"
        )
        return sum(event.self_cpu_memory_usage for event in found.key_averages()) - codes - y.nbytes

    networks: dict[str, tuple[nn.Module, int]] = {}
    networks["convolution"] = (nn.Conv2d(64, 64, 3, padding=1), 32)
    networks |= {name: network(name) for name in BOUNDS}
    for name, (model, batch) in networks.items():
        x = torch.randn(batch, 64 if name == "convolution" else 3, 32, 32)
        x = x.to(memory_format=torch.channels_last)
        whole = held(model.to(memory_format=torch.channels_last), x)
        seed_(quantize_(model, 8, backend="integer"), torch.Generator())
        bound = 0.35 if name == "convolution" else None
        line(f"saved for backward: integer / float32 {name}", held(model, x) / whole, bound)
        line("    within save_in_int8", held(model, x, lean=True) / whole, 0.35)


def codes() -> None:
    """Measure nanoseconds for an element: of stochastic rounding, of packing, of unpacking."""
    from bhfl.quant import pack, quantize, unpack

    torch.set_num_threads(1)
    num_codes = 1 << 22
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(num_codes)
    stochastic = _nanoseconds(lambda: quantize(x, 8, generator=generator), num_codes)
    line("stochastic quantiser, 8 bits", stochastic, 1.0, " ns")
    for bits in range(1, 17):
        half = 1 << (bits - 1)
        dtype = torch.int8 if bits <= 8 else torch.int16
        values = torch.randint(-half, half, (num_codes,), dtype=dtype)
        packed = pack(values, bits)
        # one plane of less than a byte; all other widths move more bytes, or several planes
        bound = 0.1 if bits in (1, 2, 4) else 0.65
        packing = _nanoseconds(partial(pack, values, bits), num_codes)
        line(f"pack a code of {bits} bits", packing, bound, " ns")
        unpacking = _nanoseconds(partial(unpack, packed, bits, num_codes), num_codes)
        line("    unpack it", unpacking, bound, " ns")


def _nanoseconds(work: Callable[[], object], count: int, turns: int = 15) -> float:
    """The median time of this thread for one of the `count` elements of some work."""
    found = []
    for _ in range(turns):
        start = time.thread_time()
        work()
        found.append(time.thread_time() - start)
    return statistics.median(found) / count * 1e9


def uplink() -> None:
    """Measure quantising, packing and encoding ResNet-18, against saving its float32 weights."""
    from bhfl.comm import encode
    from bhfl.models import build
    from bhfl.quant import quantize_, quantized_state, set_spec_

    torch.set_num_threads(1)
    model = quantize_(build("resnet18", 10, (3, 32, 32)), 8)

    def save() -> None:
        torch.save(model.state_dict(), io.BytesIO())

    seconds: dict[str, list[float]] = {"save": [], "8": [], "4": []}
    for _ in range(7):
        for name, found in seconds.items():
            if name != "save":
                set_spec_(model, int(name))
            start = time.perf_counter()
            save() if name == "save" else encode(quantized_state(model))
            found.append(time.perf_counter() - start)
    for bits, bound in (("8", 25), ("4", 15)):
        best = min(seconds[bits])
        what = f"quantise, pack and encode ResNet-18 at {bits} bits"
        line(what, 1e3 * best, bound, " ms", told="wall time of the fastest")
        line("    / torch.save of the float32 model", best / min(seconds["save"]), 1.5)


def run() -> None:
    """Measure all of it."""
    for threads in (1, 2):
        backends(threads)
    kept_for_backward()
    codes()
    uplink()
