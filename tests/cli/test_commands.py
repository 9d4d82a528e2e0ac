"""What the commands do, from options to files and exit codes."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from bhfl.cli import exits
from bhfl.cli.command import leave
from bhfl.cli.commands import CommandTrainer
from bhfl.engine.refusal import TooFewClientsError
from bhfl.quant import quantizers
from tests.cli.conftest import Command

OWN = """\
from bhfl.algorithms import FedProx
from bhfl.engine import Callback

class Mine(FedProx):
    def __init__(self, nu: float = 0.5, **options) -> None:
        super().__init__(**options)
        self.nu = nu

class Stop(Callback):
    def on_round_end(self, trainer, metrics):
        raise KeyboardInterrupt

class Faulty(Callback):
    def on_round_end(self, trainer, metrics):
        raise RuntimeError("a bug")

class Tell(Callback):
    def on_fit_start(self, trainer):
        print("callbacks:", *(type(c).__name__ for c in trainer.callbacks))
        print("classes:", list(trainer.server.params.values())[-1].shape[0], "seed:", trainer.settings.cohort.seed)
"""  # noqa: E501

FAILING = """\
from bhfl.algorithms import FedAvg

class Failing(FedAvg):
    def client_loss(self, run, batch, batch_idx):
        if run.client.id == 1:
            raise RuntimeError("out of order")
        return super().client_loss(run, batch, batch_idx)
"""


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the run of the first test that asks for one is kept for the others."""
    return tmp_path_factory.mktemp("kept") / "runs"


@pytest.fixture
def run(bhfl: Command, tmp_path: Path, kept: Path) -> Path:
    """The folder of a finished run of two rounds, a copy for each test."""
    if kept.exists():
        shutil.copytree(kept, tmp_path / "runs")
    else:
        assert bhfl("fit", "--config", "tiny.yaml").code == 0
        shutil.copytree(tmp_path / "runs", kept)
    return tmp_path / "runs" / "tiny" / "version_0"


def test_a_run_of_the_command_line_is_reported_by_it(
    bhfl: Command, run: Path, tmp_path: Path
) -> None:
    code, out, err = bhfl("report", "runs", "--target", "0.01")
    assert (code, err) == (0, "")
    assert out.startswith("FakeImages, IID, mlp, 2 x int8, 2 x float32\n")
    assert "\nFedAvg " in out
    # with the weights of the run
    assert (tmp_path / "report" / "report.html").read_text().count("<img") == 10
    assert bhfl("report", "nowhere").problems[0].startswith("nowhere: no such folder")


def parsed(bhfl: Command, *args: object) -> dict:
    code, out, _ = bhfl("fit", *args, "--print_config")
    assert code == 0
    return yaml.safe_load(out)


# ---- help


