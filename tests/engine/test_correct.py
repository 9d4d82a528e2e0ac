"""Which test samples a run's models were right about: told by the test step, packed, written."""

import base64
import json

import numpy as np
import pytest
import torch

from bhfl.algorithms import Local
from bhfl.engine.correct import as_text, packed, told_by
from tests.federation import Client, fake, fit


class Telling(Client):
    """Says of each test sample whether it was right."""

    def test_step(self, batch, batch_idx):
        super().test_step(batch, batch_idx)
        x, y = batch
        return {"correct": self.net(x).argmax(1) == y, "seen": 1.0}


def right(written: dict, group: str) -> np.ndarray:
    """How many models of a group were right about each sample, decoded with other means than the
    report's.
    """
    total = np.zeros(written["samples"], dtype=int)
    for bit, plane in enumerate(written["groups"][group]["planes"]):
        text = "".join(f"{byte:08b}" for byte in base64.b64decode(plane))
        total += np.array(list(text[: len(total)]), dtype=int) << bit
    return total


@pytest.mark.parametrize("algorithm", [None, Local()], ids=["FedAvg", "Local"])
def test_the_shares_of_right_answers_are_the_accuracies(tmp_path, algorithm):
    # 39 samples: the last batch has one, which is no metric
    data = fake(num_test=39, batch_size=38)
    trainer = fit(tmp_path, algorithm, module=Telling, data=data, max_rounds=1)
    summary = json.loads((trainer.run.folder / "summary.json").read_text())["metrics"]
    written = json.loads((trainer.run.folder / "correct.json").read_text())
    assert written["samples"] == 39
    assert set(written["groups"]) == {"int8", "float32"}
    for group, found in written["groups"].items():
        assert found["models"] == (2 if algorithm else 1)
        share = right(written, group).mean() / found["models"]
        assert share == pytest.approx(summary[f"test/acc_{group}"], abs=1e-6)
    assert "test/seen_avg" in summary
    assert not any("correct" in tag for tag in summary)


def test_nothing_is_written_where_the_step_does_not_say(tmp_path):
    trainer = fit(tmp_path, max_rounds=1)
    assert not (trainer.run.folder / "correct.json").exists()


def test_numbers_of_models_are_packed_in_binary():
    models = ["110100001", "010100001", "010000001"]
    written = packed({"a": models, "b": models[:1]})
    assert right(written, "a").tolist() == [1, 3, 0, 2, 0, 0, 0, 0, 3]
    assert right(written, "b").tolist() == [1, 1, 0, 1, 0, 0, 0, 0, 1]
    assert [len(found["planes"]) for found in written["groups"].values()] == [2, 1]


def test_what_a_step_returns_is_read_with_care():
    flags = torch.tensor([True, False])
    assert told_by({"correct": flags}) is flags
    for output in (None, flags, {"correct": 0.5}, {"correct": flags.float()}, {"right": flags}):
        assert told_by(output) is None
    assert as_text([]) == ""
    assert as_text([flags, flags]) == "1010"
