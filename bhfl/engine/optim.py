"""`configure_optimizers` in all its return forms, and learning-rate schedules that go on over rounds."""

from __future__ import annotations

import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import lightning as L
from lightning.fabric import Fabric
from lightning.pytorch.core.optimizer import (
    _configure_optimizers,
    _configure_schedulers_automatic_opt,
    _configure_schedulers_manual_opt,
)
from lightning.pytorch.utilities.types import LRSchedulerConfig
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from bhfl.engine.recorder import tag_of


def check_optimizers(module: L.LightningModule) -> None:
    """Make the optimisers once, before any work: what torch refuses would fail every client of every round.

    Other errors are left to the first client, for which alone the module has all that it may ask for.

    Raises:
        ValueError: In torch's words.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that the optimisers have made no step
            configured: Any = module.configure_optimizers()
            _, schedulers, _ = _configure_optimizers(configured) if configured else ([], [], None)
            for schedule in _configure_schedulers_manual_opt(schedulers):
                if isinstance(schedule.scheduler, LRScheduler) and not schedule.reduce_on_plateau:
                    schedule.scheduler.step()
    except Exception as error:
        frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
        if str(frames[-1].f_globals.get("__name__", "")).startswith("torch.optim"):
            name = f"{type(module).__name__}.configure_optimizers"
            raise ValueError(f"{name} asks for what torch refuses: {type(error).__name__}: {error}") from error


class LocalOptimizers:
    """A client's fresh optimisers for one round, with their schedules at the right place.

    Args:
        module: The client; its `configure_optimizers` is called once.
        fabric: For the precision plugin's optimiser step.
        position: Learning-rate steps done before this round, by interval: ``{"epoch": ..., "step": ...}``. Zero for
            schedules that restart each round.
        history: The server's metrics, a row for each past round: ReduceLROnPlateau takes one step a round on them.
            None for schedules that restart: it then steps on what the client itself logs.

    Raises:
        ValueError: `configure_optimizers` returned no optimiser.
    """

    def __init__(
        self,
        module: L.LightningModule,
        fabric: Fabric,
        position: Mapping[str, int],
        history: Sequence[Mapping[str, Any]] | None,
    ) -> None:
        configured: Any = module.configure_optimizers()
        raw, schedulers, monitor = _configure_optimizers(configured) if configured else ([], [], None)
        if not raw:
            raise ValueError(
                f"{type(module).__name__}.configure_optimizers must return an optimizer, got {configured!r}"
            )
        if module.automatic_optimization:
            if len(raw) != 1:
                raise ValueError(
                    f"{type(module).__name__}.configure_optimizers returned {len(raw)} optimizers: several need manual "
                    "optimization (self.automatic_optimization = False), as in Lightning"
                )
            self.schedules = _configure_schedulers_automatic_opt(schedulers, monitor)
        else:
            self.schedules = _configure_schedulers_manual_opt(schedulers)
        self.raw: list[Optimizer] = raw
        wrapped = fabric.setup_optimizers(*raw)
        self.wrapped = list(wrapped) if isinstance(wrapped, tuple) else [wrapped]
        self.position, self.continued = position, history is not None
        self.automatic = module.automatic_optimization
        for schedule in self.schedules:
            if schedule.reduce_on_plateau:
                _replay(schedule, history or ())
            elif not isinstance(schedule.scheduler, ReduceLROnPlateau):  # a manual one steps on what its module likes
                _fast_forward(schedule, position)

    @property
    def lr(self) -> float:
        """Learning rate of the first parameter group of the first optimiser."""
        return float(self.raw[0].param_groups[0]["lr"])

    def advance(self, interval: Literal["step", "epoch"], done: int, metrics: Callable[[], Mapping[str, Any]]) -> None:
        """Step the schedules of `interval`, of which `done` have now passed this round; manual ones step themselves.

        Raises:
            ValueError: ReduceLROnPlateau monitors a value that the client did not log.
        """
        for schedule in self.schedules if self.automatic else ():
            if schedule.interval != interval or (self.position[interval] + done) % schedule.frequency:
                continue
            scheduler: Any = schedule.scheduler
            if not schedule.reduce_on_plateau:
                scheduler.step()
            elif self.continued:
                continue
            elif (monitor := tag_of(schedule.monitor or "")) in (logged := metrics()):
                scheduler.step(logged[monitor])
            elif schedule.strict:
                raise ValueError(
                    f"ReduceLROnPlateau monitors {monitor!r}, which the client did not log; "
                    f"logged: {', '.join(sorted(logged)) or 'nothing'}"
                )


def lend_(module: L.LightningModule, fabric: Fabric, optimizers: list[Any], schedules: list[LRSchedulerConfig]) -> None:
    """Let the module's `optimizers()`, `lr_schedulers()` and `toggle_optimizer()` find these."""
    module._fabric_optimizers = optimizers
    fabric.optimizers, fabric.lr_scheduler_configs = optimizers, schedules  # type: ignore[attr-defined]


def _replay(schedule: LRSchedulerConfig, history: Sequence[Mapping[str, Any]]) -> None:
    """Step ReduceLROnPlateau once for each past round that logged what it monitors."""
    monitor = tag_of(schedule.monitor or "")
    values = [row[monitor] for row in history if monitor in row]
    stage = monitor.partition("/")[0] + "/"
    known = sorted({tag for row in history for tag in row if tag.startswith(stage)}) if not values else []
    if known and schedule.strict:  # where none is known there was no validation yet
        raise ValueError(f"ReduceLROnPlateau monitors {monitor!r}, which no round logged; logged: {', '.join(known)}")
    scheduler: Any = schedule.scheduler
    for value in values:
        scheduler.step(value)


def _fast_forward(schedule: LRSchedulerConfig, position: Mapping[str, int]) -> None:
    """Bring a fresh schedule to where the rounds before have left it, by the very steps they made."""
    scheduler: Any = schedule.scheduler
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step")
        for _ in range(position[schedule.interval] // schedule.frequency):
            scheduler.step()
