"""The package as a user gets it: built, installed from its wheel into an empty environment, and run
outside of the checkout.

``make test-wheel`` runs it. All that the package needs is downloaded and unpacked, which takes
minutes.
"""

import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.wheel

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
MATRIX = """\
base: {trainer.max_rounds: 1, data.max_train_samples: 100}
seeds: [0]
settings:
  ternary-50: {clients: {ternary: 2, float32: 2}}
methods:
  FedAvg: {config: digits/fedavg}
"""

Run = Callable[[str], "subprocess.CompletedProcess[str]"]


def checked(*command: object, **options: object) -> str:
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, **options)  # type: ignore[call-overload]
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return str(done.stdout)


def built(project: Path, folder: Path) -> Path:
    """The wheel of a project, built of its source distribution."""
    checked(sys.executable, "-m", "build", "--outdir", folder, project)
    checked(sys.executable, "-m", "twine", "check", "--strict", *folder.iterdir())
    (found,) = folder.glob("*.whl")
    return found


def new_environment(folder: Path) -> Path:
    """Python of a new environment."""
    checked(sys.executable, "-m", "venv", folder)
    return folder / "bin/python"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(ROOT, tmp_path_factory.mktemp("dist"))


def pip(python: Path, *arguments: object) -> str:
    return checked(python, "-m", "pip", "--disable-pip-version-check", *arguments)


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Python of an environment into which pip installed the wheel and what that needs."""
    found = new_environment(tmp_path_factory.mktemp("user") / "env")
    pip(found, "install", "--quiet", wheel)
    return found


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that commands run in."""
    return tmp_path_factory.mktemp("empty")


@pytest.fixture
def run(python: Path, empty: Path) -> Run:
    """What runs a line of a shell in that folder, with that environment."""
    environment = {**os.environ, "XDG_CACHE_HOME": str(empty / "cache")}
    environment.pop("PYTHONPATH", None)
    environment["PATH"] = f"{python.parent}{os.pathsep}{os.environ['PATH']}"

    def command(line: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            ["bash", "-c", line], cwd=empty, env=environment, capture_output=True, text=True
        )

    return command


def test_it_holds_the_package_its_configurations_and_its_licence_alone(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        held = {name: archive.read(name) for name in archive.namelist()}
    expected = {}
    for file in (ROOT / "bhfl").rglob("*"):
        if file.is_file() and file.suffix != ".pyc":
            expected[file.relative_to(ROOT).as_posix()] = file.read_bytes()
    for file in (ROOT / "configs").rglob("*.yaml"):
        expected[f"bhfl/{file.relative_to(ROOT).as_posix()}"] = file.read_bytes()
    about = {name for name in held if ".dist-info/" in name}
    assert held.keys() - about == expected.keys()
    assert all(held[name] == expected[name] for name in expected)
    (licence,) = (name for name in about if name.endswith("/licenses/LICENSE"))
    assert held[licence] == (ROOT / "LICENSE").read_bytes()


def test_what_is_installed_fits_together(python: Path) -> None:
    assert "No broken requirements found." in pip(python, "check")


def test_the_first_five_minutes(run: Run, empty: Path) -> None:
    done = run("bhfl doctor && bhfl init demo && bhfl fit --config demo.yaml")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    for text in ("\nall is well (", "pip install 'bhfl[plots]' (missing: matplotlib)", "test acc"):
        assert text in done.stdout
    assert (empty / "runs/demo/version_0/summary.json").exists()
    where = run("python -c 'import bhfl; print(bhfl.__file__)'").stdout
    assert "site-packages" in where


def test_an_extra_that_is_missing_names_its_command(run: Run) -> None:
    done = run("bhfl export --config runs/demo/version_0/config.yaml --ckpt_path best")
    assert done.returncode == 2
    line = "error: export needs the package safetensors: pip install 'bhfl[export]'\n"
    assert line in done.stderr
    done = run("python -m bhfl.report.weights runs/demo/version_0")
    assert (done.returncode, done.stderr) == (
        2,
        "error: pictures need matplotlib: pip install 'bhfl[plots]'\n",
    )
    done = run("bhfl analyze --config runs/demo/version_0/config.yaml --ckpt_path best")
    assert done.returncode == 0, done.stderr
    assert "note: no picture is drawn: pictures need matplotlib: pip install" in done.stderr
    assert run("bhfl report runs").returncode == 0


def commands() -> Iterator[str]:
    """README's commands, with few rounds; what they stand for is in the folder."""
    plain = re.sub(r"^```\w+\n.*?^```$", "", README, flags=re.M | re.S)
    fenced = re.findall(r"^bhfl .*$", plain, re.M)
    inline = re.findall(r"`(bhfl [a-z]+ [^`]*)`", plain)
    for text in dict.fromkeys([*fenced, *inline]):
        line = " ".join(text.partition("  #")[0].split()).replace("NAME", "demo")
        if re.search(r"RUN|\.\.\.|[A-Z]{4}", line):
            continue
        if "bhfl fit" in line:
            # the first run had ten rounds
            line += f" --trainer.max_rounds {11 if '--ckpt_path' in line else 1}"
        if line.startswith("bhfl sweep digits/") and "--dry_run" not in line:
            line += " --dry_run"
        yield line


def test_commands_of_the_readme(run: Run, python: Path, wheel: Path, empty: Path) -> None:
    pip(python, "install", "--quiet", f"{wheel}[export]")
    # the start is written again by one of them
    assert run("bhfl init demo --out c.yaml && rm demo.yaml").returncode == 0
    lines = list(dict.fromkeys(commands()))
    assert len(lines) >= 8
    for line in lines:
        done = run(line)
        assert done.returncode == 0, f"{line}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"


def test_a_sweep_of_configurations_by_name(run: Run, empty: Path) -> None:
    (empty / "m.yaml").write_text(MATRIX)
    done = run("bhfl sweep m.yaml")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert (empty / "runs/m/report/report.md").exists()