@pytest.mark.parametrize("args", [[], ["--help"], ["-h"], ["--version"]])
def test_help_and_version_are_answered_without_torch(args: list[str]) -> None:
    code = (
        "import sys, bhfl.main\n"
        "try: bhfl.main.main(sys.argv[1:])\n"
        "except SystemExit as stop: assert stop.code == 0\n"
        "heavy = {'torch', 'lightning', 'numpy', 'yaml', 'jsonargparse', 'rich'}\n"
        "assert not heavy & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(("usage: bhfl", "bhfl "))


@pytest.mark.parametrize(
    "command", ["fit", "validate", "test", "predict", "analyze", "profile", "serve"]
)
def test_help_of_a_command_tells_its_options(bhfl: Command, command: str) -> None:
    code, out, err = bhfl(command, "--help")
    assert (code, err) == (0, "")
    assert out.startswith(f"usage: bhfl {command} [--config FILE ...]")
    assert out.split("\n\n")[1].endswith(".")
    for text in (
        "--clients",
        "--trainer.max_rounds",
        "bhfl.algorithms.FedProx",
        "bhfl.data.CIFAR10",
        "\nTrainer:",
    ):
        assert text in out
    # it measures a model that is not trained yet
    assert ("--ckpt_path" in out) == (command != "profile")


def test_help_of_a_class(bhfl: Command) -> None:
    code, out, _ = bhfl("fit", "--data.help", "CIFAR10")
    assert code == 0
    assert "--data.archive" in out


# ---- parsing


def test_later_layers_win(bhfl: Command, tmp_path: Path) -> None:
    (tmp_path / "more.yaml").write_text(
        "trainer: {max_rounds: 5, patience: 3}\ndata: {batch_size: 8}\n"
    )
    config = parsed(
        bhfl,
        "--config",
        "tiny.yaml",
        "--trainer.patience",
        "9",
        "--config",
        "more.yaml",
        "--trainer.max_rounds=7",
    )
    assert (config["trainer"]["max_rounds"], config["trainer"]["patience"]) == (7, 3)
    assert (
        config["data"]["init_args"]["batch_size"],
        config["data"]["init_args"]["num_train"],
    ) == (8, 96)


def test_short_forms(bhfl: Command) -> None:
    config = parsed(
        bhfl,
        *("--clients", "{ternary: 3, 4: 3, 32: 4}"),
        *("--algorithm", "FedProx", "--algorithm.mu", "0.5"),
        *(
            "--data",
            "CIFAR10",
            "--data.archive",
            "x.tar",
            "--data.partition=Dirichlet",
            "--data.partition.alpha=0.1",
        ),
        *("--model.optimizer", "Adam", "--model.optimizer.lr", "0.01"),
        *("--trainer.callbacks+=WeightHistograms", "--trainer.callbacks.every_n_rounds=5"),
    )
    assert config["clients"] == {"ternary": 3, "int4": 3, "float32": 4}
    assert config["algorithm"]["class_path"] == "bhfl.algorithms.FedProx"
    assert config["algorithm"]["init_args"]["mu"] == 0.5
    assert config["data"]["class_path"] == "bhfl.data.CIFAR10"
    assert config["data"]["init_args"]["archive"] == "x.tar"
    assert config["data"]["init_args"]["partition"]["init_args"]["alpha"] == 0.1
    assert config["model"]["init_args"]["optimizer"]["class_path"] == "torch.optim.Adam"
    assert config["trainer"]["callbacks"][0]["init_args"] == {"every_n_rounds": 5}


def test_a_named_class_has_its_own_defaults(bhfl: Command, tmp_path: Path) -> None:
    def optimizer(*args: object) -> dict:
        found = parsed(bhfl, "--config", "tiny.yaml", *args)["model"]["init_args"]["optimizer"]
        return {"name": found["class_path"].rpartition(".")[2], **found["init_args"]}

    assert {"name": "SGD", "lr": 0.05, "momentum": 0.9}.items() <= optimizer().items()
    assert {"lr": 0.1, "momentum": 0.9}.items() <= optimizer("--model.optimizer.lr", "0.1").items()
    assert {"name": "Adam", "lr": 0.001}.items() <= optimizer("--model.optimizer", "Adam").items()
    (tmp_path / "sgd.yaml").write_text(
        "model: {init_args: {optimizer: {class_path: torch.optim.SGD, init_args: {lr: 0.2}}}}"
    )
    plain = optimizer("--config", "sgd.yaml")
    assert {"name": "SGD", "lr": 0.2, "momentum": 0.0}.items() <= plain.items()
    later = optimizer("--config", "sgd.yaml", "--model.optimizer.momentum", "0.5")
    assert later == {**plain, "momentum": 0.5}
    assert optimizer("--model.optimizer.lr", "0.3", "--model.optimizer", "SGD") == {
        **plain,
        "lr": 0.3,
    }
    again = optimizer("--config", "sgd.yaml", "--model.optimizer", "torch.optim.SGD")
    assert again == plain
    (tmp_path / "none.yaml").write_text("trainer: {server_optimizer: null}")
    assert (
        bhfl(
            "fit",
            "--config",
            "tiny.yaml",
            "--trainer.server_optimizer",
            "SGD",
            "--config",
            "none.yaml",
        ).code
        == 0
    )
    plateau = ("--model.lr_scheduler", "torch.optim.lr_scheduler.ReduceLROnPlateau")
    assert (
        parsed(bhfl, "--config", "tiny.yaml", *plateau)["model"]["init_args"]["lr_scheduler"][
            "init_args"
        ]["mode"]
        == "min"
    )


@pytest.mark.parametrize(("word", "tau"), [("500", 500), ("1", 1), ("1.0", 1.0), ("0.25", 0.25)])
def test_a_share_is_a_float_and_a_count_is_not(bhfl: Command, word: str, tau: float) -> None:
    config = parsed(bhfl, "--algorithm=ProWD", f"--algorithm.mask.tau={word}")
    found = config["algorithm"]["init_args"]["mask"]["tau"]
    assert (type(found), found) == (type(tau), tau)


def test_a_fleet_by_fractions(bhfl: Command) -> None:
    fleet = "[{bits: 8, fraction: 0.5}, {bits: {weights: 4, activations: 8}, fraction: 0.5}]"
    groups = parsed(bhfl, "--clients", fleet, "--trainer.num_clients", "4")["clients"]
    assert [group["fraction"] for group in groups] == [0.5, 0.5]


def test_defaults_are_complete(bhfl: Command) -> None:
    config = parsed(bhfl)
    classes = [
        config[part]["class_path"].rpartition(".")[2] for part in ("algorithm", "model", "data")
    ]
    assert classes == ["FedAvg", "Classifier", "Digits"]
    assert config["seed_everything"] == 0
    assert not {"clients", "algorithm", "seed"} & config["trainer"].keys()
    assert not {"num_classes", "input_shape"} & config["model"]["init_args"].keys()


def test_a_printed_configuration_parses_to_itself(bhfl: Command, tmp_path: Path) -> None:
    config = parsed(bhfl, "--config", "tiny.yaml", "--trainer.server_optimizer", "SGD")
    (tmp_path / "printed.yaml").write_text(yaml.safe_dump(config))
    assert parsed(bhfl, "--config", "printed.yaml") == config


# ---- running


def test_fit_trains_and_keeps_its_configuration(bhfl: Command, run: Path, tmp_path: Path) -> None:
    assert {path.name for path in run.iterdir()} >= {
        "config.yaml",
        "summary.json",
        "rounds.jsonl",
        "checkpoints",
    }
    again = parsed(bhfl, "--config", run / "config.yaml")
    assert again == parsed(bhfl, "--config", "tiny.yaml")
    assert "ckpt_path" not in yaml.safe_load((run / "config.yaml").read_text())


def test_the_console_tells_what_happened(bhfl: Command) -> None:
    code, out, err = bhfl("fit", "--config", "tiny.yaml")
    assert (code, err) == (0, "")
    assert "runs/tiny/version_0" in out
    assert "round 2/2" in out
    assert "test acc" in out
    assert "rounds.jsonl says why" not in out


def test_the_console_tells_how_many_updates_were_lost(bhfl: Command, tmp_path: Path) -> None:
    (tmp_path / "own_failing.py").write_text(FAILING)
    with pytest.warns(UserWarning, match="client 1 failed: RuntimeError: out of order"):
        out = bhfl("fit", "--config", "tiny.yaml", "--algorithm", "own_failing.Failing").out
    assert "of 8 updates 2 failed; rounds.jsonl says why" in out


@pytest.mark.parametrize("command", ["validate", "test"])
@pytest.mark.parametrize("which", ["last", "best", "FOLDER", "FILE"])
def test_measuring_a_run(bhfl: Command, run: Path, command: str, which: str) -> None:
    path = {"FOLDER": run, "FILE": run / "checkpoints" / "round=00001.ckpt"}.get(which, which)
    code, out, err = bhfl(command, "--config", run / "config.yaml", "--ckpt_path", path)
    assert (code, err) == (0, "")
    assert f"{'val' if command == 'validate' else 'test'} acc" in out
    assert "int8" in out


def test_measuring_untrained_weights_is_said(bhfl: Command) -> None:
    code, _, err = bhfl("test", "--config", "tiny.yaml")
    assert code == 0
    assert err == "note: no --ckpt_path is given: these weights are untrained\n"


def test_last_means_the_run_whose_configuration_is_used(bhfl: Command, run: Path) -> None:
    assert bhfl("fit", "--config", "tiny.yaml").code == 0  # a newer run
    args = (
        "fit",
        "--config",
        run / "config.yaml",
        "--ckpt_path",
        "last",
        "--trainer.max_rounds",
        "3",
    )
    assert bhfl(*args).code == 0
    assert len((run / "rounds.jsonl").read_text().splitlines()) == 1 + 3
    assert len((run.with_name("version_1") / "rounds.jsonl").read_text().splitlines()) == 1 + 2


def test_last_means_the_newest_run_otherwise(bhfl: Command, run: Path) -> None:
    assert (
        bhfl(
            "fit", "--config", "tiny.yaml", "--ckpt_path", "last", "--trainer.max_rounds", "3"
        ).code
        == 0
    )
    assert len((run / "rounds.jsonl").read_text().splitlines()) == 1 + 3


def test_a_run_killed_before_the_checkpoint_of_its_first_round_is_passed_over(
    bhfl: Command, run: Path
) -> None:
    """``best.ckpt`` is written before it."""
    (run.with_name("version_1") / "checkpoints").mkdir(parents=True)
    (run.with_name("version_1") / "checkpoints" / "best.ckpt").write_bytes(
        (run / "checkpoints" / "best.ckpt").read_bytes()
    )
    assert (
        bhfl(
            "fit", "--config", "tiny.yaml", "--ckpt_path", "last", "--trainer.max_rounds", "3"
        ).code
        == 0
    )
    assert len((run / "rounds.jsonl").read_text().splitlines()) == 1 + 3


def test_the_seed_decides_the_run(bhfl: Command, tmp_path: Path) -> None:
    for seed in (1, 1, 2):
        assert (
            bhfl(
                "fit", "--config", "tiny.yaml", "--seed_everything", seed, "--trainer.max_rounds=1"
            ).code
            == 0
        )
    one, same, other = (
        torch.load(
            tmp_path / f"runs/tiny/version_{i}/checkpoints/round=00001.ckpt", weights_only=True
        )["state"]["server"]["params"]
        for i in range(3)
    )
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not all(torch.equal(one[name], other[name]) for name in one)


def test_own_classes_beside_the_configuration(bhfl: Command, tmp_path: Path) -> None:
    (tmp_path / "own_classes.py").write_text(OWN)
    code, out, err = bhfl(
        "fit", "--config", "tiny.yaml", "--algorithm", "own_classes.Mine", "--algorithm.nu=0.1",
        "--algorithm.mu=0.2", "--trainer.callbacks+=own_classes.Tell",
        "--trainer.callbacks+=Progress", "--seed_everything=7",
    )  # fmt: skip
    assert (code, err) == (0, "")
    assert "callbacks: WeightHistograms Tell Progress Pictures SaveConfig" in out
    assert "classes: 4 seed: 7" in out


# ---- failing


DATASETS = """\
import torch
from torch.utils.data import Dataset
from bhfl.models import Classifier
from bhfl.quant import Quantizer, register_quantizer
from bhfl.quant.rounding import levels

class Blobs(Dataset):
    def __init__(self, n: int = 10, seed: int = 0):
        generator = torch.Generator().manual_seed(seed)
        self.y = torch.arange(n) % 3
        self.x = torch.randn(n, 5, generator=generator) + self.y[:, None]

    def __len__(self):
        return len(self.y)

    def __getitem__(self, index):
        return self.x[index], self.y[index]

@register_quantizer
class Half(Quantizer):
    name = "half_range"

    def scale(self, x, bits):
        return x.abs().amax(1) / 2 / levels(bits)

class Mine(Classifier): ...
"""
VECTORS = """\
clients: [{bits: {weights: 4, activations: 8, range_rule: half_range}, count: 1}, {bits: 32, count: 1}]
model: {class_path: own_sets.Mine, init_args: {net: mlp}}
data:
  class_path: FromDatasets
  init_args:
    train: {class_path: own_sets.Blobs, init_args: {n: 90}}
    test: {class_path: own_sets.Blobs, init_args: {n: 30, seed: 1}}
trainer: {max_rounds: 1, name: vectors, accelerator: cpu}
"""  # noqa: E501


ROWS = """\
import torch
from torch.utils.data import Dataset

class Rows(Dataset):
    def __init__(self, n: int = 30, seed: int = 0):
        generator = torch.Generator().manual_seed(seed)
        self.x = torch.rand(n, 6, generator=generator)

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        return {"x": self.x[index], "kind": int(self.x[index, 0] > 0.5)}

def collate(samples):
    return torch.stack([x for x, _ in samples]), torch.tensor([kind for _, kind in samples])
"""
A_SET_EACH = """\
clients: {8: 1, 32: 1}
model: {class_path: Classifier, init_args: {net: mlp}}
data:
  class_path: FromDatasets
  init_args:
    train:
    - {class_path: own_rows.Rows, init_args: {n: 40}}
    - {class_path: own_rows.Rows, init_args: {n: 50, seed: 1}}
    test: {class_path: own_rows.Rows, init_args: {seed: 2}}
    targets: kind
    inputs: x
    collate_fn: own_rows.collate
trainer: {max_rounds: 1, name: rows, accelerator: cpu}
"""


def test_a_data_set_of_each_client_in_a_file(bhfl: Command, tmp_path: Path) -> None:
    (tmp_path / "own_rows.py").write_text(ROWS)
    (tmp_path / "rows.yaml").write_text(A_SET_EACH)
    _, out, _ = bhfl("fit", "--config", "rows.yaml")
    assert "1 x int8, 1 x float32" in out
    code, _, err = bhfl("fit", "--config", "rows.yaml", "--data.targets", "knd")
    assert (code, "got 'knd'; did you mean 'kind'?" in err) == (3, True)
    code, _, err = bhfl("fit", "--config", "rows.yaml", "--clients", "{8: 2, 32: 1}")
    expected = "data.train must have a data set for each of 3 clients where it is a list, got 2"
    assert (code, expected in err) == (3, True)


def test_own_data_sets_and_quantisers_in_a_file(
    bhfl: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(quantizers.REGISTERED, "half_range", None)  # so that it is gone afterwards
    del quantizers.REGISTERED["half_range"]
    (tmp_path / "own_sets.py").write_text(DATASETS)
    (tmp_path / "vectors.yaml").write_text(VECTORS)
    _, out, err = bhfl("fit", "--config", "vectors.yaml")
    assert err == ""
    assert "1 x w4a8-half_range, 1 x float32" in out
    again = bhfl("test", "--config", "runs/vectors/version_0/config.yaml", "--ckpt_path", "best")
    assert (again.code, again.err) == (0, "")
    problems = bhfl("fit", "--config", "vectors.yaml", "--model.net", "lenet").problems
    assert problems == ["input_shape must be three positive numbers (C, H, W), got (5,)"]


def test_a_logger_whose_package_is_missing_is_told(bhfl: Command) -> None:
    (problem,) = bhfl("fit", "--config", "tiny.yaml", "--trainer.logger", "CometLogger").problems
    assert "comet" in problem
    assert "Expected" not in problem


def test_other_options_than_the_checkpoint_s_are_listed(bhfl: Command, run: Path) -> None:
    code, _, err = bhfl(
        "fit",
        "--config",
        "tiny.yaml",
        "--ckpt_path",
        run,
        "--algorithm",
        "FedProx",
        "--data.batch_size=4",
    )
    assert code == 4
    assert "algorithm: 'bhfl.algorithms.FedAvg' -> 'bhfl.algorithms.FedProx'" in err
    assert "data.batch_size: 32 -> 4" in err
    assert "Traceback" not in err


def test_where_the_data_are_may_change(bhfl: Command, run: Path) -> None:
    assert (
        bhfl("fit", "--config", "tiny.yaml", "--ckpt_path", run, "--data.num_workers=1").code == 0
    )


def test_unusable_checkpoints(bhfl: Command, run: Path, tmp_path: Path) -> None:
    (tmp_path / "torn.ckpt").write_bytes((run / "checkpoints" / "best.ckpt").read_bytes()[:500])
    for path, message in (
        ("nope.ckpt", "no such"),
        ("torn.ckpt", "torn.ckpt"),
        ("last", "no run with a checkpoint"),
    ):
        code, _, err = bhfl(
            "test", "--config", "tiny.yaml", "--trainer.name", "other", "--ckpt_path", path
        )
        assert code == 4
        assert err.startswith("error: ")
        assert message in err
        assert "Traceback" not in err


LOSS_ONLY = """\
import torch
from bhfl.data import FromDatasets
from bhfl.models import Classifier
from torch.utils.data import Dataset

class Regression(Classifier):
    def validation_step(self, batch, batch_idx):
        self.log("val/loss", self(batch[0]).square().mean())

    def test_step(self, batch, batch_idx):
        self.log("test/loss", self(batch[0]).square().mean())

class Points(Dataset):
    def __init__(self, broken: bool = False):
        self.broken, self.targets = broken, torch.arange(40) % 3

    def __len__(self):
        return 40

    def __getitem__(self, index):
        if self.broken:
            raise OSError("sensor file 37 is truncated")
        return torch.full((5,), float(index)), int(self.targets[index])

class Data(FromDatasets):
    def __init__(self, broken: bool = False, val_fraction: float = 0.2):
        super().__init__(Points(), Points(broken), val_fraction=val_fraction)
"""


def test_a_model_without_accuracy_and_data_that_break(bhfl: Command, tmp_path: Path) -> None:
    (tmp_path / "loss_only.py").write_text(LOSS_ONLY)
    options = [
        "--model",
        "loss_only.Regression",
        "--data",
        "loss_only.Data",
        "--clients",
        "{8: 1, 32: 1}",
    ]
    options += ["--model.net", "mlp", "--trainer.name", "own"]
    monitor = ["--trainer.monitor", "val/loss_avg"]
    with pytest.warns(
        UserWarning,
        match="monitor is val/loss_avg and trainer.mode max: the highest loss is the best",
    ):
        code, out, _ = bhfl("fit", *options, *monitor, "--trainer.max_rounds", "1")
    assert code == 0
    assert "  int8 loss " in out
    assert "test loss" in out
    config = "runs/own/version_0/config.yaml"
    code, out, _ = bhfl("test", "--config", config, "--ckpt_path", "last")
    assert code == 0
    head, _, *rows = out.splitlines()
    assert head.split() == ["group", "clients", "test", "loss"]
    assert float(rows[0].split()[-1]) > 0
    code, _, err = bhfl("test", "--config", config, "--ckpt_path", "last", "--data.broken", "true")
    assert code == 3
    assert err == "error: sensor file 37 is truncated (while test_step ran over its batches)\n"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--data", "ImageFolder", "--data.archive", "nope.tar"], "nope.tar"),
        (["--data", "CIFAR10", "--data.root", "nope"], "data.root must hold torchvision's files"),
        (["--data.num_train", "3", "--data.batch_size", "1"], ""),
    ],
)
def test_unusable_data(bhfl: Command, tmp_path: Path, args: list[str], message: str) -> None:
    code, _, err = bhfl("fit", "--config", "tiny.yaml", *args)
    assert code == 3
    assert err.startswith("error: ")
    assert message in err
    assert "Traceback" not in err
    assert not (tmp_path / "runs").exists()


