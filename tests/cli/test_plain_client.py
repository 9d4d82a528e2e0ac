"""A client that torch alone trains sends byte for byte what one under Lightning sends."""

from __future__ import annotations

import dataclasses
import re
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.distributed.elastic.multiprocessing.subprocess_handler import SubprocessHandler

from bhfl.cli import plain_client, request
from bhfl.cli.join import _opener
from bhfl.cli.reading import ConfigError
from bhfl.cli.request import read_request
from bhfl.comm import decode, encode
from bhfl.data import Digits
from bhfl.engine.exchange import Measured, Reply, Task
from bhfl.remote.messages import Facts, Hello, Order, Refused, join, pack, unpack
from bhfl.remote.resident import Resident
from bhfl.settings import LocalTraining

REQUIRED = ["--server", "127.0.0.1:1", "--key", "there"]
GROUPS = {"int8": 1, "ternary": 1, "float32": 1}
CONFIG: dict[str, Any] = {
    "seed_everything": 3,
    "clients": GROUPS,
    "algorithm": {"class_path": "bhfl.algorithms.FedAvg"},
    "model": {
        "class_path": "bhfl.models.Classifier",
        "init_args": {
            "net": "cnn",
            "lr_scheduler": None,
            "lr_interval": "epoch",
        },
    },
    "data": {"class_path": "bhfl.data.Digits", "init_args": {"batch_size": 32}},
    "sizes": {"num_classes": 10, "input_shape": [1, 8, 8]},
    "trainer": {"max_rounds": 2, "threads": 1, "norm": "group", "weights": "samples"},
}
TRAINING = LocalTraining(1, None, "continue", 1.0, "32-true", False)


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The samples of each client, as a device has its own."""
    folder = tmp_path_factory.mktemp("parts")
    data = Digits(batch_size=32)
    data.setup("fit")
    data.federate(len(GROUPS), 3)
    source = data.load(train=True)
    for client in range(len(GROUPS)):
        members = data.split.clients[client]
        ((inputs, targets),) = source.batches(members, len(members), torch.Generator())
        np.savez(folder / f"{client}.npz", train_inputs=inputs, train_targets=targets)
    test = data.load(train=False)
    ((inputs, targets),) = test.batches(torch.arange(360), 360, torch.Generator())
    np.savez(folder / "shared.npz", test_inputs=inputs, test_targets=targets)
    return folder


def resident(folder: Path, client: int, *own: str) -> Resident:
    wanted = read_request([*REQUIRED, "--folder", str(folder), *own])
    return Resident(_opener(wanted), folder, client)


def arrays(parts: Path, client: int) -> list[str]:
    file = parts / f"{client}.npz"
    return ["--plain", "true", "--data", f"{{class_path: Arrays, init_args: {{file: {file}}}}}"]


def hello(**changed: Any) -> Hello:
    return Hello(run="a" * 32, config={**CONFIG, **changed}, backends={})


def answers(one: Resident, client: int, config: Hello) -> tuple[Facts, Reply]:
    """What a client says of itself, and what it sends in a first round."""
    facts = unpack(one.answer(join(pack(config))), Facts, Refused)
    assert isinstance(facts, Facts), facts
    assert one._joined is not None
    first = one._joined.session.own.first
    task = Task(
        client=client,
        round=0,
        downlink=encode(first),
        version=0,
        channels_last=False,
        seed=3,
        training=TRAINING,
    )
    reply = unpack(one.answer(join(pack(config), pack(Order()), pack(task))), Reply, Refused)
    one.close()
    return facts, reply


def rows(reply: Reply) -> dict[str, Any]:
    assert reply.fault is None, reply.fault
    return {**dataclasses.asdict(reply), "seconds": 0.0}


def algorithm(name: str, **options: Any) -> dict[str, Any]:
    return {"algorithm": {"class_path": name, "init_args": options}}


def network(**options: Any) -> dict[str, Any]:
    return {"model": {"class_path": "bhfl.models.Classifier", "init_args": options}}


PROWD = algorithm("bhfl.algorithms.ProWD", dequantizer=None, payload="delta", mask={"tau": 0.1})
FEDPER = algorithm("bhfl.algorithms.FedPer", personal=["net.head.4"])


@pytest.mark.parametrize(
    ("client", "changed"),
    [
        (0, {}),
        (2, network(norm="batch")),
        (1, PROWD),
        (1, FEDPER),
    ],
)
def test_it_sends_what_a_client_under_lightning_sends(
    tmp_path: Path, parts: Path, client: int, changed: dict[str, Any]
) -> None:
    config = hello(**changed)
    whole = answers(resident(tmp_path / "whole", client), client, config)
    plain = answers(resident(tmp_path / "plain", client, *arrays(parts, client)), client, config)
    assert rows(plain[1]) == rows(whole[1])
    assert plain[0] == whole[0]


def test_it_measures_what_a_client_under_lightning_measures(tmp_path: Path, parts: Path) -> None:
    """For methods whose models only clients hold: metrics, and which answers were right."""
    config = hello(**FEDPER)
    shared = ["--data.shared", str(parts / "shared.npz")]
    found = []
    for place, own in (("whole", []), ("plain", [*arrays(parts, 1), *shared])):
        one = resident(tmp_path / place, 1, *own)
        one.answer(join(pack(config)))
        assert one._joined is not None
        sent = {"downlink": encode(one._joined.session.own.first), "version": 0}
        task = Task(client=1, round=0, stage="test", channels_last=False, **sent)
        message = join(pack(config), pack(Order()), pack(task))
        found.append(unpack(one.answer(message), Measured, Refused))
        one.close()
    assert found[0] == found[1]
    assert len(found[0].correct) == 360
    assert found[0].metrics.keys() == {"loss", "acc"}


NET = """
from torch import nn, optim
class Net(nn.Module):
    def __init__(self, units):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(64, units), nn.ReLU(),
                                    nn.Linear(units, 10))
    def forward(self, x):
        return self.layers(x)
