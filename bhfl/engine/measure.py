"""A model measured, or a checkpoint of it: what `FederatedTrainer.validate` and `test` do."""

import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import lightning as L

from bhfl.engine.checkpoint import digest
from bhfl.engine.client.module_hooks import overrides
from bhfl.engine.client.plain import STEPS
from bhfl.engine.exchange import Stage
from bhfl.engine.resume import warn_of_known
from bhfl.engine.session import Session
from bhfl.engine.types import FederatedData, Metrics, ServerState

if TYPE_CHECKING:
    from bhfl.engine.trainer import FederatedTrainer


@dataclass(frozen=True)
class Fitted:
    """What a run came to, and the model that it was left in."""

    model: weakref.ref[L.LightningModule]
    sha256: str
    server: ServerState

    @classmethod
    def of(cls, session: Session) -> "Fitted":
        """What a session came to that is over, so that the last weights are in its module."""
        module = session.module
        # by a weak reference, because a trainer must not keep a model alive that its user dropped
        return cls(weakref.ref(module), digest(module.state_dict()), session.server)


def measure(
    trainer: "FederatedTrainer",
    model: L.LightningModule,
    data: FederatedData,
    ckpt_path: str | Path | None,
    stage: Stage,
) -> Metrics:
    """The metrics of a split by tag; see `FederatedTrainer.validate`."""
    module = getattr(model, "_orig_mod", model)
    step = STEPS[stage]
    if not overrides(module, step, L.LightningModule):
        raise ValueError(f"{type(module).__name__} must define {step} to be measured")
    name = "validate" if stage == "val" else "test"
    fitted = fitted_in(trainer, module)
    with Session.opened(trainer, model, data, name) as session:
        folder = take_up(session, ckpt_path, fitted)
        if stage == "val" and folder and trainer.fabric.is_global_zero:
            warn_of_known(folder, data.partition_record())
        metrics = session.evaluate(stage)
        session.call("on_measured", metrics=metrics, stage=stage)
        session.tear_down()
    return metrics


def fitted_in(trainer: "FederatedTrainer", module: L.LightningModule) -> Fitted | None:
    """What the trainer's run came to, where the model is as it was left; asked before a session
    sets the model up.
    """
    fitted = trainer.fitted
    if fitted is None or fitted.model() is not module:
        return None
    return fitted if digest(module.state_dict()) == fitted.sha256 else None


def take_up(session: Session, ckpt_path: str | Path | None, fitted: Fitted | None) -> Path | None:
    """Take up the state of a checkpoint, or else what the trainer's run came to.

    Args:
        session: It is changed.
        ckpt_path: What the user said; None for the model as it is.
        fitted: See `fitted_in`.

    Returns:
        The run folder that the checkpoint lies in, if any.
    """
    if ckpt_path is not None:
        return session.load(ckpt_path)[0]
    run = session.trainer.run
    if fitted and run:
        session.store = run.store
        session.take_up(fitted.server)
    return None


def refuse_parts(session: Session, command: str) -> None:
    """ValueError for a command that works on the server's model, where clients keep parts of it, so
    that nobody has trained the whole.
    """
    if stays := session.evaluator.kept_apart(session.server):
        raise ValueError(
            f"{command} needs a whole model of the server's, and {min(stays)} stays with the "
            "clients: test measures their own models"
        )


def needs_global_model(trainer: "FederatedTrainer", command: str) -> list[str]:
    """Why a command that works on the global model, in one process, cannot be run."""
    problems = []
    if not trainer.algorithm.communicates:
        problems.append(
            f"{command} needs a global model, and {type(trainer.algorithm).__name__} keeps none"
        )
    if trainer.fabric.world_size > 1:
        problems.append(
            f"{command} runs in one process: devices must be 1, got "
            f"{trainer.settings.machine.devices!r}"
        )
    return problems
