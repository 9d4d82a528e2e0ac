"""Personal layers, against recursions of a two-layer linear model written apart, in NumPy."""

from __future__ import annotations

import lightning as L
import numpy as np
import pytest
import torch
from torch import nn

from bhfl.algorithms import FedAvg, FedBN, FedPer, FedRep
from bhfl.engine import Availability
from tests.federation import Client as Classifier
from tests.federation import Net, fake, fit, same

ROUNDS = 20
LR = 0.05
STEPS = 4
QUIET = {"checkpoint_every_n_rounds": 1000, "check_val_every_n_rounds": 1000}


class Data:
    """A full batch of inputs and targets a client, the same at every step."""

    def __init__(self, clients: int = 3) -> None:
        generator = torch.Generator().manual_seed(3)
        self.x = torch.randn(clients, 12, 6, generator=generator)
        self.y = torch.randn(clients, 12, 2, generator=generator)

    def prepare_data(self):
        pass

    def setup(self, stage):
        pass

    def federate(self, num_clients, seed):
        return [12] * num_clients

    def partition_record(self):
        return {}

    def num_batches(self, client_id):
        return STEPS

    def client_batches(self, client_id, rng, epoch):
        return [(self.x[client_id], self.y[client_id])] * STEPS

    def client_val_batches(self, client_id):
        return None

    def val_batches(self):
        return []

    def test_batches(self):
        return [(self.x[0], self.y[0])]


class Module(L.LightningModule):
    """A representation, perhaps a BatchNorm, and a head; the loss is half the mean square."""

    def __init__(self, norm: bool = False) -> None:
        super().__init__()
        self.body = nn.Linear(6, 4, bias=False)
        self.norm = nn.BatchNorm1d(4) if norm else nn.Identity()
        self.head = nn.Linear(4, 2, bias=False)

    def training_step(self, batch, batch_idx):
        x, y = batch
        return 0.5 * (self.head(self.norm(self.body(x))) - y).square().sum(1).mean()

    def test_step(self, batch, batch_idx):
        self.log("test/loss", self.training_step(batch, batch_idx))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), LR)


def first():
    torch.manual_seed(0)
    module = Module()
    weights = (module.body.weight, module.head.weight)
    return [weight.detach().double().numpy() for weight in weights]


def gradients(body, head, x, y):
    hidden = x @ body.T
    error = (hidden @ head.T - y) / len(x)
    return (error @ head).T @ x, error.T @ hidden


def recursion(data, turns):
    """The shared body after all rounds; `turns` says by the step which part moves."""
    body, start = first()
    heads = [start] * len(data.x)
    x, y = data.x.double().numpy(), data.y.double().numpy()
    for _ in range(ROUNDS):
        bodies = []
        for i in range(len(x)):
            w, v = body, heads[i]
            for step in range(STEPS):
                of_body, of_head = gradients(w, v, x[i], y[i])
                w = w - LR * of_body * ("body" in turns(step))
                v = v - LR * of_head * ("head" in turns(step))
            bodies.append(w)
            heads[i] = v
        body = np.mean(bodies, 0)
    return body, heads


def trained(folder, algorithm, module=Module, **options):
    settings = {"max_rounds": ROUNDS, **QUIET, **options}
    return fit(folder, algorithm, {32: 3}, module, Data(), **settings)


def check(run, body, heads):
    found = run.server.params["body.weight"].double().numpy()
    assert np.abs(found - body).max() <= 1e-5 * np.abs(body).max()
    for i, head in enumerate(heads):
        own = run.session.store.load(i, 99)["staying"]["head.weight"].double().numpy()
        assert np.abs(own - head).max() <= 1e-5 * np.abs(head).max()


def test_fedper(tmp_path):
    run = trained(tmp_path, FedPer(["head"]))
    check(run, *recursion(Data(), lambda step: "body and head"))


def test_fedrep(tmp_path):
    run = trained(tmp_path, FedRep(["head"], head_steps=3))
    check(run, *recursion(Data(), lambda step: "head" if step < 3 else "body"))