class Task(Net):
    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self(batch[0]), batch[1])
    def configure_optimizers(self):
        return optim.SGD(self.parameters(), 0.1)
class Critic(Task):
    def __init__(self, loss, weigh: nn.Module):
        super().__init__(8)
        assert loss == "mean" and weigh.weight.tolist() == [1, 2] + [1] * 7 + [3]
        # no submodule, whose buffer would be averaged
        self.weigh = (weigh,)
    def training_step(self, batch, batch_idx):
        return self.weigh[0](self(batch[0]), batch[1])
"""
OWN = """
model:
  class_path: Supervised
  init_args:
    net: {class_path: dev_net.Net, init_args: {units: 12}}
    loss: torch.nn.CrossEntropyLoss
    optimizer: {class_path: torch.optim.SGD, init_args: {lr: 0.1}}
"""
TASK = "model: {class_path: dev_net.Task, init_args: {units: 12}}"


@pytest.fixture
def dev_net(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "dev_net.py").write_text(NET)
    monkeypatch.syspath_prepend(tmp_path)


def written(folder: Path, text: str) -> list[str]:
    (folder / "own.yaml").write_text(text)
    return ["--config", str(folder / "own.yaml")]


@pytest.mark.usefixtures("dev_net")
def test_a_network_of_ones_own_is_trained_with_a_loss_or_as_it_says(
    tmp_path: Path, parts: Path
) -> None:
    """The server's model may be anybody's: the client names a plain one."""
    config = hello(model={"class_path": "somewhere.LitNet"})
    sent = []
    for text in (OWN, TASK):
        own = [*written(tmp_path, text), *arrays(parts, 0)]
        _, reply = answers(resident(tmp_path / "state", 0, *own), 0, config)
        assert reply.fault is None
        sent.append(list(decode(reply.payload)) if reply.payload else [])
    supervised, task = sent
    assert [f"net.{name}" for name in task] == supervised
    assert "net.layers.1.weight" in supervised


def refused(folder: Path, config: Hello, *own: str) -> str:
    found = unpack(resident(folder, 0, *own).answer(join(pack(config))), Facts, Refused)
    assert isinstance(found, Refused)
    return found.reason


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"model": {"class_path": "my.LitNet"}}, "the server's model is my.LitNet, which may need"),
        (
            {"trainer": {"precision": "bf16-mixed"}},
            "trainer.precision must be 32-true where torch alone trains a client, got bf16-mixed",
        ),
        (
            {"trainer": {"reestimate_norm": True}},
            "trainer.reestimate_norm must be false where torch alone trains a client, got True",
        ),
        (
            {"model": {"class_path": "Classifier", "init_args": {"lr_scheduler": {}}}},
            "model.lr_scheduler needs Lightning: join with the package bhfl",
        ),
        (algorithm("bhfl.FedAv"), "algorithm must name a class, got 'bhfl.FedAv'"),
        (algorithm("os.system"), "names os.system, and this client's `allow` does not name"),
        (algorithm("bhfl.algorithms.FedProx", nu=1), "algorithm: FedProx refuses its init_args: "),
        (algorithm("torch.nn.Identity"), "torch.nn.Identity is no Algorithm"),
        ({"model": None}, "the server's model is not told, as it was made in Python, which may"),
    ],
)
def test_what_torch_alone_cannot_serve_is_refused(
    tmp_path: Path, parts: Path, changed: dict[str, Any], problem: str
) -> None:
    assert problem in refused(tmp_path, hello(**changed), *arrays(parts, 0))


def test_a_server_names_no_program_to_be_started(tmp_path: Path, parts: Path) -> None:
    """The constructor of some classes of torch starts one."""
    program = f"{SubprocessHandler.__module__}.SubprocessHandler"
    told = dict.fromkeys(signature(SubprocessHandler).parameters)
    options = {**told, "entrypoint": "touch", "args": [str(tmp_path / "started")], "env": {}}
    options["local_rank_id"] = 0
    optimizer = {"class_path": program, "init_args": options}
    model = {"class_path": "Classifier", "init_args": {"optimizer": optimizer}}
    for changed in (algorithm(program, **options), {"model": model}):
        assert "SubprocessHandler is no " in refused(tmp_path, hello(**changed), *arrays(parts, 0))
    assert not (tmp_path / "started").exists()


@pytest.mark.usefixtures("dev_net")
def test_what_the_client_names_is_not_thereby_the_servers_to_name(
    tmp_path: Path, parts: Path
) -> None:
    own = [*written(tmp_path, TASK), *arrays(parts, 0)]
    for changed in (algorithm("dev_net.Net"), {"algorithm": "dev_net.Net"}):
        found = refused(tmp_path, hello(**changed), *own)
        assert "dev_net.Net, and this client's `allow`" in found or "package of dev_net" in found


CRITIC = """
model:
  class_path: dev_net.Critic
  init_args:
    loss: mean
    weigh:
      class_path: torch.nn.CrossEntropyLoss
      init_args: {weight: [1, 2, 1, 1, 1, 1, 1, 1, 1, 3]}
