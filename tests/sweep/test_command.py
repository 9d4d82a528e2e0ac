"""``bhfl sweep`` as it is typed."""

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

import bhfl as package
from bhfl.engine.checkpoint import digest
from bhfl.engine.contents import read_state
from bhfl.sweep import processes
from tests.cli.conftest import Command

MATRIX = """\
base: {trainer.max_rounds: 1}
seeds: [0]
methods:
  Mean-2: {config: tiny.yaml}
  FedProx: {config: tiny.yaml, algorithm: FedProx}
"""


@pytest.fixture
def matrix(bhfl: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PYTHONPATH", str(Path(package.__file__).parents[1]))
    (tmp_path / "m.yaml").write_text(MATRIX)
    return tmp_path / "m.yaml"


def test_a_sweep_runs_reports_and_is_over(bhfl: Command, matrix: Path) -> None:
    assert bhfl("sweep", "m.yaml", "--dry_run").out == (
        "missing   runs/m/Mean-2/seed0\nmissing   runs/m/FedProx/seed0\n2 runs: 2 missing\n"
    )
    assert not Path("runs").exists()
    code, out, err = bhfl("sweep", "m.yaml", "--only", "Mean-2")
    assert (code, err) == (0, "")
    assert "Mean-2/seed0 done; 0 of 1 rounds left" in out
    assert "runs/m/report/report.html" in out
    # the report calls methods as the matrix does
    assert re.search(r"^Mean-2 +\d", out, re.M)
    assert Path("runs/m/report/report.csv").exists()
    equals_what_is_typed(bhfl, Path("runs/m/Mean-2/seed0/version_0"))
    code, out, _ = bhfl("sweep", "m.yaml", "--only", "Mean-2")
    assert (code, "done;" in out) == (0, False)
    assert len(list(Path("runs/m/Mean-2").rglob("version_*"))) == 1
    assert bhfl("sweep", "m.yaml", "--dry_run").out.endswith("2 runs: 1 done, 1 missing\n")
    code, _, err = bhfl("sweep", "m.yaml", "--dry_run", "--trainer.max_rounds=2")
    assert code == 2
    assert (
        "runs/m/Mean-2/seed0/version_0 was made with other options: trainer.max_rounds: 1 -> 2"
        in err
    )


def equals_what_is_typed(bhfl: Command, swept: Path) -> None:
    """Whether a run of a sweep, which is forked, came to what its command does by itself."""
    first, *log = swept.with_name("log.txt").read_text().splitlines()
    words = shlex.split(first.removeprefix("$ bhfl "))
    typed = bhfl(*words[:-1], "--trainer.name=typed")
    assert (typed.code, words[-1]) == (0, "--trainer.name=Mean-2/seed0")
    run = swept.parents[2] / "typed/version_0"
    ours, theirs = (read_state(folder / "checkpoints/round=00001.ckpt") for folder in (swept, run))
    assert digest(ours["server"]) == digest(theirs["server"])
    assert {path.name for path in swept.iterdir()} ^ {path.name for path in run.iterdir()} <= {
        path.name for path in swept.parents[2].rglob("events.*")
    }
    said = without_clock(typed.out.replace(str(run), str(swept))).splitlines()
    assert set(said) <= set(without_clock("\n".join(log)).splitlines())


def without_clock(text: str) -> str:
    return re.sub(r"\d+\.\d s\b", "", text)


def test_out_of_time(bhfl: Command, matrix: Path) -> None:
    code, out, err = bhfl("sweep", "m.yaml", "--minutes", "0.001")
    assert (code, err) == (0, "")
    assert (
        "stopped after 0.001 minutes: 2 of 2 runs left, 2 of 2 rounds left; the same command goes "
        "on\n" in out
    )
    assert not list(Path("runs").rglob("version_*"))


def test_a_run_that_fails_makes_the_sweep_fail(
    bhfl: Command, matrix: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = "import sys; print('error: no data', file=sys.stderr); raise SystemExit(3)"
    monkeypatch.setattr(processes, "RUN", (sys.executable, "-c", script))
    monkeypatch.setattr(processes, "FORKS", False)
    code, out, err = bhfl("sweep", "m.yaml")
    assert code == 1
    assert (
        "Mean-2/seed0 failed with exit code 3; runs/m/Mean-2/seed0/log.txt ends with\n  error: no "
        "data\n" in out
    )
    assert err == "error: failed: Mean-2/seed0, FedProx/seed0; 2 of 2 runs left\n"


def test_only_what_there_is(bhfl: Command, matrix: Path) -> None:
    code, _, err = bhfl("sweep", "m.yaml", "--only", "Mean-22,FedProx")
    assert code == 2
    assert (
        err
        == "error: --only must name methods or settings, got 'Mean-22'; did you mean 'Mean-2'?\n"
    )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("FedProx}", "FedProxx}"), "algorithm must name an Algorithm, got 'FedProxx'"),
        (("seeds: [0]", "seeds: [0]\nreport: {metric: val/nonsense}"), "val/nonsense"),
    ],
)
def test_what_cannot_be_run_leaves_nothing_behind(
    bhfl: Command, matrix: Path, change: tuple[str, str], said: str
) -> None:
    matrix.write_text(MATRIX.replace(*change))
    code, _, err = bhfl("sweep", "m.yaml")
    assert (code, said in err) == (2, True)
    assert not Path("runs").exists()


