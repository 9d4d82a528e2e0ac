"""Who may import whom, and what no code of the package may do: read from the source, nothing is
run.

``python -m tests.test_architecture`` prints the picture of the rooms that CONTRIBUTING.md shows.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "bhfl"
FILES = sorted(PACKAGE.rglob("*.py"))


def module_of(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_of(file): file for file in FILES}

SHARED = {"checks", "downlink", "files", "plain", "recorded", "settings", "tags", "told"}
"""Rooms that every other may import, but for quant; they import each other alone."""
OURS = {
    "quant": set(),
    "comm": {"quant"},
    "models": set(),
    "data": {"engine"},
    "engine": {"comm", "quant"},
    "algorithms": {"comm", "engine", "quant"},
    "analysis": {"algorithms", "data", "engine", "quant", "report"},
    "callbacks": {"engine"},
    "report": set(),
    "export": {"engine", "quant"},
    "remote": {"comm", "engine", "quant"},
    "cli": {
        "algorithms",
        "analysis",
        "callbacks",
        "comm",
        "data",
        "engine",
        "export",
        "models",
        "quant",
        "remote",
        "report",
    },
    "loading": {"cli", "engine", "report"},
    "sweep": {"cli", "engine", "report"},
    "main": {"cli", "engine", "report", "sweep"},
}
"""The rooms that each room may import from, besides itself and `SHARED`."""
ROOMS = set(OURS)
SERVER = {
    "coordinator",
    "evaluate",
    "fit",
    "records",
    "resume",
    "rounds",
    "run",
    "session",
    "timing",
    "trainer",
}
"""Files of the engine that a client has no use for: it may be another machine."""
OTHERS = {
    "quant": {"torch"},
    "comm": {"torch", "numpy", "zlib_ng"},
    "models": {"torch", "lightning", "torchvision"},
    "export": {"torch", "safetensors", "onnx", "onnxscript", "yaml"},
}
"""The packages that a room may import, besides the standard library; the rest may import any."""


def room(file: Path) -> str:
    """The folder or file right under bhfl that `file` belongs to; empty for bhfl/__init__.py and
    its like.
    """
    first = file.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py") if not first.startswith("__") else ""


def nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes below `tree`, but for what only type checkers read."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and names(node.test).endswith("TYPE_CHECKING"):
            continue
        yield node
        yield from nodes(node)


@cache
def parsed(file: Path) -> ast.Module:
    """The source of a file, which several tests read."""
    return ast.parse(file.read_text())


@cache
def imports(file: Path) -> tuple[str, ...]:
    """The absolute names of all modules that `file` imports, wherever in it."""
    return tuple(imported(file))


def imported(file: Path) -> Iterator[str]:
    """One name after the other of what `imports` returns."""
    for node in nodes(parsed(file)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = [*file.relative_to(ROOT).parts[: -node.level]] if node.level else []
            base = ".".join([*parents, *([node.module] if node.module else [])])
            below = [f"{base}.{alias.name}" for alias in node.names]
            modules = [module for module in below if module in MODULES]  # from bhfl import engine
            yield from modules
            if len(modules) < len(below):
                yield base


def test_every_file_is_in_a_known_room():
    assert len(FILES) > 50
    assert {room(file) for file in FILES} - {""} <= ROOMS | SHARED


@pytest.mark.parametrize("name", sorted(OURS))
def test_rooms_import_only_what_they_may(name):
    wrong = []
    for file in FILES:
        for module in imports(file) if room(file) == name else ():
            top, _, rest = module.partition(".")
            if top == "bhfl":
                shared = SHARED if name != "quant" else set()
                allowed = rest.partition(".")[0] in OURS[name] | {name, ""} | shared
            else:
                allowed = (
                    name not in OTHERS or top in OTHERS[name] or top in sys.stdlib_module_names
                )
            if not allowed:
                wrong.append(f"{file.relative_to(ROOT)} imports {module}")
    assert not wrong, "\n".join(wrong)


def room_graph() -> dict[str, set[str]]:
    """The rooms that each room imports, as the source has it."""
    graph: dict[str, set[str]] = {name: set() for name in ROOMS}
    for file in FILES:
        for module in imports(file):
            top, _, rest = module.partition(".")
            target = rest.partition(".")[0]
            if top == "bhfl" and target in ROOMS and room(file) not in ("", target):
                graph[room(file)].add(target)
    return graph


def reachable(graph: dict[str, set[str]], start: str) -> set[str]:
    """All rooms, or files, that `start` imports, directly or through others."""
    found: set[str] = set()
    waiting = [start]
    while waiting:
        for name in graph[waiting.pop()] - found:
            found.add(name)
            waiting.append(name)
    return found


def picture() -> str:
    """The rooms as a Mermaid graph; an arrow that follows from two others is left out."""
    graph = room_graph()
    lines = ["graph TD"]
    for name in sorted(graph):
        implied = set().union(*(reachable(graph, other) for other in graph[name]))
        for target in sorted(graph[name] - implied):
            lines.append(f"    {name} --> {target}")
        if not graph[name]:
            lines.append(f"    {name}")
    return "\n".join(lines) + "\n"


def test_no_room_imports_itself_through_others():
    graph = room_graph()
    assert [name for name in graph if name in reachable(graph, name)] == []


def test_no_file_imports_itself_through_others():
    graph = {name: set(imports(file)) & MODULES.keys() for name, file in MODULES.items()}
    assert [name for name in graph if name in reachable(graph, name)] == []


def test_a_client_imports_nothing_of_the_server():
    wrong = []
    for file in (PACKAGE / "engine" / "client").glob("*.py"):
        for module in imports(file):
            if module.removeprefix("bhfl.engine.") in SERVER:
                wrong.append(f"{file.name} imports {module}")
    assert not wrong


OF_FLOWER = {"cryptography", "flwr", "httpx", "starlette", "uvicorn"}
"""Packages that come with the extra ``flower``."""


def test_what_needs_flower_is_imported_only_where_it_is_asked_for():
    wrong = []
    for file in FILES:
        whole = {*imports(file)}
        first = {*at_once(parsed(file))}
        remote = {name for name in first if name.startswith("bhfl.remote")}
        if room(file) != "remote":
            wrong += [f"{file.name} imports {name}" for name in remote]
            wrong += [f"{file.name} imports {name}" for name in whole if top(name) in OF_FLOWER]
        # what Flower's own processes run
        if "app" in file.parts:
            continue
        wrong += [f"{file.name} imports {name} at once" for name in first if top(name) in OF_FLOWER]
    assert not wrong


def top(module: str) -> str:
    return module.partition(".")[0]


def at_once(tree: ast.Module) -> Iterator[str]:
    """The modules that are imported with a module, outside of its functions."""
    for statement in tree.body:
        if isinstance(statement, ast.Import):
            yield from (alias.name for alias in statement.names)
        elif isinstance(statement, ast.ImportFrom) and statement.module:
            yield statement.module
            yield from (f"{statement.module}.{alias.name}" for alias in statement.names)


def test_tests_mirror_the_rooms():
    folders = {file.parent.relative_to(PACKAGE) for file in FILES}
    missing = []
    for folder in folders:
        if not (ROOT / "tests" / folder / "__init__.py").is_file():
            missing.append(folder.as_posix())
    assert not missing


def test_contributing_shows_the_rooms_as_they_are():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    shown = re.findall(r"```mermaid\n(.*?)```", text, re.S)
    assert shown == [picture()], (
        "CONTRIBUTING.md must show what `python -m tests.test_architecture` prints"
    )


def test_contributing_tells_of_every_room():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    assert [name for name in sorted(ROOMS) if f"`bhfl/{name}" not in text] == []


@pytest.mark.parametrize("name", sorted(SHARED))
def test_shared_files_import_no_room(name):
    found = set()
    for file in FILES:
        if room(file) == name:
            found |= {module for module in imports(file) if module.startswith("bhfl.")}
    assert {module.split(".")[1] for module in found} <= SHARED


def test_the_package_itself_imports_nothing_of_its_own():
    assert set(imports(PACKAGE / "__init__.py")) == {"importlib", "typing"}


def names(node: ast.AST) -> str:
    """``a.b.c`` of a chain of attributes; empty for anything else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{names(node.value)}.{node.attr}" if names(node.value) else f"?.{node.attr}"
    return ""


