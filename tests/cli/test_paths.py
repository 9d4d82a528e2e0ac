"""All options that take a path take it alike: ``~``, relative, links, a slash at the end, spaces,
other alphabets.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from bhfl.cli.reading import ConfigError, read_file, read_layers
from bhfl.comm.network import SimulatedNetwork
from bhfl.data import CIFAR10, ByColumn, ImageFolder
from bhfl.engine.checkpoint import CheckpointError
from bhfl.engine.resume import find_checkpoint
from bhfl.engine.trainer import FederatedTrainer
from bhfl.export import load_quantized, save_quantized
from bhfl.sweep.reader import read_matrix
from bhfl.sweep.request import read_request
from tests.cli.conftest import TINY, Command
from tests.federation import fit

FOLDER = "a b ü"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The home folder, and the current one, with a link to a folder of an odd name."""
    (tmp_path / FOLDER).mkdir()
    (tmp_path / "link").symlink_to(FOLDER)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


FORMS = [f"~/{FOLDER}", f"{FOLDER}", f"./{FOLDER}/", "~/link/", "link", f"link/../{FOLDER}"]


@pytest.mark.parametrize("form", FORMS)
def test_configurations_matrices_and_roots(home: Path, form: str) -> None:
    (home / FOLDER / "c.yaml").write_text(TINY)
    (home / FOLDER / "m.yaml").write_text(
        "seeds: [0]\nmethods: {A: {config: c.yaml}, B: {config: ~/link/c.yaml}}\n"
    )
    assert read_file(f"{form}/c.yaml").values["trainer"]["name"] == "tiny"
    assert [Path(file).resolve() for file in read_matrix(f"{form}/m.yaml").configs.values()] == [
        home / FOLDER / "c.yaml"
    ] * 2
    assert read_request(["m.yaml", "--root", form]).root.resolve() == home / FOLDER
    file = f"{form}/c.yaml"
    for args in (["--config", file], [f"--config={file}"], ["-c", file]):
        (layer,) = read_layers(args)
        assert not layer.file.startswith("~")
        assert Path(layer.file).resolve() == home / FOLDER / "c.yaml"


@pytest.mark.parametrize("form", FORMS)
def test_data_traces_and_exports(home: Path, form: str) -> None:
    place = home / FOLDER
    np.save(place / "ids.npy", np.arange(3))
    (place / "links.csv").write_text("client,round,uplink_bps,downlink_bps\n0,1,1e6,1e6\n")
    assert (
        len(ByColumn(f"{form}/ids.npy").column) == len(ByColumn(Path(form) / "ids.npy").column) == 3
    )
    SimulatedNetwork(trace=f"{form}/links.csv")
    for data in (ImageFolder(root=form), CIFAR10(archive=form)):
        with pytest.raises(
            ValueError,
            match=r"a b ü must hold pictures in train/|link must hold pictures in train/",
        ):
            data.prepare_data()
    assert Path(CIFAR10(root=form).root).resolve() == place
    assert save_quantized({}, f"{form}/x.safetensors") > 0
    assert (place / "x.safetensors").exists()
    load_quantized(f"{form}/x.safetensors")


def test_run_folders_and_checkpoints(home: Path) -> None:
    run = fit(home / FOLDER).run.folder
    relative = run.relative_to(home / FOLDER)
    root = home / FOLDER / relative.parent
    for form in FORMS:
        for place in (f"{form}/{relative}", f"{form}/{relative}/"):
            folder, _ = find_checkpoint(place, root)
            assert folder is not None
            assert folder.resolve() == run
    (home / "mine.ckpt").symlink_to(next((run / "checkpoints").glob("round=*.ckpt")))
    assert find_checkpoint("~/mine.ckpt", root)[0] == run
    for form, why in (("~none/x", "no such home folder"), ("a\0b", "zero byte")):
        with pytest.raises(CheckpointError, match=f"ckpt_path must be a local path: .*{why}"):
            find_checkpoint(form, root)


@pytest.mark.parametrize("form", ["", " ", "~nobody_of_this_name/x", "a\0b"])
def test_what_is_no_path_is_refused_everywhere(home: Path, form: str) -> None:
    with pytest.raises(ConfigError, match="there is no file"):
        read_file(form)
    with pytest.raises(ConfigError, match="--root must be a folder"):
        read_request(["m.yaml", "--root", form])
    for make in (
        lambda: ByColumn(f"{form}.npy"),
        lambda: ImageFolder(root=form),
        lambda: CIFAR10(archive=form),
        lambda: CIFAR10(root=form),
        lambda: SimulatedNetwork(trace=form),
        lambda: save_quantized({}, form),
    ):
        with pytest.raises(ValueError, match=r"path|folder|file"):
            make()
    with pytest.raises(ValueError, match="default_root_dir must"):
        FederatedTrainer(clients={32: 1}, default_root_dir=form)


def test_a_run_from_the_home_folder(bhfl: Command, home: Path) -> None:
    (home / FOLDER / "c.yaml").write_text(TINY)
    os.symlink(home / FOLDER / "c.yaml", home / "c-link.yaml")
    done = bhfl(
        "fit",
        "--config",
        "~/c-link.yaml",
        "--trainer.default_root_dir",
        "~/link/",
        "--trainer.max_rounds",
        1,
    )
    assert done.code == 0, done.err
    run = home / FOLDER / "tiny" / "version_0"
    assert (run / "summary.json").exists()
    assert "default_root_dir: ~/link/\n" in (run / "config.yaml").read_text()  # as it was given
    os.symlink(run / "config.yaml", home / "again.yaml")
    done = bhfl("test", "--config=~/again.yaml", "--ckpt_path", "last")
    assert done.code == 0, done.err
    done = bhfl(
        "analyze",
        "--config=~/again.yaml",
        "--ckpt_path",
        "~/link/tiny/version_0/",
        "--out",
        "~/out put",
    )
    assert done.code == 0, done.err
    assert (home / "out put" / "layers.csv").exists()
    assert sorted(path.name for path in home.iterdir() if path.name.startswith("~")) == []
