"""What is told of exported files, of runs in Python."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bhfl.algorithms import Ditto, FedProx
from bhfl.engine import FederatedTrainer
from bhfl.export import export_run
from tests.federation import Client, fake, fit

pytest.importorskip("safetensors", reason="the extra 'export' is not installed")


@pytest.mark.parametrize(
    ("algorithm", "options"), [(Ditto(), {}), (None, {"finetune_epochs": 1})], ids=["own", "tuned"]
)
def test_what_clients_models_are_worth_is_not_told_of_the_global_one(
    algorithm: Any, options: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bhfl.export.run.installed", lambda extra: extra != "onnx")
    trainer = fit(tmp_path, algorithm, {8: 1, 32: 1}, max_rounds=1, **options)
    made = export_run(trainer, Client(), fake(), "last")
    assert [file.accuracy for file in made.files] == [None, None]
    note = "the run measured its clients' own models on the test split, and the files hold the glob"
    assert any(note in one for one in made.notes)


def test_a_card_counts_the_samples_that_there_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def written(model: Any, example: Any, path: Path, *, calibration: Any) -> int:
        path.write_bytes(bytes(sum(len(x) for (x,) in calibration)))
        return path.stat().st_size

    monkeypatch.setattr("bhfl.export.run.installed", lambda extra: True)
    monkeypatch.setattr("bhfl.export.run.export_onnx", written)
    trainer = fit(tmp_path, clients={8: 1}, max_rounds=1)
    for asked, used in ((5, 5), (1000, 6)):
        made = export_run(trainer, Client(), fake(), "last", calibrate=asked)
        integers, onnx = made.files
        assert (onnx.file, onnx.num_bytes, onnx.calibrated) == ("int8.onnx", used, used)
        # the run measured the model that the integers are
        assert (integers.accuracy is not None, onnx.accuracy) == (True, None)
    # one that is not written leaves none of an earlier model
    monkeypatch.setattr("bhfl.export.run.export_onnx", failing)
    assert len(export_run(trainer, Client(), fake(), "last").files) == 1
    assert not (made.folder / "int8.onnx").exists()
    # the method is the run's, whatever algorithm its checkpoint is exported by
    other = FederatedTrainer({8: 1}, FedProx(), devices=1, logger=False)
    with pytest.warns(UserWarning, match="its run was one of FedAvg, and it is used by FedProx"):
        made = export_run(other, Client(), fake(), trainer.run.folder)
    assert "1 rounds of FedAvg" in made.card.read_text()


def failing(*args: Any, **options: Any) -> int:
    raise ValueError("no")


def test_a_place_that_no_file_can_be_written_to_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("")
    trainer = FederatedTrainer({8: 1}, devices=1, logger=False, default_root_dir=tmp_path)
    for place in ("a", "a/b/c"):
        with pytest.raises(ValueError, match=r"out must be a folder that .*, and '.*/a' is none"):
            export_run(trainer, Client(), fake(), "last", tmp_path / place)
