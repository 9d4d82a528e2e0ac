"""Contestants in processes of their own, taking turns, so that a noisy machine slows all of them
alike.
"""

from __future__ import annotations

import multiprocessing as mp
import platform
import resource
import statistics
import time
from collections.abc import Callable
from functools import cache
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

Factory = Callable[..., Callable[[], Any]]
"""Makes a contestant, in its own process; what it returns is called once a turn."""


class Seconds(NamedTuple):
    """What something took."""

    cpu: float
    """Of this process and of those that it has waited for; what others do on the machine does not
    count.
    """
    wall: float


def now() -> Seconds:
    """The time from any moment on."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = time.process_time() + children.ru_utime + children.ru_stime
    return Seconds(cpu, time.perf_counter())


def since(start: Seconds) -> Seconds:
    """The time from then on."""
    end = now()
    return Seconds(end.cpu - start.cpu, end.wall - start.wall)


def _serve(pipe: Connection, factory: Factory, arguments: tuple[Any, ...]) -> None:
    turn = factory(*arguments)
    # the first turn allocates and compiles
    turn()
    pipe.send("ready")
    while pipe.recv():
        # a turn that is not timed fills the caches, and outlasts threads of the contestant before
        # that still spin
        turn()
        start = now()
        turn()
        pipe.send(since(start))


def contest(
    contestants: dict[str, tuple[Factory, tuple[Any, ...]]], turns: int
) -> dict[str, Seconds]:
    """Let contestants take turns.

    Args:
        contestants: How each is made, by its name: a factory and its arguments.
        turns: The number of turns of each that are timed, each right after one that is not.

    Returns:
        The median seconds of a turn of each contestant.
    """
    context = mp.get_context("spawn")
    pipes: dict[str, Connection] = {}
    processes = []
    for name, (factory, arguments) in contestants.items():
        pipes[name], theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, factory, arguments), daemon=True)
        process.start()
        # while this end is open, a contestant that dies would be waited for without end
        theirs.close()
        processes.append(process)
        pipes[name].recv()
    seconds: dict[str, list[Seconds]] = {name: [] for name in contestants}
    for _ in range(turns):
        for name, pipe in pipes.items():
            pipe.send(True)
            seconds[name].append(pipe.recv())
    for pipe in pipes.values():
        pipe.send(False)
    return {
        name: Seconds(*map(statistics.median, zip(*values, strict=True)))
        for name, values in seconds.items()
    }


@cache
def cpu() -> str:
    """The name of the processor, and the widest instructions that torch uses on it."""
    import torch

    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    names = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.processor() or platform.machine()
    return f"{name}, {torch.backends.cpu.get_cpu_capability()}"


def ratio(
    what: str, ours: Seconds, theirs: Seconds, bound: float | None, by_wall: bool = False
) -> None:
    """Print the CPU time of two contestants as a ratio, beside what it should be at most and the
    ratio of wall time.

    Args:
        what: What is a ratio to what.
        ours: What is divided.
        theirs: What it is divided by.
        bound: The most that it should be.
        by_wall: Whether wall time is what the bound is for, as with several threads.
    """
    of_cpu, of_wall = ours.cpu / theirs.cpu, ours.wall / theirs.wall
    clocks = (f"wall time, CPU {of_cpu:.3f}", f"CPU time, wall {of_wall:.3f}")
    line(what, of_wall if by_wall else of_cpu, bound, told=clocks[not by_wall])


def line(what: str, value: float, bound: float | None, unit: str = "", told: str = "") -> None:
    """Print one figure beside what it should be at most, and the processor."""
    verdict = ""
    if bound is not None:
        verdict = f"   at most {bound:g}{unit}   {'ok' if value <= bound else 'MISSED'}"
    notes = f"{told}, {cpu()}" if told else cpu()
    print(f"{what:<72} {value:>8.3f}{unit}{verdict}   ({notes})", flush=True)
