"""The samples that an analysis measures on, and the models that it refuses."""

from pathlib import Path

import pytest
import torch

from bhfl.algorithms import FedPer
from bhfl.analysis import analyze
from bhfl.analysis.samples import pick
from tests.federation import Client, fake, fit


def test_samples_are_drawn_from_all_batches_and_odd_batches_taken_whole() -> None:
    batches = [{"x": torch.arange(300.0).view(-1, 1), "y": torch.arange(300)}] * 2
    chunks = pick(batches, 400, seed=0)
    assert [size for size, _ in chunks] == [128, 128, 128, 16]
    drawn = torch.cat([batch["y"] for _, batch in chunks])
    assert torch.equal(drawn, torch.cat([batch["x"] for _, batch in chunks]).squeeze(1).long())
    assert 150 < len(drawn.unique()) <= 300
    ragged = [(torch.ones(5, size), torch.ones(5)) for size in (2, 3, 4)]
    assert [size for size, _ in pick(ragged, 6, seed=0)] == [5, 5]
    assert pick([], 6, seed=0) == []


def test_a_model_that_nobody_trained_as_a_whole_is_refused(tmp_path: Path) -> None:
    trainer = fit(tmp_path, FedPer(["net.5"]), {8: 1, 32: 1}, max_rounds=1)
    with pytest.raises(
        ValueError, match=r"analyze needs a whole model .*, and net.5.bias stays wi"
    ):
        analyze(trainer, Client(), fake(), "last", threads=1)