@pytest.mark.filterwarnings("ignore:round 1. client")
def test_too_few_clients(bhfl: Command) -> None:
    args = (
        "--model.optimizer.lr",
        "1e30",
        "--trainer.max_failed_rounds",
        "0",
        "--trainer.local_epochs",
        "4",
    )
    code, _, err = bhfl("fit", "--config", "tiny.yaml", *args)
    assert code == 5
    assert err.startswith("error: 1 rounds in a row had fewer than min_clients=1 usable updates")


def test_values_that_are_too_large_to_average_are_no_want_of_memory() -> None:
    text = "client 0 rejected: weight holds a value that is not finite or too large to average"
    assert exits.told(TooFewClientsError(text)) == text
    assert "need less memory" in exits.told(
        OverflowError("Python int too large to convert to C long")
    )


@pytest.mark.filterwarnings("ignore:round 1. client")
def test_a_run_without_a_usable_round_fails(bhfl: Command, tmp_path: Path) -> None:
    (tmp_path / "own_never.py").write_text(FAILING.replace("if run.client.id == 1", "if True"))
    words = ("--algorithm", "own_never.Failing", "--trainer.max_rounds", "1")
    code, _, err = bhfl("fit", "--config", "tiny.yaml", *words)
    assert code == 5
    assert "RuntimeError: out of order" in err


