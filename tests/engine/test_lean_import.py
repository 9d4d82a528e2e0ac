"""``bhfl.engine.folder`` alone loads no torch, and what a device needs neither Lightning nor
torchvision; the room's own names are loaded when they are asked for.
"""

import contextlib
import io
import subprocess
import sys

import pytest

import bhfl.algorithms
import bhfl.engine

SCRIPT = """
import sys
import bhfl.engine.folder
assert not {"torch", "lightning", "numpy"} & set(sys.modules)
"""

ON_A_DEVICE = """
import sys
from pathlib import Path
import torch
from torch import nn
import bhfl.engine.exchange, bhfl.engine.buffers, bhfl.comm
from bhfl.algorithms import FedAvg
from bhfl.comm import decode, encode
from bhfl.engine.client.local import LocalClients
from bhfl.engine.client.plain import PlainWorker
from bhfl.engine.client.store import ClientStore
from bhfl.engine.exchange import Task, Verdict
from bhfl.engine.own import Own
from bhfl.engine.types import Client
from bhfl.quant import BitSpec
from bhfl.settings import LocalTraining

class Module(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 7), nn.Dropout(0.2), nn.ReLU(), nn.Linear(7, 3))

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        return {"acc": (self.net(batch[0]).argmax(1) == batch[1]).float().mean()}

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1, momentum=0.9)

class Data:
    def __init__(self):
        draw = torch.Generator().manual_seed(1)
        self.x, self.y = torch.randn(10, 6, generator=draw), torch.arange(10) % 3

    def client_batches(self, client, rng, epoch):
        order = torch.randperm(10, generator=rng.torch("shuffle", epoch))
        return [(self.x[some], self.y[some]) for some in order.split(4)]

    def num_batches(self, client):
        return 3

    def client_val_batches(self, client):
        return [(self.x, self.y)]

torch.manual_seed(0)
worker = PlainWorker(Module())
start = {name: tensor.clone() for name, tensor in worker.state().items()}
store = ClientStore(Path(sys.argv[1]))
fleet = [Client(0, BitSpec.parse(8), 10, 10.0)]
clients = LocalClients(worker, FedAvg(), fleet, Data(), Own(start, []), store)
task = Task(client=0, round=0, downlink=encode(start), version=0, channels_last=False, seed=3,
            training=LocalTraining(2, None, "continue", 1.0, "32-true", False), measures=True)
(reply,) = clients.train(iter([task]))
clients.close(1, {0: Verdict(keep=True)})
assert reply.fault is None, reply.fault
assert reply.num_examples == 20
assert {"train/loss", "val/acc_local_int8"} == set(reply.metrics)
assert decode(reply.payload).keys() == start.keys()
heavy = {"lightning", "torchmetrics", "torchvision"} & set(sys.modules)
assert not heavy, heavy
print(reply.payload.hex(), reply.metrics)
"""


def run(script: str, *arguments: object) -> str:
    words = [sys.executable, "-c", script, *map(str, arguments)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import() -> None:
    run(SCRIPT)


def run_here(script: str) -> str:
    """What a script prints, run without the start of another process."""
    told = io.StringIO()
    with contextlib.redirect_stdout(told):
        exec(compile(script, "script", "exec"), {"__name__": "script"})
    return told.getvalue()


def test_a_device_trains_with_torch_alone(tmp_path, monkeypatch) -> None:
    """What it sends is what the same module sends as a LightningModule, to the bit."""
    told = run(ON_A_DEVICE, tmp_path / "device")
    module = ON_A_DEVICE.replace("nn.Module):", "L.LightningModule):")
    module = module.replace("import torch\n", "import torch\nimport lightning as L\n", 1)
    under_fabric = """
from lightning.fabric import Fabric
from bhfl.engine.client.module_trainer import ModuleTrainer
from bhfl.engine.client.place import Place
from bhfl.engine.client.worker import Worker
from bhfl.engine.trainer import FederatedTrainer
trainer = FederatedTrainer({8: 1}, devices=1, accelerator="cpu", gradient_clip_val=1.0)
own, data = Module(), Data()
place = Place(data, trainer.settings, "train")
own.trainer = ModuleTrainer(own, place, trainer.fabric)
worker = Worker(own, trainer.fabric, place)
"""
    module = module.replace("worker = PlainWorker(Module())\n", under_fabric)
    module = module.replace("assert not heavy, heavy\n", "")
    monkeypatch.setattr(sys, "argv", ["script", str(tmp_path / "lightning")])
    assert run_here(module) == told


def test_all_algorithms_are_there_when_they_are_asked_for() -> None:
    found = [getattr(bhfl.algorithms, name) for name in bhfl.algorithms.__all__]
    assert [cls.__name__ for cls in found] == bhfl.algorithms.__all__
    with pytest.raises(AttributeError, match=r"module 'bhfl\.algorithms' has no attribute 'Fed'"):
        _ = bhfl.algorithms.Fed


def test_a_name_that_is_not_there() -> None:
    with pytest.raises(AttributeError, match=r"module 'bhfl\.engine' has no attribute 'Trainer'"):
        _ = bhfl.engine.Trainer
