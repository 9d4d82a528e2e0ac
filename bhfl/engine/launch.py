"""The processes of a run: what Fabric makes of the options, and how the processes begin and end."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from typing import Any, Union

from lightning.fabric import Fabric
from lightning.fabric.strategies import DDPStrategy, Strategy
from lightning.pytorch.utilities.seed import isolate_rng

from bhfl.engine.system import computing_threads, exit_on_sigterm, keep_freed_memory, stop


def make_fabric(
    accelerator: str,
    devices: Union[int, str, list[int]],
    num_nodes: int,
    strategy: Union[str, Strategy],
    precision: Union[int, str],
    timeout_seconds: int,
) -> Fabric:
    """Fabric with our time-out, whose strategy wraps no model, so that no gradients are averaged.

    Raises:
        ValueError: The strategy is none that the round loop can use.
    """
    fabric = Fabric(
        accelerator=accelerator,
        devices=devices,
        num_nodes=num_nodes,
        strategy=_strategy(strategy, devices, num_nodes, timeout_seconds),
        precision=precision,  # type: ignore[arg-type]
    )
    if strategy == "auto" and isinstance(fabric.strategy, DDPStrategy):  # that Fabric chose
        fabric.strategy._timeout = timedelta(seconds=timeout_seconds)
    return fabric


def _strategy(
    strategy: Union[str, Strategy], devices: Any, num_nodes: int, timeout_seconds: int
) -> Union[str, Strategy]:
    if strategy == "auto" and num_nodes == 1 and devices in (1, "1", "auto"):
        return strategy
    if strategy in ("auto", "ddp"):
        return DDPStrategy(timeout=timedelta(seconds=timeout_seconds))
    if not isinstance(strategy, DDPStrategy):
        raise ValueError(f"strategy must be auto, ddp or a DDPStrategy, got {strategy!r}")
    return strategy


@contextmanager
def launched(fabric: Fabric, threads: int, *, again: bool) -> Iterator[None]:
    """The processes, their threads and memory; children are stopped when this process leaves early.

    Args:
        fabric: Whose processes are launched.
        threads: CPU threads of each.
        again: They have been launched before.
    """
    with ExitStack() as stack:
        stack.enter_context(exit_on_sigterm())
        if not again:
            fabric.launch()
        stack.callback(_stop_children, fabric)
        stack.enter_context(computing_threads(threads))
        stack.enter_context(isolate_rng(include_cuda=fabric.device.type == "cuda"))
        keep_freed_memory()
        yield


def _stop_children(fabric: Fabric) -> None:
    """Where this process leaves early: none of its children stays behind."""
    if sys.exc_info()[0] is not None:
        children = getattr(fabric.strategy.launcher, "procs", [])
        processes, children[:] = list(children), []  # Lightning's observer kills us when it sees one end
        stop(processes)
