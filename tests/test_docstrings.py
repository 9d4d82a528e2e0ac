"""The examples in docstrings are true, and what the reference lists says what it is given."""

import doctest
import inspect
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in sorted((ROOT / "bhfl").rglob("*.py"))
    if ">>> " in path.read_text()
]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str) -> None:
    found = doctest.testmod(import_module(name))
    assert found.attempted
    assert not found.failed


# ---- arguments -----------------------------------------------------------------------------------

ROOMS = (
    "engine", "quant", "data", "algorithms", "models", "callbacks", "export", "analysis", "comm",
)  # fmt: skip


def in_the_reference() -> Iterator[tuple[str, object]]:
    """The functions, and the methods of classes, that the pages of the reference list."""
    sys.path.append(str(ROOT / "docs/_ext"))
    import facts

    for room in ROOMS:
        for name in facts.public_names(f"bhfl.{room}"):
            value = facts.named(f"bhfl.{room}.{name}")
            if inspect.isfunction(value):
                yield name, value
            elif inspect.isclass(value):
                for method, member in vars(value).items():
                    inherited = any(hasattr(base, method) for base in value.__mro__[1:])
                    # an override says what it does: what it is given stands in the base class
                    if not method.startswith("_") and not inherited:
                        yield f"{name}.{method}", getattr(member, "__func__", member)


def test_public_functions_say_what_their_arguments_are():
    silent = []
    for name, function in in_the_reference():
        if inspect.isfunction(function):
            given = [one for one in inspect.signature(function).parameters if one != "self"]
            if len(given) > 1 and "Args:" not in (function.__doc__ or ""):
                silent.append(name)
    assert not silent