def test_patience_without_validation(bhfl: Command, tmp_path: Path) -> None:
    code, _, err = bhfl(
        "fit", "--config", "tiny.yaml", "--trainer.patience", "1", "--data.val_fraction", "0"
    )
    assert (code, err) == (
        2,
        "error: trainer.patience needs validation samples, and the data have none; got 1\n",
    )
    assert not (tmp_path / "runs").exists()


def test_patience_with_the_loss_of_training(bhfl: Command) -> None:
    words = ("--trainer.patience=1", "--trainer.monitor=train/loss", "--trainer.mode=min")
    assert (
        bhfl(
            "fit",
            "--config",
            "tiny.yaml",
            "--data.val_fraction=0",
            "--trainer.max_rounds=1",
            *words,
        ).code
        == 0
    )


def test_a_file_of_the_name_of_a_network_is_no_network(bhfl: Command, tmp_path: Path) -> None:
    for name, content in {"cnn": "resnet8", "FedAvg": "FedProx", "Digits": "x", "SGD": "x"}.items():
        (tmp_path / name).write_text(content)
    words = (
        "--model.net=cnn",
        "--algorithm=FedAvg",
        "--data=Digits",
        "--model.optimizer=SGD",
        "--model.optimizer.lr=1",
    )
    config = parsed(bhfl, *words)
    assert config["model"]["init_args"]["net"] == "cnn"
    assert config["algorithm"]["class_path"] == "bhfl.algorithms.FedAvg"


