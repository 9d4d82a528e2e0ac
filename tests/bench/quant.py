"""Quantisation-aware training and packing against float32."""

from __future__ import annotations

import io
import time
from collections.abc import Callable

import torch
from torch.nn import functional as F

from tests.bench.contest import contest, line


def step(bits: int) -> Callable[[], None]:
    """Training steps of ResNet-18 at batch 32, its weights and activations at `bits`."""
    from bhfl.engine.system import keep_freed_memory
    from bhfl.models import build
    from bhfl.quant import quantize_

    torch.set_num_threads(1)
    keep_freed_memory()
    torch.manual_seed(0)
    model = quantize_(build("resnet18", 10, (3, 32, 32)), bits).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    x = torch.randn(32, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    y = torch.randint(0, 10, (32,))

    def turn() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()

    return turn


def packing() -> None:
    """Quantise, pack and encode a whole ResNet-18, against saving its float32 weights."""
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
    for bits in ("8", "4"):
        line(f"quantise, pack and encode ResNet-18 at {bits} bits", 1e3 * min(seconds[bits]), 25, " ms")
        line("    / torch.save of the float32 model", min(seconds[bits]) / min(seconds["save"]), 1.5)


def run() -> None:
    """All of them."""
    seconds = contest({"8": (step, (8,)), "32": (step, (32,))}, 7)
    line("8-bit QAT step / float32 step, ResNet-18, batch 32", seconds["8"] / seconds["32"], 1.10)
    packing()
