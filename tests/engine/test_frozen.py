"""What is frozen when a model is set up: sent once a client, kept by it, and part of no update."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from bhfl.algorithms import (
    SCAFFOLD,
    DPFedAvg,
    FedAvg,
    FedCOMGATE,
    FedLQ,
    FedPAQ,
    FedPer,
    Local,
    ProWD,
)
from bhfl.algorithms.fedlq import Sensitivity
from bhfl.comm import decode, encode
from bhfl.comm.network import Profile, SimulatedNetwork
from bhfl.engine.algorithm import Algorithm
from bhfl.engine.availability import Availability
from bhfl.engine.callback import Callback
from bhfl.engine.checkpoint import CheckpointError, digest
from bhfl.engine.client.local import LocalClients
from bhfl.engine.exchange import Measured, Reply, Task
from bhfl.engine.fleet import Fleet
from bhfl.engine.trainer import FederatedTrainer
from bhfl.loading import load_model
from bhfl.quant import dequantize_, quantize_
from tests.engine.hand_made import HandMade, Module, points
from tests.engine.test_exchange import CASES
from tests.federation import fit as fit_images

BODY = ["net.0.weight", "net.0.bias"]
QUANTIZE = {"bits": {"weights": 4}, "count": 3, "frozen": "quantize"}


class Tuned(Module):
    """A classifier whose first layer is frozen."""

    def __init__(self, net: nn.Module | None = None) -> None:
        super().__init__(net)
        self.net[0].requires_grad_(False)


class Seen(Callback):
    """Takes down what became of each client."""

    def __init__(self) -> None:
        self.records: list[tuple[int, Any]] = []

    def on_client_end(self, trainer: Any, client: Any, record: Any) -> None:
        self.records.append((trainer.server.round, record))

    def down(self, round: int) -> dict[int, int]:
        return {r.client: r.downlink_bytes for at, r in self.records if at == round}


def data(clients: int = 3) -> HandMade:
    return HandMade([points(8 + 4 * i, i) for i in range(clients)], held_out=points(9, 99))


def fit(
    folder: Any,
    module: Any = Tuned,
    clients: Any = None,
    algorithm: Algorithm | None = None,
    ckpt_path: Any = None,
    connect: Any = None,
    **options: Any,
) -> FederatedTrainer:
    """A run of three rounds; `options["callbacks"]` sees it."""
    clients = clients or {32: 3}
    fleet = sum(Fleet(clients).counts())
    settings = {"max_rounds": 3, "logger": False, "devices": 1, "accelerator": "cpu", **options}
    trainer = FederatedTrainer(clients, algorithm, default_root_dir=str(folder), **settings)
    if connect:
        trainer.connect = connect
    torch.manual_seed(0)
    trainer.fit(module(), data(fleet), ckpt_path)
    return trainer


# ---- what is sent --------------------------------------------------------------------------------


def test_what_is_frozen_is_sent_once_a_client_and_never_back(tmp_path):
    seen = Seen()
    trainer = fit(tmp_path, callbacks=[seen], clients_per_round=2, max_rounds=4)
    server = trainer.server
    assert list(server.buffers["frozen"]) == BODY
    assert not server.params.keys() & set(BODY)
    model, body = len(encode(server.params)), len(encode(server.buffers["frozen"]))
    known: set[int] = set()
    for round in range(4):
        for client, size in seen.down(round).items():
            assert size == model + (0 if client in known else body)
        known |= seen.down(round).keys()
    assert len(known) == 3
    assert server.holders == sorted(known)
    assert {record.uplink_bytes for _, record in seen.records} == {model}
    files = list((trainer.run.folder / "clients").iterdir())
    assert [file.name[:7] for file in files] == ["frozen-"]


def test_a_model_without_frozen_parameters_pays_nothing(tmp_path):
    trainer = fit(tmp_path, Module)
    assert (trainer.server.holders, trainer.server.buffers["frozen"]) == ([], {})
    assert not (trainer.run.folder / "clients").exists()


def rounded(layer: nn.Linear) -> nn.Linear:
    """A copy of a layer as clients with weights of 4 bits compute it."""
    return dequantize_(quantize_(copy.deepcopy(layer), {"weights": 4}))


class AsBuffers(Module):
    """The same with the first layer's tensors where nothing is ever sent of them."""

    rounded = False

    def __init__(self) -> None:
        super().__init__()
        first = rounded(self.net[0]) if self.rounded else self.net[0]
        self.first = first.weight.detach(), first.bias.detach()
        self.net[0] = nn.Identity()

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.net(nn.functional.linear(inputs, *self.first))
        return logits

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        logits = self(batch[0])
        self.log("val/loss", nn.functional.cross_entropy(logits, batch[1]))
        self.log("val/acc", (logits.argmax(1) == batch[1]).float().mean())


