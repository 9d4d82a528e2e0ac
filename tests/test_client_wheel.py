"""The small distribution as a device gets it: built, installed beside PyTorch and Flower alone, and
part of a federation with the whole package.

``make test-wheel`` runs it. PyTorch and Flower are downloaded and unpacked, for a minute.
"""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from bhfl.cli.installed import WHOLE
from tests.test_wheel import ROOT, built, checked, new_environment, pip

pytestmark = pytest.mark.wheel

CLIENT = ROOT / "client"
TORCH = "torch==2.13.0"
GROUPS = ["int8", "ternary", "float32"]
IMPORT_ALL = """
import importlib, pkgutil, sys, bhfl
for module in pkgutil.walk_packages(bhfl.__path__, "bhfl."):
    if not module.name.startswith("bhfl.remote.app"):
        importlib.import_module(module.name)
print(sorted({"lightning", "torchmetrics", "torchvision", "jsonargparse"} & set(sys.modules)))
"""
YAML = """
server: 127.0.0.1:{port}
key: {keys}
folder: state
data: {{class_path: Arrays, init_args: {{file: mine.npz}}}}
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(CLIENT, tmp_path_factory.mktemp("dist"))


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Python of an environment of a device."""
    found = new_environment(tmp_path_factory.mktemp("device") / "env")
    pip(found, "install", "--quiet", TORCH, wheel)
    return found


def away() -> dict[str, str]:
    """The environment of a process that sees nothing of this checkout."""
    return {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}


def test_it_holds_what_a_client_imports_and_its_licence(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        held = {name: archive.read(name) for name in archive.namelist()}
    about = {name for name in held if ".dist-info/" in name}
    expected = runpy.run_path(str(CLIENT / "setup.py"))["files"](ROOT)
    assert held.keys() - about == expected
    assert all(held[name] == (ROOT / name).read_bytes() for name in expected)
    (licence,) = (name for name in about if name.endswith("/licenses/LICENSE"))
    assert held[licence] == (ROOT / "LICENSE").read_bytes()


def test_all_of_it_is_imported_where_there_is_no_lightning(python: Path, tmp_path: Path) -> None:
    told = checked(python, "-m", "pip", "check", cwd=tmp_path, env=away())
    assert "No broken requirements found." in told
    lacking = subprocess.run([python, "-c", "import lightning"], capture_output=True, cwd=tmp_path)
    assert b"No module named 'lightning'" in lacking.stderr
    told = checked(python, "-c", IMPORT_ALL, cwd=tmp_path, env=away())
    assert told == "[]\n"


def test_a_federation_of_small_clients_comes_to_the_bits_of_fit(
    python: Path, tmp_path: Path
) -> None:
    """A server of this environment, and clients of the other one, of another release of torch."""
    network = pytest.importorskip("tests.remote.test_network")
    from tests.remote.cluster import Cluster

    cluster = Cluster.begin(tmp_path / "cluster", GROUPS)
    started: list[subprocess.Popen[bytes]] = []
    try:
        for client, place in enumerate(places(tmp_path)):
            keys = cluster.made / "clients" / f"client-{client}"
            (place / "client.yaml").write_text(YAML.format(port=cluster.front.port, keys=keys))
            command = [python.with_name(WHOLE), "join", "--config", "client.yaml"]
            with open(place / "log.txt", "wb") as log:
                started.append(
                    subprocess.Popen(command, cwd=place, env=away(), stdout=log, stderr=log)
                )
        there = network.over_the_network(cluster, tmp_path, "ProWD")
    finally:
        for process in started:
            process.terminate()
        for process in started:
            process.wait(30)
        cluster.end()
    here, model, data = network.made(tmp_path, "ProWD", "fit")
    here.fit(model, data)
    assert network.outcome(there) == network.outcome(here)
    assert [row["clients/ok"] for row in there.run.history] == [3, 3]


def places(folder: Path) -> Iterator[Path]:
    """A folder for each client, with its samples."""
    parts = runpy.run_path(str(ROOT / "examples/network/parts.py"))
    parts["main"](folder / "parts", holdout=64)
    for client in range(len(GROUPS)):
        place = folder / f"client-{client}"
        place.mkdir()
        (folder / f"parts/client-{client}.npz").rename(place / "mine.npz")
        yield place


def test_it_and_the_whole_package_are_refused_side_by_side(python: Path, tmp_path: Path) -> None:
    """Last: the whole one, without what it needs, writes over its files."""
    checked(sys.executable, "-m", "build", "--wheel", "--outdir", tmp_path, ROOT)
    (whole,) = tmp_path.glob("*.whl")
    # elsewhere: pip would take what was built in the checkout for installed
    more = [python, "-m", "pip", "install", "--quiet", "--no-deps", whole]
    checked(*more, cwd=tmp_path, env=away())
    command = [python.with_name(WHOLE), "join", "--config", "client.yaml"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=away())
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: bhfl and bhfl-client are both installed")
    assert len(done.stderr.splitlines()) == 1