@pytest.mark.parametrize("command", ["fit", "test", "export", "analyze"])
def test_empty_words_name_nothing(bhfl: Command, run: Path, command: str) -> None:
    config = run / "config.yaml"
    code, _, err = bhfl(command, "--config", config, "--ckpt_path", "")
    assert code in (2, 4)
    assert "ckpt_path" in err
    if command in ("export", "analyze"):
        code, _, err = bhfl(command, "--config", config, "--ckpt_path", "last", "--out", "")
        assert (code, err) == (2, "error: out must be a path: a path must not be empty, got ''\n")


def test_warnings_are_one_line() -> None:
    source = str(Path(exits.__file__).parents[1] / "engine" / "trainer.py")
    told = exits.WarningForm()
    assert told("client 3 failed", UserWarning, source, 7) == "warning: client 3 failed\n"
    old = told("old", DeprecationWarning, source, 7)
    assert old.startswith(f"{source}:7: DeprecationWarning: old")
    odd = told("odd", UserWarning, "other.py", 7, "")
    assert odd.startswith("other.py:7: UserWarning: odd")


def test_a_warning_is_said_once_whatever_filters_are_set_between() -> None:
    source = str(Path(exits.__file__).parents[1] / "engine" / "trainer.py")
    told = exits.WarningForm()
    texts = [told(text, UserWarning, source, line) for text, line in (("a", 1), ("a", 9), ("b", 1))]
    assert texts == ["warning: a\n", "", "warning: b\n"]


