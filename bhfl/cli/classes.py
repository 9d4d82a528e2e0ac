"""Classes that a configuration names: which one is meant, and what its constructor takes."""

from __future__ import annotations

import importlib
import inspect
import sys
from dataclasses import dataclass
from enum import Enum
from typing import Any, Optional, get_origin, get_type_hints

from bhfl.cli.hints import shown, suggestion


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
        return {c.__name__: c for c in loaded if not inspect.isabstract(c) and not c.__name__.startswith("_")}


def is_component(hint: Any) -> bool:
    """Whether `hint` is a class whose objects are spelled out by class_path, and not a number, a date or the like."""
    if not isinstance(hint, type) or get_origin(hint) is not None:
        return False
    ours_or_theirs = hint.__module__.partition(".")[0] not in sys.stdlib_module_names
    return ours_or_theirs and not issubclass(hint, (int, float, str, Enum))


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
    cls: Any = _imported(name, refusal, known)
    if not isinstance(cls, type):
        raise ValueError(f"{refusal}, which is no class")
    if not issubclass(cls, kind.bases):
        bases = " or ".join(f"{base.__module__}.{base.__qualname__}" for base in kind.bases)
        raise ValueError(f"{refusal}, which does not derive from {bases}")
    if inspect.isabstract(cls):
        raise ValueError(f"{refusal}, which is abstract")
    return cls


def _imported(path: str, refusal: str, known: dict[str, type]) -> Any:
    module, _, name = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"{refusal}: {error}{suggestion(name, known, others=False)}") from error


def _subclasses(base: type) -> list[type]:
    below: list[type] = type.__subclasses__(base)
    return [base, *(deeper for cls in below for deeper in _subclasses(cls))]


def parameters(cls: type) -> tuple[dict[str, Any], bool]:
    """Names and type hints of what ``cls(...)`` takes, and whether it takes more that cannot be told.

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
                found.setdefault(parameter.name, Optional[hint] if parameter.default is None else hint)
        passes_on = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in given)
        if not passes_on:
            return found, False
    return found, passes_on
