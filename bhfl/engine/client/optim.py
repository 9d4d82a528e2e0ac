"""`configure_optimizers` in all its return forms, and learning-rate schedules that go on over
rounds.
"""

import traceback
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import lightning as L
from lightning.pytorch.core.optimizer import (
    LightningOptimizer,
    _configure_optimizers,
    _configure_schedulers_automatic_opt,
    _configure_schedulers_manual_opt,
)
from lightning.pytorch.utilities.types import LRSchedulerConfig
from torch.optim import Optimizer, SparseAdam
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from bhfl.engine.algorithm import Algorithm
from bhfl.engine.client.module_hooks import overrides
from bhfl.engine.client.place import Place
from bhfl.engine.client.recorder import tag_of
from bhfl.engine.devices import Group
from bhfl.engine.optimizers import Replaced
from bhfl.recorded import described, spelled


def configured(module: L.LightningModule) -> tuple[list[Optimizer], list[LRSchedulerConfig]]:
    """The optimisers that a module asks for, and their schedules.

    Raises:
        ValueError: It asks for none, or for several where it optimises automatically.
    """
    asked: Any = module.configure_optimizers()
    # Lightning's own reader takes every form that modules may return
    optimizers, schedulers, monitor = _configure_optimizers(asked) if asked else ([], [], None)
    hook = f"{type(module).__name__}.configure_optimizers"
    if not optimizers:
        raise ValueError(f"{hook} must return an optimizer, got {asked!r}")
    if not module.automatic_optimization:
        return optimizers, _configure_schedulers_manual_opt(schedulers)
    if len(optimizers) > 1:
        raise ValueError(
            f"{hook} returned {len(optimizers)} optimizers: several need manual optimization "
            "(self.automatic_optimization = False), as in Lightning"
        )
    return optimizers, _configure_schedulers_automatic_opt(schedulers, monitor)


def check_optimizers(
    module: L.LightningModule, groups: Iterable[Group] = (), method: Algorithm | None = None
) -> tuple[dict[str, Any], list[str]]:
    """Make the optimisers once, before any work: what is refused would fail every client of every
    round.

    Other errors are left to the first client, for which alone the module has all that it may ask
    for.

    Args:
        module: Whose optimisers are meant.
        groups: The fleet's, which may have an optimiser in place of the module's one.
        method: The algorithm, which may need optimisers that go down.

    Returns:
        What the optimisers and their schedules are, as a configuration says them; and the tags of
        the metrics that ReduceLROnPlateau needs over rounds.

    Raises:
        ValueError: See :func:`configured`; torch or Lightning refuses them; or a group has one
            in place of several, one goes up, or one takes no dense gradients.
    """
    found: dict[str, list[Any]] = {}
    needed: list[str] = []
    optimizers: list[Optimizer] = []
    try:
        with warnings.catch_warnings():
            # torch warns of schedules that step before their optimisers do
            warnings.simplefilter("ignore")
            optimizers, schedules = configured(module)
            found["optimizer"] = [spelled(type(one), one.defaults) for one in optimizers]
            found["lr_scheduler"] = [described(schedule.scheduler) for schedule in schedules]
            # torch refuses some schedules only at their first step
            for schedule in schedules:
                follows = schedule.reduce_on_plateau
                needed += [tag_of(schedule.monitor or "")] * (follows and schedule.strict)
                if isinstance(schedule.scheduler, LRScheduler) and not follows:
                    schedule.scheduler.step()
    except Exception as error:
        _raise_refusal(module, error)
    replaced: list[Optimizer] = []
    for group in groups:
        if group.optimizer is None or not optimizers:
            continue
        if len(optimizers) > 1:
            raise ValueError(
                f"clients: optimizer of group {group.label!r} stands in for one optimizer, and "
                f"{type(module).__name__}.configure_optimizers returns several"
            )
        # raises where its rate cannot follow, which would fail each client of the group
        replaced.append(Replaced(optimizers[0], group.optimizer).optimizer)
    _check_descent(method, optimizers + replaced)
    _check_sparse(module, optimizers)
    # several stay a list; none are as if they were not set
    told = {name: many if many[1:] else next(iter(many), None) for name, many in found.items()}
    return told, needed


def _raise_refusal(module: L.LightningModule, error: Exception) -> None:
    """Raise what was refused of `configure_optimizers`: by our rules, by torch or by Lightning."""
    # the innermost frame alone: errors of the module's own code are left to its first client
    frame = [frame for frame, _ in traceback.walk_tb(error.__traceback__)][-1]
    if frame.f_code is configured.__code__:
        raise error
    origin = str(frame.f_globals.get("__name__"))
    if origin.startswith(("torch.optim", "lightning.pytorch.core.optimizer")):
        raise ValueError(
            f"{type(module).__name__}.configure_optimizers asks for what "
            f"{origin.partition('.')[0]} refuses: {type(error).__name__}: {error}"
        ) from error


def _check_descent(method: Algorithm | None, optimizers: Iterable[Optimizer]) -> None:
    """ValueError where one of them goes up, and the method needs all to go down."""
    if method and method.descends and any(one.defaults.get("maximize") for one in optimizers):
        raise ValueError(
            f"{type(method).__name__} changes losses or gradients for optimizers that go down: "
            "maximize must be false, got true; let training_step return minus the value"
        )


