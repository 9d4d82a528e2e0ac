"""Classes that a configuration names: which one is meant, and what its constructor takes."""

import importlib
import inspect
import sys
import traceback
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from enum import Enum
from functools import cache
from typing import Any, Optional, get_origin, get_type_hints

from jsonargparse.typing import get_registered_type

from bhfl.checks import shown, suggestion
from bhfl.quant.plugins import leave_out, offered
from bhfl.recorded import constructors, public_path

GROUPS = {
    "bhfl.engine.algorithm.Algorithm": "bhfl.algorithms",
    "bhfl.data.partition.Partitioner": "bhfl.partitioners",
    "bhfl.engine.callback.Callback": "bhfl.callbacks",
}
"""The groups of entry points in which other packages offer classes, by the class they derive from.
"""


_ALLOWED: ContextVar[Collection[str] | None] = ContextVar("allowed", default=None)


@contextmanager
def only_of(packages: Collection[str]) -> Iterator[None]:
    """Let names of a configuration lead into some packages alone, for the block: of others nothing
    is imported, and nothing is made that is imported already.
    """
    token = _ALLOWED.set(packages)
    try:
        yield
    finally:
        _ALLOWED.reset(token)


def all_allowed() -> bool:
    """Whether names may lead into any package."""
    return _ALLOWED.get() is None


def _check_allowed(path: str, name: str) -> None:
    allowed = _ALLOWED.get()
    if allowed is not None and path.partition(".")[0] not in allowed:
        raise ValueError(f"this client's `allow` does not name the package of {name}")


def indefinite(base: type) -> str:
    """What messages call an object of a class, such as ``an Algorithm``."""
    name = base.__name__
    return f"{'an' if name[0] in 'AEIOU' else 'a'} {name}"


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
    found = {}
    for name, cls in (offered(group) if group else {}).items():
        if why := _unfit(cls, base):
            leave_out(str(group), name, f"it {why}")
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
    """The class itself, where no other one may be meant."""
    return base if list(known(base).values()) == [base] else None


def is_component(hint: Any) -> bool:
    """Whether `hint` is a class whose objects are spelled out by class_path, and not a number, a
    date or the like.
    """
    if not isinstance(hint, type) or get_origin(hint) is not None:
        return False
    if _is_standard(hint.__module__) or getattr(hint, "_is_protocol", False):
        return False
    of_values = issubclass(hint, int | float | str | tuple | dict | Enum)
    return not of_values and get_registered_type(hint) is None


def _is_standard(path: str) -> bool:
    """Whether a dotted path leads into the standard library, of which nothing is imported for a
    name.
    """
    return path.partition(".")[0] in sys.stdlib_module_names


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
        _check_allowed(names[name].__module__, name)
        return names[name]
    if "." not in name:
        raise ValueError(refusal + suggestion(name, names))
    # the import alone of some of it does something: antigravity opens a browser
    if _is_standard(name):
        raise ValueError(f"{refusal} of the standard library")
    try:
        cls = imported(name)
    except ValueError as error:
        near = suggestion(name.rpartition(".")[2], names, others=False)
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
    return public_path(ours[0]) if len(ours) == 1 < len(alike) else name


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
    if "." not in path or _is_standard(path):
        return False
    try:
        return isinstance(imported(path), base)
    except ValueError:
        return False  # which is told where it is resolved


def imported(path: str) -> Any:
    """What the dotted `path` means: something of a module, or of a class in one.

    Raises:
        ValueError: There is no such thing, its package is not allowed, or its module cannot be
            imported, for whatever reason.
    """
    _check_allowed(path, path)
    found = _import_named(path)
    # an allowed package may have imported another one: torch.os.system
    _check_allowed(getattr(found, "__module__", None) or path, path)
    return found


def _import_named(path: str) -> Any:
    module, _, name = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        # the module is there and lacks another one, or there is no outer one to look in
        if error.name != module or "." not in module:
            raise ValueError(str(error)) from error
        # it may be a class in a module
        try:
            return getattr(_import_named(module), name)
        except (ValueError, AttributeError):
            raise ValueError(str(error)) from error
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(str(error)) from error
    except SystemExit as error:
        why = f"importing {module} ends the process: {_place(error)} calls exit"
        raise ValueError(why) from error
    except Exception as error:
        why = f"{type(error).__name__}: {error} ({_place(error)})"
        raise ValueError(f"{module} cannot be imported: {why}") from error


def _place(error: BaseException) -> str:
    """The file and line where a module went wrong."""
    if isinstance(error, SyntaxError):
        return f"{error.filename}, line {error.lineno}"
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{frame.filename}, line {frame.lineno}"


def parameters(cls: type) -> tuple[dict[str, Any], bool]:
    """Names and type hints of what ``cls(...)`` takes, and whether it takes more that cannot be
    told.

    ``**options`` are followed to the constructors of the bases.
    """
    found: dict[str, Any] = {}
    passes_on = False
    try:
        for init, given in constructors(cls):
            hints = get_type_hints(init)
            passes_on = False
            for one in given:
                passes_on |= one.kind is one.VAR_KEYWORD
                if one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD):
                    hint = hints.get(one.name, Any)
                    # the nearest class has the word; null is its default, whatever its hint says
                    found.setdefault(one.name, Optional[hint] if one.default is None else hint)
    # of constructors in C, or with hints that are imported for type checkers alone
    except (ValueError, TypeError, NameError):
        return found, True
    return found, passes_on
