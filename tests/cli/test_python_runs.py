"""Runs that were made in Python leave a configuration that the commands use, or that says what they
need.
"""

import json
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import yaml
from lightning.fabric.loggers import CSVLogger
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, MultiStepLR

from bhfl import load_model, load_run
from bhfl.algorithms import FedProx, ProWD
from bhfl.algorithms.prowd import Mask
from bhfl.comm.network import SimulatedNetwork
from bhfl.data import Dirichlet, FakeImages, FromDatasets
from bhfl.engine import FederatedTrainer
from bhfl.models import Classifier
from bhfl.quant import fake_quantize
from tests.cli.conftest import Command
from tests.federation import Client, same

OWN = """\
import torch
from tests.federation import Client
class Own(Client):
    def __init__(self, width: int = 3, lr: float = 0.1):
        super().__init__(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 4)), lr)
        self.save_hyperparameters()
"""


def data(**options: Any) -> FakeImages:
    sizes = {"num_train": 96, "num_test": 32, "shape": (1, 8, 8), "num_classes": 4}
    return FakeImages(**sizes, val_fraction=0.25, **options)


def trained(model: L.LightningModule, given: Any = None, **options: Any) -> tuple[Any, str, Any]:
    """What a run came to, its ``config.yaml``, and what that lacks."""
    settings = {"max_rounds": 1, "logger": False, "devices": 1, "accelerator": "cpu"}
    trainer = FederatedTrainer({"int8": 2, 32: 2}, **{**settings, **options})
    result = trainer.fit(model, given or data())
    config = str(result.folder / "config.yaml")
    return result, config, yaml.safe_load(Path(config).read_text()).get("unwritten", {})


def network(**options: Any) -> Classifier:
    return Classifier("mlp", num_classes=4, **options)


