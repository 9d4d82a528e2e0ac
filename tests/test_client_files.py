"""The small distribution of ``client/``: its files are what a client imports, and nothing else."""

from __future__ import annotations

import runpy
import shutil
import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement

from tests.test_architecture import MODULES, PACKAGE, ROOT, at_once, imports, parsed
from tests.test_packaging import PROJECT

CLIENT = ROOT / "client"
SETUP = runpy.run_path(str(CLIENT / "setup.py"))
FILES = SETUP["files"](ROOT)
HELD = {path for path in MODULES.values() if path.relative_to(ROOT).as_posix() in FILES}
SMALL = tomllib.loads((CLIENT / "pyproject.toml").read_text())["project"]
OF_THE_SERVER = {
    "engine": [
        "coordinator", "dealing", "evaluate", "fit", "launch", "loan", "measure", "peer", "predict",
        "records", "resume", "rounds", "run", "session", "timing", "trainer",
    ],
    "engine/client": ["worker"],
    "cli": ["commands", "federated_cli", "opener"],
    "remote": [
        "attendance", "believe", "bundle", "fleet", "front", "relay", "serve", "superlink",
    ],
}  # fmt: skip
"""Names of files that a client has no use for."""
AT_ONCE = {"numpy", "torch", "yaml", "zlib_ng"}
"""The packages that its files import with themselves, but for the app, which Flower runs."""


def test_what_its_files_import_with_themselves_is_there_and_nothing_heavy() -> None:
    """By another reader of imports than that which chooses the files."""
    missing = []
    foreign = set()
    for path in HELD:
        for name in at_once(parsed(path)):
            if name in MODULES and MODULES[name] not in HELD:
                missing.append(f"{path.relative_to(PACKAGE)} imports {name}")
            top = name.partition(".")[0]
            if "app" not in path.parts and top not in {"bhfl", *sys.stdlib_module_names}:
                foreign.add(top)
    assert not missing
    assert foreign == AT_ONCE


def test_what_is_left_out_is_named_and_imported_inside_of_functions() -> None:
    left_out = {f"bhfl.{name}" for name in SETUP["LEFT_OUT"]}
    assert left_out <= MODULES.keys()
    wanted = set()
    for path in HELD:
        wanted |= {name for name in imports(path) if name in MODULES and MODULES[name] not in HELD}
    assert wanted <= left_out


def test_nothing_of_the_server_is_in_it() -> None:
    rooms = {path.relative_to(PACKAGE).parts[0] for path in HELD}
    assert rooms.isdisjoint({"analysis", "callbacks", "export", "report", "sweep"})
    held = {path.relative_to(PACKAGE).as_posix() for path in HELD}
    for room, names in OF_THE_SERVER.items():
        for name in names:
            assert (PACKAGE / room / f"{name}.py").exists()
            assert f"{room}/{name}.py" not in held
    assert "remote/resident.py" in held


def test_it_needs_what_the_whole_package_needs_of_the_same() -> None:
    whole = {one.name: one for one in map(Requirement, PROJECT["dependencies"])}
    flower = PROJECT["optional-dependencies"]["flower"]
    whole |= {one.name: one for one in map(Requirement, flower)}
    small = [Requirement(text) for text in SMALL["dependencies"]]
    assert [whole[one.name] for one in small] == small
    for key in ("license", "authors", "requires-python"):
        assert SMALL[key] == PROJECT[key]


def test_a_source_distribution_keeps_its_files_whatever_lies_beside(tmp_path: Path) -> None:
    """Unpacked in a checkout, say, whose files may be those of another version."""
    own = tmp_path / "bhfl_client"
    (own / "bhfl").mkdir(parents=True)
    shutil.copyfile(CLIENT / "setup.py", own / "setup.py")
    for name in ("PKG-INFO", "bhfl/held.py"):
        (own / name).touch()
    (tmp_path / "bhfl").mkdir()
    (tmp_path / "LICENSE").touch()
    main = runpy.run_path(str(own / "setup.py"))["main"]
    packed = []
    main.__globals__["setup"] = lambda **options: packed.append(options["packages"])
    main()
    assert (own / "bhfl/held.py").exists()
    assert len(packed) == 1


def test_a_wheel_of_a_checkout_has_nothing_of_a_build_before(tmp_path: Path) -> None:
    for name in ("bhfl/models", "client/build/lib", "client/bhfl"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("bhfl/py.typed", "bhfl/models/__init__.py", "bhfl/__init__.py", "LICENSE"):
        (tmp_path / name).touch()
    for name in ("client/build/lib/old.py", "client/bhfl/old.py"):
        (tmp_path / name).touch()
    shutil.copyfile(CLIENT / "setup.py", tmp_path / "client/setup.py")
    main = runpy.run_path(str(tmp_path / "client/setup.py"))["main"]
    main.__globals__["setup"] = lambda **options: None
    main()
    left = {path.relative_to(tmp_path).as_posix() for path in (tmp_path / "client").rglob("*.*")}
    assert left == {"client/setup.py", "client/bhfl/py.typed", "client/bhfl/__init__.py"} | {
        "client/bhfl/models/__init__.py"
    }
