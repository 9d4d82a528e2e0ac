"""What a configuration may hold: as arguments of the parser, and as the schema that it is checked
against first.
"""

import re
import warnings
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any, get_type_hints

import lightning as L
import yaml
from jsonargparse import (
    ArgumentError,
    ArgumentParser,
    Namespace,
    _loaders_dumpers,
    set_dumper,
    set_loader,
)
from jsonargparse.typing import register_type
from lightning.pytorch.cli import LightningArgumentParser
from torch.utils._pytree import tree_leaves

from bhfl.algorithms import *  # noqa: F403  # all are loaded: a configuration may name any
from bhfl.checks import shown
from bhfl.cli.commands import CommandTrainer
from bhfl.cli.hints import Checked, Instance, Section
from bhfl.cli.naming import parameters
from bhfl.cli.reading import ConfigError, Layer, read_text
from bhfl.cli.schema import Checker
from bhfl.data import *  # noqa: F403
from bhfl.data import FederatedDataModule
from bhfl.engine.algorithm import Algorithm
from bhfl.engine.fleet import Fleet
from bhfl.engine.trainer import FederatedTrainer
from bhfl.plain import plain, written
from bhfl.recorded import FROM_DATA

PARTS: dict[str, tuple[type, str]] = {
    "algorithm": (Algorithm, "bhfl.algorithms.FedAvg"),
    "model": (L.LightningModule, "bhfl.models.Classifier"),
    "data": (FederatedDataModule, "bhfl.data.Digits"),
}
"""The sections that name a class: its base, and the class by default."""
OUTSIDE = {"clients": "clients", "algorithm": "algorithm", "seed": "seed_everything"}
"""Options of the trainer that stand at the top level, and their names there."""


class Parser(LightningArgumentParser):
    """A parser that raises ConfigError and takes no abbreviations."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"prog": "bhfl", "allow_abbrev": False, **kwargs})

    def add_options(self) -> None:
        """The arguments of every command."""
        self.add_argument(
            "--clients", type=Fleet, help="The fleet (required): '{8: 5, 32: 5}' is bits: count."
        )
        for part, (base, default) in PARTS.items():
            # fail_untyped: classes of the user's may have options without hints
            self.add_subclass_arguments(
                base, part, required=True, fail_untyped=False, default={"class_path": default}
            )
        self.add_class_arguments(FederatedTrainer, "trainer", instantiate=False, skip={*OUTSIDE})
        groups = self.groups or {}
        for key in (*PARTS, "trainer"):
            groups[key].title = key.capitalize()
        # a name is a name: a file called cnn is not a network; files are given by --config
        for action in self._actions:
            if hasattr(action, "sub_add_kwargs"):
                vars(action)["_enable_path"] = False
                action.sub_add_kwargs["sub_configs"] = False

    def link_to_data(self, model: type) -> None:
        """Give a model of this class what it takes of the data. Data of the user's own may lack
        these attributes: they are asked only for what the model takes.
        """
        taken, _ = parameters(model)
        for name in sorted(taken.keys() & FROM_DATA):
            self.link_arguments(f"data.{name}", f"model.init_args.{name}", apply_on="instantiate")

    def print_and_leave(self, parser: ArgumentParser, config: Namespace, flags: str) -> None:
        """Print `config` as ``--print_config=flags`` asks for it, and end the process.

        Args:
            parser: The parser of all commands.
            config: What it parsed.
            flags: What stands behind the option.
        """
        action: Any = self._option_string_actions["--print_config"]
        try:
            action(self, config, [flags], "--print_config")
        except ArgumentError as error:
            self.error(str(error), error)
        action.print_config_if_requested(parser, config)

    def dump(self, cfg: Namespace, *args: Any, **kwargs: Any) -> str:
        """The configuration as YAML that reads back as it is.

        Defaults that no YAML can say (functions without a name, objects, infinity) are left out:
        the class that has them takes them again. jsonargparse calls this for each object inside,
        too.

        Raises:
            ConfigError: A value that was given cannot be read back.
        """
        cfg = cfg.clone()
        for action in self._actions:
            if action.dest not in cfg or reads_back(action, cfg[action.dest]):
                continue
            value = cfg.pop(action.dest)
            if _spelled(value) != _spelled(action.default):
                raise ConfigError(
                    f"{action.dest}: {shown(value)} cannot be written to config.yaml so that it "
                    "reads back; use another value or type hint"
                )
        # checked again, what is in order here would be made sets again, in an order of chance
        unchecked = {**kwargs, "skip_validation": True}
        with _no_excuses():
            text: str = super().dump(_copied(cfg, _in_order), *args, **unchecked)
        # what our own reader would refuse is not to be written
        read_text(text)
        return text

    def error(self, message: str, ex: Exception | None = None) -> Any:
        """Raise what is wrong; of the parsers that it makes itself, jsonargparse wants its own
        error.
        """
        if not self.exit_on_error:
            super().error(message, ex)
        raise ConfigError(core(message)) from ex


def reads_back(action: Any, value: Any) -> bool:
    """Whether the value of an argument is still the same after it was written and read."""
    hint = getattr(action, "_typehint", None)
    # not of a union, where jsonargparse may write a number as a path's text
    is_plain = hint in (bool, int, str) and type(value) is hint
    if hint is None or value is None or is_plain:
        # nothing can go wrong
        return True
    if isinstance(value, Namespace):
        # an object, as jsonargparse spells it: its options are asked for one by one
        return True
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--x", type=hint)
    with _no_excuses():
        try:
            config = _copied(Namespace(x=value), _in_order)  # type: ignore[no-untyped-call]
            values = read_text(parser.dump(config))
            if any(isinstance(leaf, Namespace) for leaf in tree_leaves(value)):
                return _stands(value, values["x"])
            problems = Checker(Section({"x": hint}), {})(Layer(values, "config.yaml"))
            read = parser.parse_object(values).x
            # sets inside of objects were put in order before
            if isinstance(read, set | frozenset) and isinstance(value, list):
                read = _in_order(read)
            return not problems and _spelled(read) == _spelled(value)
        except (ConfigError, ArgumentError, yaml.YAMLError, TypeError, ValueError, UserWarning):
            return False


@contextmanager
def _no_excuses() -> Iterator[None]:
    """Make an error of what jsonargparse writes, with a warning, where a value cannot be written:
    it then tries the other members of a union, such as null.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("error", r"\s*Unable to serialize")
        yield


