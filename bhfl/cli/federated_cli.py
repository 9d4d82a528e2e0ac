"""LightningCLI over `FederatedTrainer`: one parser for files and options, checked before anything
is built.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import yaml
from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

import bhfl
from bhfl.callbacks import Progress, WeightHistograms
from bhfl.cli.classes import imported
from bhfl.cli.commands import CommandTrainer
from bhfl.cli.exits import by_data, original, raised_by, say, told, too_large
from bhfl.cli.parser import (
    OUTSIDE,
    PARTS,
    Parser,
    add_arguments,
    core,
    dumped,
    schema,
    taken_from_data,
)
from bhfl.cli.reading import ConfigError, Keys, Layer, asks_help, with_plain_paths
from bhfl.cli.schema import Checker
from bhfl.data import FederatedDataModule
from bhfl.engine.callback import Callback
from bhfl.engine.settings import checked_settings
from bhfl.engine.trainer import FederatedTrainer
from bhfl.files import durable
from bhfl.settings import DATA_ROLES, Role


class FederatedCLI(LightningCLI):
    """Parses, builds and runs one command.

    Args:
        args: The command's name and its options.
        layers: What the options say, as `read_layers` reads it.

    Raises:
        ConfigError: With the problems of the configuration; nothing has been written by then.
    """

    def __init__(self, args: Sequence[str], layers: Sequence[Layer]) -> None:
        self.layers, self.command = layers, args[0]
        super().__init__(
            model_class=L.LightningModule,
            datamodule_class=FederatedDataModule,
            save_config_callback=SaveConfig,  # type: ignore[arg-type]  # duck-typed, as the trainer is
            trainer_class=CommandTrainer,  # type: ignore[arg-type]
            parser_class=Parser,
            args=with_plain_paths(args),
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
        )

    # ---- the parser ------------------------------------------------------------------------------

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]  # theirs is static, and called on self
        """The command, whose parser alone is worth the time, and those of its arguments that are
        built here.
        """
        return {self.command: {"model", "datamodule"}}

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """A parser whose output begins with our version."""
        return super().init_parser(**{"dump_header": [f"bhfl {bhfl.__version__}"], **kwargs})

    def _prepare_subcommand_parser(
        self, klass: type, subcommand: str, **kwargs: Any
    ) -> LightningArgumentParser:
        usage = f"bhfl {subcommand} [--config FILE ...] [--option value ...]"
        return super()._prepare_subcommand_parser(klass, subcommand, **{**kwargs, "usage": usage})

    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """The seed."""
        parser.add_argument(
            "--seed_everything",
            type=int,
            default=0,
            help="Seed of the initial weights and the run.",
        )

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """The rest: LightningCLI's own version takes only a `Trainer`."""
        add_arguments(parser)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Check each layer by itself, parse them all, and check the outcome."""
        checker = Checker(schema(args[0]), self._parser(args[0]).get_defaults().as_dict())
        problems = [problem for layer in self.layers for problem in checker(layer)]
        given = {key for layer in self.layers for key in layer.values}
        explains = asks_help(args) or any(word.startswith("--print_config") for word in args)
        if "clients" not in given and not explains:
            problems.append("clients is missing: the fleet, for example --clients '{8: 5, 32: 5}'")
        if problems:
            raise ConfigError(problems)
        parser_of_command: Any = self._parser(args[0])
        parser_of_command.amend = partial(take_own_defaults, named=checker.named)
        self.config = parser.parse_args(args)
        config = self.config[self.config.subcommand]
        take_own_defaults(config, checker.named)
        parser_of_command.taken_from_data = taken_from_data(imported(config.model.class_path))
        self._check_settings()

    def _parse_ckpt_path(self) -> None:
        """Nothing is taken from a checkpoint: what is typed holds, and the trainer lists
        contradictions.
        """

    def _check_settings(self) -> None:
        """The trainer's own checks, before anything is built."""
        options = trainer_options(self.config[self.config.subcommand])
        options["callbacks"] = None  # their classes are checked, and they are made later
        try:
            checked_settings(options)
        except ValueError as error:
            raise ConfigError([self._located(line) for line in str(error).splitlines()]) from error

    def _located(self, problem: str) -> str:
        """A problem of the trainer, with the name that its option has here and where it was
        given.
        """
        key = problem.split(" ")[0]
        keys: Keys = ("seed_everything",) if key == "seed" else ("trainer", key)
        if key != "seed" and (
            key in OUTSIDE or key not in inspect.signature(FederatedTrainer).parameters
        ):
            return problem
        names = [layer.place(keys) + layer.name(keys) for layer in self.layers if layer.gives(keys)]
        return (names or [".".join(keys)])[-1] + problem.removeprefix(key)

    # ---- building and running --------------------------------------------------------------------

    def _set_seed(self) -> None:
        """Seed the global generators, from which modules draw their initial weights."""
        L.seed_everything(self._get(self.config, "seed_everything"), verbose=False)

    def instantiate_classes(self) -> None:
        """Build data, model, algorithm and trainer; what they refuse is a problem of the
        configuration.
        """
        try:
            super().instantiate_classes()
        except Exception as error:
            cause = original(error)
            refused = (
                isinstance(cause, (ValueError, OSError))
                or raised_by(cause) == "lightning"
                or too_large(cause)
            )
            if by_data(cause) or not refused:
                raise cause from None
            problems = (
                [core(str(cause))]
                if raised_by(cause) == "jsonargparse"
                else told(cause).splitlines()
            )
            raise ConfigError(problems) from cause

    def instantiate_trainer(self, **kwargs: Any) -> Any:
        """The trainer, with the options that stand outside its section, and our callbacks before
        the user's.
        """
        init = self.config_init[self.subcommand]
        given = init.trainer.callbacks or []
        ours = [cls() for cls in (Progress, WeightHistograms) if cls not in map(type, given)]
        init.trainer.callbacks = [*ours, *given]
        if self.command in ("analyze", "export"):  # whatever a run's configuration says
            devices = init.trainer.devices
            init.trainer.devices = devices[:1] if isinstance(devices, list) else 1
            init.trainer.num_nodes = 1
        trainer: Any = super().instantiate_trainer(**trainer_options(init), **kwargs)
        trainer.config = self.parts()
        return trainer

    def parts(self) -> dict[str, Any]:
        """What the configuration says of algorithm, model and data, but for where the data lie."""
        config = yaml.safe_load(dumped(self._parser(self.subcommand), self.config[self.subcommand]))
        data = config["data"]
        roles = {**DATA_ROLES, **type(self.datamodule).roles}
        data["init_args"] = {
            key: value
            for key, value in data.get("init_args", {}).items()
            if roles.get(key) not in (Role.IDENTITY, Role.MACHINE)
        }
        return {part: config[part] for part in PARTS}

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        """The arguments of the trainer's method; ``last`` and ``best`` mean the run whose
        ``config.yaml`` is used.
        """
        arguments: dict[str, Any] = super()._prepare_subcommand_kwargs(subcommand)
        which = arguments["ckpt_path"]
        if which is None and subcommand not in ("fit", "export"):
            say("note: no --ckpt_path is given: these weights are untrained")
        files = [Path(layer.file) for layer in self.layers if layer.file]
        # it may be a link
        folders = [place for file in files for place in (file.resolve().parent, file.parent)]
        runs = [folder for folder in folders if (folder / "checkpoints").is_dir()]
        if runs and which in ("last", "best"):
            arguments["ckpt_path"] = (
                runs[-1] if which == "last" else runs[-1] / "checkpoints" / "best.ckpt"
            )
        return arguments


