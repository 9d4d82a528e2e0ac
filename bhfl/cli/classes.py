"""Classes that a configuration names: which one is meant, and what its constructor takes."""

import inspect
from enum import Enum
from functools import cache
from typing import Any, get_origin

from jsonargparse.typing import get_registered_type

from bhfl.checks import shown, suggestion
from bhfl.cli.naming import check_allowed, imported, is_standard
from bhfl.quant.plugins import leave_out, offered
from bhfl.recorded import public_path

GROUPS = {
    "bhfl.engine.algorithm.Algorithm": "bhfl.algorithms",
    "bhfl.data.partition.Partitioner": "bhfl.partitioners",
    "bhfl.engine.callback.Callback": "bhfl.callbacks",
}
"""The groups of entry points in which other packages offer classes, by the class they derive from.
"""


def indefinite(base: type) -> str:
    """What messages call an object of a class, such as ``an Algorithm``."""
    name = base.__name__
    article = "an" if name[0] in "AEIOU" else "a"
    return f"{article} {name}"


def known(base: type) -> dict[str, type]:
    """The classes that may stand for `base`, are loaded or offered by other packages, and can be
    made, by short name; of two of one name that of the package of `base`, else the one that was
    made first.
    """
    found = dict(_offered(base))
    for cls in _subclasses(base):
        if inspect.isabstract(cls) or cls.__name__.startswith("_"):
            continue
        # bitsandbytes, once it is loaded, has an Adam too
        if cls.__name__ not in found or _is_at_home(cls, base):
            found[cls.__name__] = cls
    return found


@cache
def _offered(base: type) -> dict[str, type]:
    """The classes that other packages offer for `base` by entry points, by their names there."""
    group = GROUPS.get(f"{base.__module__}.{base.__qualname__}")
    found: dict[str, type] = {}
    if group is None:
        return found
    for name, cls in offered(group).items():
        if why := _unfit(cls, base):
            leave_out(group, name, f"it {why}")
        else:
            found[name] = cls
    return found


def _subclasses(base: type) -> list[type]:
    found = [base]
    below: list[type] = type.__subclasses__(base)
    for cls in below:
        found += _subclasses(cls)
    return found


def only(base: type) -> type | None:
    """The class itself, where options alone mean one of it: where it can be made."""
    return base if base in known(base).values() else None


def is_component(hint: Any) -> bool:
    """Whether `hint` is a class whose objects are spelled out by class_path, and not a number, a
    date or the like.
    """
    if not isinstance(hint, type) or get_origin(hint) is not None:
        return False
    if is_standard(hint.__module__) or getattr(hint, "_is_protocol", False):
        return False
    of_values = issubclass(hint, int | float | str | tuple | dict | Enum)
    return not of_values and get_registered_type(hint) is None


def resolve(name: Any, base: type) -> type:
    """The class that `name` means: the short name of one that is loaded, or a dotted path.

    Raises:
        ValueError: No class of this name derives from `base` and can be made.
    """
    names = known(base)
    refusal = f"must name {indefinite(base)}, got {shown(name)}"
    if not isinstance(name, str) or not all(map(str.isidentifier, name.split("."))):
        raise ValueError(refusal)
    if name in names:
        check_allowed(names[name].__module__, name)
        return names[name]
    if "." not in name:
        raise ValueError(refusal + suggestion(name, names))
    # the import alone of some of it does something: antigravity opens a browser
    if is_standard(name):
        raise ValueError(f"{refusal} of the standard library")
    try:
        cls = imported(name)
    except ValueError as error:
        last = name.rpartition(".")[2]
        near = suggestion(last, names, others=False)
        raise ValueError(f"{refusal}: {error}{near}") from error
    if why := _unfit(cls, base):
        raise ValueError(f"{refusal}, which {why}")
    found: type = cls
    return found


def unambiguous(name: str, base: type) -> str:
    """A name that `resolve` takes; a dotted path where other packages have one of that name too."""
    alike = [cls for cls in _subclasses(base) if cls.__name__ == name]
    if not alike and name in _offered(base):
        return public_path(_offered(base)[name])
    ours = [cls for cls in alike if _is_at_home(cls, base)]
    return public_path(ours[0]) if len(alike) > 1 and len(ours) == 1 else name


def _is_at_home(cls: type, base: type) -> bool:
    """Whether a class is of the package of its base."""
    return cls.__module__.partition(".")[0] == base.__module__.partition(".")[0]


def _unfit(cls: Any, base: type) -> str:
    """Why what a name leads to cannot be made as an object of `base`; empty if it can."""
    if not isinstance(cls, type):
        return "is not a class"
    if not issubclass(cls, base):
        return f"does not derive from {base.__module__}.{base.__qualname__}"
    return "is abstract" if inspect.isabstract(cls) else ""


def names_one(base: type, path: str) -> bool:
    """Whether the dotted `path` is that of an object of `base`, such as ``torch.float32``, and not
    of a class.
    """
    if "." not in path or is_standard(path):
        return False
    try:
        return isinstance(imported(path), base)
    except ValueError:
        return False  # which is told where it is resolved
