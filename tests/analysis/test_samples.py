"""The samples that an analysis measures on, and the models that it refuses."""

from pathlib import Path

import pytest
import torch

from bhfl.algorithms import FedPer
from bhfl.analysis import analyze
from bhfl.analysis.samples import pick
from bhfl.engine import FederatedTrainer
from tests.federation import Client, Net, fake, fit


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


def test_norms_are_measured_anew_where_validation_measures_them_so(tmp_path: Path) -> None:
    def module() -> Client:
        return Client(Net(batch_norm=True))

    data = fake(holdout=16)
    options = {"reestimate_norm": True, "data": data, "module": module, "max_rounds": 1}
    trainer = fit(tmp_path, clients={8: 1, 32: 1}, **options)
    found = analyze(trainer, module(), data, "last", threads=1)
    plain = FederatedTrainer({8: 1, 32: 1}, logger=False, devices=1, default_root_dir=tmp_path)
    kept = analyze(plain, module(), data, trainer.run.folder, threads=1)
    assert found.title != kept.title
