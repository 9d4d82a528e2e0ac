"""The processes of a run: what Fabric makes of the options, and how the processes begin and end."""

import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from functools import partial
from subprocess import Popen
from typing import Any

import torch
from lightning.fabric import Fabric
from lightning.fabric.plugins.environments import LightningEnvironment, SLURMEnvironment
from lightning.fabric.strategies import DDPStrategy, Strategy
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.utilities.seed import isolate_rng

from bhfl.engine.ending import PARENT, STANDING, LostProcessError, end_with_parent, ended_in_order
from bhfl.engine.exits import no_exit_of_others
from bhfl.engine.system import computing_threads, keep_freed_memory, stop
from bhfl.engine.watch import Watch
from bhfl.settings import Machine

_IN_NOTEBOOKS = (
    "devices must be 1 in a notebook or an interactive session, whose code other processes cannot "
    "run, got {!r}: put the code in a file and call `python FILE`, or call `bhfl fit` with a "
    "configuration"
)


def make_fabric(machine: Machine, precision: Any) -> Fabric:
    """Fabric with our time-out, whose strategy wraps no model, so that no gradients are averaged.

    Raises:
        ValueError: The strategy is none that the round loop can use, there are no such devices, or
            several processes are asked for in a notebook.
    """
    strategy = _strategy(machine)
    interactive = hasattr(sys, "ps1") or bool(sys.flags.interactive)
    if interactive and isinstance(strategy, DDPStrategy):
        raise ValueError(_IN_NOTEBOOKS.format(machine.devices))
    try:
        fabric = Fabric(
            accelerator=machine.accelerator,
            devices=machine.devices,
            num_nodes=machine.num_nodes,
            strategy=strategy,
            precision=precision,
        )
    except (MisconfigurationException, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(
            f"accelerator {machine.accelerator!r} with devices {machine.devices!r} cannot be used "
            f"here: {error}"
        ) from error
    # of `auto`, where there are several
    if interactive and fabric.world_size > 1:
        raise ValueError(_IN_NOTEBOOKS.format(machine.devices))
    # Fabric has chosen it, with torch's time-out, which is up to 30 minutes for a dead process
    if machine.strategy == "auto" and isinstance(fabric.strategy, DDPStrategy):
        fabric.strategy._timeout = timedelta(seconds=machine.timeout_seconds)
    return fabric


def _strategy(machine: Machine) -> str | Strategy:
    chosen = machine.strategy
    if chosen == "auto" and machine.num_nodes == 1 and machine.devices in (1, "1", "auto"):
        return "auto"
    if chosen in ("auto", "ddp"):
        return DDPStrategy(timeout=timedelta(seconds=machine.timeout_seconds))
    if not isinstance(chosen, DDPStrategy):
        raise ValueError(f"strategy must be auto, ddp or a DDPStrategy, got {chosen!r}")
    return chosen


_at_work = threading.RLock()
_watch: Watch | None = None
"""The watch of this process, from its first launch on: the processes stay the same."""
_children: list[Popen[bytes]] = []


@contextmanager
def launched(
    fabric: Fabric, threads: int, timeout_seconds: float, *, again: bool
) -> Iterator[None]:
    """The processes, their threads and memory; children are stopped when this process leaves early.

    Args:
        fabric: Whose processes are launched.
        threads: CPU threads of each.
        timeout_seconds: How long a process waits for another.
        again: They have been launched before.

    Raises:
        ValueError: Another thread of this process trains, or the processes are not those that were
            asked for.
        LostProcessError: Another process has died, frozen or failed.
        ExitCalledError: Code in the block called `sys.exit`.
    """
    # unwound in reverse: the children are stopped while signals are heard, the lock goes last
    with ExitStack() as stack:
        if not _at_work.acquire(blocking=False):
            raise ValueError(
                "another thread trains in this process, and both would draw from the same random "
                "generators: train one after the other, or start a process for each"
            )
        stack.callback(_at_work.release)
        stack.enter_context(ended_in_order(deaf=fabric.world_size > 1))
        stack.callback(_stop_children)
        # of an earlier run: processes that meet in this one watch one another from then on
        known = _watch
        if not again:
            _launch(fabric, timeout_seconds, stack)
        if known:
            stack.enter_context(known.together())
        # inside `together`, which tells the other processes of an exit as of any error
        stack.enter_context(no_exit_of_others(allowed=()))
        stack.enter_context(computing_threads(threads))
        # to ask for the state of CUDA's generators would start it where nothing computes on it
        stack.enter_context(isolate_rng(include_cuda=fabric.device.type == "cuda"))
        keep_freed_memory()
        yield


def _launch(fabric: Fabric, timeout_seconds: float, stack: ExitStack) -> None:
    end_with_parent()
    _check_processes(fabric)
    strategy = fabric.strategy
    alone = fabric.world_size == 1 or torch.distributed.is_initialized()
    if isinstance(strategy, DDPStrategy) and not alone:
        by_itself = isinstance(strategy.cluster_environment, LightningEnvironment)
        if by_itself and strategy.num_nodes > 1 and "MASTER_PORT" not in os.environ:
            raise ValueError(
                f"trainer.num_nodes is {strategy.num_nodes}, and nothing says where the nodes "
                "meet: start the processes of all by torchrun or SLURM, or set NODE_RANK, and "
                "MASTER_ADDR and MASTER_PORT alike on all"
            )
        connect = strategy.setup_environment

        # Lightning calls it when it has started the processes that it starts
        def meet_and_connect() -> None:
            # from here on the others are told of an error, one of connecting too
            stack.enter_context(_meet(strategy, timeout_seconds).together())
            connect()

        strategy.setup_environment = meet_and_connect  # type: ignore[method-assign]
        # the processes that Lightning starts inherit it
        os.environ[PARENT] = str(os.getpid())
    with _without_lines_of_lightning():
        fabric.launch()
    # its loggers go by the environment, where a LOCAL_RANK may be left of other processes
    rank_zero_only.rank = fabric.global_rank  # type: ignore[attr-defined]


@contextmanager
def _without_lines_of_lightning() -> Iterator[None]:
    """Leave out what Lightning tells of processes that meet: the run tells their number itself."""
    loggers = [logging.getLogger(f"lightning.{room}.utilities") for room in ("fabric", "pytorch")]
    before = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.WARNING)
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


