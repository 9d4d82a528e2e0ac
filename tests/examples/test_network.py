"""The files of examples/network that other programs read: a unit of systemd, and a Docker file."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from bhfl.cli.join import HELP

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "examples" / "network"
UNIT = FOLDER / "bhfl-join.service"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    # the program and the user are those of a device
    text = re.sub(r"^ExecStart=\S+.*$", "ExecStart=/bin/true", UNIT.read_text(), flags=re.M)
    unit = tmp_path / UNIT.name
    unit.write_text(re.sub(r"^User=.*$", "User=root", text, flags=re.M))
    command = ["systemd-analyze", "verify", "--man=no", str(unit)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_docker_file_packs_what_the_package_is_built_from(tmp_path: Path) -> None:
    ignored = (FOLDER / "Dockerfile.dockerignore").read_text().splitlines()
    packed = {line[1:] for line in ignored if line.startswith("!")}
    assert {path for path in packed if not (ROOT / path).exists()} == set()
    project = (ROOT / "pyproject.toml").read_text() + (ROOT / "setup.py").read_text()
    assert {"bhfl", "configs", "pyproject.toml", "setup.py", "constraints.txt"} <= packed
    for named in re.findall(r'"(README\.md|LICENSE)"', project):
        assert named in packed
    copied = re.findall(r"^COPY (\S+)", (FOLDER / "Dockerfile").read_text(), re.M)
    assert copied == ["constraints.txt", "."]


@pytest.mark.parametrize("name", ["bhfl-join.service", "Dockerfile"])
def test_what_joins_is_asked_by_options_that_there_are(name: str) -> None:
    text = re.sub(r'[",]', " ", (FOLDER / name).read_text())
    (line,) = re.findall(r"^(?:ExecStart=|ENTRYPOINT).*bhfl +join (.*)", text, re.M)
    asked = re.findall(r"--(\w+)", line)
    assert asked
    assert {*asked} <= {*re.findall(r"^  (\w+)", HELP, re.M), "config"}
