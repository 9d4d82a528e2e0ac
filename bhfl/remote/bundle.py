"""The Flower app as a SuperLink takes it: a folder with the few files of `bhfl.remote.app`."""

import json
import shutil
import subprocess
from pathlib import Path

import bhfl
from bhfl.remote import app
from bhfl.remote.flower import environment, program

_PROJECT = """[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "bhfl-app"
version = "{version}"
description = "Carries bytes between Flower and bhfl"
license = "Apache-2.0"
dependencies = []

[tool.hatch.build.targets.wheel]
packages = ["."]

[tool.flwr.app]
publisher = "bhfl"

[tool.flwr.app.components]
serverapp = "bhfl_app.server:app"
clientapp = "bhfl_app.client:app"

[tool.flwr.app.config]
bhfl-socket = ""
"""
_SECONDS = 120.0


def write_app(folder: Path) -> Path:
    """Write the app, which Flower packs and sends to whoever is to run it.

    Args:
        folder: Where its folder is made.
    """
    place = folder / "app"
    code = place / "bhfl_app"
    code.mkdir(parents=True, exist_ok=True)
    version = ".".join(bhfl.__version__.split(".")[:3])
    (place / "pyproject.toml").write_text(_PROJECT.format(version=version))
    for file in Path(app.__file__).parent.glob("*.py"):
        shutil.copyfile(file, code / file.name)
    return place


def start_app(folder: Path, address: str, ca: Path, socket: Path) -> None:
    """Have a SuperLink run the app.

    Args:
        folder: A folder for what Flower needs of it.
        address: ``HOST:PORT`` of the SuperLink.
        ca: The certificate by which it is known.
        socket: Where the ServerApp finds the process that it serves.

    Raises:
        ConnectionError: The SuperLink cannot be reached, or refuses.
    """
    home = folder / "flwr"
    home.mkdir(exist_ok=True)
    told = f'[superlink]\ndefault = "here"\n\n[superlink.here]\naddress = {json.dumps(address)}\n'
    told += f"root-certificates = {json.dumps(str(ca.absolute()))}\n"
    (home / "config.toml").write_text(told)
    command = [program("flwr"), "run", str(write_app(folder)), "here"]
    command += ["--run-config", f"bhfl-socket={json.dumps(str(socket))}"]
    try:
        done = subprocess.run(
            command,
            env=environment(home),
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=_SECONDS,
        )
    except subprocess.TimeoutExpired:
        raise ConnectionError(f"the SuperLink at {address} does not answer") from None
    if done.returncode:
        said = " ".join((done.stdout + done.stderr).split())[-500:]
        raise ConnectionError(f"the SuperLink at {address} does not run the app: {said}")
