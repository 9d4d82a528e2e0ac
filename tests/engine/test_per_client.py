"""Every client's numbers, and how they are spread over clients."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from torch import nn

from bhfl.algorithms import Ditto, FedPer
from bhfl.comm.network import SimulatedNetwork
from bhfl.engine.figures import group_rows
from bhfl.engine.own import MODEL
from bhfl.engine.per_client import spread
from bhfl.engine.types import Client
from bhfl.quant import BitSpec
from bhfl.tags import CLIENTS_CSV
from tests.engine.hand_made import HandMade, Module, client_rows, points
from tests.federation import fit


class Measurable(Module):
    """A module whose test is its validation."""

    def test_step(self, batch, batch_idx):
        logits = self.net(batch[0])
        self.log("test/acc", (logits.argmax(1) == batch[1]).float().mean())


OWN = [points(5, 50 + i) for i in range(4)]


def data(own=OWN) -> HandMade:
    clients = [points(6 + 4 * i, i) for i in range(4)]
    return HandMade(clients, held_out=points(9, 99), own=own)


def go(folder, **options):
    settings = {"module": Measurable, "data": data(), "max_rounds": 2, **options}
    return fit(folder, **settings)


def accuracy(net: nn.Module, samples) -> float:
    with torch.no_grad():
        return (net(samples[0]).argmax(1) == samples[1]).float().mean().item()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Two rounds of float32 clients that end in personal heads, measured on samples of their own,
    over links.
    """
    return go(
        tmp_path_factory.mktemp("run"),
        algorithm=FedPer(["net.2"]),
        clients={32: 4},
        evaluate_clients="both",
        network=SimulatedNetwork("phone-4g"),
    )


def test_a_row_for_each_client_and_round(run):
    rows = client_rows(run.run.folder)
    trained = [row for row in rows if row["stage"] == "train"]
    assert [(row["round"], row["client"]) for row in trained] == [
        (str(round), str(client)) for round in (1, 2) for client in range(4)
    ]
    last = {row["client"]: row for row in trained}
    assert [row["samples"] for row in last.values()] == ["6", "10", "14", "18"]
    assert [row["steps"] for row in last.values()] == ["2", "3", "4", "5"]
    assert [row["examples"] for row in last.values()] == ["6", "10", "14", "18"]
    assert {row["status"] for row in last.values()} == {"ok"}
    sent = sum(int(row["uplink_bytes"]) for row in trained)
    assert sent == run.run.ledger.total("uplink_bytes")
    # the round is over when the last update has arrived
    times = [float(row["simulated_seconds"]) for row in last.values()]
    assert max(times) == pytest.approx(run.run.history[-1]["time/simulated_round_s"])
    mean = np.average([float(row["loss"]) for row in last.values()], weights=[6, 10, 14, 18])
    assert mean == pytest.approx(run.run.history[-1]["train/loss"], rel=1e-12)


def test_the_final_test_alone_is_on_test_samples_of_their_own(run):
    rows = client_rows(run.run.folder)
    tested = {int(row["client"]): row for row in rows if row["stage"] == "test"}
    assert list(tested) == [0, 1, 2, 3]
    assert {row["test/acc"] for row in rows if row["stage"] == "train"} == {""}
    net = Measurable().net
    for id, row in tested.items():
        kept = run.run.store.load(id, 2)["staying"]
        state = {**run.server.params, **kept}
        net.load_state_dict({name.removeprefix("net."): state[name] for name in state})
        assert float(row["test/acc"]) == accuracy(net, OWN[id])
    summary = json.loads((run.run.folder / "summary.json").read_text())["metrics"]
    own = [float(row["test/acc"]) for row in tested.values()]
    assert summary["clients_test/acc_mean"] == np.mean(own)
    assert not [tag for row in run.run.history for tag in row if tag.startswith("clients_test")]
    head, *_, all_clients = group_rows(summary, "test", {"float32": 4}, None, "acc")
    assert head[-2:] == ["clients' mean", "worst 10 %"]
    assert all_clients[-2:] == [f"{100 * np.mean(own):.2f} %", f"{100 * min(own):.2f} %"]


