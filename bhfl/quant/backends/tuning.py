"""Measures the table of the ``auto...`` backends on this machine."""

import copy
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from bhfl.quant.backends import machine
from bhfl.quant.backends.auto import FAST, TABLES
from bhfl.quant.backends.machine import Table
from bhfl.quant.convert import backend_choices, quantize_, seed_

SIZES = (16, 32, 64, 128, 192, 256, 512, 1024)
"""Channels of the layers that are measured."""
_NUM_IMAGES = 32
_MARGIN = 0.95
"""A backend is faster where it takes less than this part of the time of fake."""
_HOPELESS = 4.0
"""A backend that takes so many times as long as fake is not measured at larger sizes."""


def tune(
    device: str | torch.device = "cpu",
    *,
    sizes: tuple[int, ...] = SIZES,
    num_rows: int = 1024,
    num_turns: int = 7,
    **spec: Any,
) -> Table:
    """Measure from which size on each backend is faster than ``fake``, and let the ``auto...``
    backends go by that until the process ends.

    What is timed is a step, forward and backward, of one layer with as many inputs as outputs, on
    rows or on 32 images, which are the smaller the more channels they have (64x64 pixels of 16, 8x8
    of 1024); the backends take turns. This takes about a minute on one thread of a CPU, on which
    nothing else should run.

    Args:
        device: Where to measure; the type of the device is what counts later.
        sizes: Channels of the layers, ascending.
        num_rows: The number of rows that a linear layer gets at once: the batch size, times the
            length of the sequence if there is one. With fewer, an integer product gains less.
        num_turns: Steps of each backend, of which the fastest counts.
        **spec: Fields of a :class:`~bhfl.quant.BitSpec`; by default 8 bits.

    Returns:
        Backend and kind of layer -> the size from which on the backend was faster at all sizes;
        what was never faster has no entry.
    """
    both = {"linear": sizes, "conv": sizes}
    table = measure(device, sizes=both, num_rows=num_rows, num_turns=num_turns, **spec)
    TABLES[torch.device(device).type] = table
    return table


def measure(
    device: str | torch.device,
    *,
    sizes: dict[str, tuple[int, ...]],
    num_rows: int,
    num_turns: int,
    **spec: Any,
) -> Table:
    """What :func:`tune` finds for these sizes of each kind of layer, of which nobody is told."""
    devices = [device] if torch.device(device).type == "cuda" else []
    found: Table = {}
    for kind, make in (("linear", partial(_linear, num_rows)), ("conv", _conv)):
        backends = list(FAST.values())
        for size in sizes[kind]:
            # the caller's random numbers go on as if nothing had been measured
            with torch.random.fork_rng(devices):
                layer, x = make(size, device)
                gains = _relative_seconds(layer, x, backends, spec, num_turns)
            # where it is that slow the hardware has no such products, and large layers take minutes
            backends = [backend for backend, gain in gains.items() if gain < _HOPELESS]
            for backend in FAST.values():
                if gains.get(backend, _HOPELESS) >= _MARGIN:
                    # it has to be faster at all sizes from the least one on
                    found.pop((backend, kind), None)
                else:
                    found.setdefault((backend, kind), size)
    return found


def _linear(num_rows: int, size: int, device: str | torch.device) -> tuple[nn.Module, Tensor]:
    return nn.Linear(size, size, device=device), torch.randn(num_rows, size, device=device)


def _conv(size: int, device: str | torch.device) -> tuple[nn.Module, Tensor]:
    side = round(256 / size**0.5)
    x = torch.randn(_NUM_IMAGES, size, side, side, device=device)
    layer = nn.Conv2d(size, size, 3, padding=1, device=device)
    layer.to(memory_format=torch.channels_last)
    return layer, x.contiguous(memory_format=torch.channels_last)


def _relative_seconds(
    layer: nn.Module, x: Tensor, backends: list[str], spec: dict[str, Any], num_turns: int
) -> dict[str, float]:
    """The least time of a step of each backend that does not refuse, divided by that of fake: what
    else the machine does can only add to it.
    """
    steps: dict[str, Callable[[], None]] = {}
    for backend in ("fake", *backends):
        model = quantize_(copy.deepcopy(layer), spec or 8, backend=backend)
        seed_(model, torch.Generator(x.device).manual_seed(0))
        if backend_choices(model)[""] == backend:
            steps[backend] = _step(model, x)
    seconds: dict[str, list[float]] = {backend: [] for backend in steps}
    # the first turn warms up, and does not count
    for _ in range(num_turns + 1):
        for backend, step in steps.items():
            seconds[backend].append(_timed(step, x.device))
    least = {backend: min(times[1:]) for backend, times in seconds.items()}
    usual = least.pop("fake")
    return {backend: value / usual for backend, value in least.items()}


def _step(model: nn.Module, x: Tensor) -> Callable[[], None]:
    """A step of a model, forward and backward, as a function to call again and again."""
    inputs = x.detach().requires_grad_()
    error = torch.randn_like(model(inputs))

    def step() -> None:
        model.zero_grad()
        inputs.grad = None
        model(inputs).backward(error)

    return step


def _timed(step: Callable[[], None], device: torch.device) -> float:
    """The seconds of a step: of this thread where it alone computes, else of the clock on the
    wall.
    """
    alone = device.type == "cpu" and torch.get_num_threads() == 1
    clock = time.thread_time if alone else time.perf_counter
    start = clock()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return clock() - start


# Sizes at which a layer just gains on one processor or another: the largest take the most time.
_SHORT = {"linear": (192, 256, 512, 1024), "conv": (16, 32, 64)}
machine.measure = partial(measure, sizes=_SHORT, num_rows=1024, num_turns=7)
