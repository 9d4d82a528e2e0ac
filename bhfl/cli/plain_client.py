"""A run that a client joins, opened for torch alone: no Lightning, and no jsonargparse."""

import random
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from bhfl.checks import suggestion
from bhfl.cli.installed import SMALL, is_whole
from bhfl.cli.naming import OwnText, check_packages, made, only_of
from bhfl.cli.reading import Text, read_text
from bhfl.cli.request import Request
from bhfl.engine.algorithm import Algorithm
from bhfl.engine.client.alone import Alone
from bhfl.engine.fleet import Fleet
from bhfl.engine.hooks import check_methods
from bhfl.engine.roster import Roster
from bhfl.engine.system import computing_threads
from bhfl.engine.types import FederatedData
from bhfl.settings import option_names

if TYPE_CHECKING:
    from bhfl.remote.messages import Hello

_CLASSIFIERS = ("Classifier", "bhfl.models.Classifier", "bhfl.models.classifier.Classifier")
"""The models of servers that have a plain one of the same bits."""
_SUPERVISED = "bhfl.models.Supervised"
_PACKAGES = ("bhfl", "jsonargparse", "lightning", "torchvision")
"""What a small device has not, or only parts of."""
_OF_BATCHES = ("batch_size", "eval_batch_size", "augment", "drop_last")
"""Options of the server's data that say how batches are made, whatever the client's data are."""
_HOMES = {
    "algorithm": ["bhfl.algorithms"],
    "model": ["bhfl.models", "torch.optim", "torch.nn"],
    "data": ["bhfl.data"],
}
"""Where classes that a configuration names without a package are looked for."""
_NEEDED = {
    "accelerator": ("auto", "cpu"),
    "precision": ("32", "32-true"),
    "reestimate_norm": ("False",),
}
"""What options of the trainer must be where torch alone trains, as text."""


def open_plain(request: Request, hello: "Hello", stack: ExitStack) -> Alone:
    """Make model, data and algorithm of a run by the server's configuration and the client's own.

    Args:
        request: What the client's own configuration says.
        hello: What the server says of the run.
        stack: The client works with what is returned while it is open.

    Raises:
        ValueError: The configuration cannot be used here, saying why.
    """
    from bhfl.remote.messages import SIZES

    layers = [plain_values(layer.values) for layer in request.layers]
    config = merged(hello.config, layers, hello.config.get(SIZES, {}))
    options = config["trainer"]
    for name, taken in _NEEDED.items():
        if name in options and str(options[name]) not in taken:
            raise ValueError(
                f"trainer.{name} must be {taken[-1].lower()} where torch alone trains a client, "
                f"got {options[name]}: join with the package bhfl"
            )
    check_packages(config, request.allowed)
    stack.enter_context(computing_threads(options.get("threads", 1)))
    with only_of(request.allowed), _told_of_the_whole():
        return _made(config)


@contextmanager
def _told_of_the_whole() -> Iterator[None]:
    """Say what to do where the block asks for what only the whole package has, or needs."""
    try:
        yield
    except (ImportError, ValueError) as error:
        missing = re.search(r"No module named '(\w+)", str(error))
        if missing is None or missing[1] not in _PACKAGES:
            raise
        name = "Lightning" if missing[1] == "lightning" else missing[1]
        why = f"it is not in {SMALL}" if name == "bhfl" else f"it needs {name}"
        raise ValueError(f"{error}: {why}, so join with the package bhfl") from error


def plain_values(value: Any) -> Any:
    """A client's own configuration, its text marked as such, in which what was typed on the command
    line is read.
    """
    if isinstance(value, Text):
        value = read_text(value)
    if isinstance(value, Mapping):
        return {key: plain_values(item) for key, item in value.items()}
    if isinstance(value, list):
        return [plain_values(item) for item in value]
    return OwnText(value) if isinstance(value, str) else value


def merged(
    server: Mapping[str, Any], layers: list[Any], sizes: Mapping[str, Any]
) -> dict[str, Any]:
    """The server's configuration with what a client's own says in its place.

    A section that names another class takes the place of the server's, of which it keeps how
    batches are made; one that names none changes arguments of it.

    Args:
        server: The server's.
        layers: The client's own, the last one with the last word.
        sizes: What the server's model has from its data, such as the number of classes.
    """
    config = deepcopy(dict(server))
    own = [layer["model"] for layer in layers if "model" in layer]
    config["model"] = _plain_model(config.get("model"), own, sizes)
    of_data = [layer["data"] for layer in layers if "data" in layer]
    if not of_data and not (is_whole() and "data" in config):
        why = "the server does not tell its own, which was made in Python"
        if "data" in config:
            why = f"{SMALL} has none of the server's data sets"
        raise ValueError(
            f"data is missing in this client's configuration: {why}; name the client's own "
            "samples, such as {class_path: Arrays, init_args: {file: mine.npz}}"
        )
    for section in of_data:
        config["data"] = _changed("data", config.get("data"), section)
    for layer in layers:
        config["trainer"] = {**config.get("trainer", {}), **_own_trainer(layer)}
    return config


