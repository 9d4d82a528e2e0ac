"""The configuration of a run that was made in Python, for the commands that go on with its folder.

What no file can say, such as a class of a notebook or a data set in memory, stands in it under
``unwritten``, with the reason: the commands then say what they need.
"""

import re
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from os import PathLike
from typing import TYPE_CHECKING, Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

import bhfl
from bhfl.engine.optimizers import parse_optimizer
from bhfl.plain import written
from bhfl.recorded import FROM_DATA, UNWRITTEN, Recorded, class_at, constructors, plain, public_path
from bhfl.settings import Role

if TYPE_CHECKING:
    from bhfl.engine.session import Session

_OUTSIDE = ("clients", "algorithm", "seed")
"""Options of the trainer that have other places."""
_MOST_VALUES = 1000
"""The numbers and texts of a list at most: an option has fewer."""


class UnwrittenError(Exception):
    """Something cannot be written down; the message says why."""


def configuration(session: "Session") -> str:
    """The text of ``config.yaml``, of a fit whose trainer, model and data were made in Python."""
    settings = session.settings
    left_out = []
    options: dict[str, Callable[[], Any]] = {}
    for name, role, value in settings.options():
        # loggers may be made with secrets, and no command needs them or callbacks
        if role in (Role.OUTPUT, Role.MACHINE) and not _is_plain(value):
            left_out.append(f"trainer.{name}")
        elif name not in _OUTSIDE:
            options[name] = partial(_option, name, value)
    found: dict[str, Any] = {
        "seed_everything": settings.cohort.seed,
        "clients": session.trainer.fleet.to_config(),
    }
    parts = {
        "algorithm": partial(_option, "algorithm", session.algorithm),
        "model": partial(_model, session),
        "data": partial(_data, session.data),
    }
    missing: dict[str, str] = {}
    found |= _spelled(parts, "", missing)
    found["trainer"] = _spelled(options, "trainer.", missing)
    if missing:
        found[UNWRITTEN] = missing
    head = f"# bhfl {bhfl.__version__}, a run made in Python\n"
    if left_out:
        head += f"# left out: {', '.join(left_out)}\n"
    return head + written(found)


def _spelled(
    parts: Mapping[str, Callable[[], Any]], section: str, missing: dict[str, str]
) -> dict[str, Any]:
    """What can be written of some parts; why not is added to `missing`."""
    found = {}
    for key, make in parts.items():
        try:
            found[key] = make()
        except UnwrittenError as error:
            missing[section + key] = str(error)
    return found


def _option(name: str, value: Any) -> Any:
    if name == "server_optimizer" and value is not None:
        return parse_optimizer(value)
    return spell(plain(value))


def _data(data: Any) -> Any:
    if not isinstance(data, Recorded):
        raise UnwrittenError(f"{type(data).__name__} is no FederatedDataModule of bhfl.data")
    return spell(plain(data))


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str | PathLike)


def _model(session: "Session") -> dict[str, Any]:
    """The model's class and arguments, but for those that are taken from the data.

    Its optimisers are what it trains with, where its arguments are functions without a name.
    """
    module = session.module
    path = public_path(type(module))
    made_with = plain(dict(getattr(module, "_made_with", module.hparams)))
    arguments = {}
    for key in _parameters(_class(path), made_with):
        value = made_with[key]
        try:
            arguments[key] = spell(value)
        except UnwrittenError:
            if session.optimizers.get(key) is None:
                raise
            arguments[key] = spell(session.optimizers[key])
    for key in FROM_DATA:
        if key in arguments and plain(getattr(session.data, key, None)) != arguments.pop(key):
            raise UnwrittenError(f"its {key} must be what the data have, got {made_with[key]}")
    return {"class_path": path, "init_args": arguments}


def spell(value: Any) -> Any:
    """A value as a configuration says it.

    Args:
        value: What `bhfl.recorded.plain` made of it.

    Raises:
        UnwrittenError: It holds an object that cannot be made again from its class and arguments.
    """
    if isinstance(value, list):
        if sum(1 for _ in _leaves(value)) > _MOST_VALUES:
            raise UnwrittenError("it is made with data, which no configuration holds")
        return [spell(item) for item in value]
    if isinstance(value, Mapping) and value.get("class_path") is True:
        # a dataclass: options say what it is
        return spell(value["init_args"])
    if isinstance(value, Mapping) and "class_path" in value:
        cls = _class(value["class_path"])
        given = value["init_args"]
        arguments = {key: spell(given[key]) for key in _parameters(cls, given)}
        if not issubclass(cls, Recorded) and any(map(_is_odd, arguments.values())):
            raise UnwrittenError(f"{cls.__name__} does not tell what it was made with")
        return {"class_path": value["class_path"], "init_args": arguments}
    if isinstance(value, Mapping):
        return {key: spell(item) for key, item in value.items()}
    if isinstance(value, str) and re.match(r"__main__\.|.*<(lambda|locals)>", value):
        raise UnwrittenError(f"{value} has no name that can be imported")
    return value


def _leaves(value: Any) -> Iterator[Any]:
    """The values in a nest of lists."""
    if not isinstance(value, list):
        yield value
        return
    for item in value:
        yield from _leaves(item)


def _is_odd(attribute: Any) -> bool:
    """Whether an attribute is not the argument of that name: a Counter where a list was given, or
    an object of which its class alone is told.
    """
    if isinstance(attribute, str):
        return re.fullmatch(r"(\w+\.)+_*[A-Z]\w*", attribute) is not None
    return isinstance(attribute, Mapping)


def _class(path: str) -> type:
    """The class of a dotted path, which a configuration may name."""
    module, _, name = path.rpartition(".")
    top = module.partition(".")[0]
    if top == "__main__" or "<locals>" in path:
        raise UnwrittenError(
            f"{name} is written in a script, a notebook or a function: move it to a module"
        )
    found = class_at(path)
    if top in sys.stdlib_module_names or found is None:
        raise UnwrittenError(f"{path} is no class that a configuration may name")
    return found


def _parameters(cls: type, given: Mapping[str, Any]) -> Iterator[str]:
    """The arguments of a class; UnwrittenError for one that is not among the `given`."""
    # what is not an argument of theirs in a configuration: it is handed over when they are made
    lent: set[str] = set()
    if issubclass(cls, Optimizer):
        lent = {"params"}
    elif issubclass(cls, LRScheduler):
        lent = {"optimizer", "last_epoch", "verbose"}
    made_by = list(constructors(cls))
    for _, known in made_by:
        for one in known:
            if one.name in lent or one.kind is one.VAR_KEYWORD:
                continue
            if one.name not in given:
                raise UnwrittenError(
                    f"{cls.__name__} does not tell its argument {one.name}: a LightningModule does "
                    "by self.save_hyperparameters()"
                )
            yield one.name
    if not made_by and given:
        raise UnwrittenError(f"{cls.__name__} does not tell what it was made with")
