"""The default of an option, found by the class that takes it."""

import inspect
from collections.abc import Mapping
from dataclasses import is_dataclass
from itertools import chain
from typing import Any, get_args, get_type_hints

from bhfl.engine import FederatedTrainer
from bhfl.recorded import class_at, constructors, flatten, plain

UNKNOWN = object()
"""What is told of an option without a default; it equals nothing."""


def default_of(key: str, options: Mapping[str, Any]) -> Any:
    """The default of an option as settings say it, or `UNKNOWN`.

    Args:
        key: Its dotted key, such as ``algorithm.mask.tau``.
        options: All options by key, among them the classes of parts, such as ``algorithm``.
    """
    parts = key.split(".")
    # the innermost part that has a class takes it; its value may be a mapping of more
    for length in range(len(parts) - 1, 0, -1):
        if (cls := _class_at(parts[:length], options)) is not None:
            name = parts[length]
            known = chain.from_iterable(parameters for _, parameters in constructors(cls))
            defaults = {one.name: one.default for one in known}
            default = defaults.get(name, inspect.Parameter.empty)
            if default is inspect.Parameter.empty:
                return UNKNOWN
            return flatten(plain(default), ".".join(parts[: length + 1])).get(key, UNKNOWN)
    return UNKNOWN


def _class_at(parts: list[str], options: Mapping[str, Any]) -> Any:
    """The class of a part of a configuration; None where it has none, or it cannot be told."""
    if parts == ["trainer"]:
        return FederatedTrainer
    value = options.get(".".join(parts))
    if isinstance(value, str) and "." in value:
        return class_at(value)
    # a group of options, which settings call a switch that is on: the annotation tells its class
    owner = _class_at(parts[:-1], options) if value is True and len(parts) > 1 else None
    if owner is None:
        return None
    annotation = get_type_hints(owner.__init__).get(parts[-1])
    groups = filter(is_dataclass, (annotation, *get_args(annotation)))
    return next(groups, None)
