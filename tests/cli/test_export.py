"""``bhfl export``, from a finished run to files that load."""

import re
from pathlib import Path

import pytest
import torch

from bhfl.engine.resume import warn_of_known
from bhfl.export import load_quantized, restore_
from bhfl.export.run import summary_of
from bhfl.models import Classifier
from bhfl.quant import QuantizedTensor
from tests.cli.conftest import Command

pytest.importorskip("safetensors", reason="the extra 'export' is not installed")


def test_a_run_s_model_at_each_width(
    bhfl: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bhfl.export.run.installed", lambda extra: extra != "onnx")
    assert (
        bhfl("fit", "--config", "tiny.yaml", "--clients", "{ternary: 1, int8: 2, float32: 1}").code
        == 0
    )
    run = tmp_path / "runs" / "tiny" / "version_0"
    code, out, err = bhfl("export", "--config", run / "config.yaml", "--ckpt_path", "last")
    assert code == 0
    assert err == "note: no ONNX file is written: pip install 'bhfl[onnx]'\n"
    names = ["README.md", "float32.safetensors", "int8.safetensors", "ternary.safetensors"]
    assert sorted(path.name for path in (run / "export").iterdir()) == names
    assert all(name in out for name in names)
    state = torch.load(run / "checkpoints" / "round=00002.ckpt", weights_only=True)["state"][
        "server"
    ]["params"]
    for group, bits in (("ternary", 2), ("int8", 8)):
        loaded = load_quantized(run / "export" / f"{group}.safetensors")
        assert {q.bits for q in loaded.values() if isinstance(q, QuantizedTensor)} == {bits}
        assert set(loaded) == set(state)
    floats = load_quantized(run / "export" / "float32.safetensors")
    assert all(torch.equal(value, state[name]) for name, value in floats.items())

    # what lies in the way of a file, and an interrupt in the middle, leave no card of before
    def interrupted(*args: object) -> int:
        raise KeyboardInterrupt

    again = ("export", "--config", run / "config.yaml", "--ckpt_path", "best", "--out", "again")
    (tmp_path / "again/int8.onnx").mkdir(parents=True)
    assert bhfl(*again).problems == [
        "[Errno 21] Is a directory: 'again/int8.onnx' (a folder is in the place of this file: "
        "move it away)"
    ]
    (tmp_path / "again/int8.onnx").rmdir()
    (tmp_path / "again/README.md").write_text("the card of another export")
    with monkeypatch.context() as patch:
        patch.setattr("bhfl.export.run.save_quantized", interrupted)
        assert bhfl(*again)[::2] == (
            130,
            "error: interrupted while writing files; again may hold a part of them, and the same "
            "command writes them all\n",
        )
    assert not (tmp_path / "again/README.md").exists()

    # as the user's umask says, whatever the library that wrote it thinks
    usual = (run / "config.yaml").stat().st_mode
    assert {path.stat().st_mode for path in (run / "export").iterdir()} == {usual}
    card = (run / "export" / "README.md").read_text()
    assert "library_name: bhfl\n" in card
    assert "pipeline_tag: image-classification\n" in card
    assert "# tiny: Classifier, 2 rounds of FedAvg\n" in card
    assert re.search(r"\| int8 \| `int8.safetensors` \| [\d,]+ \| 0\.2\d\d \| [\d.]+ % \|\n", card)
    assert "accuracy (test split)" in card
    assert "1 of ternary, 2 of int8, 1 of float32" in card
    snippet = re.search(r"```python\n(.*?)```", card, re.DOTALL)
    monkeypatch.chdir(run / "export")
    names_of_it: dict[str, object] = {}
    exec(snippet[1], names_of_it)
    again = restore_(Classifier(net="mlp", num_classes=4), "ternary.safetensors").eval()
    x = torch.rand(2, 1, 8, 8)
    assert torch.equal(names_of_it["model"](x), again(x))


OWN = """
from torch import nn
class Flat(nn.Sequential):
    def __init__(self, hidden: int = 9):
        super().__init__(nn.Flatten(), nn.Linear(64, hidden), nn.Linear(hidden, 4))
"""


def test_the_card_makes_an_own_network_again(
    bhfl: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bhfl.export.run.installed", lambda extra: extra != "onnx")
    (tmp_path / "own_net.py").write_text(OWN)
    own = ("--model.net=own_net.Flat", "--model.net.hidden=5")
    assert bhfl("fit", "--config", "tiny.yaml", "--trainer.max_rounds", "1", *own).code == 0
    run = tmp_path / "runs" / "tiny" / "version_0"
    assert bhfl("export", "--config", run / "config.yaml", "--ckpt_path", "last").code == 0
    snippet = re.search(
        r"```python\n(.*?)```", (run / "export" / "README.md").read_text(), re.DOTALL
    )
    monkeypatch.chdir(run / "export")
    names: dict[str, object] = {}
    exec(snippet[1], names)
    assert names["model"].net[1].out_features == 5


def test_onnx_of_a_best_checkpoint_in_a_chosen_folder(bhfl: Command, tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime", reason="the extra 'onnx' is not installed")
    pytest.importorskip("onnxscript", reason="the extra 'onnx' is not installed")
    if not hasattr(torch.onnx, "ops"):
        pytest.skip("ONNX files need torch 2.8")
    assert bhfl("fit", "--config", "tiny.yaml", "--trainer.max_rounds", "1").code == 0
    run = tmp_path / "runs" / "tiny" / "version_0"
    (run / "summary.json").unlink()  # as of a run that was killed
    code, out, _ = bhfl(
        "export", "--config", run / "config.yaml", "--ckpt_path", "best", "--out", "here"
    )
    assert code == 0
    assert "here/int8.onnx" in out
    assert "accuracy (validation split)" in (tmp_path / "here" / "README.md").read_text()
    model = restore_(Classifier(net="mlp", num_classes=4), "here/int8.safetensors").eval()
    x = torch.rand(5, 1, 8, 8)
    session = runtime.InferenceSession("here/int8.onnx", providers=["CPUExecutionProvider"])
    output = torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])
    assert torch.allclose(output, model(x), atol=1e-5)


LABEL_FIRST = """
import lightning as L, torch
from torch.nn import functional as F
from bhfl.data import FromDatasets
from torch.utils.data import TensorDataset

class Data(FromDatasets):
    def __init__(self):
        points = torch.randn(40, 5, generator=torch.Generator().manual_seed(0))
        both = TensorDataset(torch.arange(40) % 3, points, torch.zeros(40, 0))  # with an empty input
        super().__init__(both, both, targets=torch.arange(40) % 3, num_classes=3)

class Silent(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.net, self.scale = torch.nn.Linear(5, 3), torch.nn.Parameter(torch.tensor(1.0))
        self.register_buffer("empty", torch.zeros(0))
    def logits(self, x):
        return self.net(x) * self.scale
    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.logits(batch[1]), batch[0])
    def validation_step(self, batch, batch_idx):
        self.log("val/acc", (self.logits(batch[1]).argmax(1) == batch[0]).float().mean())
    test_step = validation_step
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)

class Model(Silent):
    def forward(self, x):
        return self.net(x) * self.scale
    def logits(self, x):
        return self(x)
"""  # noqa: E501


@pytest.mark.parametrize("model", ["Model", "Silent"])
def test_onnx_of_batches_with_the_label_first(model: str, bhfl: Command, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="the extra 'onnx' is not installed")
    (tmp_path / "label_first.py").write_text(LABEL_FIRST)
    own = [
        "--model",
        f"label_first.{model}",
        "--data",
        "label_first.Data",
        "--clients",
        "{8: 2}",
        "--trainer.name",
        "own",
    ]
    assert bhfl("fit", *own, "--trainer.max_rounds", "1", "--trainer.threads", "1").code == 0
    run = tmp_path / "runs" / "own" / "version_0"
    fixed = ["--calibrate", "3"]
    code, _, err = bhfl("export", "--config", run / "config.yaml", "--ckpt_path", "last", *fixed)
    assert code == 0
    assert (run / "export" / "int8.safetensors").exists()
    card = (run / "export" / "README.md").read_text()
    assert ("fixed on 3 samples" in card) == (model == "Model")
    assert (run / "export" / "int8.onnx").exists() == (model == "Model")
    told = "int8.onnx is not written: Silent cannot be exported to ONNX: it has no forward, which"
    assert (told in err) == (model == "Silent")


@pytest.mark.parametrize(
    ("args", "problem"),
    [
        ([], "export needs a checkpoint: --ckpt_path last, best, a run folder or a file"),
        (
            ["--ckpt_path", "last", "--algorithm", "Local"],
            "export needs a global model, and Local keeps none",
        ),
        (
            ["--ckpt_path", "last", "--calibrate", "0"],
            "calibrate must be at least 1 sample, got 0",
        ),
    ],
)
def test_what_cannot_be_exported(
    args: list[str], problem: str, bhfl: Command, tmp_path: Path
) -> None:
    outcome = bhfl("export", "--config", "tiny.yaml", *args)
    assert outcome.code == 2
    assert outcome.problems == [problem]
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (
            {"--model.net": "cnn", "--model.norm": "batch", "--trainer.norm": "local"},
            "a whole model of the server's, and net.features.1.running_mean stays with the clients",
        ),
        (
            {"--algorithm": "FedPer", "--algorithm.personal": "[net.layers.1]"},
            "export needs a whole model of the server's, and net.layers.1.bias stays with the "
            "clients",
        ),
    ],
)
def test_what_stays_with_clients(
    options: dict[str, str], problem: str, bhfl: Command, tmp_path: Path
) -> None:
    words = [word for option in options.items() for word in option]
    assert bhfl("fit", "--config", "tiny.yaml", "--trainer.max_rounds", "1", *words).code == 0
    config = tmp_path / "runs" / "tiny" / "version_0" / "config.yaml"
    outcome = bhfl("export", "--config", config, "--ckpt_path", "last")
    assert outcome.code == 2
    assert problem in outcome.err
    assert not (config.parent / "export").exists()


@pytest.mark.parametrize(
    "text", ["[" * 100_000, "[1]", "{", '{"rounds": 2}', '{"metrics": 1}', "\udcff"]
)
def test_a_summary_that_cannot_be_read_is_told_and_left_out(text: str, tmp_path: Path) -> None:
    path, notes = tmp_path / "summary.json", []
    assert summary_of(path, notes) == {}
    assert notes == []
    path.write_bytes(text.encode(errors="surrogateescape"))
    assert summary_of(path, notes) == {}
    assert notes[0].startswith(f"{path} cannot be read")


@pytest.mark.parametrize("text", ["[" * 100_000, "{", '{"clients": 1}'])
def test_a_record_of_the_split_that_cannot_be_read_is_told(text: str, tmp_path: Path) -> None:
    (tmp_path / "partition.json").write_text(text)
    with pytest.warns(
        UserWarning, match=r"partition.json cannot be read: who was trained on which samples"
    ):
        warn_of_known(tmp_path, {"val": [1]})
