"""Processes that have not in common what they must: they are refused before any training."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import pytest

from bhfl.engine.launch import launched
from bhfl.engine.trainer import FederatedTrainer
from tests.engine.test_processes import in_processes, rank_of
from tests.federation import fit


def in_another_folder(
    folder: Path, rank: int, world: int, port: int, case: str, options: dict[str, Any]
) -> None:
    """A rank whose run folder is relative to a working directory of its own, as on a node with
    disks of its own.
    """
    home = folder / f"node{rank}"
    home.mkdir()
    os.chdir(home)
    with pytest.raises(
        ValueError,
        match=r"all processes must share the run folder runs/bhfl/version_0, got ranks 1 ",
    ):
        rank_of(Path("runs"), rank, world, port, case, options)


def test_processes_without_a_common_folder_are_refused(tmp_path):
    in_processes(in_another_folder, tmp_path, 2, "gate", {})
    assert [path.name for path in tmp_path.rglob("version_*")] == []


def with_another_seed(
    folder: Path, rank: int, world: int, port: int, case: str, options: dict[str, Any]
) -> None:
    """A rank that was started with another seed."""
    with pytest.raises(
        ValueError, match=r"same options, got others in rank 1 .*trainer.seed: 0 -> 1"
    ):
        rank_of(folder, rank, world, port, case, {**options, "seed": rank})


def test_processes_with_other_options_are_refused(tmp_path):
    in_processes(with_another_seed, tmp_path, 2, "stateful", {})
    assert not (tmp_path / "bhfl").exists()


@pytest.mark.parametrize(
    "names",
    [
        {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "TORCHELASTIC_RUN_ID": "1"},
        {"WORLD_SIZE": "2", "RANK": "1"},
        {
            "SLURM_NTASKS": "2",
            "SLURM_PROCID": "0",
            "SLURM_LOCALID": "0",
            "SLURM_NTASKS_PER_NODE": "2",
        },
        {"OMPI_COMM_WORLD_SIZE": "2"},
    ],
)
def test_a_launcher_that_started_more_processes_than_the_trainer_uses(tmp_path, monkeypatch, names):
    for name, value in names.items():
        monkeypatch.setenv(name, value)
    size = next(iter(names))
    with pytest.raises(
        ValueError,
        match=rf"{size} says that 2 processes were started, and .* is 1: several whole runs",
    ):
        fit(tmp_path)
    assert not (tmp_path / "bhfl").exists()
    monkeypatch.delenv(size)
    if len(names) == 1 or "SLURM_LOCALID" in names:
        fit(tmp_path, max_rounds=1)  # the remedy


def test_two_trainers_in_two_threads_are_refused(tmp_path):
    fabric = FederatedTrainer({32: 1}, accelerator="cpu", devices=1).fabric
    refused = []

    def train() -> None:
        try:
            fit(tmp_path, max_rounds=1)
        except ValueError as error:
            refused.append(str(error))

    with launched(fabric, 1, 60, again=False):
        other = threading.Thread(target=train)
        other.start()
        other.join()
    assert refused[0].startswith("another thread trains in this process")
    train()
    assert len(refused) == 1