def trainer_options(config: Namespace) -> dict[str, Any]:
    """The trainer's keyword arguments that a configuration says."""
    parameters = inspect.signature(FederatedTrainer).parameters
    options = {name: one.default for name, one in parameters.items()}
    options |= config.trainer  # which lacks optional classes that are not chosen
    outside = {"clients": config.clients, "algorithm": config.algorithm}
    return {**options, **outside, "seed": config.seed_everything}


def take_own_defaults(config: Namespace, named: Mapping[Keys, Collection[str]]) -> None:
    """Undo what jsonargparse hands on to a class that was named from the one that its place has by
    default.

    A momentum would go to every SGD, a learning rate to every optimiser.

    Args:
        config: As parsed; changed.
        named: Where classes were named, and the options that the user gave them.
    """
    for slot, given in named.items():
        place = _at(config, slot)
        if not isinstance(place, Namespace) or not isinstance(place.get("init_args"), Namespace):
            continue
        own = inspect.signature(imported(place.class_path)).parameters
        for option, value in vars(place.init_args).items():
            default = own[option].default if option in own else value
            plain = isinstance(default, (bool, int, float, str))
            if plain and option not in given and value != default:
                place.init_args[option] = float(default) if isinstance(value, float) else default


def _at(config: Any, slot: Keys) -> Any:
    """What stands at `slot` of a parsed configuration; None in lists, whose items have no class by
    default.
    """
    for key in slot:
        inner = (
            config.get("init_args")
            if isinstance(config, Namespace) and key not in config
            else config
        )
        if not isinstance(inner, Namespace) or key not in inner:
            return None
        config = inner[key]
    return config


class SaveConfig(Callback):
    """A callback that writes the parsed configuration to ``config.yaml`` of the run folder.

    Args:
        parser: Of the command.
        config: As it was parsed.
    """

    def __init__(self, parser: LightningArgumentParser, config: Namespace) -> None:
        self.text = dumped(parser, config)

    def on_fit_start(self, trainer: FederatedTrainer) -> None:
        """Write it, now that the folder is there."""
        if trainer.fabric.is_global_zero and trainer.run is not None:
            with durable(trainer.run.folder / "config.yaml") as file:
                file.write(self.text.encode())