def test_they_are_measured_before_and_after_their_training(run):
    rows = [row for row in client_rows(run.run.folder) if row["stage"] == "train"]
    torch.manual_seed(0)
    first = Measurable().net
    for id in range(4):
        assert float(rows[id]["val/acc_before"]) == accuracy(first, OWN[id])
    values = [float(row["val/loss"]) for row in rows[4:]]
    row = run.run.history[-1]
    assert row["clients_val/loss_mean_float32"] == pytest.approx(np.mean(values))
    assert row["clients_val/loss_worst10"] == max(values)
    weights = [6, 10, 14, 18]
    assert row["val/loss_local_float32"] == pytest.approx(np.average(values, weights=weights))
    before = [float(row["val/loss_before"]) for row in rows[4:]]
    assert row["val/loss_local_before_float32"] == pytest.approx(
        np.average(before, weights=weights)
    )


def test_a_model_beside_the_one_that_is_sent_is_the_one_that_is_measured(tmp_path):
    trainer = go(tmp_path, algorithm=Ditto(), clients={32: 4}, evaluate_clients="both")
    rows = client_rows(trainer.run.folder)
    net = Measurable().net
    for id in range(4):
        kept = trainer.run.store.load(id, 2)[MODEL]
        net.load_state_dict({name.removeprefix("net."): kept[name] for name in kept})
        assert float(rows[4 + id]["val/acc"]) == float(rows[8 + id]["test/acc"])
        assert float(rows[4 + id]["val/acc"]) == accuracy(net, OWN[id])
        # as it was left by the round before
        assert rows[4 + id]["val/loss_before"] == rows[id]["val/loss"]
    assert [row["steps"] for row in rows[:4]] == ["4", "6", "8", "10"]


def test_without_samples_of_their_own_there_are_no_metrics(tmp_path):
    trainer = go(tmp_path, data=data(own=()), max_rounds=1, clients={32: 4})
    rows = client_rows(trainer.run.folder)
    assert len(rows) == 4
    assert not [name for name in rows[0] if "/" in name]
    assert not [tag for tag in trainer.run.history[0] if tag.startswith("clients_")]


def test_a_client_that_fails_has_its_row(tmp_path):
    class Fails(Measurable):
        def training_step(self, batch, batch_idx):
            if len(batch[0]) == 3:
                raise RuntimeError("bad luck")
            return super().training_step(batch, batch_idx)

    with pytest.warns(UserWarning, match="bad luck"):
        trainer = go(
            tmp_path, module=Fails, clients={32: 4}, data=HandMade([points(3), *data().clients[:3]])
        )
    rows = client_rows(trainer.run.folder)
    failed = [row for row in rows if row["status"] == "failed"]
    found = [(row["client"], row["samples"], row["steps"], row["loss"]) for row in failed]
    assert found == [("0", "3", "0", "")] * 2


def test_rows_that_are_lost_are_told(tmp_path):
    trainer = go(tmp_path, clients={32: 4})
    (trainer.run.folder / CLIENTS_CSV).write_text("nothing\n")
    with pytest.warns(UserWarning, match=r"clients\.csv has 0 of the 8 rows of rounds 1 to 2"):
        go(tmp_path, clients={32: 4}, max_rounds=3, ckpt_path="last")
    assert {row["round"] for row in client_rows(trainer.run.folder)} == {"3"}


def fleet(*groups: int) -> list[Client]:
    return [Client(i, BitSpec.parse(bits), 1) for i, bits in enumerate(groups)]


def test_the_spread_over_clients():
    values = [0.9, 0.1, 0.5, *[0.6] * 9]
    clients = fleet(8, 8, 32, *[32] * 9)
    found = spread("test", {i: {"acc": x, "loss": x} for i, x in enumerate(values)}, clients)
    assert found["clients_test/acc_mean"] == pytest.approx(np.mean(values))
    assert found["clients_test/acc_std"] == pytest.approx(np.std(values))
    # the worst tenth of twelve are two
    assert found["clients_test/acc_worst10"] == pytest.approx(0.3)
    assert found["clients_test/loss_worst10"] == pytest.approx(0.75)
    assert found["clients_test/acc_worst10_int8"] == 0.1
    assert found["clients_test/acc_jain_int8"] == pytest.approx(1 / (2 * 0.82))
    assert found["clients_test/acc_mean_float32"] == pytest.approx(np.mean(values[2:]))


@pytest.mark.parametrize(
    ("values", "jain"),
    [([0.5] * 4, 1.0), ([0.0] * 4, 1.0), ([1.0, 0.0, 0.0, 0.0], 0.25), ([1.0, math.nan], math.nan)],
)
def test_jain_s_index(values, jain):
    clients = fleet(*[8] * len(values))
    found = spread("val", {i: {"acc": x} for i, x in enumerate(values)}, clients)
    assert found["clients_val/acc_jain"] == pytest.approx(jain, nan_ok=True)