def test_a_file_where_runs_are_to_be_made_is_named(bhfl: Command, matrix: Path) -> None:
    Path("notes").write_text("mine")
    Path("runs/m").mkdir(parents=True)
    Path("runs/m/report").write_text("mine")
    for root, place, file in (("notes", "notes/m", "notes"), ("runs", *["runs/m/report"] * 2)):
        code, _, err = bhfl("sweep", "m.yaml", f"--root={root}")
        told = (
            f"--root must be a folder that can be written to, got '{place}', and '{file}' is none"
        )
        assert (code, err) == (2, f"error: {told}\n")
    assert [path.name for path in Path("runs/m").iterdir()] == ["report"]


def test_help(bhfl: Command) -> None:
    code, out, err = bhfl("sweep", "--help")
    assert (code, err) == (0, "")
    assert out.startswith("usage: bhfl sweep MATRIX.yaml [--option value ...]\n")


def test_runs_are_stopped_early_enough_to_end_within_the_minutes(
    bhfl: Command, matrix: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = []
    monkeypatch.setattr(
        "bhfl.sweep.runner.Runner.run",
        lambda self, until: left.append(until - time.monotonic()),
    )
    bhfl("sweep", "m.yaml", "--minutes", "1")
    bhfl("sweep", "m.yaml", "--minutes", "9")
    assert 0 < left[0] <= 54
    assert 500 < left[1] <= 520


def holders(lock: Path) -> set[int]:
    """The processes that hold a lock open."""
    found = set()
    for file in Path("/proc").glob("[0-9]*/fd/*"):
        with suppress(OSError):  # it has just ended
            if file.resolve() == lock.resolve():
                found.add(int(file.parts[2]))
    return found


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_killed_in_the_middle_of_real_runs(
    bhfl: Command, matrix: Path, tmp_path: Path, how: signal.Signals
) -> None:
    # its own, whatever other tests run at the same time
    name = f"{tmp_path.parent.name}-{tmp_path.name}"
    matrix.write_text(f"name: {name}\n{MATRIX.replace('max_rounds: 1', 'max_rounds: 200')}")
    words = [sys.executable, "-m", "bhfl", "sweep", "m.yaml", "--jobs=2"]
    killed = subprocess.Popen(words, env=os.environ, stderr=subprocess.PIPE, text=True)
    root = tmp_path / "runs" / name
    while not all(
        list((root / kind / "seed0").glob("*/checkpoints/round=*.ckpt"))
        for kind in ("Mean-2", "FedProx")
    ):
        assert killed.poll() is None
        time.sleep(0.05)
    # the sweep, what it forks, and two runs
    assert len(holders(root / ".runs.lock")) >= 4
    killed.send_signal(how)
    _, err = killed.communicate(timeout=60)
    assert killed.returncode == {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130}[how]
    if how != signal.SIGKILL:
        line = r"error: \w+ while 2 of 2 runs go on, with \d+ of 400 rounds done; the same command"
        assert re.search(rf"^{line} goes on$", err, re.M), err
    assert bhfl("sweep", "m.yaml", "--jobs", 2).code == 0
    assert holders(root / ".runs.lock") == set()
    assert sorted(path.parent.parent.name for path in root.rglob("version_*")) == [
        "FedProx",
        "Mean-2",
    ]
    for rows in root.rglob("rounds.jsonl"):
        # that of validation before training too
        assert len(rows.read_text().splitlines()) == 201