def _meet(strategy: DDPStrategy, timeout_seconds: float) -> Watch:
    """Wait for the other processes where signals are heard, which torch is deaf to while it
    waits.
    """
    global _watch
    # workers of a DataLoader and other children to come are none of the run's processes
    os.environ.pop(PARENT, None)
    started = getattr(strategy.launcher, "procs", [])
    _children[:] = started
    # else Lightning kills this process when it sees one of them end
    started.clear()
    STANDING.last_acts.append(partial(stop, _children, 1.0))
    cluster: Any = strategy.cluster_environment
    address = (cluster.main_address, cluster.main_port)
    _watch = Watch(strategy.global_rank, strategy.world_size, address, timeout_seconds, _children)
    _watch.meet()
    return _watch


def in_turns(fabric: Fabric, act: Callable[[], object]) -> None:
    """Call `act` in the first process of each machine, and then in the others, which find what that
    has fetched.
    """
    for first in (True, False):
        if first == (fabric.local_rank == 0):
            act()
        fabric.barrier()


def _check_processes(fabric: Fabric) -> None:
    """ValueError where the launcher has started another number of processes than the trainer is to
    use.
    """
    # they work together already
    if _watch or torch.distributed.is_initialized():
        return
    for name in _SIZES:
        size = os.environ.get(name, "")
        # in a job named bash or interactive SLURM has started a shell, whatever number is set
        if name == "SLURM_NTASKS" and not SLURMEnvironment.detect():
            continue
        if size.isdecimal() and int(size) > 1 and int(size) != fabric.world_size:
            raise ValueError(
                f"{name} says that {size} processes were started, and trainer.devices x "
                f"trainer.num_nodes is {fabric.world_size}: several whole runs would be trained; "
                "set trainer.devices to the processes of a node and trainer.num_nodes to the "
                f"nodes, or unset {name} if this process is to train alone"
            )


_SIZES = ("WORLD_SIZE", "SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE")
"""Environment variables in which torchrun, SLURM, Open MPI and MPICH say how many processes they
have started.
"""


def _stop_children() -> None:
    """Where this process leaves early: none of its children stays behind."""
    if (why := sys.exc_info()[0]) is not None:
        stop(_children, 1.0 if issubclass(why, LostProcessError) else 3.0)