HOOKS = """\
from bhfl.engine import Callback

class Duck:
    def on_round_end(self, trainer, metrics): ...

class Misspelt(Callback):
    def on_round_ended(self, trainer, metrics): ...
"""


@pytest.mark.parametrize(
    ("source", "name", "problem"),
    [
        (
            HOOKS.split("class Misspelt")[0],
            "Duck",
            "own_0.Duck', which does not derive from bhfl.engine.callback.Callba",
        ),
        (
            HOOKS,
            "Misspelt",
            "own_1.Misspelt': Misspelt.on_round_ended is no hook of Callback, "
            "and nothing would call",
        ),
    ],
)
def test_callbacks_that_would_not_be_called_are_refused(bhfl, tmp_path, source, name, problem):
    module = f"own_{int(name == 'Misspelt')}"
    (tmp_path / f"{module}.py").write_text(source)
    code, _, err = bhfl("fit", "--config", "tiny.yaml", f"--trainer.callbacks+={module}.{name}")
    assert (code, problem in err) == (2, True), err
    assert not (tmp_path / "runs").exists()


def test_an_interrupt(bhfl: Command, tmp_path: Path) -> None:
    (tmp_path / "own_interrupt.py").write_text(OWN)
    code, _, err = bhfl("fit", "--config", "tiny.yaml", "--trainer.callbacks+=own_interrupt.Stop")
    assert (code, err) == (
        130,
        "error: interrupted while saving round 1; "
        "--ckpt_path runs/tiny/version_0 goes on from round 1\n",
    )
    assert bhfl("fit", "--config", "tiny.yaml", "--ckpt_path", "runs/tiny/version_0").code == 0


