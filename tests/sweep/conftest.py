"""Sweeps of fake runs, in an empty folder."""

import sys
from pathlib import Path
from typing import Any

import pytest

import bhfl as package
from bhfl.sweep import processes, runner
from bhfl.sweep.check import Configs
from bhfl.sweep.plan import Job, Plan
from bhfl.sweep.processes import Processes
from bhfl.sweep.reader import read_matrix
from bhfl.sweep.runner import Runner
from bhfl.sweep.survey import Survey
from tests.cli.conftest import bhfl as bhfl  # a fixture
from tests.sweep.fake import told_by

FAKE = (sys.executable, "-m", "tests.sweep.fake")
MATRIX = """\
seeds: [0, 1]
methods:
  A: {config: c.yaml}
  B: {config: c.yaml, x: 0.25}
"""
TUNED = """\
seeds: [0]
methods:
  A: {config: c.yaml}
  B: {config: c.yaml}
tune: {key: x, values: [0.5, 0.75, 0.25], seeds: [9]}
"""


class FakeConfigs(Configs):
    """Those of the fake runs."""

    def __init__(self) -> None:
        super().__init__(machine=False)

    def __call__(self, job: Job) -> dict[str, Any]:
        return told_by(job.args)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with a configuration ``c.yaml``."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
    monkeypatch.setenv("PYTHONPATH", str(Path(package.__file__).parents[1]))
    (tmp_path / "c.yaml").write_text("clients: {8: 1}\n")
    return tmp_path


class Sweeps:
    """``sweep(MATRIX)`` runs a matrix of fake runs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def plan(self, text: str, *only: str) -> Plan:
        (self.folder / "m.yaml").write_text(text)
        return Plan(read_matrix("m.yaml"), Path("runs/m"), only)

    def survey(self, text: str, *only: str) -> Survey:
        return Survey(self.plan(text, *only), FakeConfigs())

    def __call__(self, text: str, *only: str, until: float = float("inf"), jobs: int = 2) -> Runner:
        Path("runs/m").mkdir(parents=True, exist_ok=True)
        with open("runs/m/.runs.lock", "a") as lock:
            there = Runner(self.survey(text, *only), Processes(lock.fileno()), jobs)
            there.run(until)
        return there


@pytest.fixture
def sweep(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Sweeps:
    monkeypatch.setattr(runner, "_POLL_SECONDS", 0.05)
    monkeypatch.setattr(processes, "RUN", FAKE)
    monkeypatch.setattr(processes, "FORKS", False)
    return Sweeps(folder)
