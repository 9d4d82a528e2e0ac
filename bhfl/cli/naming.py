"""What the dotted paths of a configuration name: found, in the packages that are allowed, and made.

It needs no jsonargparse, which a small device does not have.
"""

import importlib
import inspect
import sys
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import is_dataclass
from functools import partial
from typing import Any, Optional, get_args, get_origin, get_type_hints

import torch
from torch import Tensor, nn

from bhfl.cli.request import OWN
from bhfl.recorded import constructors

_ALLOWED: ContextVar[Collection[str] | None] = ContextVar("allowed", default=None)


@contextmanager
def only_of(packages: Collection[str] | None) -> Iterator[None]:
    """Let names of a configuration lead into some packages alone, for the block: of others nothing
    is imported, and nothing is made that is imported already; None for any.
    """
    token = _ALLOWED.set(packages)
    try:
        yield
    finally:
        _ALLOWED.reset(token)


def all_allowed() -> bool:
    """Whether names may lead into any package."""
    return _ALLOWED.get() is None


def check_allowed(path: str, name: str) -> None:
    """ValueError where a dotted path leads into a package that is not allowed; `name` is told."""
    allowed = _ALLOWED.get()
    if allowed is not None and path.partition(".")[0] not in allowed:
        raise ValueError(f"this client's `allow` does not name the package of {name}")


def is_standard(path: str) -> bool:
    """Whether a dotted path leads into the standard library, of which nothing is imported for a
    name.
    """
    return path.partition(".")[0] in sys.stdlib_module_names


def imported(path: str) -> Any:
    """What the dotted `path` means: something of a module, or of a class in one.

    Raises:
        ValueError: There is no such thing, its package is not allowed, or its module cannot be
            imported, for whatever reason.
    """
    check_allowed(path, path)
    found = _import_named(path)
    # an allowed package may have imported another one: torch.os.system
    check_allowed(getattr(found, "__module__", None) or path, path)
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


def check_packages(config: Any, allowed: Collection[str]) -> None:
    """ValueError where a server's configuration names a class of a package that is not allowed."""
    named = [path for path in class_paths(config) if path.partition(".")[0] not in allowed]
    if named:
        raise ValueError(
            f"the server's configuration names {min(named)}, and this client's `allow` does not "
            "name its package"
        )


def class_paths(value: Any) -> Iterator[str]:
    """The classes that a server's configuration names by ``class_path``, wherever in it."""
    if isinstance(value, Mapping):
        path = value.get("class_path")
        if isinstance(path, str) and not isinstance(path, OwnText):
            yield path
        value = list(value.values())
    for item in value if isinstance(value, list) else ():
        yield from class_paths(item)


# ---- making objects without jsonargparse ---------------------------------------------------------


class OwnText(str):
    """Text of a client's own configuration, which may name any package, and any class of it."""

    __slots__ = ()


def made(key: str, value: Any, homes: Sequence[str], *bases: type) -> Any:
    """The object that a configuration names by ``class_path`` and ``init_args``.

    What stands in its arguments is made too, by the same rules. Of an optimizer, which needs the
    parameters, a function of them is made.

    Args:
        key: Where it stands, for messages.
        value: A mapping with ``class_path``, or the path alone.
        homes: Modules in which a class without a package is looked for.
        bases: What a class of `OWN` must derive from that is not named by `OwnText`: torch has
            classes whose constructor starts a program.

    Raises:
        ValueError: There is no such class, it is not allowed, or it refuses its arguments.
    """
    if isinstance(value, str):
        value = {"class_path": value}
    if not isinstance(value, Mapping) or value.keys() - {"class_path", "init_args"}:
        raise ValueError(f"{key} must be a mapping of class_path and init_args, got {value!r}")
    path = value.get("class_path")
    with only_of(None) if isinstance(path, OwnText) else nullcontext():
        cls = _class(key, path, homes, bases)
    given = value.get("init_args") or {}
    hints, _ = parameters(cls)
    arguments = {
        name: _argument(f"{key}.{name}", one, hints.get(name), homes) for name, one in given.items()
    }
    try:
        if issubclass(cls, torch.optim.Optimizer):
            inspect.signature(cls).bind([], **arguments)
            return partial(cls, **arguments)
        return cls(**arguments)
    except TypeError as error:
        raise ValueError(f"{key}: {cls.__name__} refuses its init_args: {error}") from error


def _class(key: str, path: Any, homes: Sequence[str], bases: tuple[type, ...]) -> Any:
    if not isinstance(path, str) or not all(map(str.isidentifier, path.split("."))):
        raise ValueError(f"{key} must name a class, got {path!r}")
    places = [path] if "." in path else [f"{home}.{path}" for home in homes]
    problems = []
    for place in places:
        if is_standard(place):
            raise ValueError(f"{key} must name a class, got {path!r} of the standard library")
        try:
            found = imported(place)
        except ValueError as error:
            problems.append(str(error))
            continue
        if not isinstance(found, type):
            problems.append(f"{place} is not a class")
        elif not (_is_of_others(path, found) or issubclass(found, bases)):
            problems.append(f"{place} is no {' or '.join(base.__name__ for base in bases)}")
        else:
            return found
    raise ValueError(f"{key} must name a class, got {path!r}: {problems[0]}")


def _is_of_others(path: str, cls: type) -> bool:
    """Whether it is the client that has named a class, or allowed its package."""
    return isinstance(path, OwnText) or cls.__module__.partition(".")[0] not in OWN


def _argument(key: str, value: Any, hint: Any, homes: Sequence[str]) -> Any:
    """An argument as its class takes it: an object where one is named, fields of a dataclass."""
    hints = (hint, *get_args(hint))
    kinds = [one for one in hints if isinstance(one, type)]
    if _names_class(value, kinds, hints):
        bases = [one for one in kinds if not is_standard(one.__module__)]
        return made(key, value, homes, nn.Module, torch.optim.Optimizer, *bases)
    fields = next((one for one in kinds if is_dataclass(one)), None)
    if isinstance(value, Mapping) and fields is not None:
        path = f"{fields.__module__}.{fields.__qualname__}"
        return made(key, {"class_path": path, "init_args": value}, homes, fields)
    if isinstance(value, list) and Tensor in kinds:
        try:
            return torch.tensor(value, dtype=torch.float32)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{key} must be numbers, got {value!r}") from error
    is_tuple = any(get_origin(one) is tuple for one in hints)
    return tuple(value) if is_tuple and isinstance(value, list) else value


def _names_class(value: Any, kinds: Sequence[type], hints: Sequence[Any]) -> bool:
    """Whether an argument is an object to be made: by ``class_path``, or by the path alone where a
    module or a callable is wanted.
    """
    if isinstance(value, Mapping):
        return "class_path" in value
    wanted = nn.Module in kinds or any(get_origin(one) is Callable for one in hints)
    # text without a dot may be a network's name
    return isinstance(value, str) and wanted and ("." in value or str not in kinds)