def keyword(call: ast.Call, name: str) -> object:
    """The constant given for a keyword, or None."""
    return next(
        (
            k.value.value
            for k in call.keywords
            if k.arg == name and isinstance(k.value, ast.Constant)
        ),
        None,
    )


FORBIDDEN_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
FORBIDDEN_CALLS = {
    "eval", "exec", "compile", "__import__", "os.system", "os.popen", "yaml.load",
    "yaml.unsafe_load", "yaml.full_load", "torch.hub.load", "torch.jit.load", "runpy.run_path",
    "runpy.run_module",
}  # fmt: skip


def dangers(source: ast.Module) -> list[str]:
    """What in a source could run code that came with data."""
    found = []
    for node in ast.walk(source):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            modules = (
                [alias.name for alias in node.names]
                if isinstance(node, ast.Import)
                else [node.module or ""]
            )
            found += [module for module in modules if module.partition(".")[0] in FORBIDDEN_MODULES]
        if not isinstance(node, ast.Call):
            continue
        called = names(node.func)
        if called in FORBIDDEN_CALLS:
            found.append(called)
        if called == "torch.load" and keyword(node, "weights_only") is not True:
            found.append("torch.load without weights_only=True")
        if called in ("np.load", "numpy.load") and keyword(node, "allow_pickle") not in (
            None,
            False,
        ):
            found.append("np.load with allow_pickle")
        if keyword(node, "shell") is True:
            found.append("shell=True")
        found += ["weights_only=False"] if keyword(node, "weights_only") is False else []
    return found


