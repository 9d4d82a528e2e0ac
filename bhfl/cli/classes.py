"""Classes that a configuration names: which one is meant, and what its constructor takes."""

from __future__ import annotations

import importlib
import inspect
import sys
import traceback
from dataclasses import dataclass
from enum import Enum
from typing import Any, Optional, get_origin, get_type_hints

from jsonargparse.typing import get_registered_type

from bhfl.checks import shown, suggestion


@dataclass(frozen=True, eq=False)
class Kind:
    """The classes that may be named at one place.

    Attributes:
        name: As messages call one of them.
        bases: One of these must be a base.
    """

    name: str
    bases: tuple[type, ...]

    @classmethod
    def of(cls, base: type) -> Kind:
        """The subclasses of one class, called by its name."""
        return cls(f"{'an' if base.__name__[0] in 'AEIOU' else 'a'} {base.__name__}", (base,))

    def __str__(self) -> str:
        return self.name

    def only(self) -> type | None:
        """The one class that may be meant, where there is no other."""
        known = list(self.known().values())
        return known[0] if known == list(self.bases) else None

    def known(self) -> dict[str, type]:
        """Those that are loaded and can be made, by short name."""
        loaded = [cls for base in self.bases for cls in _subclasses(base)]
        return {
            c.__name__: c
            for c in loaded
            if not inspect.isabstract(c) and not c.__name__.startswith("_")
        }


def is_component(hint: Any) -> bool:
    """Whether `hint` is a class whose objects are spelled out by class_path, and not a number, a
    date or the like.
    """
    if not isinstance(hint, type) or get_origin(hint) is not None:
        return False
    if hint.__module__.partition(".")[0] in sys.stdlib_module_names or getattr(
        hint, "_is_protocol", False
    ):
        return False
    return (
        not issubclass(hint, (int, float, str, tuple, dict, Enum))
        and get_registered_type(hint) is None
    )


def resolve(name: Any, kind: Kind) -> type:
    """The class that `name` means: the short name of one that is loaded, or a dotted path.

    Raises:
        ValueError: There is none. Modules of the standard library are never imported for a name.
    """
    known = kind.known()
    refusal = f"must name {kind}, got {shown(name)}"
    if not isinstance(name, str) or not all(part.isidentifier() for part in name.split(".")):
        raise ValueError(refusal)
    if name in known:
        return known[name]
    if "." not in name:
        raise ValueError(refusal + suggestion(name, known))
    if name.split(".")[0] in sys.stdlib_module_names:
        raise ValueError(f"{refusal} of the standard library")
    cls: Any = _found(name, refusal, known)
    if not isinstance(cls, type):
        raise ValueError(f"{refusal}, which is no class")
    if not issubclass(cls, kind.bases):
        bases = " or ".join(f"{base.__module__}.{base.__qualname__}" for base in kind.bases)
        raise ValueError(f"{refusal}, which does not derive from {bases}")
    if inspect.isabstract(cls):
        raise ValueError(f"{refusal}, which is abstract")
    return cls


def names_one(kind: Kind, path: str) -> bool:
    """Whether the dotted `path` is that of an object of `kind`, such as ``torch.float32``, and not
    of a class.
    """
    if "." not in path or path.split(".")[0] in sys.stdlib_module_names:
        return False
    try:
        return isinstance(imported(path), kind.bases)
    except ValueError:
        return False  # which is told where it is resolved


def _found(path: str, refusal: str, known: dict[str, type]) -> Any:
    try:
        return imported(path)
    except ValueError as error:
        raise ValueError(
            f"{refusal}: {error}{suggestion(path.rpartition('.')[2], known, others=False)}"
        ) from error


def imported(path: str) -> Any:
    """What the dotted `path` means: something of a module, or of a class in one.

    Raises:
        ValueError: There is none, or its module cannot be imported, for whatever reason.
    """
    module, _, name = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        if error.name == module and "." in module:
            return _inside(module, name, error)
        raise ValueError(str(error)) from error
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(str(error)) from error
    except SystemExit as error:
        raise ValueError(
            f"importing {module} ends the process: {_place(error)} calls exit"
        ) from error
    except Exception as error:
        raise ValueError(
            f"{module} cannot be imported: {type(error).__name__}: {error} ({_place(error)})"
        ) from error


def _inside(cls: str, name: str, error: Exception) -> Any:
    """What is called `name` in a class; `error` says that it is no module."""
    try:
        return getattr(imported(cls), name)
    except (ValueError, AttributeError):
        raise ValueError(str(error)) from error


def _place(error: BaseException) -> str:
    """The file and line where a module went wrong."""
    if isinstance(error, SyntaxError):
        return f"{error.filename}, line {error.lineno}"
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{frame.filename}, line {frame.lineno}"


def _subclasses(base: type) -> list[type]:
    below: list[type] = type.__subclasses__(base)
    return [base, *(deeper for cls in below for deeper in _subclasses(cls))]


def parameters(cls: type) -> tuple[dict[str, Any], bool]:
    """Names and type hints of what ``cls(...)`` takes, and whether it takes more that cannot be
    told.

    ``**options`` are followed to the constructors of the bases.
    """
    found: dict[str, Any] = {}
    passes_on = False
    for owner in cls.__mro__[:-1]:
        init = owner.__dict__.get("__init__")
        if init is None:
            continue
        try:
            signature, hints = inspect.signature(init), get_type_hints(init)
        except (ValueError, TypeError, NameError):
            return found, True
        given = list(signature.parameters.values())[1:]
        variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        for parameter in given:
            if parameter.kind not in variable:
                hint = hints.get(parameter.name, Any)
                found.setdefault(
                    parameter.name, Optional[hint] if parameter.default is None else hint
                )
        passes_on = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in given)
        if not passes_on:
            return found, False
    return found, passes_on