def _copied(value: Any, of_set: Callable[[Collection[Any]], Any]) -> Any:
    """A copy of a configuration, whose containers jsonargparse may change while it writes; sets
    become what `of_set` makes of them.
    """
    if isinstance(value, Namespace):
        items = {key: _copied(item, of_set) for key, item in vars(value).items()}
        return Namespace(**items)  # type: ignore[no-untyped-call]
    if type(value) is dict:
        return {key: _copied(item, of_set) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_copied(item, of_set) for item in value)
    return of_set(value) if isinstance(value, set | frozenset) else value


def _in_order(values: Collection[Any]) -> list[Any]:
    return sorted(values, key=repr)


def _spelled(value: Any) -> str:
    """What tells a value from another one, their kinds included: 1.0 is not 1, nor is a tuple a
    list.
    """
    return repr(_copied(value, lambda values: (type(values), _in_order(values))))


def _stands(value: Any, text: Any) -> bool:
    """Whether plain values that are beside objects stand in what is written of them."""
    if isinstance(value, list | tuple):
        return isinstance(text, list) and all(map(_stands, value, text))
    if isinstance(value, dict):
        return isinstance(text, dict) and all(map(_stands, value.values(), text.values()))
    is_plain = value is None or isinstance(value, bool | int | float | str)
    return not is_plain or _spelled(text) == _spelled(value)


def schema(command: str) -> Section:
    """What the arguments of every command and of the trainer's method `command` may be."""
    trainer = get_type_hints(FederatedTrainer.__init__)
    own = get_type_hints(getattr(CommandTrainer, command))
    # what is built here, and is none of a command's own options
    for key in ("model", "datamodule", "return"):
        own.pop(key, None)
    for key in (*OUTSIDE, "return"):
        del trainer[key]
    taken = {key: f"is given as {name}" for key, name in OUTSIDE.items()}
    parts = {part: Instance(base) for part, (base, _) in PARTS.items()}
    parts["model"] = Instance(L.LightningModule, dict.fromkeys(FROM_DATA, "is taken from the data"))
    fields = {"seed_everything": int, "clients": Checked(Fleet), "trainer": Section(trainer, taken)}
    return Section({**fields, **parts, **own})


def core(message: str) -> str:
    """The core of jsonargparse's account of every alternative that a value does not fit."""
    noise = (
        "Does not validate|Subtypes:|Errors:|Given value|"
        "Problem with given class_path|- Expected a "
    )
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    telling = [line for line in lines if not re.match(f"(- )?({noise})", line)]
    return re.sub(r'(- )?Parser key "([\w.]+)":', r"\2:", " ".join(telling or lines))


register_type(Fleet, Fleet.to_config, Fleet, (ValueError, TypeError))
set_dumper("yaml", written)
set_loader("yaml", plain, (yaml.YAMLError,))
# jsonargparse reads texts again and again, partly past its loaders
vars(_loaders_dumpers)["yaml_load"] = plain