def test_fedbn(tmp_path):
    """Torch itself is the reference of BatchNorm: each client by a loop of its own."""
    run = trained(tmp_path, FedBN(), lambda: Module(norm=True), norm="local")
    data = Data()
    torch.manual_seed(0)
    shared = Module(norm=True).state_dict()
    own = [{n: v for n, v in shared.items() if n.startswith("norm")} for _ in range(3)]
    for _ in range(ROUNDS):
        states = []
        for i in range(3):
            module = Module(norm=True)
            module.load_state_dict({**shared, **own[i]})
            optimizer = module.configure_optimizers()
            for _ in range(STEPS):
                optimizer.zero_grad()
                module.training_step((data.x[i], data.y[i]), 0).backward()
                optimizer.step()
            state = {n: v.clone() for n, v in module.state_dict().items()}
            own[i] = {n: v for n, v in state.items() if n.startswith("norm")}
            states.append(state)
        for name in ("body.weight", "head.weight"):
            shared[name] = torch.stack([state[name] for state in states]).mean(0)
    for name in ("body.weight", "head.weight"):
        off = (run.server.params[name] - shared[name]).abs().max()
        assert off <= 1e-5 * shared[name].abs().max()
    for i in range(3):
        kept = run.session.store.load(i, 99)["staying"]
        assert torch.allclose(kept["norm.weight"], own[i]["norm.weight"], atol=1e-5)
        assert torch.allclose(kept["norm.running_mean"], own[i]["norm.running_mean"], atol=1e-5)


def test_a_personal_batch_norm_has_its_statistics_averaged(tmp_path):
    """Patterns name parameters: what `trainer.norm` says of statistics holds."""
    run = trained(tmp_path, FedPer(["norm"]), lambda: Module(norm=True), max_rounds=2)
    assert [row["clients/ok"] for row in run.run.history] == [3, 3]
    kept = run.session.store.load(0, 99)["staying"]
    assert {"norm.weight", "norm.bias"} == kept.keys()


def test_hooks_are_told_the_steps_taken_so_far(tmp_path):
    told = []

    class Counting(FedAvg):
        def client_gradients_(self, run):
            told.append(run.num_steps)

    trained(tmp_path, Counting(), max_rounds=1)
    assert told == 3 * [0, 1, 2, 3]


def test_what_is_personal_is_neither_sent_nor_received(tmp_path):
    whole = fit(tmp_path, FedAvg(), {"ternary": 2, 32: 2}, max_rounds=1)
    part = fit(tmp_path, FedPer(["net.5", "net.3"]), {"ternary": 2, 32: 2}, max_rounds=1)
    saved = 4 * (80 * 13 + 13 + 13 * 4 + 4)
    for way in ("uplink_bytes", "downlink_bytes"):
        sizes = [run.run.ledger.by_group["float32"][way] for run in (whole, part)]
        # names and shapes of four tensors are in the headers
        assert 2 * saved < sizes[0] - sizes[1] < 2 * saved + 400
    assert same(
        {name: part.server.params[name] for name in ("net.5.weight", "net.3.bias")},
        {name: whole.session.own.first[name] for name in ("net.5.weight", "net.3.bias")},
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FedPer([]), r"FedPer.personal must be a list of at least one .* got \[\]"),
        (lambda: FedPer("head"), "FedPer.personal must be a list of .* got 'head'"),
        (lambda: FedRep(["head"], head_steps=0), "FedRep.head_steps must be"),
    ],
)
def test_an_argument_out_of_its_range_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("algorithm", "options", "message"),
    [
        (
            FedPer(["haed"]),
            {},
            "must match parameters .* got 'haed'; did you mean 'head'",
        ),
        (FedPer(["*"]), {}, "needs personal parameters and shared ones, got 2 personal ones of 2"),
        (FedRep(["head"], 4), {}, "head_steps must be below the steps of each client, client 0"),
        (FedBN(), {}, "FedBN needs BatchNorm layers, and the model has none"),
    ],
)
def test_a_model_that_cannot_be_divided_is_refused(tmp_path, algorithm, options, message):
    with pytest.raises(ValueError, match=message):
        trained(tmp_path, algorithm, **options)


def test_fedbn_keeps_statistics_on_the_clients(tmp_path):
    with pytest.raises(ValueError, match=r"trainer\.norm must be local, got 'group'"):
        fit(tmp_path, FedBN(), {32: 2}, lambda: Classifier(Net(batch_norm=True)), fake())


def test_a_run_begins_with_rounds_that_nobody_sends_anything_in(tmp_path):
    trace = tmp_path / "trace.csv"
    trace.write_text("client,round,event\n0,1,dropout\n1,1,loss\n")
    options = {"availability": Availability(trace=trace), "max_rounds": 2}
    run = fit(tmp_path, FedPer(["net.5"]), {32: 2}, **options)
    assert [row["clients/ok"] for row in run.run.history] == [0, 2]