def test_a_run_is_tested_analyzed_and_exported_by_its_folder_alone(
    bhfl: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    # test_export has the ONNX files, which take seconds
    monkeypatch.setattr("bhfl.export.run.installed", lambda extra: extra != "onnx")
    L.seed_everything(3, verbose=False)
    result, config, missing = trained(
        network(optimizer=lambda params: torch.optim.Adam(params, 0.01), lr_scheduler=_cosine),
        data(partition=Dirichlet(0.7)),
        algorithm=ProWD(Mask(tau=0.1), dequantizer=None),
        server_optimizer=lambda params: torch.optim.SGD(params, 0.9),
        network=SimulatedNetwork("phone-4g", seed=5),
        clients_per_round=4,
        name="ours",
    )
    assert missing == {}
    code, out, err = bhfl("test", "--config", config, "--ckpt_path", "last")
    assert (code, err) == (0, "")
    accuracy = result.metrics["test/acc_int8"]
    assert f"{100 * accuracy:.2f} %" in next(x for x in out.splitlines() if x.startswith("int8"))
    assert bhfl("analyze", "--config", config, "--ckpt_path", "last", "--samples", "20").code == 0
    assert bhfl("export", "--config", config, "--ckpt_path", "last").code == 0
    assert (result.folder / "export" / "int8.safetensors").exists()
    assert bhfl("report", "runs").out.startswith("FakeImages, Dirichlet(alpha=0.7), mlp")


def _cosine(optimizer: torch.optim.Optimizer) -> CosineAnnealingLR:
    return CosineAnnealingLR(optimizer, 5)


def test_what_is_written_makes_the_same_run(bhfl: Command) -> None:
    result, config, _ = trained(network(), algorithm=FedProx(0.5), local_steps=2, seed=4)
    assert bhfl("fit", "--config", config).code == 0
    again = result.folder.with_name("version_1")
    told = [json.loads((one / "settings.json").read_text()) for one in (result.folder, again)]
    first, second = ({k: v for part in one.values() for k, v in part.items()} for one in told)
    # these are taken from the data, and no configuration has them
    del first["model.num_classes"], first["model.input_shape"]
    del first["trainer.callbacks"], second["trainer.callbacks"]
    assert first == second


def test_a_run_of_python_goes_on_at_the_command_line_to_the_same_bits(bhfl: Command) -> None:
    options: dict[str, Any] = {
        "algorithm": ProWD(Mask(tau=0.1), dequantizer=None),
        "server_optimizer": lambda params: torch.optim.SGD(params, 0.9),
        "network": SimulatedNetwork("phone-4g", seed=5),
        "clients_per_round": 3,
    }
    for name, rounds in (("whole", 2), ("cut", 1)):
        L.seed_everything(3, verbose=False)
        model = network(optimizer=lambda params: torch.optim.Adam(params, 0.01))
        config = trained(model, name=name, max_rounds=rounds, **options)[1]
    more = ("fit", "--config", config, "--trainer.max_rounds", "2", "--ckpt_path", "last")
    other = bhfl(*more, "--model", "tests.cli.test_python_runs.Local")
    assert "  model: 'Classifier' -> 'Local'" in other.err
    assert bhfl(*more).code == 0
    whole, cut = (load_run(f"runs/{name}/version_0") for name in ("whole", "cut"))
    assert cut.rounds == 2
    assert same(whole.server.params, cut.server.params)
    assert same(whole.server.extra["low"], cut.server.extra["low"])


def test_a_module_of_ones_own_is_written_with_its_hyperparameters(
    bhfl: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_of_mine.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    from own_of_mine import Own  # type: ignore[import-not-found]

    result, config, missing = trained(Own(lr=0.01))
    assert missing == {}
    told = yaml.safe_load(Path(config).read_text())["model"]
    assert told == {"class_path": "own_of_mine.Own", "init_args": {"width": 3, "lr": 0.01}}
    out = bhfl("test", "--config", config, "--ckpt_path", "last").out
    assert f"{100 * result.metrics['test/acc_int8']:.2f} %" in out


class Local(Client):
    """A module that does not tell its arguments, for pictures of 8 x 8."""

    def __init__(self, lr: float = 0.05) -> None:
        super().__init__(nn.Sequential(nn.Flatten(), nn.Linear(64, 4)), lr)


def test_what_no_file_can_say_is_named_and_asked_for(bhfl: Command) -> None:
    pairs = [(torch.rand(1, 8, 8), index % 4) for index in range(40)]
    given = FromDatasets(pairs, pairs, targets=[label for _, label in pairs])
    logger = CSVLogger("elsewhere")
    result, config, missing = trained(Local(), given, logger=logger)
    assert missing == {
        "model": "Local does not tell its argument lr: a LightningModule does by "
        "self.save_hyperparameters()",
        "data": missing["data"],
    }
    text = Path(config).read_text()
    assert "\n# left out: trainer.logger\n" in text
    (problem,) = bhfl("test", "--config", config, "--ckpt_path", "last").problems
    assert problem.startswith(f"{config}: the run was made in Python, and a file cannot say its ")
    assert "model (Local does not tell its argument lr" in problem
    assert problem.endswith("give --model and --data, or go on in Python")
    code, _, err = bhfl(
        "test", "--config", config, "--model", "tests.cli.test_python_runs.Local", "--data",
        "FakeImages", "--data.num_classes", "4", "--data.shape", "[1, 8, 8]", "--ckpt_path", "last",
    )  # fmt: skip
    assert (code, err) == (0, "")
    assert result.rounds == 1


def test_a_run_of_the_command_line_is_read_in_python(bhfl: Command) -> None:
    options = ["--algorithm", "ProWD", "--algorithm.dequantizer", "null"]
    assert bhfl("fit", "--config", "tiny.yaml", *options).code == 0
    found = load_run("runs/tiny/version_0")
    assert (found.method, found.groups) == ("ProWD", {"int8": 2, "float32": 2})
    low = found.server.extra["low"]
    weight = next(name for name in low if name.endswith("weight"))
    assert torch.equal(found.state_dict("int8")[weight], fake_quantize(low[weight], 8))
    assert torch.equal(found.state_dict("float32")[weight], found.server.params[weight])
    assert isinstance(load_model(found.folder), Classifier)


class Twice(Dirichlet):
    """Tells its argument by an attribute, which is an object."""

    def __init__(self, inner: Dirichlet) -> None:
        super().__init__(1.0)
        self.inner = inner


def test_an_object_in_an_object_is_not_taken_for_its_class_alone(bhfl: Command) -> None:
    partition = Twice(Dirichlet(0.1))
    missing = trained(network(), data(partition=partition))[2]
    assert missing == {"data": "Twice does not tell what it was made with"}


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (lambda: network(lr_scheduler=lambda o: MultiStepLR(o, [1])), "MultiStepLR does not tell"),
        (lambda: network(lr_scheduler=lambda o: LambdaLR(o, lambda _: 1.0)), "LambdaLR does not"),
        (
            lambda: Classifier(nn.Sequential(nn.Flatten(), nn.Linear(64, 4)), num_classes=4),
            "Sequential does not tell",
        ),
        (
            lambda: Classifier("mlp", num_classes=5),
            "its num_classes must be what the data have, got 5",
        ),
        (lambda: type("Hidden", (Local,), {"__module__": "__main__"})(), "Hidden is written in a"),
    ],
)
def test_the_reason_is_given(bhfl: Command, model: Any, reason: str) -> None:
    assert reason in trained(model())[2]["model"]


@pytest.mark.parametrize("name", ["1e3", "+.5", "1_0e2", "on"])
def test_text_like_a_number_is_read_again_as_text(bhfl: Command, name: str) -> None:
    _, config, missing = trained(network(), name=name)
    assert missing == {}
    done = bhfl("fit", "--config", config, "--print_config")
    assert (done.code, yaml.safe_load(done.out)["trainer"]["name"]) == (0, name)