class RoundedBuffers(AsBuffers):
    rounded = True


@pytest.mark.parametrize(
    ("clients", "reference"),
    [
        ({32: 3}, AsBuffers),
        ([{**QUANTIZE, "frozen": "keep"}], AsBuffers),
        ([QUANTIZE], RoundedBuffers),
    ],
    ids=["float32", "keep", "quantize"],
)
def test_clients_compute_with_it_as_it_was_received_or_rounded(tmp_path, clients, reference):
    tuned = fit(tmp_path / "1", Tuned, clients)
    plain = clients if isinstance(clients, dict) else [{**QUANTIZE, "frozen": "keep"}]
    other = fit(tmp_path / "2", reference, plain)
    assert list(tuned.server.params) == list(other.server.params) == ["net.2.weight", "net.2.bias"]
    assert digest(tuned.server.params) == digest(other.server.params)
    assert tuned.run.history[-1]["train/loss"] == other.run.history[-1]["train/loss"]


def test_a_layer_is_kept_by_its_weight_and_patterns_go_first(tmp_path):
    class Parts(Module):
        def __init__(self) -> None:
            super().__init__()
            self.net[0].weight.requires_grad_(False)
            self.net[2].bias.requires_grad_(False)

    clients = [
        {"bits": 8, "count": 1},
        {"bits": 4, "count": 1, "frozen": "quantize"},
        {"bits": 6, "count": 1, "layers": {"net.0": 16}},
    ]
    trainer = fit(tmp_path, Parts, clients, max_rounds=1)
    assert list(trainer.server.buffers["frozen"]) == ["net.0.weight", "net.2.bias"]
    found = []
    for client in trainer.clients:
        bits = [client.devices.spec_of(f"net.{i}.weight").weights for i in (0, 2)]
        found.append(bits)
    assert found == [[32, 8], [4, 4], [16, 6]]
    labels = [client.bits for client in trainer.clients]
    assert labels == ["int8", "int4[frozen=quantize]", "int6[net.0=int16]"]


# ---- who has it ----------------------------------------------------------------------------------


class Bad(Algorithm):
    """FedAvg of which each client has another kind of bad luck in the first round."""

    def client_loss(self, run, batch, batch_idx):
        if (run.round, run.client.id) == (0, 0):
            raise RuntimeError("bad luck")
        return super().client_loss(run, batch, batch_idx)

    def uplink(self, run):
        update = dict(super().uplink(run))
        if (run.round, run.client.id) == (0, 1):
            update["net.2.bias"] = update["net.2.bias"] * torch.nan
        return update


@pytest.mark.filterwarnings("ignore:round .* client . (failed|rejected)")
@pytest.mark.parametrize("least", [1, 2])
def test_who_received_it_holds_it_whatever_became_of_the_update(tmp_path, least):
    seen = Seen()
    trainer = fit(tmp_path, algorithm=Bad(), callbacks=[seen], min_clients=least, max_rounds=2)
    assert [r.status for at, r in seen.records if at == 0] == ["failed", "rejected", "ok"]
    assert trainer.server.holders == [0, 1, 2]
    assert set(seen.down(1).values()) == {len(encode(trainer.server.params))}


