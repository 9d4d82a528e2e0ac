"""What a configuration may hold: as arguments of the parser, and as the schema that it is checked against first."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Optional, get_type_hints

import lightning as L
from jsonargparse import Namespace
from jsonargparse.typing import register_type
from lightning.pytorch.cli import LightningArgumentParser

import bhfl.algorithms
import bhfl.callbacks
import bhfl.data
import bhfl.models
from bhfl.cli.classes import Kind
from bhfl.cli.export import ExportingTrainer
from bhfl.cli.reading import ConfigError
from bhfl.cli.schema import Checked, Instance, Section
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
    """

    amend: Callable[[Namespace], None] | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"prog": "bhfl", "allow_abbrev": False, **kwargs})

    def dump(self, cfg: Namespace, *args: Any, **kwargs: Any) -> str:
        """The configuration as YAML, amended."""
        cfg = cfg.clone()
        if self.amend is not None:
            self.amend(cfg)
        return super().dump(cfg, *args, **kwargs)  # type: ignore[no-any-return]

    def error(self, message: str, ex: Exception | None = None) -> Any:
        """Raise what is wrong; of the parsers that it makes itself, jsonargparse wants its own error."""
        if not self.exit_on_error:
            super().error(message, ex)
        raise ConfigError([core(message)]) from ex


def add_arguments(parser: LightningArgumentParser) -> None:
    """The arguments of every command."""
    parser.add_argument("--clients", type=Fleet, required=True, help="The fleet: '{8: 5, 32: 5}' is bits: count.")
    for part, (base, default) in PARTS.items():
        parser.add_subclass_arguments(base, part, required=True, fail_untyped=False, default={"class_path": default})
    parser.add_class_arguments(FederatedTrainer, "trainer", instantiate=False, skip={*OUTSIDE})
    groups = parser.groups or {}
    for key in (*PARTS, "trainer"):
        groups[key].title = key.capitalize()
    for action in parser._actions:  # names are names: a file called cnn is no network; files are given by --config
        if hasattr(action, "sub_add_kwargs"):
            vars(action)["_enable_path"] = False
            action.sub_add_kwargs["sub_configs"] = False
    for name in _FROM_DATA:
        parser.link_arguments(f"data.{name}", f"model.init_args.{name}", apply_on="instantiate")


def schema(command: str) -> Section:
    """What the arguments of `add_arguments` and of the trainer's method `command` may be."""
    trainer = get_type_hints(FederatedTrainer.__init__)
    trainer = {key: hint for key, hint in trainer.items() if key not in (*OUTSIDE, "return")}
    callback: Any = Instance(Kind("a callback", (Callback,)))
    trainer["callbacks"] = Optional[list[callback]]
    taken = {"clients": "is given as clients", "algorithm": "is given as algorithm"}
    taken["seed"] = "is given as seed_everything"
    own = get_type_hints(getattr(ExportingTrainer, command))
    own = {key: hint for key, hint in own.items() if key not in ("model", "datamodule", "return")}
    return Section(
        {
            "seed_everything": int,
            "clients": Checked(Fleet),
            "algorithm": Instance(Kind("an algorithm", (Algorithm,))),
            "model": Instance(Kind.of(L.LightningModule), dict.fromkeys(_FROM_DATA, "is taken from the data")),
            "data": Instance(Kind.of(bhfl.data.FederatedDataModule)),
            "trainer": Section(trainer, taken),
            **own,
        }
    )


def dumped(parser: LightningArgumentParser, config: Namespace) -> str:
    """`config` as YAML that parses to it again; what checkpoint it began from is not part of a configuration."""
    config = config.clone()
    config.pop("ckpt_path", None)
    text: str = parser.dump(config, skip_none=False)
    return text


def core(message: str) -> str:
    """The core of jsonargparse's account of every alternative that a value does not fit."""
    noise = "Does not validate|Subtypes:|Errors:|Given value|Problem with given class_path|- Expected a "
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    telling = [line for line in lines if not re.match(f"(- )?({noise})", line)]
    return re.sub(r'(- )?Parser key "([\w.]+)":', r"\2:", " ".join(telling or lines))


register_type(Fleet, Fleet.to_config, Fleet, (ValueError, TypeError))
