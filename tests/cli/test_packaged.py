"""Configurations that come with bhfl are found by their names, after files of the user's own."""

from pathlib import Path

import pytest
import yaml

import bhfl as package
from bhfl.cli.packaged import find_config, packaged_folder, packaged_names
from bhfl.cli.reading import ConfigError, read_file
from bhfl.sweep.reader import read_matrix
from tests.cli.conftest import Command

ROOT = Path(__file__).parents[2]
BOTH = "must be a YAML file or the name of one that comes with bhfl, and there is no file"


def test_every_shipped_file_has_a_name() -> None:
    files = sorted((ROOT / "configs").rglob("*.yaml"))
    assert packaged_names() == sorted(
        file.relative_to(ROOT / "configs").as_posix().removesuffix(".yaml") for file in files
    )
    assert {"digits/fedavg", "cifar10/sweeps/table"} <= set(packaged_names())


@pytest.mark.parametrize("given", ["digits/fedavg", "digits/fedavg.yaml", "digits//fedavg"])
def test_it_is_found_with_and_without_its_suffix(given: str, tmp_path: Path) -> None:
    assert find_config(given, tmp_path) == ROOT / "configs/digits/fedavg.yaml"


@pytest.mark.parametrize("name", ["digits/fedavg", "digits/fedavg.yaml"])
def test_a_file_in_the_folder_wins(name: str, tmp_path: Path) -> None:
    (tmp_path / "digits").mkdir()
    (tmp_path / name).touch()
    assert find_config("digits/fedavg", tmp_path) == tmp_path / name


def test_a_folder_of_that_name_does_not(tmp_path: Path) -> None:
    (tmp_path / "digits/fedavg").mkdir(parents=True)
    assert find_config("digits/fedavg", tmp_path) == ROOT / "configs/digits/fedavg.yaml"


def test_inside_an_installed_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inside = tmp_path / "site/bhfl/configs"
    inside.mkdir(parents=True)
    (inside / "a.yaml").touch()
    monkeypatch.setattr(package, "__file__", str(inside.parent / "__init__.py"))
    assert packaged_folder() == inside
    assert packaged_names() == ["a"]


@pytest.mark.parametrize(
    ("given", "ending"),
    [
        (
            "digits/fedavgg",
            "; did you mean 'digits/fedavg' or 'digits/dpfedavg' or 'digits/fedpaq'?",
        ),
        ("fedprox.yaml", "; did you mean 'digits/fedprox' or 'cifar10/fedprox'?"),
        ("configs/digits/wage.yaml", "; did you mean 'digits/wage'?"),
        ("nothing.like.it", "; bhfl init --list lists them"),
    ],
)
def test_a_name_found_nowhere(given: str, ending: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must be") as refused:
        find_config(given, tmp_path)
    searched = f"in {tmp_path} or {ROOT / 'configs'}"
    assert str(refused.value) == f"{BOTH} {given!r} {searched}{ending}"


@pytest.mark.parametrize("absolute", [True, False])
def test_a_run_folder_is_answered_with_its_configuration(absolute: bool, tmp_path: Path) -> None:
    run = tmp_path / "runs/a/version_0"
    run.mkdir(parents=True)
    (run / "config.yaml").touch()
    with pytest.raises(ValueError, match=r"must be a YAML file.*; give its config\.yaml$"):
        find_config(str(run if absolute else run.relative_to(tmp_path)), tmp_path)


@pytest.mark.parametrize("given", ["../configs/digits/fedavg.yaml", "/nowhere/fedavg", "~/no.yaml"])
def test_a_place_is_no_name(given: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^must be a YAML file, and there is no file '/"):
        find_config(given, tmp_path)


def test_in_the_command_line(bhfl: Command, tmp_path: Path) -> None:
    code, out, err = bhfl("fit", "--config", "digits/fedavg", "--print_config")
    assert (code, err) == (0, "")
    assert yaml.safe_load(out)["trainer"]["name"] == "digits-fedavg"
    code, out, err = bhfl("fit", "--config", "digits/fedavg", "--help")
    assert (code, err, out[:15]) == (0, "", "usage: bhfl fit")
    code, out, err = bhfl("fit", "--config", "digits/fedprix")
    assert (code, out) == (2, "")
    assert err.startswith(f"error: --config {BOTH} 'digits/fedprix' in {tmp_path} or")
    assert len(err.splitlines()) == 1


def test_places_in_messages_are_those_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bad.yaml").write_text("a: yes\n")
    monkeypatch.setattr("bhfl.cli.packaged.packaged_folder", lambda: tmp_path)
    with pytest.raises(ConfigError) as refused:
        read_file("bad")
    assert refused.value.problems[0].startswith(f"{tmp_path}/bad.yaml:1: a: yes is read")


def test_matrices_by_name_and_methods_of_a_matrix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert read_matrix("digits/sweeps/demo").name == "demo"
    (tmp_path / "mine.yaml").write_text("seeds: [0]\nmethods: {A: {config: digits/fedavg}}\n")
    assert read_matrix("mine").configs == {"A": str(ROOT / "configs/digits/fedavg.yaml")}
