"""Tables that Hugging Face's package reads, from files."""

import sys

import numpy as np
import pytest

from bhfl.data import ByColumn, HuggingFace
from bhfl.engine.random import RandomKeys

pytest.importorskip("datasets")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "table").mkdir()
    for name, size in (("train", 30), ("test", 9)):
        lines = [f"{i},{i % 3},user {i % 5}" for i in range(size)]
        (tmp_path / "table" / f"{name}.csv").write_text("\n".join(["x,kind,who", *lines]))
    return tmp_path / "table"


def test_a_folder_of_files_is_a_table(folder):
    data = HuggingFace(
        str(folder), inputs="x", targets="kind", partition=ByColumn("who"), val_fraction=0.0
    )
    data.prepare_data()
    data.setup("fit")
    assert data.federate(5, 0) == [6] * 5
    ((inputs, targets),) = data.client_batches(2, RandomKeys(0), 0)
    assert sorted(inputs.tolist()) == [2, 7, 12, 17, 22, 27]
    assert np.array_equal(inputs % 3, targets)
    assert (data.num_classes, data.input_shape) == (3, ())
    assert sum(len(targets) for _, targets in data.test_batches()) == 9


def test_files_can_be_named_and_sliced(folder):
    files = {"whole": str(folder / "train.csv")}
    options = {"data_files": files, "train_split": "whole[:20]", "test_split": "whole[20:]"}
    data = HuggingFace("csv", targets="kind", **options)
    assert (len(data.load(train=True)), len(data.load(train=False))) == (20, 10)


def test_what_cannot_be_read_is_one_error(folder, monkeypatch):
    with pytest.raises(
        ValueError, match=r"data.path and data.train_split must name a table.*'trn'"
    ):
        HuggingFace(str(folder), targets="kind", train_split="trn").setup("fit")
    with pytest.raises(ValueError, match=r"data.targets must name a column of the data.*'label'"):
        HuggingFace(str(folder)).setup("fit")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match=r"needs datasets: pip install 'bhfl\[hf\]'"):
        HuggingFace(str(folder)).setup("fit")
