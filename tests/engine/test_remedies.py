"""What messages advise works: each remedy is tried beside the fault that it is for."""

from __future__ import annotations

from dataclasses import replace

import lightning as L
import pytest
import torch
from torch import nn

from bhfl.algorithms import FedAvg, FedCOMGATE, FedLQ, FedProx, ProWD
from bhfl.algorithms.fedlq import Sensitivity
from bhfl.algorithms.prowd import Dequantizer
from bhfl.comm.network import Profile, SimulatedNetwork
from bhfl.data import Dirichlet
from bhfl.quant import layer_weights
from tests.engine.hand_made import HandMade, Module, points
from tests.federation import Client, Net, fake, fit


class Manual(Module):
    """Optimises manually, and clips as the message says."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization, self.norms = False, []

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(10 * super().training_step(batch, batch_idx))
        self.clip_gradients(optimizer, gradient_clip_val=0.1, gradient_clip_algorithm="norm")
        self.norms.append(torch.cat([p.grad.flatten() for p in self.parameters()]).norm().item())
        optimizer.step()


class Plain(Module):
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


class WithForward(Client):
    def forward(self, x):
        return self.net(x)


class Unvalidated(Client):
    validation_step = L.LightningModule.validation_step


def norms() -> Client:
    return Client(Net(batch_norm=True))


def uneven() -> HandMade:
    return HandMade([points(8), points(16)], held_out=points(4, 9))


def even() -> HandMade:
    return HandMade([points(8), points(8, 1)], held_out=points(4, 9))


def network(**options) -> SimulatedNetwork:
    return SimulatedNetwork(
        {"mine": 1.0},
        custom_profiles={"mine": Profile(uplink_bps=1e6, downlink_bps=1e6, **options)},
    )


PAIR = {"clients": {8: 2}}
SMALL = Dequantizer(buffer_size=8)
SERVER = {"algorithm": lambda: FedLQ(sensitivity=Sensitivity("server"))}
CASES = [
    (
        {**PAIR, "module": Manual, "data": even, "gradient_clip_val": 0.1},
        "gradient_clip_val needs automatic optimization: call self.clip_gradients",
        [{"gradient_clip_val": None}],
    ),
    (
        {**PAIR, "algorithm": FedCOMGATE, "module": Module, "data": even},
        "FedCOMGATE needs torch.optim.SGD without momentum.*; set allow_inexact: true",
        [{"algorithm": lambda: FedCOMGATE(allow_inexact=True)}, {"module": Plain}],
    ),
    (
        {**PAIR, "algorithm": FedCOMGATE, "module": Plain, "data": uneven},
        "FedCOMGATE needs equal numbers of local steps.*; "
        "set trainer.local_steps, or allow_inexact: true",
        [{"local_steps": 2}, {"algorithm": lambda: FedCOMGATE(allow_inexact=True)}],
    ),
    (
        {"algorithm": lambda: ProWD(dequantizer=SMALL), "module": WithForward},
        "data.holdout must be at least ProWD.dequantizer.buffer_size=8, got 0; "
        "or set ProWD.dequantizer.distill_weight: 0",
        [
            {"data": lambda: fake(holdout=8)},
            {"algorithm": lambda: ProWD(dequantizer=replace(SMALL, distill_weight=0))},
        ],
    ),
    (
        {"algorithm": lambda: ProWD(dequantizer=SMALL), "data": lambda: fake(holdout=8)},
        "which Client does not define; define it, or set ProWD.dequantizer.distill_weight: 0",
        [
            {"module": WithForward},
            {"algorithm": lambda: ProWD(dequantizer=replace(SMALL, distill_weight=0))},
        ],
    ),
    (
        SERVER,
        "data.holdout must be at least 1 .*; or set sensitivity.source: clients, or .*shrinkage: 0",
        [
            {"data": lambda: fake(holdout=1)},
            {"algorithm": lambda: FedLQ(sensitivity=Sensitivity("clients"))},
            {"algorithm": lambda: FedLQ(sensitivity=Sensitivity("server", shrinkage=0.0))},
        ],
    ),
    (
        {**SERVER, "data": lambda: fake(holdout=8), "norm": "local", "module": norms},
        "FedLQ.sensitivity.source: server has none to probe with; set sensitivity.source: clients",
        [{"algorithm": lambda: FedLQ(sensitivity=Sensitivity("clients"))}],
    ),
    (
        {"module": Unvalidated, "network": network(compute_flops=1e9), "monitor": "train/loss"},
        "Unvalidated.validation_step, which computes nothing: "
        "define it, or give devices no compute_flops",
        [{"module": Client}, {"network": network()}],
    ),
    (
        {"data": lambda: fake(96, partition=Dirichlet(alpha=0.05, min_size=16, max_tries=3))},
        "no draw of .* did; raise alpha or max_tries, lower min_size, or have fewer clients",
        [
            {"data": lambda: fake(96, partition=Dirichlet(alpha=50.0, min_size=16, max_tries=30))},
            {"data": lambda: fake(96, partition=Dirichlet(alpha=0.05, min_size=1, max_tries=3))},
            {
                "clients": {8: 1, 32: 1},
                "data": lambda: fake(96, partition=Dirichlet(alpha=1.0, min_size=16)),
            },
        ],
    ),
]


def train(folder, options):
    """A run of two rounds, its algorithm and data made anew."""
    options = {"algorithm": FedAvg, "data": fake, "max_rounds": 2, **options}
    return fit(folder, options.pop("algorithm")(), data=options.pop("data")(), **options)


@pytest.mark.parametrize(
    ("options", "advice", "remedies"), CASES, ids=[case[1].split(";")[0][:40] for case in CASES]
)
def test_every_remedy_of_a_message_ends_what_it_tells_of(tmp_path, options, advice, remedies):
    with pytest.raises(ValueError, match=advice):
        train(tmp_path, options)
    for remedy in remedies:
        assert train(tmp_path, {**options, **remedy}).server.round == 2


def test_gradients_that_a_module_clips_itself_are_clipped(tmp_path):
    made = []

    def module():
        made.append(Manual())
        return made[-1]

    train(tmp_path, {**PAIR, "module": module, "data": even})
    assert max(made[0].norms) == pytest.approx(0.1, rel=1e-4)


class Words(Module):
    """Has a table that no low-bit layer can stand for."""

    def __init__(self, **options) -> None:
        super().__init__()
        self.table = nn.Embedding(10, 6, **options)

    def training_step(self, batch, batch_idx):
        words = (batch[0][:, 0].abs() * 3).long().clamp(max=9)
        return super().training_step((batch[0] + self.table(words), batch[1]), batch_idx)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


@pytest.mark.parametrize("options", [{"sparse": True}, {"max_norm": 1.0}])
def test_a_table_that_cannot_be_quantised_stays_float_where_nothing_takes_a_filter(
    tmp_path, options
):
    trainer = train(tmp_path, {"clients": {8: 2}, "module": lambda: Words(**options), "data": even})
    assert type(trainer.session.worker.module.table) is nn.Embedding
    assert trainer.run.history[-1]["clients/ok"] == 2
    assert layer_weights(Words(**options)) == ["net.0.weight", "net.2.weight"]


def test_a_penalty_on_a_table_with_a_largest_norm(tmp_path):
    assert train(
        tmp_path,
        {**PAIR, "algorithm": FedProx, "module": lambda: Words(max_norm=1.0), "data": even},
    )