@pytest.mark.filterwarnings("ignore:round .* client . late")
def test_a_client_that_the_body_made_late_is_in_time_in_the_next_round(tmp_path):
    state = Module().state_dict()
    body = len(encode({name: state.pop(name) for name in BODY}))
    rate = 8 * (len(encode(state)) + body / 2)
    profile = Profile(uplink_bps=8e9, downlink_bps=rate, compute_flops=1e15)
    network = SimulatedNetwork("slow", {"slow": profile}, deadline_seconds=1.0)
    seen = Seen()
    fit(tmp_path, clients={32: 1}, callbacks=[seen], network=network, max_rounds=2)
    assert [record.status for _, record in seen.records] == ["late", "ok"]


class Forgetful:
    """Clients of which the last one loses its copy before each round but the first."""

    def __init__(self, session: Any) -> None:
        self.clients = LocalClients(
            session.worker,
            session.algorithm,
            session.fleet,
            session.data,
            session.own,
            session.store,
        )

    def _lose(self, task: Task) -> Task:
        if task.client == 2 and task.round and not task.body:
            self.clients.frozen.sha256 = ""
            for file in self.clients.frozen.folder.glob("frozen-*"):
                file.unlink()
        return task

    def train(self, tasks: Iterator[Task]) -> Iterator[Reply]:
        return self.clients.train(map(self._lose, tasks))

    def evaluate(self, tasks: Iterator[Task]) -> Iterator[Measured]:
        return self.clients.evaluate(map(self._lose, tasks))

    def close(self, *arguments: Any) -> None:
        self.clients.close(*arguments)


def test_a_lost_copy_is_asked_for_sent_again_and_counted(tmp_path):
    seen = Seen()
    whole = fit(tmp_path / "1", algorithm=FedPer(["net.2.bias"]))
    lossy = fit(
        tmp_path / "2", algorithm=FedPer(["net.2.bias"]), callbacks=[seen], connect=Forgetful
    )
    assert digest(lossy.server.params) == digest(whole.server.params)
    assert lossy.run.history[-1]["val/loss_float32"] == whole.run.history[-1]["val/loss_float32"]
    assert lossy.server.holders == [0, 1, 2]
    model = len(encode({"net.2.weight": whole.server.params["net.2.weight"]}))
    body = len(encode(whole.server.buffers["frozen"]))
    assert seen.down(1) == {0: model, 1: model, 2: 2 * model + body}
    assert {r.status for _, r in seen.records} == {"ok"}


@pytest.mark.filterwarnings("ignore:round .* client . failed")
@pytest.mark.parametrize("fails", [False, True])
def test_what_a_client_was_sent_that_had_lost_its_copy_came_to_nothing(tmp_path, fails):
    class Failing(Algorithm):
        def client_loss(self, run, batch, batch_idx):
            if fails and (run.round, run.client.id) == (1, 2):
                raise RuntimeError("bad luck")
            return super().client_loss(run, batch, batch_idx)

    trace = tmp_path / "trace.csv"
    trace.write_text("client,round,event\n2,2,dropout\n2,2,loss\n2,2,dropout\n")
    options = {"max_rounds": 2, "availability": Availability(trace=trace, retries=3)}
    seen = Seen()
    lossy = fit(tmp_path, algorithm=Failing(), callbacks=[seen], connect=Forgetful, **options)
    model = len(encode(lossy.server.params))
    body = len(encode(lossy.server.buffers["frozen"]))
    # one that fails has nothing to lose: it drops out before, and is asked once more
    downloads, uploads = (2, 0) if fails else (3, 2)
    assert seen.down(1)[2] == model + downloads * (model + body)
    (record,) = [record for at, record in seen.records if (at, record.client) == (1, 2)]
    assert bool(record.uplink_bytes) != fails
    lost = record.uplink_bytes // max(1, uploads)
    assert lossy.run.history[1]["retry_bytes"] == model + (downloads - 1) * (model + body) + lost


