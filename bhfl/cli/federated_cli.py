"""LightningCLI over `FederatedTrainer`: one parser for files and options, checked before anything
is built.
"""

import inspect
from collections.abc import Mapping, Sequence
from copy import deepcopy
from functools import cached_property
from pathlib import Path
from typing import Any

import lightning as L
import yaml
from jsonargparse import Namespace, dict_to_namespace
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

import bhfl
from bhfl.callbacks import Pictures, Progress, WeightHistograms
from bhfl.cli.commands import CommandTrainer
from bhfl.cli.exits import by_data, original, raised_by, say, told, too_large
from bhfl.cli.naming import imported
from bhfl.cli.parser import OUTSIDE, PARTS, Parser, core, schema
from bhfl.cli.reading import ConfigError, Layer, asks_help, options, without_files
from bhfl.cli.schema import Checker, is_spelled_out
from bhfl.data import FederatedDataModule, Partitioner
from bhfl.engine.callback import Callback
from bhfl.engine.resume import is_word
from bhfl.engine.settings import checked_settings
from bhfl.engine.trainer import FederatedTrainer
from bhfl.files import write_text
from bhfl.recorded import UNWRITTEN, described
from bhfl.settings import DATA_ROLES, Role

_SILENT = ("predict", "partition", "analyze", "profile", "export")
"""Commands of which no callback tells."""


class FederatedCLI(LightningCLI):
    """Parses, builds and runs one command.

    Args:
        args: The command's name and its options.
        layers: What the options say, as `read_layers` reads it.

    Raises:
        ConfigError: With the problems of the configuration; nothing has been written by then.
    """

    def __init__(self, args: Sequence[str], layers: Sequence[Layer]) -> None:
        # a matrix gives the same ones to several runs, and what is read is written into them
        self.layers = deepcopy(layers)
        self.command = args[0]
        usage = f"bhfl {self.command} [--config FILE ...] [--option value ...]"
        super().__init__(
            model_class=L.LightningModule,
            datamodule_class=FederatedDataModule,
            save_config_callback=lambda *_: SaveConfig(self.text),  # type: ignore[arg-type]  # duck-typed, as the trainer is
            trainer_class=CommandTrainer,  # type: ignore[arg-type]
            parser_class=Parser,
            parser_kwargs={args[0]: {"dump_header": [f"bhfl {bhfl.__version__}"], "usage": usage}},
            args=list(args),
            # models bring their own optimisers: there are no options for them beside the model's
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
        )

    # ---- the parser ------------------------------------------------------------------------------

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]  # theirs is static, and called on self
        """The command, whose parser alone is worth the time, and those of its arguments that are
        built here.
        """
        return {self.command: {"model", "datamodule"}}

    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """The seed."""
        parser.add_argument(
            "--seed_everything",
            type=int,
            default=0,
            help="Seed of the initial weights and the run.",
        )

    def add_core_arguments_to_parser(self, parser: Any) -> None:
        """The rest: LightningCLI's own version takes only a `Trainer`."""
        parser.add_options()

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Check each layer by itself, parse what they come to, and check the outcome."""
        if asks_help(args):
            parser.parse_args(without_files(args))
        parser_of_command: Any = self._parser(self.command)
        checker = Checker(schema(self.command), parser_of_command.get_defaults().as_dict())
        problems = take_unwritten(self.layers)
        for layer in self.layers:
            problems += checker(layer)
        prints = [flags or "" for name, flags in options(args[1:]) if name == "print_config"]
        if not prints and not any("clients" in layer.values for layer in self.layers):
            problems.append("clients is missing: the fleet, for example --clients '{8: 5, 32: 5}'")
        if problems:
            raise ConfigError(*problems)
        # only when all layers are read is it known which class the model is
        parser_of_command.link_to_data(checker.classes["model",])
        given = {"subcommand": self.command, self.command: checker.merged}
        # once, from what all layers come to: the parser would merge files and options by its own
        # rules
        self.config = parser.parse_object(given)
        take_own_defaults(self.config, given)
        self._tell_of_no_effect(Layer(checker.merged))
        if prints:
            parser_of_command.print_and_leave(parser, self.config, prints[-1])
        self._check_settings()

    def _tell_of_no_effect(self, merged: Layer) -> None:
        """Tell of options that a later one took away again, with the object that they belong to."""
        for layer in self.layers:
            if layer.option and not merged.gives(layer.path):
                say(
                    f"note: {layer.place(layer.path)}{layer.name(layer.path)} has no effect: a "
                    "later option replaces what it belongs to"
                )

    def _parse_ckpt_path(self) -> None:
        """Nothing is taken from a checkpoint: what is typed holds, and the trainer lists
        contradictions.
        """

    def _check_settings(self) -> None:
        """The trainer's own checks, before anything is built."""
        options = trainer_options(self.config[self.command])
        # their classes are checked, and they are made later
        options["callbacks"] = None
        try:
            checked_settings(options)
        except ValueError as error:
            raise ConfigError(*[self._located(line) for line in str(error).splitlines()]) from error

    def _located(self, problem: str) -> str:
        """A problem of the trainer, with the name that its option has here and where it was
        given.
        """
        key, _, rule = problem.partition(" ")
        if key not in inspect.signature(FederatedTrainer).parameters:
            return problem
        keys = (OUTSIDE[key],) if key in OUTSIDE else ("trainer", key)
        name = ".".join(keys)
        for layer in self.layers:
            if layer.gives(keys):
                name = layer.place(keys) + layer.name(keys)
        return f"{name} {rule}"

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
            by = raised_by(cause)
            refused = isinstance(cause, ValueError | OSError) or too_large(cause)
            if by_data(cause) or not (refused or by == "lightning"):
                # a bug, or one of the data: its own type decides on the exit code
                raise cause from None
            text = core(str(cause)) if by == "jsonargparse" else told(cause)
            raise ConfigError(*text.splitlines()) from cause

    def instantiate_trainer(self, **kwargs: Any) -> Any:
        """The trainer, with the options that stand outside its section, and our callbacks before
        the user's.
        """
        init = self.config_init[self.subcommand]
        given = init.trainer.callbacks or []
        # they draw and write nothing else, and `analyze` has a bar of its own
        if self.command not in _SILENT:
            kinds = list(map(type, given))
            ours = [cls() for cls in (Progress, WeightHistograms) if cls not in kinds]
            # after one of the user's that may stop the run: it draws when the last round is done
            given = [*ours, *given, *([] if Pictures in kinds else [Pictures()])]
        init.trainer.callbacks = given
        # they need one process, whatever a run's configuration says
        if self.command in _SILENT:
            devices = init.trainer.devices
            init.trainer.devices = devices[:1] if isinstance(devices, list) else 1
            init.trainer.num_nodes = 1
        trainer: Any = super().instantiate_trainer(**trainer_options(init), **kwargs)
        trainer.config = self.parts()
        trainer.written = self.written()
        return trainer

    @cached_property
    def text(self) -> str:
        """The whole configuration as YAML: once, since each value is read back to be sure of it."""
        config = self.config[self.subcommand].clone()
        # what checkpoint a run began from is not part of its configuration
        config.pop("ckpt_path", None)
        text: str = self._parser(self.subcommand).dump(config, skip_unset=False)
        return text

    def written(self) -> dict[str, Any]:
        """The whole configuration as plain values."""
        found: dict[str, Any] = yaml.safe_load(self.text)
        return found

    def parts(self) -> dict[str, Any]:
        """What the configuration says of algorithm, model and data, but for where the data lie."""
        config = self.written()
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
        if subcommand == "partition":
            # of the data alone
            del arguments["model"]
            return arguments
        which = arguments.get("ckpt_path")
        if which is None and subcommand not in ("fit", "serve", "profile", "export"):
            say("note: no --ckpt_path is given: these weights are untrained")
        if is_word(which):
            for layer in self.layers:
                file = Path(layer.file)
                # a link to a run's config.yaml means that run
                for run in (file.resolve().parent, file.parent):
                    if layer.file and (run / "checkpoints").is_dir():
                        file = run / "checkpoints" / f"{which}.ckpt"
                        arguments["ckpt_path"] = run if which == "last" else file
        return arguments