def _check_sparse(module: L.LightningModule, optimizers: Iterable[Optimizer]) -> None:
    """ValueError where one takes sparse gradients alone, and no layer of the module has such."""
    sparse = any(getattr(layer, "sparse", False) for layer in module.modules())
    if not sparse and any(isinstance(one, SparseAdam) for one in optimizers):
        raise ValueError(
            "optimizer must take dense gradients, as no layer of "
            f"{type(module).__name__} has sparse=True, got SparseAdam; take Adam"
        )


class LocalOptimizers:
    """A client's fresh optimisers for one round, with their schedules at the right place, lent to
    the module.

    Args:
        module: The client; its `configure_optimizers` is called once.
        place: Where in the run it is.
        history: The server's metrics, a row for each past round: ReduceLROnPlateau takes one step a
            round on them. None for schedules that restart: it then steps on what the client itself
            logs.

    Raises:
        ValueError: `configure_optimizers` returned no optimiser.
    """

    def __init__(
        self, module: L.LightningModule, place: Place, history: Sequence[Mapping[str, Any]] | None
    ) -> None:
        self.raw, self.schedules = configured(module)
        wanted = place.client.devices.group.optimizer if place.client else None
        if wanted is not None:
            # a module with several was refused before the first round
            self.raw = [Replaced(self.raw[0], wanted).optimizer]
        self.module = module
        self.place = place
        self.continued = history is not None
        self.automatic = module.automatic_optimization
        before = place.round if self.continued else 0
        self.position = {
            "epoch": before * place.planned_epochs,
            "step": before * place.planned_steps,
        }
        """Learning-rate steps done before this round, by interval; none where schedules restart in
        each round.
        """
        strategy = module.trainer.strategy
        lent = []
        for optimizer in self.raw:
            lent.append(LightningOptimizer._to_lightning_optimizer(optimizer, strategy))
            # such a module steps by itself, and nothing else here sees it
            if not self.automatic:
                lent[-1]._on_after_step = place.count
        # before any schedule steps: an overridden lr_scheduler_step may ask for them
        place.lend(lent, self.schedules)
        for schedule in self.schedules:
            if schedule.reduce_on_plateau:
                self._replay(schedule, history or ())
            # a manual one steps on what its module likes
            elif not isinstance(schedule.scheduler, ReduceLROnPlateau):
                self._fast_forward(schedule)

    def advance(self, interval: Literal["step", "epoch"], done: int) -> None:
        """Step the schedules of `interval`, of which `done` have now passed this round; manual ones
        step themselves.
        """
        for schedule in self._due(interval, done):
            if not schedule.reduce_on_plateau:
                self.module.lr_scheduler_step(schedule.scheduler, None)

    def advance_plateaus(
        self,
        interval: Literal["step", "epoch"],
        done: int,
        metrics: Callable[[], Mapping[str, Any]],
    ) -> None:
        """The same for ReduceLROnPlateau, which waits for what the batch or the epoch logged.

        Raises:
            ValueError: It monitors a value that the client did not log.
        """
        for schedule in self._due(interval, done) if not self.continued else ():
            if not schedule.reduce_on_plateau:
                continue
            monitor = tag_of(schedule.monitor or "")
            logged = metrics()
            if monitor in logged:
                self.module.lr_scheduler_step(schedule.scheduler, logged[monitor])
            elif schedule.strict:
                raise ValueError(
                    f"ReduceLROnPlateau monitors {monitor!r}, which the client did not log; "
                    f"logged: {', '.join(sorted(logged)) or 'nothing'}"
                )

    def _due(self, interval: str, done: int) -> list[LRSchedulerConfig]:
        if not self.schedules or not self.automatic:
            return []
        passed = self.position[interval] + done
        return [s for s in self.schedules if s.interval == interval and not passed % s.frequency]

    def _fast_forward(self, schedule: LRSchedulerConfig) -> None:
        """Bring a fresh schedule to where the rounds before have left it, by the very steps they
        made.
        """
        scheduler: Any = schedule.scheduler
        # to stand where the run was takes time, and only an overridden hook sees it
        own = self.automatic and overrides(self.module, "lr_scheduler_step", L.LightningModule)
        with warnings.catch_warnings():
            # the optimiser is fresh, and its steps of the rounds before are not repeated
            warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step")
            # step by step, as many schedules have no closed form to jump by
            for done in range(self.position[schedule.interval] // schedule.frequency):
                if not own:
                    scheduler.step()
                    continue
                with self.place.as_it_was(schedule.interval, (done + 1) * schedule.frequency):
                    self.module.lr_scheduler_step(scheduler, None)

    def _replay(self, schedule: LRSchedulerConfig, history: Sequence[Mapping[str, Any]]) -> None:
        """Step ReduceLROnPlateau once for each past round that logged what it monitors."""
        monitor = tag_of(schedule.monitor or "")
        values = [row[monitor] for row in history if monitor in row]
        if not values and schedule.strict:
            stage = monitor.partition("/")[0] + "/"
            logged: set[str] = set().union(*history)
            known = [tag for tag in sorted(logged) if tag.startswith(stage)]
            # else there was no validation yet, but clients may have measured their own models
            if any("_local_" not in tag for tag in known):
                raise ValueError(
                    f"ReduceLROnPlateau monitors {monitor!r}, which no round logged; logged: "
                    f"{', '.join(known)}"
                )
        for value in values:
            self.module.lr_scheduler_step(schedule.scheduler, value)
