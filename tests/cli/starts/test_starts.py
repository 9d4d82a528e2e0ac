"""What ``bhfl init`` writes can be run."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.cli.conftest import Command

SHORT = ["--trainer.max_rounds=1", "--trainer.local_epochs=1", "--trainer.accelerator=cpu"]


def written(bhfl: Command, name: str) -> str:
    assert bhfl("init", name, "--out", "mine.yaml").code == 0
    return "mine.yaml"


@pytest.mark.parametrize("name", ["demo", "links"])
def test_starts_on_the_digits_run(bhfl: Command, name: str) -> None:
    few = ["--data.max_train_samples=100", "--data.max_eval_samples=20"]
    done = bhfl("fit", "--config", written(bhfl, name), *SHORT, *few)
    assert done.code == 0, done.err
    assert ("on the simulated network:" in done.out) == (name == "links")
    assert Path(f"runs/{name}/version_0/summary.json").exists()


def test_the_start_with_a_module_runs_with_its_options(bhfl: Command) -> None:
    config = written(bhfl, "module")
    assert Path("my_module.py").exists()
    done = bhfl("fit", "--config", config, *SHORT, "--model.width=64", "--model.lr=0.003")
    assert done.code == 0, done.err
    assert re.search(r"^ternary +2 ", done.out, re.M)


def test_the_start_with_images_runs(bhfl: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(Path("cache").absolute()))
    rng = np.random.default_rng(0)
    for split, number in (("train", 24), ("test", 4)):
        for label in ("cats", "dogs"):
            folder = Path("elsewhere") / split / label
            folder.mkdir(parents=True)
            for i in range(number):
                pixels = rng.integers(0, 256, (20, 24 + i, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.jpg")
    config = written(bhfl, "images")
    done = bhfl("fit", "--config", config, *SHORT, "--data.root=elsewhere")
    assert done.code == 0, done.err
    missing = bhfl("fit", "--config", config)
    assert (missing.code, len(missing.problems)) == (3, 1)
    assert missing.problems[0].endswith("/pictures is not there")


def test_the_start_of_a_sweep_can_be_run(bhfl: Command) -> None:
    done = bhfl("sweep", written(bhfl, "sweep"), "--dry_run")
    assert done.code == 0, done.err
    assert done.out.endswith("16 runs: 16 missing\n")


@pytest.mark.slow
def test_the_start_of_a_sweep_runs(bhfl: Command) -> None:
    words = ["--only=FedAvg,half-int8", "--seeds=0", "--trainer.max_rounds=1"]
    done = bhfl("sweep", written(bhfl, "sweep"), *words, "--data.max_train_samples=100")
    assert done.code == 0, done.err
    assert Path("runs/sweep/report/report.md").exists()
