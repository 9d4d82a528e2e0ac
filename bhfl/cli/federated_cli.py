"""LightningCLI over `FederatedTrainer`: one parser for files and options, checked before anything is built."""

from __future__ import annotations

import inspect
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Optional, Union, get_type_hints

import lightning as L
import yaml
from jsonargparse import ArgumentParser, Namespace
from jsonargparse.typing import register_type
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

import bhfl
import bhfl.algorithms
import bhfl.callbacks
from bhfl.cli.classes import Kind
from bhfl.cli.exits import by_data, original, raised_by
from bhfl.cli.reading import ConfigError, Keys, Layer, asks_help, read_layers
from bhfl.cli.schema import Checked, Checker, Instance, Section
from bhfl.data import Digits, FederatedDataModule
from bhfl.engine.algorithm import Algorithm
from bhfl.engine.fleet import Fleet
from bhfl.engine.folder import durable
from bhfl.engine.settings import check_settings
from bhfl.engine.trainer import FederatedTrainer
from bhfl.models import Classifier

_OUTSIDE = ("clients", "algorithm", "seed")
"""Options of the trainer that stand at the top level of a configuration."""
_DEFAULTS = {"algorithm": bhfl.algorithms.FedAvg, "model": Classifier, "data": Digits}
_TITLES = {"algorithm": "Algorithm", "model": "Model", "data": "Data", "trainer": "Trainer"}
_LINKED = ("num_classes", "input_shape")
"""What the model learns from the data."""
_UNSHAPING = ("root", "archive", "download", "num_workers")
"""Options of a data module that say where the data are, not what they are."""
_SKIP_NONE = "skip_unset" if "skip_unset" in inspect.signature(ArgumentParser.dump).parameters else "skip_none"
"""jsonargparse 4.49 renamed it."""


class AnyCallback(ABC):
    """What `trainer.callbacks` takes: objects with at least one hook of the trainer."""

    @abstractmethod
    def on_round_end(self, trainer: FederatedTrainer, metrics: dict[str, Any]) -> None:
        """One of the hooks."""

    @classmethod
    def __subclasshook__(cls, other: type) -> bool:
        hooks = ("on_fit_start", "on_client_end", "on_round_end", "on_fit_end", "on_measured")
        return any(hasattr(other, hook) for hook in hooks)


_CALLBACKS = (AnyCallback, *(getattr(bhfl.callbacks, name) for name in bhfl.callbacks.__all__))
"""Ours one by one, so that their short names are known."""


class Parser(LightningArgumentParser):
    """A parser that raises ConfigError, and takes no abbreviations."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"prog": "bhfl", "allow_abbrev": False, **kwargs})

    def error(self, message: str, ex: Exception | None = None) -> Any:
        """Raise what is wrong; parsers inside parsers are asked to raise jsonargparse's own error."""
        if not self.exit_on_error:
            super().error(message, ex)
        raise ConfigError([_plain(message)]) from ex


