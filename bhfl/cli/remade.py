"""What a configuration names, made again in the process of somebody else: nothing is run."""

import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities.seed import isolate_rng

from bhfl.cli.federated_cli import FederatedCLI
from bhfl.cli.reading import ConfigError, Layer, read_file
from bhfl.engine.links import MeasuredLinks
from bhfl.engine.trainer import FederatedTrainer
from bhfl.engine.types import only
from bhfl.recorded import UNWRITTEN


class _MadeHere(FederatedCLI):
    """A command that ends when all is made, the trainer too."""

    def _run_subcommand(self, subcommand: str) -> None:
        """There is nothing to run."""


class _Remade(_MadeHere):
    """A command that ends when its classes are made; it draws from no global generator."""

    def _check_settings(self) -> None:
        """The trainer is not made."""

    def _set_seed(self) -> None:
        """The generators are those of whoever asks."""

    def instantiate_trainer(self, **kwargs: Any) -> Any:
        """None is needed."""

    def made(self, part: str) -> Any:
        """The object that a section of the configuration names."""
        return self._get(self.config_init, part)


def made_here(layers: Sequence[Layer]) -> tuple[FederatedTrainer, Any, Any]:
    """Trainer, model and data of a configuration, for a run that another process leads.

    Args:
        layers: The configuration.

    Raises:
        ValueError: It cannot be used; the message says why.
    """
    try:
        # a command that no callback tells of
        found: Any = _MadeHere(["profile"], layers)
    except ConfigError as error:
        raise ValueError("; ".join(error.problems)) from error
    trainer: FederatedTrainer = found.trainer
    # whoever leads the run measures how fast this process is, and plans by it
    trainer.links = MeasuredLinks(trainer.settings)
    return trainer, found.model, found.datamodule


def remade(config: Path, parts: Collection[str]) -> dict[str, Any]:
    """Objects that a run's configuration names.

    Args:
        config: Its ``config.yaml``.
        parts: Which of ``algorithm``, ``model`` and ``data``; the model needs the data, for its
            number of classes.

    Raises:
        ValueError: They cannot be made; the message says why.
    """
    # warnings of what LightningCLI calls, which no user can mend
    os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
    try:
        layer = read_file(str(config), "config.yaml")
        if isinstance(missing := layer.values.get(UNWRITTEN), dict):
            for part in parts:
                if part in missing:
                    raise ValueError(f"{part} is not written there: {missing[part]}")
        layer.values = only(layer.values, (*parts, "clients"))
        with isolate_rng(include_cuda=False):
            found = _Remade(["test"], [layer])
    except ConfigError as error:
        raise ValueError("; ".join(error.problems)) from error
    return {part: found.made(part) for part in parts}
