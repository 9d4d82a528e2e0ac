"""The examples in docstrings are true, and what the reference lists says what it is given."""

import ast
import doctest
import inspect
import sys
import textwrap
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


def raises(function: object) -> bool:
    """Whether its own lines raise an error."""
    lines = ast.walk(ast.parse(textwrap.dedent(inspect.getsource(function))))
    return any(isinstance(line, ast.Raise) and line.exc is not None for line in lines)


def test_public_functions_say_what_they_take_give_and_raise():
    silent = []
    for name, function in in_the_reference():
        if not inspect.isfunction(function):
            continue
        signature = inspect.signature(function)
        of_several = len([one for one in signature.parameters if one != "self"]) > 1
        gives = signature.return_annotation not in (None, "None", inspect.Signature.empty)
        needed = {
            "Args:": of_several,
            "Returns:": of_several and gives,
            "Raises:": raises(function),
        }
        for section, has in needed.items():
            if has and section not in (function.__doc__ or ""):
                silent.append(f"{name} lacks {section}")
    assert not silent
