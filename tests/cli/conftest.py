"""Commands run in the test's own process and in an empty folder."""

import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

import bhfl as package
from bhfl.main import main

TINY = """\
clients: {int8: 2, float32: 2}
model: {class_path: Classifier, init_args: {net: mlp}}
data:
  class_path: FakeImages
  init_args: {num_train: 96, num_test: 32, shape: [1, 8, 8], num_classes: 4, val_fraction: 0.25}
trainer: {max_rounds: 2, name: tiny, accelerator: cpu}
"""


class Outcome(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def problems(self) -> list[str]:
        return [
            line.removeprefix("error: ")
            for line in self.err.splitlines()
            if line.startswith("error: ")
        ]


Command = Callable[..., Outcome]


@pytest.fixture
def bhfl(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Command:
    """``bhfl("fit", "--config", "tiny.yaml")`` in a folder that holds ``tiny.yaml`` alone."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    # put back after the command has set it
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
    (tmp_path / "tiny.yaml").write_text(TINY)

    def command(*args: object) -> Outcome:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main([str(arg) for arg in args])
        return Outcome(stopped.value.code, *capsys.readouterr())

    return command


@pytest.fixture
def real_bhfl(bhfl: Command, tmp_path: Path) -> Command:
    """``python -m bhfl`` in the same folder, in a process of its own."""
    source = Path(package.__file__).parents[1]

    def command(*args: object) -> Outcome:
        words = [sys.executable, "-m", "bhfl", *map(str, args)]
        done = subprocess.run(
            words,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(source)},
            capture_output=True,
            text=True,
            timeout=300,
        )
        return Outcome(done.returncode, done.stdout, done.stderr)

    return command
