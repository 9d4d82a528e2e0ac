"""What a configuration may hold: as arguments of the parser, and as the schema that it is checked
against first.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any, Optional, get_type_hints

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

import bhfl.callbacks
import bhfl.data
import bhfl.models
from bhfl.algorithms import *  # noqa: F403  # all are loaded: a configuration may name any
from bhfl.checks import shown
from bhfl.cli.classes import Kind
from bhfl.cli.commands import CommandTrainer
from bhfl.cli.reading import ConfigError, Layer, read_text
from bhfl.cli.scalars import plain, written
from bhfl.cli.schema import Checked, Checker, Instance, Section
from bhfl.engine.algorithm import Algorithm
from bhfl.engine.callback import Callback
from bhfl.engine.fleet import Fleet
from bhfl.engine.trainer import FederatedTrainer

PARTS: dict[str, tuple[type, str]] = {
    "algorithm": (Algorithm, "bhfl.algorithms.FedAvg"),
    "model": (L.LightningModule, "bhfl.models.Classifier"),
    "data": (bhfl.data.FederatedDataModule, "bhfl.data.Digits"),
}
"""The sections that name a class: its base, and the class by default."""
OUTSIDE = ("clients", "algorithm", "seed")
"""Options of the trainer that stand at the top level."""
_FROM_DATA = ("num_classes", "input_shape")
"""Options of the model that are attributes of the data."""


class Parser(LightningArgumentParser):
    """A parser that raises ConfigError and takes no abbreviations.

    Attributes:
        amend: Changes a parsed configuration before it is dumped.
        taken_from_data: What the chosen model takes from the data.
    """

    amend: Callable[[Namespace], None] | None = None
    taken_from_data: Collection[str] = ()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"prog": "bhfl", "allow_abbrev": False, **kwargs})

    def dump(self, cfg: Namespace, *args: Any, **kwargs: Any) -> str:
        """The configuration as YAML that reads back as it is, amended.

        Defaults that no YAML can say (functions without a name, objects, infinity) are left out:
        the class that has them takes them again. jsonargparse calls this for each object inside,
        too.

        Raises:
            ConfigError: A value that was given cannot be read back.
        """
        cfg = _copied(cfg)
        if self.amend is not None:
            self.amend(cfg)
        for action in self._actions:
            if action.dest not in cfg or reads_back(action, cfg[action.dest]):
                continue
            value = cfg.pop(action.dest)
            if not _same(value, action.default):
                why = (
                    "cannot be written to config.yaml so that it reads back; "
                    "use another value or type hint"
                )
                raise ConfigError([f"{action.dest}: {shown(value)} {why}"])
        # checked again, what is in order here would be made sets again, in an order of chance
        unchecked = {**kwargs, "skip_validation": True}
        with no_excuses():
            text: str = super().dump(_copied(cfg, ordered=True), *args, **unchecked)
        read_text(text)
        return text

    def error(self, message: str, ex: Exception | None = None) -> Any:
        """Raise what is wrong; of the parsers that it makes itself, jsonargparse wants its own
        error.
        """
        if not self.exit_on_error:
            super().error(message, ex)
        raise ConfigError([core(message)]) from ex


@contextmanager
def no_excuses() -> Iterator[None]:
    """Make an error of what jsonargparse writes, with a warning, where a value cannot be written:
    it then tries the other members of a union, such as null.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("error", r"\s*Unable to serialize")
        yield


def _copied(value: Any, ordered: bool = False) -> Any:
    """A copy of a configuration whose containers may be changed, as jsonargparse does while it
    writes; its sets as lists in an order of their own where it is to be written.
    """
    if isinstance(value, Namespace):
        items = {key: _copied(item, ordered) for key, item in vars(value).items()}
        return Namespace(**items)  # type: ignore[no-untyped-call]
    if type(value) is dict:
        return {key: _copied(item, ordered) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_copied(item, ordered) for item in value)
    if ordered and isinstance(value, (set, frozenset)):
        return sorted(value, key=repr)
    return value


def reads_back(action: Any, value: Any) -> bool:
    """Whether the value of an argument is still the same after it was written and read."""
    hint = getattr(action, "_typehint", None)
    # not of a union, where jsonargparse may write a number as a path's text
    plain = hint in (bool, int, str) and type(value) is hint
    if hint is None or value is None or plain:
        return True  # nothing can go wrong
    if _holds_objects(value):
        return True  # whose options are asked for one by one
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--x", type=hint)
    with no_excuses():
        try:
            config = Namespace(x=_copied(value))  # type: ignore[no-untyped-call]
            values = read_text(parser.dump(config))
            problems = Checker(Section({"x": hint}), {})(Layer(values, "config.yaml"))
            found = None if problems else parser.parse_object(values).x
        except (ConfigError, ArgumentError, yaml.YAMLError, TypeError, ValueError, UserWarning):
            return False
    return _same(found, value)