@pytest.mark.parametrize(
    ("patched", "args", "told"),
    [
        (
            "bhfl.report.partition.draw",
            "partition --config tiny.yaml --out here",
            "writing files; here may hold a part of them, and the same command writes them all",
        ),
        (
            "bhfl.report.command.find_runs",
            "report runs",
            "comparing runs; the same command writes the report anew",
        ),
    ],
)
def test_an_interrupt_while_files_are_written(
    bhfl: Command, monkeypatch, patched: str, args: str, told: str
) -> None:
    def interrupted(*given, **named):
        raise KeyboardInterrupt

    monkeypatch.setattr(patched, interrupted)
    code, _, err = bhfl(*args.split())
    assert (code, err) == (130, f"error: interrupted while {told}\n")


def test_a_bug_shows_its_traceback(bhfl: Command, tmp_path: Path) -> None:
    (tmp_path / "own_bug.py").write_text(OWN)
    with pytest.raises(RuntimeError, match="a bug"):
        bhfl("fit", "--config", "tiny.yaml", "--trainer.callbacks+=own_bug.Faulty")


def test_an_unknown_monitor(bhfl: Command) -> None:
    code, _, err = bhfl("fit", "--config", "tiny.yaml", "--trainer.monitor", "val/f1")
    assert code == 2
    assert "error: trainer.monitor must be a logged metric, got 'val/f1'" in err


