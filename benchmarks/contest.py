"""Contestants in processes of their own, taking turns, so that a noisy machine slows all of them
alike.
"""

from __future__ import annotations

import multiprocessing as mp
import statistics
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

Factory = Callable[..., Callable[[], Any]]
"""Makes a contestant, in its own process; what it returns is called once a turn."""

Clock = Callable[[], float]
"""Seconds from any moment on."""


def _serve(pipe: Connection, factory: Factory, arguments: tuple[Any, ...], clock: Clock) -> None:
    turn = factory(*arguments)
    # the first turn allocates and compiles
    turn()
    pipe.send("ready")
    while pipe.recv():
        # a turn that is not timed fills the caches, and outlasts threads of the contestant before
        # that still spin
        turn()
        start = clock()
        turn()
        pipe.send(clock() - start)


def contest(
    contestants: dict[str, tuple[Factory, tuple[Any, ...]]],
    turns: int,
    clock: Clock = time.perf_counter,
) -> dict[str, float]:
    """Let contestants take turns.

    Args:
        contestants: How each is made, by its name: a factory and its arguments.
        turns: The number of turns of each that are timed, each right after one that is not.
        clock: What times them. Contestants of one thread may take `time.thread_time`, which does
            not count what others do on the machine.

    Returns:
        The median seconds of a turn of each contestant.
    """
    context = mp.get_context("spawn")
    pipes: dict[str, Connection] = {}
    processes = []
    for name, (factory, arguments) in contestants.items():
        pipes[name], theirs = context.Pipe()
        process = context.Process(
            target=_serve, args=(theirs, factory, arguments, clock), daemon=True
        )
        process.start()
        # while this end is open, a contestant that dies would be waited for without end
        theirs.close()
        processes.append(process)
        pipes[name].recv()
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(turns):
        for name, pipe in pipes.items():
            pipe.send(True)
            seconds[name].append(pipe.recv())
    for pipe in pipes.values():
        pipe.send(False)
    return {name: statistics.median(values) for name, values in seconds.items()}


def line(what: str, value: float, bound: float | None, unit: str = "") -> None:
    """Print one figure beside what it should be at most."""
    verdict = ""
    if bound is not None:
        verdict = f"   at most {bound:g}{unit}   {'ok' if value <= bound else 'MISSED'}"
    print(f"{what:<72} {value:>8.3f}{unit}{verdict}", flush=True)