def test_a_copy_that_is_gone_when_a_run_goes_on_is_sent_to_all_again(tmp_path):
    whole = fit(tmp_path / "whole")
    cut = fit(tmp_path / "cut", max_rounds=1)
    (copy,) = (cut.run.folder / "clients").glob("frozen-*")
    copy.write_bytes(copy.read_bytes()[:-1])
    seen = Seen()
    after = fit(tmp_path / "cut", ckpt_path="last", callbacks=[seen])
    assert digest(after.server.params) == digest(whole.server.params)
    model, body = (len(encode(t)) for t in (after.server.params, after.server.buffers["frozen"]))
    assert set(seen.down(1).values()) == {model + body}
    assert set(seen.down(2).values()) == {model}
    assert copy.is_file()


def test_other_tensors_than_the_digest_says_are_refused(tmp_path):
    class Mixed(Forgetful):
        def _lose(self, task: Task) -> Task:
            object.__setattr__(task, "body", task.body and encode(decode(task.downlink)))
            return task

    with (
        pytest.warns(UserWarning, match="the frozen tensors that were sent are not those"),
        pytest.raises(Exception, match="the frozen tensors that were sent are not those"),
    ):
        fit(tmp_path, connect=Mixed, max_rounds=20)


# ---- what changes it -----------------------------------------------------------------------------


class Moving(Tuned):
    """Changes its frozen weight as it trains, as a mean teacher does."""

    def training_step(self, batch, batch_idx):
        self.net[0].weight.data.mul_(0.9)
        return super().training_step(batch, batch_idx)


class Thawing(Tuned):
    """Trains its frozen layer after all."""

    def on_train_start(self):
        self.net[0].requires_grad_(True)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("module", [Moving, Thawing])
def test_a_frozen_parameter_that_training_changes_is_an_error(tmp_path, module):
    with pytest.raises(
        Exception, match=r"net\.0\.weight was frozen when the model was set up, and"
    ):
        fit(tmp_path, module)


def test_what_freezes_later_is_sent_like_the_rest(tmp_path):
    class Freezing(Module):
        def on_train_start(self):
            self.net[0].requires_grad_(False)

    server = fit(tmp_path, Freezing).server
    assert server.params.keys() >= set(BODY)
    assert server.buffers["frozen"] == {}


def test_another_set_of_frozen_parameters_is_another_run(tmp_path):
    fit(tmp_path, max_rounds=1)
    with pytest.raises(
        CheckpointError, match=r"other frozen parameters: net\.0\.bias is frozen there and trained"
    ):
        fit(tmp_path, Module, ckpt_path="last")


def test_the_values_of_the_run_count_where_it_goes_on(tmp_path):
    """A body that is drawn anew each time is that of the checkpoint."""
    whole = fit(tmp_path / "whole")
    fit(tmp_path / "cut", max_rounds=1)

    def redrawn() -> Tuned:
        module = Tuned()
        nn.init.normal_(module.net[0].weight)
        return module

    after = fit(tmp_path / "cut", redrawn, ckpt_path="last")
    assert digest(after.server.buffers) == digest(whole.server.buffers)
    assert digest(after.server.params) == digest(whole.server.params)
    loaded = load_model(after.run.folder, "last", model=Module())
    assert torch.equal(loaded.net[0].weight, whole.server.buffers["frozen"]["net.0.weight"])


@pytest.mark.parametrize("frozen", ["keep", "quantize"])
def test_the_model_of_a_group_has_it_as_the_group_computes_with_it(tmp_path, frozen):
    clients = [{**QUANTIZE, "frozen": frozen, "name": "low"}]
    run = fit(tmp_path, Tuned, clients, max_rounds=1)
    weight = run.server.buffers["frozen"]["net.0.weight"]
    # the architecture alone: what is frozen is the run's to know
    loaded = load_model(run.run.folder, "last", "low", Module())
    layer = nn.Linear(6, 7)
    layer.weight.data = weight
    wanted = weight if frozen == "keep" else rounded(layer).weight
    assert torch.equal(loaded.net[0].weight, wanted)


# ---- bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("group", "message"),
    [
        ({"bits": 8, "frozen": "round"}, r"frozen must be one of keep, quantize, got 'round'"),
        ({"bits": 32, "frozen": "quantize"}, r"frozen: quantize needs bits below 32, got bits: 32"),
    ],
)
def test_a_group_says_keep_or_quantize(group, message):
    with pytest.raises(ValueError, match=message):
        Fleet([{**group, "count": 1}])


