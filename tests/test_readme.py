"""README says what is so: its configuration is the shipped one, its Python runs, its files
exist.
"""

import re
import sys
from pathlib import Path

import pytest
import torch
import yaml

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.S)


def test_its_configuration_is_the_demos():
    assert yaml.safe_load(blocks("yaml")[0]) == yaml.safe_load(
        (ROOT / "configs/digits/fedavg.yaml").read_text()
    )


def test_its_federated_example_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code = next(block for block in blocks("python") if ".fit(model" in block)
    exec(code.replace("max_rounds=20", "max_rounds=1"), {})
    assert "int8" in capsys.readouterr().out


def test_its_layers_example_runs():
    model = torch.nn.Sequential(torch.nn.Linear(8, 4))
    exec(
        next(block for block in blocks("python") if "quantized_state(model)" in block),
        {"model": model},
    )
    assert type(model[0]) is torch.nn.Linear
    assert len(model[0].weight.unique()) <= 3


def test_the_algorithm_of_the_page_it_leads_to_is_fedprox(tmp_path):
    from bhfl.algorithms import FedProx
    from tests.federation import fit, same

    page = (ROOT / "docs/howto/algorithm.md").read_text()
    names: dict = {}
    exec(re.findall(r":caption: methods.py\n\n(.*?)```", page, re.S)[0], names)
    runs = [
        fit(tmp_path, algorithm, max_rounds=1)
        for algorithm in (names["Proximal"](0.1), FedProx(0.1))
    ]
    assert same(runs[0].server.params, runs[1].server.params)


@pytest.mark.parametrize(
    "path", sorted(set(re.findall(r"`((?:bhfl|configs)/[\w/]+\.(?:py|yaml))`", README)))
)
def test_the_files_it_names_exist(path):
    assert (ROOT / path).is_file()


def test_every_make_target_it_names_exists():
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.M))
    assert set(re.findall(r"`?make ([a-z][a-z0-9-]+)", README)) <= targets


def test_its_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)\s]+)\)", README):
        path, _, anchor = target.partition("#")
        assert (ROOT / path).is_file(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", (ROOT / path).read_text(), re.M)
            assert anchor in [heading.lower() for heading in headings], target


def test_it_can_be_read_in_three_minutes():
    assert len(README.splitlines()) <= 130


def test_its_picture_shows_every_kept_row_of_the_frontier():
    sys.path.append(str(ROOT / "docs/_ext"))
    import kept_pictures

    told = kept_pictures.FRONTIER.read_text()
    rows = kept_pictures.points("iid")
    matrix = yaml.safe_load((ROOT / "configs/cifar10/sweeps/frontier.yaml").read_text())
    # those of Local send nothing
    assert {row.name for row in rows} == set(matrix["methods"]) - {"Local"}
    assert set(kept_pictures.style(rows)) == {row.name for row in rows}
    for row in rows:
        assert f">{row.name}<" in told
