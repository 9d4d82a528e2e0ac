"""Optimisers that a configuration names: those of groups, in place of their module's."""

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from bhfl.checks import suggestion
from bhfl.recorded import class_at, public_path, spelled

OptimizerCallable = Callable[[Iterable[nn.Parameter]], Optimizer]


def describe(make: OptimizerCallable) -> dict[str, Any]:
    """An optimiser's class and hyper-parameters, as a configuration says them."""
    optimizer = make([nn.Parameter(torch.zeros(1))])
    return spelled(type(optimizer), optimizer.defaults)


def unusable(make: OptimizerCallable) -> str:
    """Why an optimiser cannot be used, told by one step on a single weight; empty if it can."""
    weight = nn.Parameter(torch.zeros(1))
    weight.grad = torch.zeros(1)
    optimizer = None
    try:
        optimizer = make([weight])
        optimizer.step()
    # its own words, whatever their kind
    except Exception as error:
        if optimizer is not None and isinstance(error, TypeError):
            return f"{error}; its steps have no closure, as LBFGS needs one"
        return f"{type(error).__name__}: {error}"
    if "lr" not in optimizer.param_groups[0]:
        return "its groups of parameters have no lr, which is to follow the module's schedule"
    return ""


def parse_optimizer(value: Any) -> dict[str, Any]:
    """The class and the arguments of an optimiser.

    Args:
        value: A mapping of ``class_path`` (``SGD``, ``torch.optim.SGD``, or a class of one's own)
            and ``init_args``; or a function from parameters to an optimiser.

    Raises:
        ValueError: There is no such optimiser, or it refuses its arguments.
    """
    if callable(value):
        if problem := unusable(value):
            raise ValueError(f"cannot be used: {problem}")
        value = describe(value)
        # what an optimiser notes of itself is more than some constructors take
        taken = inspect.signature(_class(value["class_path"])).parameters
        noted = value["init_args"]
        value["init_args"] = {key: noted[key] for key in noted if key in taken}
    if not isinstance(value, Mapping) or value.keys() - {"init_args"} != {"class_path"}:
        raise ValueError(f"must be a mapping of class_path and init_args, got {value!r}")
    arguments = value.get("init_args") or {}
    if not isinstance(arguments, Mapping):
        raise ValueError(f"init_args must be a mapping, got {arguments!r}")
    cls = _class(value["class_path"])
    found = {"class_path": public_path(cls), "init_args": dict(arguments)}
    if problem := unusable(_maker(found)):
        raise ValueError(f"cannot be used: {problem}")
    return found


def _class(path: Any) -> type[Optimizer]:
    """The class of a path, or of a name in ``torch.optim``."""
    module, _, name = str(path).rpartition(".")
    found = class_at(f"{module or 'torch.optim'}.{name}")
    if found is None or not issubclass(found, Optimizer):
        known = torch.optim.__all__
        raise ValueError(
            f"class_path must be an optimizer, got {path!r}{suggestion(name, known, False)}"
        )
    return found


def _maker(described: Mapping[str, Any]) -> OptimizerCallable:
    cls: Any = _class(described["class_path"])
    return lambda parameters: cls(parameters, **described["init_args"])


class Replaced:
    """An optimiser in place of a module's own, whose schedules it follows: its rate is ``lr * lr_t
    / lr_0``, with the rates of the module's own.

    Args:
        own: The module's, which makes no steps. Its groups of parameters stay groups.
        described: What to make in its place, see :func:`parse_optimizer`.

    Attributes:
        optimizer: What makes the steps.

    Raises:
        ValueError: The module's own rate is zero at first.
    """

    def __init__(self, own: Optimizer, described: Mapping[str, Any]) -> None:
        groups: Any = [{"params": group["params"]} for group in own.param_groups]
        self.own = own
        self.optimizer = _maker(described)(groups)
        self._rates = []
        for group, its in zip(self.optimizer.param_groups, own.param_groups, strict=True):
            # schedules that are attached already have changed the rate, and noted the first one
            first = float(its.get("initial_lr", its.get("lr", 0.0)))
            if not first:
                raise ValueError(
                    "clients: optimizer follows the schedule of the module's own optimizer, whose "
                    "first learning rate must not be 0"
                )
            self._rates.append((float(group["lr"]), first))
        # torch warns of schedules whose optimiser makes no steps
        own._opt_called = True  # type: ignore[attr-defined]  # noqa: SLF001
        self.optimizer.register_step_pre_hook(lambda *_: self.follow())

    def follow(self) -> None:
        """Take the rate to where the schedules of the module's own optimiser have come."""
        groups = zip(self.optimizer.param_groups, self.own.param_groups, strict=True)
        for (rate, first), (group, its) in zip(self._rates, groups, strict=True):
            # in this order, so that a rate without a schedule stays as it was given
            group["lr"] = rate * (float(its["lr"]) / first)