def _holds_objects(value: Any) -> bool:
    """Whether there is an object in `value`, as jsonargparse spells it before it is made."""
    if isinstance(value, Namespace):
        return True
    if isinstance(value, dict):
        return "class_path" in value or any(map(_holds_objects, value.values()))
    return isinstance(value, (list, tuple)) and any(map(_holds_objects, value))


def _same(first: Any, second: Any) -> bool:
    """Whether two values are written alike, their kinds included: 1.0 is not 1, nor is a tuple a
    list.
    """
    if first is second or type(first) is not type(second):
        return first is second
    if isinstance(first, (set, frozenset)):
        return sorted(map(repr, first)) == sorted(map(repr, second))
    if isinstance(first, dict):
        return _same(list(first.items()), list(second.items()))
    if isinstance(first, (list, tuple)):
        return len(first) == len(second) and all(map(_same, first, second))
    return repr(first) == repr(second)


def add_arguments(parser: LightningArgumentParser) -> None:
    """The arguments of every command."""
    parser.add_argument(
        "--clients", type=Fleet, required=True, help="The fleet: '{8: 5, 32: 5}' is bits: count."
    )
    for part, (base, default) in PARTS.items():
        parser.add_subclass_arguments(
            base, part, required=True, fail_untyped=False, default={"class_path": default}
        )
    parser.add_class_arguments(FederatedTrainer, "trainer", instantiate=False, skip={*OUTSIDE})
    groups = parser.groups or {}
    for key in (*PARTS, "trainer"):
        groups[key].title = key.capitalize()
    # names are names: a file called cnn is no network; files are given by --config
    for action in parser._actions:
        if hasattr(action, "sub_add_kwargs"):
            vars(action)["_enable_path"] = False
            action.sub_add_kwargs["sub_configs"] = False
    for name in _FROM_DATA:
        compute = _asked_of_data(name, parser)
        parser.link_arguments(
            "data", f"model.init_args.{name}", compute_fn=compute, apply_on="instantiate"
        )


def _asked_of_data(name: str, parser: LightningArgumentParser) -> Callable[[Any], Any]:
    """What gives the data's `name` to a model that takes it; of others' data nobody asks what they
    may not have.
    """

    def asked(data: Any) -> Any:
        wanted: Collection[str] = parser.taken_from_data  # type: ignore[attr-defined]
        return getattr(data, name) if name in wanted else None

    asked.__name__ = f"data.{name}"
    return asked


def taken_from_data(model: type) -> list[str]:
    """The arguments of a model's constructor that are attributes of the data."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(model, fail_untyped=False, sub_configs=False)
    return [name for name in _FROM_DATA if name in parser.get_defaults(skip_validation=True)]


def schema(command: str) -> Section:
    """What the arguments of `add_arguments` and of the trainer's method `command` may be."""
    trainer = get_type_hints(FederatedTrainer.__init__)
    trainer = {key: hint for key, hint in trainer.items() if key not in (*OUTSIDE, "return")}
    callback: Any = Instance(Kind("a callback", (Callback,)))
    trainer["callbacks"] = Optional[list[callback]]
    taken = {"clients": "is given as clients", "algorithm": "is given as algorithm"}
    taken["seed"] = "is given as seed_everything"
    own = get_type_hints(getattr(CommandTrainer, command))
    own = {key: hint for key, hint in own.items() if key not in ("model", "datamodule", "return")}
    return Section(
        {
            "seed_everything": int,
            "clients": Checked(Fleet),
            "algorithm": Instance(Kind("an algorithm", (Algorithm,))),
            "model": Instance(
                Kind.of(L.LightningModule), dict.fromkeys(_FROM_DATA, "is taken from the data")
            ),
            "data": Instance(Kind.of(bhfl.data.FederatedDataModule)),
            "trainer": Section(trainer, taken),
            **own,
        }
    )


def dumped(parser: LightningArgumentParser, config: Namespace) -> str:
    """`config` as YAML that parses to it again; what checkpoint it began from is not part of a
    configuration.
    """
    config = config.clone()
    config.pop("ckpt_path", None)
    text: str = parser.dump(config, skip_none=False)
    return text


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