def test_there_is_something_to_quantise(tmp_path):
    clients = [{"bits": 8, "count": 2, "frozen": "quantize"}]
    with pytest.raises(ValueError, match="frozen: quantize of group 'int8' needs layers with froz"):
        fit(tmp_path, Module, clients)


@pytest.mark.filterwarnings("ignore:.*float32 clients")
def test_clients_that_have_no_layer_left_at_their_bits_are_told_of(tmp_path):
    class Biases(Module):
        def __init__(self) -> None:
            super().__init__()
            for layer in (self.net[0], self.net[2]):
                layer.weight.requires_grad_(False)

    with pytest.warns(UserWarning, match="int8 clients hold 0% of the model's weights at their"):
        fit(tmp_path, Biases, {8: 2}, max_rounds=1)


# ---- every method --------------------------------------------------------------------------------


class Spy(Forgetful):
    """Holds what crosses to what is trained."""

    def _lose(self, task: Task) -> Task:
        assert not [name for name in decode(task.downlink or encode({})) if "net.0" in name]
        return task

    def train(self, tasks: Iterator[Task]) -> Iterator[Reply]:
        for reply in super().train(tasks):
            assert not [name for name in decode(reply.payload or encode({})) if "net.0" in name]
            yield reply


QUICK = (SCAFFOLD, FedCOMGATE, FedLQ, DPFedAvg, Local, ProWD, FedAvg)


def methods() -> list[Any]:
    found = []
    for case, (make, _) in CASES.items():
        kind = getattr(make, "func", make)
        if not kind.__module__.startswith("tests"):
            marks = [] if kind in QUICK and case != "norm local" else [pytest.mark.slow]
            found.append(pytest.param(case, marks=marks))
    return found


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", methods())
def test_no_method_sends_or_keeps_what_is_frozen(tmp_path, case):
    class Normed(Tuned):
        def __init__(self) -> None:
            layers = [nn.Linear(6, 7), nn.BatchNorm1d(7), nn.ReLU(), nn.ReLU(), nn.Linear(7, 3)]
            super().__init__(nn.Sequential(*layers))

        def forward(self, inputs):
            return self.net(inputs)

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

    make, options = CASES[case]
    options = {"clients": {8: 2, 32: 2, "ternary": 1}, "connect": Spy, **options}
    trainer = fit(tmp_path, Normed, algorithm=make(), **options)
    assert len([row for row in trainer.run.history if row["clients/ok"]]) == 3
    assert list(trainer.server.buffers["frozen"]) == BODY
    for file in (trainer.run.folder / "clients").rglob("client=*.pt"):
        kept = torch.load(file, weights_only=True)["state"]
        names = [name for part in kept.values() if isinstance(part, dict) for name in part]
        assert not [name for name in names if "net.0" in name]


def test_images_and_channels_last(tmp_path):
    def module() -> Any:
        from tests.federation import Client, Net

        client = Client(Net(batch_norm=True))
        client.net[0].requires_grad_(False)
        return client

    run = fit_images(tmp_path, module=module, channels_last=True, max_rounds=2)
    assert [*run.server.buffers["frozen"]] == ["net.0.weight", "net.0.bias"]
    assert run.run.history[-1]["clients/ok"] == 4


@pytest.mark.parametrize(
    "algorithm",
    [
        ProWD(mask=None, dequantizer=None, payload="delta"),
        FedPAQ(),
        FedLQ(payload="delta", error_feedback=True, sensitivity=Sensitivity(shrinkage=0)),
    ],
    ids=lambda algorithm: type(algorithm).__name__,
)
def test_differences_are_of_what_is_trained_where_devices_round_the_rest(tmp_path, algorithm):
    clients = [{"bits": 8, "count": 2, "frozen": "quantize"}, {"bits": 32, "count": 1}]
    trainer = fit(tmp_path, clients=clients, algorithm=algorithm, max_rounds=2)
    assert [row["clients/ok"] for row in trainer.run.history] == [3, 3]
