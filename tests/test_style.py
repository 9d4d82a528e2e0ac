"""How the package reads: rules that ruff has none for, read from the source. Nothing is run.

``python -m tests.test_style`` prints the figures, and the rules that files break.
"""

from __future__ import annotations

import ast
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "bhfl"
FILES = sorted(PACKAGE.rglob("*.py"))

MOST_TOKENS = 283_016
"""Names, operators and numbers of the package at most. It falls with each simplification, and rises
only by what a new capability needs.
"""
MOST_FUNCTION_LINES = 45
"""Lines of a function, its docstring left out."""
MOST_FILE_LINES = 350
MOST_TARGETS = 2
MOST_ARGUMENTS = 6

COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
PREPOSITIONS = [
    "As",
    "At",
    "By",
    "For",
    "From",
    "In",
    "Like",
    "Of",
    "On",
    "Over",
    "Than",
    "To",
    "Under",
    "With",
    "Within",
    "Without",
]
ENTRY = re.compile(r"\s+[`*]*\w+[`*]*(?: \([^)]*\))?: +(\w+)\b")
"""A line of ``Args`` or ``Attributes``: the name, and the first word on it."""
SECTION = re.compile(r"\s*(Args|Attributes|Yields|Returns|Raises|Warns|Example|Examples):\s*")


def nested(tree: ast.AST) -> Iterator[int]:
    """Lines of comprehensions that hold another one, or two ``for``s."""
    for node in ast.walk(tree):
        if isinstance(node, COMPREHENSIONS):
            inner = [one for one in ast.walk(node) if isinstance(one, COMPREHENSIONS)]
            if len(inner) > 1 or len(node.generators) > 1:
                yield node.lineno


def nested_choices(tree: ast.AST) -> Iterator[int]:
    """Lines of ``a if b else c`` that hold another one."""
    for node in ast.walk(tree):
        if isinstance(node, ast.IfExp):
            inner = sum(isinstance(one, ast.IfExp) for one in ast.walk(node))
            if inner > 1:
                yield node.lineno


