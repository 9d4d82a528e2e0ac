"""A run that a client joins, opened for torch alone: no Lightning, and no jsonargparse."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from bhfl.cli.installed import SMALL, is_whole
from bhfl.cli.naming import foreign, made, only_of
from bhfl.cli.reading import Text, read_text
from bhfl.cli.request import OWN, Request, packages
from bhfl.downlink import Downlink
from bhfl.engine.client.alone import Alone
from bhfl.engine.fleet import Fleet
from bhfl.engine.roster import Roster
from bhfl.engine.system import computing_threads

if TYPE_CHECKING:
    from bhfl.remote.messages import Hello

_CLASSIFIERS = ("Classifier", "bhfl.models.Classifier", "bhfl.models.classifier.Classifier")
"""The models of servers that have a plain one of the same bits."""
_SUPERVISED = "bhfl.models.Supervised"
_OF_BATCHES = ("batch_size", "eval_batch_size", "augment", "drop_last")
"""Options of the server's data that say how batches are made, whatever the client's data are."""
_HOMES = {
    "algorithm": ["bhfl.algorithms"],
    "model": ["bhfl.models", "torch.optim", "torch.nn"],
    "data": ["bhfl.data"],
}
"""Where classes that a configuration names without a package are looked for."""
_NEEDED = {
    "precision": ("32", "32-true"),
    "reestimate_norm": ("False",),
}
"""What options of the trainer must be where torch alone trains, as text."""


class PlainOpener:
    """Makes model, data and algorithm of a run by the server's configuration and the client's own.

    Args:
        request: What the client's own configuration says.
    """

    def __init__(self, request: Request) -> None:
        self._request = request

    def __call__(self, hello: Hello, stack: ExitStack) -> Alone:
        """What a client works with, for as long as the stack is open.

        Raises:
            ValueError: The configuration cannot be used here, saying why.
        """
        from bhfl.remote.messages import SIZES

        layers = [plain_values(layer.values) for layer in self._request.layers]
        config = merged(hello.config, layers, hello.config.get(SIZES, {}))
        _check_trainer(config["trainer"])
        allow = [*OWN, *self._request.allow, *packages(layers)]
        if named := sorted(foreign(config, allow)):
            raise ValueError(
                f"the server's configuration names {named[0]}, and this client's `allow` does not "
                "name its package"
            )
        stack.enter_context(computing_threads(config["trainer"].get("threads", 1)))
        with only_of(set(allow)), _told_of_lightning():
            return _made(config)


@contextmanager
def _told_of_lightning() -> Iterator[None]:
    """Say what to do where the block finds no Lightning."""
    try:
        yield
    except (ImportError, ValueError) as error:
        if "No module named 'lightning'" not in str(error):
            raise
        raise ValueError(f"{error}: it needs Lightning, so join with the package bhfl") from error


def plain_values(value: Any) -> Any:
    """A configuration in which what was typed on the command line is read."""
    if isinstance(value, Mapping):
        return {key: plain_values(item) for key, item in value.items()}
    return read_text(value) if isinstance(value, Text) else value


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
    own = [layer.get("model") for layer in layers]
    config["model"] = _plain_model(config["model"], own, sizes)
    if not is_whole() and not any("data" in layer for layer in layers):
        raise ValueError(
            f"data is missing in this client's configuration: {SMALL} has none of the server's "
            "data sets; name the client's own samples, such as "
            "{class_path: Arrays, init_args: {file: mine.npz}}"
        )
    for layer in layers:
        for key in ("data", "trainer"):
            if key in layer:
                config[key] = _changed(config.get(key) or {}, layer[key], key == "data")
    return config


def _changed(section: Mapping[str, Any], own: Any, is_class: bool) -> dict[str, Any]:
    if not is_class:
        return {**section, **own}
    if isinstance(own, str):
        own = {"class_path": own}
    given = own.get("init_args", {key: one for key, one in own.items() if key != "class_path"})
    before = section.get("init_args") or {}
    if "class_path" in own and own["class_path"] != section.get("class_path"):
        before = {key: before[key] for key in _OF_BATCHES if key in before}
    path = own.get("class_path", section.get("class_path"))
    return {"class_path": path, "init_args": {**before, **given}}


def _plain_model(server: Any, own: list[Any], sizes: Mapping[str, Any]) -> dict[str, Any]:
    """The section of a model that torch alone trains.

    Raises:
        ValueError: The server's needs Lightning, and the client's configuration names no other.
    """
    model: dict[str, Any] = {"class_path": server} if isinstance(server, str) else dict(server)
    for section in own:
        if section is not None:
            model = _changed(model, section, True)
    arguments = dict(model.get("init_args") or {})
    if model.get("class_path") in _CLASSIFIERS:
        if arguments.pop("lr_scheduler", None) is not None:
            raise ValueError(
                "model.lr_scheduler needs Lightning: join with the package bhfl, or give another "
                "model in this client's configuration"
            )
        arguments.pop("lr_interval", None)
        return {"class_path": _SUPERVISED, "init_args": {**sizes, **arguments}}
    if all(section is None for section in own):
        raise ValueError(
            f"the server's model is {model.get('class_path')}, which may need Lightning: name a "
            "plain torch.nn.Module with the same weights in `model` of this client's configuration"
        )
    return {**model, "init_args": arguments}


def _check_trainer(options: Mapping[str, Any]) -> None:
    for name, allowed in _NEEDED.items():
        if name in options and str(options[name]) not in allowed:
            raise ValueError(
                f"trainer.{name} must be {allowed[-1].lower()} where torch alone trains a client, "
                f"got {options[name]}: join with the package bhfl"
            )


def _made(config: Mapping[str, Any]) -> Alone:
    trainer = config["trainer"]
    downlink = trainer.get("downlink", "float32")
    if isinstance(downlink, Mapping):
        downlink = Downlink(**downlink)
    algorithm = made("algorithm", config.get("algorithm") or "FedAvg", _HOMES["algorithm"])
    data = made("data", config["data"], _HOMES["data"])
    # as lightning.seed_everything does, from which the server's first weights come
    seed = int(config["seed_everything"])
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    module = made("model", _with_classes(config["model"]), _HOMES["model"])
    data.prepare_data()
    for stage in ("fit", "test"):
        data.setup(stage)
    fleet = Fleet(config["clients"])
    counts = fleet.counts(trainer.get("num_clients"))
    sizes = data.federate(sum(counts), trainer.get("seed") or seed)
    weights = trainer.get("weights", "samples")
    roster = Roster(fleet.groups, counts, sizes, weights, downlink)
    return Alone(module, data, algorithm, roster, trainer.get("norm", "group"))


def _with_classes(model: Mapping[str, Any]) -> dict[str, Any]:
    """The section of a model, in which paths of its parts are classes to be made."""
    arguments = dict(model["init_args"])
    for key in ("net", "loss", "optimizer"):
        if isinstance(one := arguments.get(key), str) and (key != "net" or "." in one):
            arguments[key] = {"class_path": one}
    return {**model, "init_args": arguments}
