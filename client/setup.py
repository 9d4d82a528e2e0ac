"""What pyproject.toml cannot say: which files of the package ``bhfl`` the small distribution holds.

They are found by their imports from `ROOTS` on, and copied beside this file, which a source
distribution is packed from. `LEFT_OUT` are the parts of the whole package that they import where it
is there, inside of functions.
"""

import ast
import shutil
from collections.abc import Iterator
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
SOURCE = HERE.parent
ROOTS = ("cli.client", "cli.join", "cli.plain_client", "remote.app.client", "data.arrays", "models")
WHOLE_ROOMS = ("quant", "comm", "algorithms")
LEFT_OUT = (
    "algorithms.dpfedavg",
    "algorithms.prowd.dequantizer",
    "algorithms.prowd.finetune",
    "algorithms.prowd.pairs",
    "cli.federated_cli",
    "cli.opener",
    "engine.client.optim",
    "loading",
    "models.classifier",
)


def main() -> None:
    """Copy the files, where this is a checkout, and pack them."""
    # a source distribution has its files, and may lie beside another folder of that name
    if not (HERE / "PKG-INFO").exists():
        # a wheel takes all that builds before have left, too
        for left in ("bhfl", "build"):
            shutil.rmtree(HERE / left, ignore_errors=True)
        for name in sorted(files(SOURCE)):
            place = HERE / name
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(SOURCE / name, place)
        shutil.copyfile(SOURCE / "LICENSE", HERE / "LICENSE")
    setup(packages=find_packages(include=["bhfl*"]), package_data={"bhfl": ["py.typed"]})


def files(root: Path) -> set[str]:
    """The files of the distribution, as paths from the folder of a checkout."""
    modules = {}
    for path in (root / "bhfl").rglob("*.py"):
        parts = path.relative_to(root).with_suffix("").parts
        modules[".".join(parts).removesuffix(".__init__")] = path
    left_out = {f"bhfl.{name}" for name in LEFT_OUT}
    waiting = [f"bhfl.{name}" for name in ROOTS]
    for room in WHOLE_ROOMS:
        waiting += [name for name in modules if name.startswith(f"bhfl.{room}.")]
    found: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name in found or name in left_out or name not in modules:
            continue
        found.add(name)
        # the packages that it is in
        waiting += [name.rpartition(".")[0], *imports(modules[name])]
    held = {modules[name].relative_to(root).as_posix() for name in found}
    return held | {"bhfl/py.typed"}


def imports(path: Path) -> Iterator[str]:
    """The names that a file imports, wherever in it, but for what only type checkers read."""
    waiting: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        waiting += ast.iter_child_nodes(node)
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                # a file of Flower's app, beside which the other one lies
                base = f"bhfl.remote.{path.parent.name}.{base}"
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


if __name__ == "__main__":
    main()
