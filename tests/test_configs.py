"""Every configuration that is shipped parses, prints itself, and runs a round."""

import contextlib
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from bhfl import algorithms
from bhfl.main import main
from bhfl.sweep.check import Configs
from bhfl.sweep.plan import Plan
from bhfl.sweep.reader import read_matrix

FILES = sorted(Path(__file__).parents[1].joinpath("configs").rglob("*.yaml"))
CONFIGS = [path for path in FILES if path.parent.name != "sweeps"]
SMALL = {
    "adapters",
    "adapters_quantized",
    "bitsandbytes",
    "clients",
    "differences",
    "downlink",
    "dropouts",
    "fedlq_left_out",
    "fedlq_signs",
    "femnist",
    "median_scaffold",
    "mnist",
    "prowd_feddyn",
    "schedule",
    "stored",
    "topk",
    "wage",
}
"""What is shown on one set of data alone."""
QUICK = {"prowd"}
"""What runs a round on pictures among the quick tests too."""
MATRICES = [path for path in FILES if path.parent.name == "sweeps"]


def named(path: Path) -> str:
    """The algorithm that a configuration names."""
    algorithm = yaml.safe_load(path.read_text()).get("algorithm", "FedAvg")
    return algorithm if isinstance(algorithm, str) else algorithm["class_path"]


@pytest.mark.parametrize("folder", ["digits", "cifar10"])
def test_every_algorithm_has_a_configuration(folder):
    paths = [path for path in CONFIGS if path.parent.name == folder]
    assert {named(path) for path in paths} == set(algorithms.__all__)
    assert {path.stem for path in paths} | SMALL == {path.stem for path in CONFIGS}
    assert [path for path in MATRICES if path.parents[1].name == folder]


@pytest.fixture(scope="session")
def pictures(tmp_path_factory) -> Path:
    """A small archive laid out as CIFAR-10's pictures are."""
    rng, path = np.random.default_rng(0), tmp_path_factory.mktemp("pictures") / "pictures.tar"
    with tarfile.open(path, "w") as archive:
        for split, count in (("train", 40), ("test", 4)):
            for name in range(10):
                for i in range(count):
                    buffer = io.BytesIO()
                    Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(
                        buffer, "JPEG"
                    )
                    member = tarfile.TarInfo(f"{split}/{name}/{i:04d}.jpg")
                    member.size = buffer.tell()
                    buffer.seek(0)
                    archive.addfile(member, buffer)
    return path


def writers(root: Path) -> Path:
    """A folder laid out as LEAF's FEMNIST is."""
    users = [f"f{i:04d}_00" for i in range(5)]
    samples = {"x": np.random.default_rng(0).random((8, 784)).tolist(), "y": [*range(54, 62)]}
    content = {"num_samples": [8] * 5, "users": users, "user_data": dict.fromkeys(users, samples)}
    for split in ("train", "test"):
        (root / split).mkdir()
        (root / split / "all_data_0.json").write_text(json.dumps(content))
    return root


