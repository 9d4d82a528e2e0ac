"""A run that a client joins, opened under Lightning as `bhfl fit` opens it."""

from contextlib import ExitStack
from copy import deepcopy
from typing import TYPE_CHECKING, Any

import lightning as L
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import Dataset

from bhfl.cli.naming import check_packages, class_paths, imported, only_of
from bhfl.cli.reading import Layer
from bhfl.cli.remade import made_here
from bhfl.cli.request import OWN, Request, packages
from bhfl.engine.session import Session

if TYPE_CHECKING:
    from bhfl.remote.messages import Hello

_BASES = (nn.Module, Optimizer, LRScheduler, Dataset, L.LightningDataModule)
"""What a server may name of torch and Lightning: some other classes start programs when made."""
_ROOMS = tuple(f"bhfl.{room}." for room in ("algorithms", "comm", "data", "engine", "models"))
"""The rooms of which it may name any class."""


def open_run(request: Request, hello: "Hello", stack: ExitStack) -> Session:
    """Make model, data and trainer of a run by the server's configuration and the client's own.

    Args:
        request: What the client's own configuration says.
        hello: What the server says of the run.
        stack: What closes the session.

    Raises:
        ValueError: The configuration cannot be used here, saying why.
    """
    from bhfl.remote.messages import SIZES

    allowed = request.allowed
    check_packages(hello.config, allowed)
    with only_of(allowed):
        _check_classes(hello.config)
    config = deepcopy(dict(hello.config))
    # a data module tells them too
    config.pop(SIZES, None)
    machine = {
        "devices": 1,
        "logger": False,
        "enable_progress_bar": False,
        "default_root_dir": request.folder,
    }
    layers = [
        Layer(config, "the server's configuration"),
        Layer({"trainer": machine}, "bhfl join"),
        *deepcopy(list(request.layers)),
    ]
    own = packages([layer.values for layer in request.layers])
    with only_of({*allowed, *own}):
        trainer, model, data = made_here(layers)
    return stack.enter_context(Session.opened(trainer, model, data, "fit", "test"))


def _check_classes(config: Any) -> None:
    """ValueError where a server's configuration names a class that it has no use for: where any
    value may stand, as among ``net_kwargs``, jsonargparse makes whatever is named.
    """
    for path in class_paths(config):
        try:
            found = imported(path) if "." in path else None
        except ValueError:  # which is told where it is resolved
            continue
        if not isinstance(found, type) or found.__module__.partition(".")[0] not in OWN:
            continue
        if not (issubclass(found, _BASES) or f"{found.__module__}.".startswith(_ROOMS)):
            raise ValueError(
                f"the server's configuration names {path}, which is no module, optimizer, schedule "
                "or data of torch or Lightning"
            )