def _own_trainer(layer: Mapping[str, Any]) -> Mapping[str, Any]:
    options = layer.get("trainer", {})
    if not isinstance(options, Mapping):
        raise ValueError(f"trainer must be a mapping of options, got {options!r}")
    known = option_names()
    for name in options:
        if name not in known:
            raise ValueError(f"trainer.{name} is no option{suggestion(str(name), known)}")
    return options


def _changed(key: str, section: Any, own: Any) -> dict[str, Any]:
    """A class and its arguments, of which a client's own configuration names another class, or
    gives other arguments.
    """
    before = _spelled(key, {} if section is None else section)
    after = _spelled(key, own)
    arguments = before["init_args"]
    path = after["class_path"]
    if path is not None and not _is_same(path, before["class_path"]):
        before["class_path"] = path
        # mere values: classes among them would be those of another class
        arguments = {
            name: one
            for name, one in arguments.items()
            if name in _OF_BATCHES and not isinstance(one, Mapping)
        }
    for name, value in after["init_args"].items():
        old = arguments.get(name)
        changes = isinstance(old, Mapping) and "class_path" in old and isinstance(value, Mapping)
        arguments[name] = _changed(f"{key}.{name}", old, value) if changes else value
    return {"class_path": before["class_path"], "init_args": arguments}


def _is_same(path: str, before: str | None) -> bool:
    """Whether a path is that of the same class, which may be named without its package."""
    return path == before or ("." not in path and str(before).endswith(f".{path}"))


def _spelled(key: str, section: Any) -> dict[str, Any]:
    """A section with its ``class_path``, or None, and its ``init_args``, which may stand beside."""
    if isinstance(section, str):
        section = {"class_path": section}
    inner = section.get("init_args") or {} if isinstance(section, Mapping) else None
    if not isinstance(inner, Mapping):
        raise ValueError(f"{key} must be a mapping of class_path and init_args, got {section!r}")
    beside = {name: section[name] for name in section if name not in ("class_path", "init_args")}
    return {"class_path": section.get("class_path"), "init_args": {**inner, **beside}}


def _plain_model(server: Any, own: list[Any], sizes: Mapping[str, Any]) -> dict[str, Any]:
    """The section of a model that torch alone trains.

    Raises:
        ValueError: The server's needs Lightning, and the client's configuration names no other.
    """
    model = _spelled("model", {} if server is None else server)
    told = "not told, as it was made in Python" if server is None else model["class_path"]
    for section in own:
        model = _changed("model", model, section)
    arguments = model["init_args"]
    if model["class_path"] in _CLASSIFIERS:
        if arguments.pop("lr_scheduler", None) is not None:
            raise ValueError(
                "model.lr_scheduler needs Lightning: join with the package bhfl, or give another "
                "model in this client's configuration"
            )
        arguments.pop("lr_interval", None)
        return {"class_path": _SUPERVISED, "init_args": {**sizes, **arguments}}
    if not own:
        raise ValueError(
            f"the server's model is {told}, which may need Lightning: name a plain torch.nn.Module "
            "with the same weights in `model` of this client's configuration"
        )
    return model


def _made(config: Mapping[str, Any]) -> Alone:
    trainer = config["trainer"]
    algorithm = _part(config, "algorithm", Algorithm)
    data = _part(config, "data", FederatedData)
    # as lightning.seed_everything does, from which the server's first weights come
    seed = int(config["seed_everything"])
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    module = _part(config, "model", nn.Module)
    check_methods(data, FederatedData, "data must be Arrays or have its methods")
    data.prepare_data()
    for stage in ("fit", "test"):
        data.setup(stage)
    fleet = Fleet(config["clients"])
    counts = fleet.counts(trainer.get("num_clients"))
    sizes = data.federate(sum(counts), seed)
    weights = trainer.get("weights", "samples")
    downlink = trainer.get("downlink", "float32")
    roster = Roster(fleet.groups, counts, sizes, weights, downlink)
    return Alone(module, data, algorithm, roster, trainer.get("norm", "group"))


def _part(config: Mapping[str, Any], key: str, base: type) -> Any:
    if key not in config:
        raise ValueError(f"{key} is missing: the server's was made in Python, and cannot be told")
    return made(key, config[key], _HOMES[key], base)