"""


@pytest.mark.usefixtures("dev_net")
def test_arguments_are_text_or_tensors_or_objects_as_a_class_takes_them(
    tmp_path: Path, parts: Path
) -> None:
    """Of a server whose model, made in Python, is not told; and of a loss that weighs classes."""
    config = hello(model=None)
    own = [*written(tmp_path, CRITIC), *arrays(parts, 0)]
    one = resident(tmp_path / "state", 0, *own)
    _, reply = answers(one, 0, config)
    assert reply.fault is None
    assert reply.metrics["train/loss"] > 0


@pytest.mark.parametrize(
    ("key", "value", "problem"),
    [
        ("data", "torch.nn.Identity", r"Identity lacks prepare_data\(\)"),
        ("trainer.accelerator", "gpu", "trainer.accelerator must be cpu where torch alone trains"),
        ("model.optimizer", "{class_path: SGD, init_args: {lrr: 1}}", "SGD refuses its init_args"),
        ("model.net", "torchvison.models.ResNet", "No module named 'torchvison'"),
    ],
)
def test_an_own_option_that_cannot_be_used_is_refused(
    tmp_path: Path, parts: Path, key: str, value: str, problem: str
) -> None:
    found = refused(tmp_path, hello(), *arrays(parts, 0), f"--{key}", value)
    assert re.search(problem, found)


@pytest.mark.parametrize(
    ("own", "problem"),
    [
        ("lit_net.Lit", "Lit is a LightningModule: give its network, with a loss"),
        ("torch.nn.Identity", "must have the method training_step, and Identity has none"),
        ("lit_net.Gone", "model must name a class, got 'lit_net.Gone'"),
    ],
)
def test_a_model_that_torch_alone_cannot_train_is_refused(
    tmp_path: Path, parts: Path, monkeypatch: pytest.MonkeyPatch, own: str, problem: str
) -> None:
    (tmp_path / "lit_net.py").write_text("import lightning as L\nclass Lit(L.LightningModule): ...")
    monkeypatch.syspath_prepend(tmp_path)
    found = refused(tmp_path, hello(), *arrays(parts, 0), "--model", f"{{class_path: {own}}}")
    assert problem in found


@pytest.mark.usefixtures("dev_net")
def test_where_there_is_no_lightning_a_message_says_what_needs_it(
    tmp_path: Path, parts: Path
) -> None:
    """As it is in an environment without it."""
    (tmp_path / "own_lit.py").write_text(
        "raise ModuleNotFoundError(\"No module named 'lightning'\")"
    )
    own = ["--allow", "[own_lit]", *arrays(parts, 0)]
    found = refused(tmp_path, hello(**algorithm("own_lit.Method")), *own)
    assert "No module named 'lightning': it needs Lightning, so join with the package bhfl" in found
    own[:2] = ["--model", "{class_path: Supervised, init_args: {net: bhfl.models.gone.Net}}"]
    found = refused(tmp_path, hello(), *own)
    assert "'bhfl.models.gone': it is not in bhfl-client, so join with the package bhfl" in found


def test_the_small_distribution_asks_for_data_and_trains_plainly(
    tmp_path: Path, parts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for home in (request, plain_client):
        monkeypatch.setattr(home, "is_whole", lambda: False)
    assert read_request(REQUIRED).plain
    with pytest.raises(ConfigError, match="plain must be true in bhfl-client: Lightning needs"):
        read_request([*REQUIRED, "--plain", "false"])
    assert "data is missing in this client's configuration" in refused(tmp_path, hello())
    with pytest.raises(ConfigError, match="plain must be true or false, got 3"):
        read_request([*REQUIRED, "--plain", "3"])
    with pytest.raises(ConfigError, match="allow must be a list of packages, got 'my_net'"):
        read_request([*REQUIRED, "--allow", "my_net"])