def crowded(tree: ast.AST) -> Iterator[int]:
    """Lines of assignments of several values to more names than two at once."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Assign):
            continue
        several = isinstance(node.value, (ast.Tuple, ast.List, *COMPREHENSIONS))
        widths = [len(one.elts) for one in node.targets if isinstance(one, ast.Tuple) and several]
        if max([len(node.targets), *widths]) > MOST_TARGETS:
            yield node.lineno


def without_subject(tree: ast.AST) -> Iterator[int]:
    """Lines of docstrings that begin with a preposition: first lines, and those of arguments."""
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)):
            continue
        text = node.value.value
        if not isinstance(text, str):
            continue
        listed = False
        for offset, line in enumerate(text.splitlines()):
            section = SECTION.fullmatch(line)
            listed = section[1] in ("Args", "Attributes") if section else listed
            entry = ENTRY.match(line) if listed else None
            first = re.match(r"\w+", line) if offset == 0 else None
            word = entry[1] if entry else first[0] if first else ""
            if word.capitalize() in PREPOSITIONS:
                yield node.lineno + offset


def docstring_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    first = node.body[0]
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
        return (first.end_lineno or 0) - first.lineno + 1
    return 0


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield node


def function_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    return (node.end_lineno or 0) - node.lineno + 1 - docstring_lines(node)


def long_functions(tree: ast.AST) -> Iterator[int]:
    """Lines of functions that are too long."""
    for node in functions(tree):
        if function_lines(node) > MOST_FUNCTION_LINES:
            yield node.lineno


def many_arguments(tree: ast.AST, lines: list[str]) -> Iterator[int]:
    """Lines of functions with too many arguments, but for those that say why by a ``noqa``."""
    for node in functions(tree):
        arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        own = [argument for argument in arguments if argument.arg not in ("self", "cls")]
        if len(own) > MOST_ARGUMENTS and "noqa: PLR0913" not in lines[node.lineno - 1]:
            yield node.lineno


def broken(source: str) -> dict[str, list[int]]:
    """The rules that a source breaks, and where."""
    tree = ast.parse(source)
    lines = source.splitlines()
    found = {
        "nested comprehensions": list(nested(tree)),
        "nested choices": list(nested_choices(tree)),
        "crowded assignments": list(crowded(tree)),
        "no subject": list(without_subject(tree)),
        "long functions": list(long_functions(tree)),
        "many arguments": list(many_arguments(tree, lines)),
        "long file": [len(lines)] if len(lines) > MOST_FILE_LINES else [],
    }
    return {rule: places for rule, places in found.items() if places}


def name_of(file: Path) -> str:
    return file.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_a_file_reads_plainly(file: Path) -> None:
    assert broken(file.read_text()) == {}


def num_tokens(file: Path) -> int:
    """Names, operators and numbers in a file; docstrings, comments and layout are free."""
    matter = (tokenize.NAME, tokenize.OP, tokenize.NUMBER)
    count = 0
    strings = 0
    with file.open("rb") as stream:
        for token in tokenize.tokenize(stream.readline):
            # from Python 3.12 on an f-string is many tokens, before it is a string
            name = tokenize.tok_name[token.type]
            strings += (name == "FSTRING_START") - (name == "FSTRING_END")
            count += token.type in matter and not strings
    return count


def figures() -> dict[str, float]:
    """Measures of the whole package."""
    trees = [ast.parse(file.read_text()) for file in FILES]
    lines = [line for file in FILES for line in file.read_text().splitlines()]
    lengths = sorted(function_lines(node) for tree in trees for node in functions(tree))
    nodes = [node for tree in trees for node in ast.walk(tree)]
    a_thousand = len(lines) / 1000
    comments = [line for line in lines if line.strip().startswith("#")]
    return {
        "files": len(FILES),
        "lines": len(lines),
        "lines over 100 characters": sum(len(line) > 100 for line in lines),
        "own-line comments, %": 100 * len(comments) / len(lines),
        "comprehensions a thousand lines": sum(isinstance(n, COMPREHENSIONS) for n in nodes)
        / a_thousand,
        "ternaries a thousand lines": sum(isinstance(n, ast.IfExp) for n in nodes) / a_thousand,
        "lines of a function, median": lengths[len(lengths) // 2],
        "lines of a function, 95 of 100": lengths[len(lengths) * 95 // 100],
        "lines of a function, most": lengths[-1],
        "tokens": sum(map(num_tokens, FILES)),
        "tokens at most": MOST_TOKENS,
    }


def said(name: str, value: float) -> str:
    return f"{name}: {value:,}" if isinstance(value, int) else f"{name}: {value:.1f}"


def test_the_package_grows_by_air_alone() -> None:
    assert sum(map(num_tokens, FILES)) <= MOST_TOKENS


@pytest.mark.parametrize(
    ("source", "rules"),
    [
        ("[[a for a in b] for b in c]", {"nested comprehensions"}),
        ("[a for b in c for a in b]", {"nested comprehensions"}),
        ("any(a for a in (b for b in c))", {"nested comprehensions"}),
        ("x = [a for a in b]\ny = {a for a in b}", set()),
        ("x = a if b else c if d else e", {"nested choices"}),
        ("a, b, c = 1, 2, 3", {"crowded assignments"}),
        ("a = b = c = 1", {"crowded assignments"}),
        ("a, b, c = f()\na, b = 1, 2\na = b = 1", set()),
        ('"""Of the trainer."""', {"no subject"}),
        ('def f(a):\n    """It runs.\n\n    Args:\n        a: For it.\n    """', {"no subject"}),
        ('def f(a):\n    """It runs.\n\n    Args:\n        a: for it.\n    """', {"no subject"}),
        ('def f(a):\n    """It runs.\n\n    Args:\n        a: What it is for.\n    """', set()),
        ('def f(a):\n    """It runs.\n\n    With speed.\n    """', set()),
        ("def f():\n" + "    a = 1\n" * 45, {"long functions"}),
        ('def f():\n    """It runs.\n' + "\n" * 60 + '    """\n' + "    a = 1\n" * 40, set()),
        ("def f(a, b, c, *, d, e, f, g): ...", {"many arguments"}),
        ("def f(self, a, b, c, *, d, e, f): ...", set()),
        ("def f(a, b, c, *, d, e, f, g): ...  # noqa: PLR0913", set()),
        ("a = 1\n" * 351, {"long file"}),
    ],
)
def test_the_rules_find_what_they_look_for(source: str, rules: set[str]) -> None:
    assert broken(source).keys() == rules


if __name__ == "__main__":
    for name, value in figures().items():
        print(said(name, value))
    for file in FILES:
        if found := broken(file.read_text()):
            print(f"{name_of(file)}: {found}")