def test_nothing_can_run_code_that_came_with_data():
    found = {str(file.relative_to(ROOT)): dangers(parsed(file)) for file in FILES}
    assert {file: what for file, what in found.items() if what} == {}


@pytest.mark.parametrize(
    "source",
    [
        "import pickle", "from pickle import loads", "import dill.source", "eval('1')", "exec('1')",
        "torch.load(f)", "torch.load(f, weights_only=False)", "yaml.load(f, Loader=L)",
        "subprocess.run('ls', shell=True)", "np.load(f, allow_pickle=True)", "os.system('ls')",
        "Class.load(f, weights_only=False)",
    ],
)  # fmt: skip
def test_the_search_finds_what_it_looks_for(source):
    assert dangers(ast.parse(source))


@pytest.mark.parametrize(
    "source",
    [
        "torch.load(f, weights_only=True)",
        "yaml.safe_load(f)",
        "module.eval()",
        "np.load(f)",
        "re.compile('a')",
    ],
)
def test_the_search_finds_nothing_else(source):
    assert not dangers(ast.parse(source))


def test_no_seed_no_thread_count_and_no_file_is_touched_by_an_import():
    """Statements at module level call nothing that changes the process."""
    changing = {
        "manual_seed",
        "seed",
        "set_num_threads",
        "simplefilter",
        "filterwarnings",
        "basicConfig",
        "mkdir",
        "open",
    }
    wrong = []
    for file in FILES:
        for statement in parsed(file).body:
            if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                continue
            calls = [node for node in ast.walk(statement) if isinstance(node, ast.Call)]
            wrong += [
                f"{file.name}: {names(c.func)}"
                for c in calls
                if names(c.func).rpartition(".")[2] in changing
            ]
    assert not wrong


if __name__ == "__main__":
    print(picture(), end="")