def test_a_folder_that_cannot_be_made(bhfl: Command, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    code, _, err = bhfl("fit", "--config", "tiny.yaml", "--trainer.default_root_dir", "file")
    assert code == 2
    assert "file" in err


@pytest.mark.slow
def test_two_processes_say_and_write_everything_once(real_bhfl: Command, tmp_path: Path) -> None:
    code, out, _ = real_bhfl("fit", "--config", "tiny.yaml", "--trainer.devices", "2")
    assert code == 0
    assert out.count("logs and checkpoints: runs/tiny/version_0") == 1
    assert [path.name for path in (tmp_path / "runs" / "tiny").iterdir()] == ["version_0"]
    code, _, err = real_bhfl(
        "fit", "--config", "tiny.yaml", "--trainer.devices", "2", "--data.num_train", "4"
    )
    assert code == 3
    assert err.count("error: ") == 1


@pytest.mark.slow
def test_sigterm_ends_with_143(bhfl: Command, tmp_path: Path) -> None:
    """Only the exit code: what a resumed run equals is the engine's to test."""
    source = Path(sys.modules["bhfl"].__file__ or "").parents[1]
    words = [
        sys.executable,
        "-m",
        "bhfl",
        "fit",
        "--config",
        "tiny.yaml",
        "--trainer.max_rounds",
        "100000",
    ]
    with subprocess.Popen(
        words, cwd=tmp_path, stdout=subprocess.PIPE, env={"PYTHONPATH": str(source)}
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith(b"round"):
                process.terminate()
                break
        process.stdout.read()
    assert process.returncode == 143


EXITING = """
import sys
from bhfl.algorithms import FedAvg
from bhfl.data import FakeImages
from bhfl.engine import Callback

class Client(FedAvg):
    def uplink(self, run):
        if run.client.id == 0:
            raise SystemExit(0)
        return super().uplink(run)

class Server(FedAvg):
    def summarize(self, server, row):
        sys.exit(0)

class Data(FakeImages):
    def setup(self, stage):
        sys.exit(0)

class Stop(Callback):
    def on_round_end(self, trainer, metrics):
        sys.exit()
"""


def test_sys_exit_is_a_failure(bhfl: Command, tmp_path: Path) -> None:
    (tmp_path / "own_exits.py").write_text(EXITING)
    with pytest.warns(UserWarning, match="client 0 failed: SystemExit: 0"):
        assert bhfl("fit", "--config", "tiny.yaml", "--algorithm", "own_exits.Client").code == 0
    for code, *options in (
        (2, "--algorithm", "own_exits.Server"),
        (2, "--trainer.callbacks+=own_exits.Stop"),
        (3, "--data", "own_exits.Data"),
    ):
        found, _, err = bhfl("fit", "--config", "tiny.yaml", *options)
        assert (found, "must not be left in its middle" in err) == (code, True), (options, err)
        assert "Traceback" not in err


def test_what_cannot_be_said_leaves_the_exit_code(monkeypatch):
    """The log that stderr goes to may lie on the full disk of which it is to tell."""

    class Full:
        def write(self, text):
            raise OSError(28, "No space left on device")

    def interrupted(args):
        raise KeyboardInterrupt

    monkeypatch.setattr(exits.sys, "stderr", Full())
    exits.report("no space")
    with pytest.raises(SystemExit) as end:
        leave(interrupted, [])
    assert end.value.code == 130


def test_predictions_are_written(bhfl: Command, run: Path, tmp_path: Path) -> None:
    words = ("predict", "--config", run / "config.yaml", "--ckpt_path", "best")
    code, out, err = bhfl(*words, "--group", "int8", "--out", "predicted.csv")
    assert (code, out, err) == (0, "predicted.csv\n", "")
    head, *rows = (tmp_path / "predicted.csv").read_text().splitlines()
    assert head.startswith("sample,output_0,")
    assert head.endswith(",target")
    assert len(rows) > 1
    code, _, err = bhfl(*words)
    told = "error: predict needs a file to write: --out predictions.csv, or .npz\n"
    assert (code, err) == (2, told)


def test_a_profile_is_printed_and_written(bhfl: Command, tmp_path: Path) -> None:
    words = ("profile", "--config", "tiny.yaml", "--steps", "1", "--repeats", "1")
    code, out, err = bhfl(*words)
    assert (code, err) == (0, "")
    assert "\ngroup " in out
    assert "\nint8, layer by layer\n" in out
    for name in ("profile.csv", "profile.png"):
        assert (tmp_path / "runs" / "tiny" / "profile_0" / name).exists()
    assert bhfl(*words, "--out", "")[::2] == (
        2,
        "error: out must be a path: a path must not be empty, got ''\n",
    )


def test_a_data_module_has_the_partition_of_its_own_by_default(bhfl: Command) -> None:
    words = ("fit", "--clients", "{8: 1}", "--data", "LEAF", "--data.root", ".", "--print_config")
    own = yaml.safe_load(bhfl(*words).out)["data"]["init_args"]["partition"]
    assert own == {"class_path": "bhfl.data.ByColumn", "init_args": {"column": "user"}}
    other = bhfl(*words, "--data.partition", "IID").out
    assert yaml.safe_load(other)["data"]["init_args"]["partition"] == {
        "class_path": "bhfl.data.IID"
    }


def test_a_partition_is_shown_without_training(
    bhfl: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, out, err = bhfl("partition", "--config", "tiny.yaml", "--out", "split")
    assert (code, err) == (0, "")
    assert "by IID(), seed 0: " in out
    assert {file.name for file in (tmp_path / "split").iterdir()} == {
        "partition.csv",
        "partition.png",
    }
    assert not (tmp_path / "runs").exists()
    # as where matplotlib is not installed
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    code, out, err = bhfl("partition", "--config", "tiny.yaml")
    folder = tmp_path / "runs" / "tiny" / "partition_0"
    assert [file.name for file in folder.iterdir()] == ["partition.csv"]
    assert "note: no picture is drawn: pictures need matplotlib" in err
    code, _, err = bhfl("partition", "--config", "tiny.yaml", "--clients", "{32: 100000}")
    assert (code, "clients must be at most" in err) == (3, True)
    assert bhfl("partition", "--config", "tiny.yaml", "--ckpt_path", "last").code == 2


def test_two_commands_at_once_have_a_folder_each(tmp_path: Path) -> None:
    trainer = CommandTrainer({8: 1}, default_root_dir=tmp_path, name="a")
    folders = [trainer._folder(None, "partition").name for _ in range(2)]
    assert folders == ["partition_0", "partition_1"]