def labelled(root: Path) -> Path:
    """A folder of pictures that Hugging Face's reader of pictures takes."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 16), ("test", 2)):
        for label in range(10):
            folder = root / split / str(label)
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 256, (28, 28), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.png")
    return root


def run(*arguments: str) -> str:
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.suppress(SystemExit):
        main(list(arguments))
    return output.getvalue()


def some_of(config: dict[str, Any]) -> list[str]:
    """What makes a configuration's fleet, network and batches small; all else is as shipped."""
    # Krum needs several
    least = max(2, config["trainer"].get("min_clients", 2))
    each = -(-least // len(config["clients"]))
    clients = dict.fromkeys(config["clients"], each)
    words = [f"--clients={yaml.safe_dump(clients, default_flow_style=True).strip()}"]
    if "net_kwargs" in config["model"]["init_args"]:
        words.append("--model.net_kwargs.width=4")
    return [*words, "--data.batch_size=8"]


def shipped(large: str) -> list[Any]:
    """All configurations as they are run here, and those of `large` also at their own size."""
    found = []
    for path in CONFIGS:
        name = f"{path.parent.name}/{path.stem}"
        is_large = path.parent.name == large
        # the same methods run on the digits
        marks = pytest.mark.slow if is_large and path.stem not in QUICK else ()
        found.append(pytest.param(path, is_large, id=name, marks=marks))
        if is_large:
            found.append(pytest.param(path, False, id=f"{name}-whole", marks=pytest.mark.slow))
    return found


@pytest.mark.parametrize(("path", "is_small"), shipped(large="cifar10"))
def test_runs_a_round(path, is_small, pictures, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    words = [
        "--trainer.max_rounds=1",
        "--trainer.local_steps=2",
        f"--trainer.default_root_dir={tmp_path}",
    ]
    if path.stem != "fedavg":
        # a trial of another order of memory, and a validation beforehand: one method shows them
        words += ["--trainer.channels_last=false", "--trainer.validate_first=false"]
    if path.parent.name == "cifar10":
        words += [f"--data.archive={pictures}", "--data.holdout=128"]
    if path.parent.name == "huggingface":
        monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
        words += [f"--data.path={labelled(tmp_path / 'labelled')}"]
    if path.parent.name == "leaf":
        words += [f"--data.root={writers(tmp_path)}", "--trainer.num_clients=4"]
        words += ["--trainer.clients_per_round=2"]
    if is_small:
        words += some_of(yaml.safe_load(path.read_text()))
    if path.stem == "prowd":
        words += ["--algorithm.dequantizer.first_steps=2"]
        words += ["--algorithm.dequantizer.warmup_rounds=1"]
    if path.stem == "dpfedavg" and path.parent.name == "cifar10" and not is_small:
        # its fleet has more clients than these pictures
        words.append("--clients={ternary: 50, float32: 50}")
    if path.stem == "schedule":
        fleet = "[{bits: 2, count: 1, name: growing, schedule: {1: 4}}, {bits: 32, count: 1}]"
        words += [f"--clients={fleet}", "--trainer.max_rounds=2"]
    if path.stem == "fedrep":
        words += ["--algorithm.head_steps=1"]
    output = run("fit", "--config", str(path), *words)
    assert "rounds in" in output
    assert len(list(tmp_path.glob("*/version_0/summary.json"))) == 1


@pytest.mark.parametrize("path", CONFIGS[::6], ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_what_it_prints_is_itself(path, tmp_path):
    printed = run("fit", "--config", str(path), "--print_config")
    again = tmp_path / "again.yaml"
    again.write_text(printed)
    assert run("fit", "--config", str(again), "--print_config") == printed


@pytest.mark.parametrize("half", ["mask", "dequantizer"])
def test_a_half_of_prowd_is_switched_off_by_null_and_false_says_so(half, capsys):
    config = ("fit", "--config", str(CONFIGS[0].parents[1] / "digits/prowd.yaml"), "--print_config")
    printed = yaml.safe_load(run(*config, f"--algorithm.{half}=null"))
    assert printed["algorithm"]["init_args"][half] is None
    run(*config, f"--algorithm.{half}=false")
    (line,) = capsys.readouterr().err.splitlines()
    assert f"--algorithm.{half} must be a mapping of the options of {half.capitalize()} or" in line
    assert line.endswith("null, got false; did you mean null?")


ALONE = {"fedlq", "frontier", "both", "demo", "norms"}
"""Matrices of the quick tests: the others have methods of these, or of what runs a round here."""


def matrices() -> list[Any]:
    """All of them, some among the slow tests."""
    found = []
    for path in MATRICES:
        marks = () if path.stem in ALONE else pytest.mark.slow
        found.append(pytest.param(path, id=path.stem, marks=marks))
    return found


@pytest.mark.parametrize("path", matrices())
def test_each_method_and_each_setting_of_a_matrix_can_be_run(path, tmp_path):
    plan = Plan(read_matrix(str(path)), tmp_path)
    tune, seed = plan.matrix.tune, plan.matrix.seeds[0]
    settings, methods = list(plan.matrix.settings), list(plan.matrix.methods)
    # the first method on the first setting, the second on the second, until each has been there
    chosen = {
        (settings[i % len(settings)], methods[i % len(methods)])
        for i in range(max(len(settings), len(methods)))
    }
    cells = [c for c in plan.cells if c.seed == seed and (c.setting, c.method) in chosen]
    assert len(cells) == len(chosen)
    configs = Configs(machine=False)
    configs.check([plan.job(cell, tune.values[0] if tune else None) for cell in cells])
    if tune:
        configs.check(list(plan.trials(cells[0])[0].values()))


def test_groups_are_described_on_the_command_line(tmp_path):
    fleet = (
        "[{bits: 8, count: 1, backend: auto, name: fast, profile: iot}, "
        "{bits: 8, count: 1, name: plain, local_steps: 1, layers: {net.head.*: 4}}, "
        "{bits: 32, count: 2, optimizer: {class_path: Adam, init_args: {lr: 0.01}}}]"
    )
    digits = next(path for path in CONFIGS if path.parts[-2:] == ("digits", "fedavg.yaml"))
    given = ["fit", "--config", str(digits), "--clients", fleet, "--trainer.network.profiles=wifi"]
    printed = tmp_path / "printed.yaml"
    printed.write_text(run(*given, "--print_config"))
    clients = yaml.safe_load(printed.read_text())["clients"]
    assert [group["bits"] for group in clients] == ["int8", "int8", "float32"]
    assert clients[2]["optimizer"]["class_path"] == "torch.optim.Adam"
    short = ["--trainer.max_rounds=1", f"--trainer.default_root_dir={tmp_path}"]
    output = run("fit", "--config", str(printed), *short)
    assert [line.split()[0] for line in output.splitlines() if " %" in line] == [
        "fast",
        "plain",
        "float32",
        "all",
    ]