class FederatedCLI(LightningCLI):
    """Parses, builds and runs one command.

    Args:
        args: The command's name and its options.

    Raises:
        ConfigError: With the problems of the configuration; nothing has been built or written by then.
    """

    trainer: FederatedTrainer
    layers: list[Layer]

    def __init__(self, args: Sequence[str]) -> None:
        super().__init__(
            model_class=L.LightningModule,
            datamodule_class=FederatedDataModule,
            save_config_callback=SaveConfig,
            trainer_class=FederatedTrainer,  # type: ignore[arg-type]
            seed_everything_default=0,
            parser_class=Parser,
            subclass_mode_model=True,
            subclass_mode_data=True,
            args=list(args),
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
        )

    # ---- the parser -----------------------------------------------------------------------------------------------

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """A parser whose output begins with our version."""
        return super().init_parser(**{"dump_header": [f"bhfl {bhfl.__version__}"], **kwargs})

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """The commands, and the arguments of the trainer's methods that are built here."""
        return {command: {"model", "datamodule"} for command in ("fit", "validate", "test")}

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        usage = f"bhfl {subcommand} [--config FILE ...] [--option value ...]"
        return super()._prepare_subcommand_parser(klass, subcommand, **kwargs, usage=usage)

    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """The seed."""
        parser.add_argument("--seed_everything", type=int, default=0, help="Seed of the initial weights and of the run.")

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """The fleet, the algorithm, the model, the data and the trainer."""
        parser.add_argument("--clients", type=Fleet, required=True, help="The fleet, e.g. '{8: 5, 32: 5}' (bits: count).")
        parser.add_subclass_arguments(Algorithm, "algorithm", required=True)
        parser.add_lightning_class_args(self._model_class, "model", subclass_mode=True)
        parser.add_lightning_class_args(self._datamodule_class, "data", subclass_mode=True)
        parser.set_defaults({key: {"class_path": f"{cls.__module__}.{cls.__name__}"} for key, cls in _DEFAULTS.items()})
        parser.add_class_arguments(
            FederatedTrainer, "trainer", instantiate=False, skip={*_OUTSIDE, "callbacks"}, fail_untyped=False
        )
        parser.groups["trainer"].add_argument("--trainer.callbacks", type=Optional[list[Union[_CALLBACKS]]], help="More callbacks.")
        for key, title in _TITLES.items():
            parser.groups[key].title = title
        for name in _LINKED:
            parser.link_arguments(f"data.{name}", f"model.init_args.{name}", apply_on="instantiate")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Check each layer by itself, parse them all, and check the outcome."""
        self.layers = read_layers(args[1:])
        checker = Checker(_schema(), self._parser(args[0]).get_defaults().as_dict())
        problems = [problem for layer in self.layers for problem in checker(layer)]
        named = {key for layer in self.layers for key in layer.values}
        if "clients" not in named and not asks_help(args) and not {"--print_config"} & set(args):
            problems.append("clients is missing: the fleet, for example --clients '{8: 5, 32: 5}'")
        if problems:
            raise ConfigError(problems)
        self.config = parser.parse_args(args)
        self._check_settings()

    def _parse_ckpt_path(self) -> None:
        """Nothing is taken from a checkpoint: what is typed holds, and the trainer lists contradictions."""

    def _check_settings(self) -> None:
        """The trainer's own checks, before anything is built."""
        config = self.config[self.config.subcommand]
        try:
            check_settings({**config.trainer, "clients": config.clients, "seed": config.seed_everything})
        except ValueError as error:
            raise ConfigError([self._named(line) for line in str(error).splitlines()]) from error

    def _named(self, problem: str) -> str:
        """A problem of the trainer, under the name that its option has here, and where it was given."""
        key = problem.split(" ")[0]
        if key == "seed":
            keys: Keys = ("seed_everything",)
        elif key in inspect.signature(FederatedTrainer).parameters and key not in _OUTSIDE:
            keys = ("trainer", key)
        else:
            return problem
        place = next((layer.place(keys) for layer in reversed(self.layers) if keys in layer.lines), "")
        return f"{place}{'.'.join(keys)}{problem.removeprefix(key)}"

    # ---- building and running -------------------------------------------------------------------------------------

    def _set_seed(self) -> None:
        """Seed the global generators, from which modules draw their initial weights."""
        L.seed_everything(self._get(self.config, "seed_everything"), verbose=False)

    def instantiate_classes(self) -> None:
        """Build data, model, algorithm and trainer; what they refuse is a problem of the configuration."""
        try:
            super().instantiate_classes()
        except Exception as error:
            cause = original(error)
            refused = isinstance(cause, (ValueError, OSError)) or raised_by(cause) == "lightning"
            if by_data(cause) or not refused:
                raise cause from None
            raise ConfigError(str(cause).splitlines()) from cause

    def instantiate_trainer(self, **kwargs: Any) -> FederatedTrainer:
        """The trainer, with the options that stand outside its section and our callbacks before the user's."""
        init = self.config_init[self.subcommand]
        given = init.trainer.callbacks or []
        ours = [cls() for cls in (bhfl.callbacks.Progress, bhfl.callbacks.WeightHistograms)]
        init.trainer.callbacks = [c for c in ours if type(c) not in map(type, given)] + given
        trainer: FederatedTrainer = super().instantiate_trainer(
            clients=init.clients, algorithm=init.algorithm, seed=init.seed_everything, **kwargs
        )
        config = yaml.safe_load(_dumped(self._parser(self.subcommand), self.config[self.subcommand]))
        trainer.config = {key: config[key] for key in _DEFAULTS}
        for key in _UNSHAPING:
            trainer.config["data"].get("init_args", {}).pop(key, None)
        return trainer

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        """The arguments of the trainer's method; ``last`` and ``best`` mean the run whose configuration is used."""
        arguments: dict[str, Any] = super()._prepare_subcommand_kwargs(subcommand)
        which = arguments["ckpt_path"]
        folders = [Path(layer.file).parent for layer in self.layers if layer.file]
        runs = [folder for folder in folders if (folder / "checkpoints").is_dir()]
        if runs and which in ("last", "best"):
            arguments["ckpt_path"] = runs[-1] if which == "last" else runs[-1] / "checkpoints" / "best.ckpt"
        return arguments


class SaveConfig:
    """Writes the parsed configuration to ``config.yaml`` of the run folder.

    Args:
        parser: Of the command.
        config: As it was parsed.
    """

    def __init__(self, parser: LightningArgumentParser, config: Namespace) -> None:
        self.text = _dumped(parser, config)

    def on_fit_start(self, trainer: FederatedTrainer) -> None:
        """Write it, once the run folder is there."""
        if trainer.fabric.is_global_zero and trainer.run is not None:
            with durable(trainer.run.folder / "config.yaml") as file:
                file.write(self.text.encode())


def _plain(message: str) -> str:
    """The core of jsonargparse's account of every alternative that a value does not fit."""
    noise = "Does not validate|Subtypes:|Errors:|Given value|Problem with given class_path|- Expected a "
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    telling = [line for line in lines if not re.match(f"(- )?({noise})", line)]
    return re.sub(r'(- )?Parser key "([\w.]+)":', r"\2:", " ".join(telling or lines))


def _dumped(parser: LightningArgumentParser, config: Namespace) -> str:
    """`config` as YAML that parses to it again; a checkpoint to go on from is not part of a run's configuration."""
    config = config.clone()
    config.pop("ckpt_path", None)
    text: str = parser.dump(config, **{_SKIP_NONE: False})
    return text


def _schema() -> Section:
    """What a configuration may hold."""
    taken = {name: "is given at the top level" for name in _OUTSIDE} | {"seed": "is given by seed_everything"}
    hints = get_type_hints(FederatedTrainer.__init__)
    trainer = {key: hint for key, hint in hints.items() if key not in (*_OUTSIDE, "callbacks", "return")}
    trainer["callbacks"] = Optional[list[Instance(Kind("a callback", _CALLBACKS))]]  # type: ignore[misc]
    return Section(
        {
            "seed_everything": int,
            "clients": Checked(Fleet),
            "algorithm": Instance(Kind("an algorithm", (Algorithm,))),
            "model": Instance(Kind.of(L.LightningModule), {name: f"is taken from the data" for name in _LINKED}),
            "data": Instance(Kind.of(FederatedDataModule)),
            "trainer": Section(trainer, taken),
            "ckpt_path": Union[str, Path, None],
        }
    )


register_type(Fleet, Fleet.to_config, Fleet, (ValueError, TypeError))