def take_unwritten(layers: Sequence[Layer]) -> list[str]:
    """What the configurations of runs that were made in Python lack and no layer gives, one
    sentence a file; the layers are without that list afterwards.
    """
    problems = []
    for layer in layers:
        missing = layer.values.get(UNWRITTEN) if layer.file else None
        if not isinstance(missing, dict):
            continue
        del layer.values[UNWRITTEN]
        lacks = []
        needs = []
        for key, why in missing.items():
            if not any(one.gives(tuple(str(key).split("."))) for one in layers):
                lacks.append(f"{key} ({why})")
                needs.append(f"--{key}")
        if lacks:
            problems.append(
                f"{layer.file}: the run was made in Python, and a file cannot say its "
                f"{', '.join(lacks)}: give {' and '.join(needs)}, or go on in Python"
            )
    return problems


def trainer_options(config: Namespace) -> dict[str, Any]:
    """The trainer's keyword arguments that a configuration says."""
    parameters = inspect.signature(FederatedTrainer).parameters
    options = {name: one.default for name, one in parameters.items()}
    # it lacks optional classes that are not chosen, so that defaults stand below it
    options |= config.trainer
    return options | {key: config[name] for key, name in OUTSIDE.items()}


def take_own_defaults(config: Namespace, given: Mapping[str, Any]) -> None:
    """Undo what jsonargparse hands on from the class that a place has by default to the class that
    was named there.

    A momentum would go to every SGD, a learning rate to every optimiser.

    Args:
        config: What was parsed; it is changed.
        given: What it was parsed from.
    """
    if "class_path" in config and not is_spelled_out(given):
        given = {"init_args": given}
    for key, value in given.items():
        inner = config.get(key)
        if isinstance(value, dict) and isinstance(inner, Namespace):
            take_own_defaults(inner, value)
    if "class_path" not in given or "init_args" not in config:
        return
    own = inspect.signature(imported(config.class_path)).parameters
    for option, value in vars(config.init_args).items():
        default = own[option].default if option in own else value
        if option not in given.get("init_args", {}):
            config.init_args[option] = _own_default(default, value)


def _own_default(default: Any, value: Any) -> Any:
    """What a class has by default for an option, as jsonargparse spells it.

    Args:
        default: The default; only plain values and partitioners can be spelled.
        value: What was handed on.
    """
    if isinstance(default, bool | int | float | str) and value != default:
        return float(default) if isinstance(value, float) else default
    if not isinstance(default, Partitioner) or "class_path" not in value:
        return value
    own = described(default)
    return value if own["class_path"] == value.class_path else dict_to_namespace(own)


class SaveConfig(Callback):
    """A callback that writes the parsed configuration to ``config.yaml`` of the run folder.

    Args:
        text: The configuration as YAML.
    """

    def __init__(self, text: str) -> None:
        self.text = text

    def on_fit_start(self, trainer: FederatedTrainer) -> None:
        """Write it, now that the folder is there."""
        if trainer.fabric.is_global_zero and trainer.run is not None:
            write_text(trainer.run.folder / "config.yaml", self.text)
