"""Clients that are sent the model at fewer bits than float32."""

from pathlib import Path
from typing import Any

import pytest
import torch

from bhfl.algorithms import FedAvg, FedCOMGATE, FedDyn, FedLQ, FedPAQ, Median, ProWD
from bhfl.algorithms.fedlq import Budget
from bhfl.algorithms.prowd import Mask
from bhfl.algorithms.prowd.moves import MoveReader
from bhfl.comm import float_tensors
from bhfl.comm.network import SimulatedNetwork
from bhfl.engine.devices import Devices, Group
from bhfl.engine.downlink import as_received, bits_down, lowered, on_its_way
from bhfl.engine.trainer import FederatedTrainer
from bhfl.engine.types import Client
from bhfl.quant import PRESETS, BitSpec, QuantizedTensor, quantize
from bhfl.quant.sending import quantize_as_sent
from tests.federation import fake, fit, same

FLEET = {"ternary": 1, 8: 1, 16: 1, 32: 1}
HELD = {}


class Received(FedAvg):
    """Notes what each client starts from, and from which model it was made."""

    def downlink(self, server: Any, client: Any) -> Any:
        HELD[client.group] = [server.params]
        return server.params

    def num_steps(self, run: Any, planned: int) -> int:
        HELD[run.client.group].append(run.received)
        return planned


@pytest.mark.parametrize(
    ("rule", "bits"),
    [
        ("float32", [32, 32, 32, 32, 32, 32]),
        (4, [4, 4, 4, 4, 4, 4]),
        (32, [32, 32, 32, 32, 32, 32]),
        ("client", [8, 8, 16, 32, 8, 8]),
    ],
)
def test_the_bits_of_a_weight(rule: Any, bits: list[int]) -> None:
    specs = ["ternary", "int8", "int16", "float32", "wage2888", "strict8"]
    assert [bits_down(rule, PRESETS[name]) for name in specs] == bits


def test_layers_are_sent_at_the_bits_that_they_have() -> None:
    layers = {"net.0": PRESETS["int12"], "net.1": BitSpec()}
    devices = Devices(Group(bits=PRESETS["ternary"], layers=layers), "client")
    devices.layers = layers
    weight = torch.randn(3, 4)
    for name, bits in (("net.0.weight", 12), ("net.2.weight", 8)):
        sent = on_its_way(name, weight, devices)
        assert isinstance(sent, QuantizedTensor)
        assert sent.bits == bits
        assert torch.equal(sent.codes, quantize(weight, bits, granularity="channel").codes)
    assert on_its_way("net.1.weight", weight, devices) is weight
    # what is not the model's, and what has no channels, stays as it is
    message = {"net.0.weight": weight, "net.0.bias": weight[0], "control": weight}
    assert [
        type(x) for x in lowered(message, devices, {"net.0.weight": 0, "net.0.bias": 0}).values()
    ] == [
        QuantizedTensor,
        torch.Tensor,
        torch.Tensor,
    ]


def test_a_client_starts_from_what_was_decoded(tmp_path: Path) -> None:
    row = fit(tmp_path, Received(), FLEET, max_rounds=2, downlink="client").run.history[-1]
    for group, (model, received) in HELD.items():
        devices = Devices(Group(bits=PRESETS[group]), "client")
        assert same(received, {name: as_received(name, model[name], devices) for name in model})
        assert torch.equal(received["net.3.weight"], model["net.3.weight"]) == (group == "float32")
        assert torch.equal(received["net.3.bias"], model["net.3.bias"])
    plain = fit(tmp_path, FedAvg(), FLEET, max_rounds=2).run.history[-1]
    # of 4 bytes a weight 1 for two clients, 2 for one, 4 for one
    assert row["comm/downlink_MB"] < 0.6 * plain["comm/downlink_MB"]


def test_float32_is_what_is_sent_without_the_option(tmp_path: Path) -> None:
    runs = [fit(tmp_path, **options) for options in ({}, {"downlink": "float32"}, {"downlink": 32})]
    assert same(runs[0].server.params, runs[1].server.params)
    assert same(runs[0].server.params, runs[2].server.params)


@pytest.mark.parametrize(
    "algorithm",
    [
        FedPAQ,
        lambda: FedLQ(budget=Budget(average_bits=4)),
        lambda: ProWD(Mask(tau=0.5), None),
        lambda: ProWD(Mask(tau=0.5), None, global_models="dual"),
    ],
)
def test_methods_run_and_go_on_with_it(tmp_path: Path, algorithm: Any) -> None:
    options = {"downlink": "client", "data": fake(holdout=16)}
    whole = fit(tmp_path / "a", algorithm(), FLEET, **options)
    fit(tmp_path / "b", algorithm(), FLEET, **options, max_rounds=2)
    resumed = fit(tmp_path / "b", algorithm(), FLEET, **options, ckpt_path="last")
    assert same(whole.server.params, resumed.server.params)
    assert [row["clients/ok"] for row in whole.run.history] == [4] * 3


@pytest.mark.parametrize(
    "algorithm", [FedCOMGATE(32, allow_inexact=True), FedDyn(), Median(client=FedDyn())]
)
def test_methods_that_reckon_from_what_is_received_refuse_it(
    tmp_path: Path, algorithm: Any
) -> None:
    with pytest.raises(ValueError, match=r"trainer\.downlink must be float32, got client"):
        fit(tmp_path, algorithm, {8: 2}, downlink="client")
    # float32 clients are sent float32
    fit(tmp_path, algorithm, {32: 2}, downlink="client", max_rounds=1)


def test_a_low_bit_client_that_learns_nothing_does_not_move() -> None:
    """ProWD counts moves from what the client made of what it received."""
    torch.manual_seed(0)
    model = {"net.0.weight": torch.randn(5, 7)}
    devices = Devices(Group(bits=PRESETS["ternary"]), 4)
    reader = MoveReader(model, model, False, "dequant_start", float_tensors)
    client = Client(0, devices.spec, 1, 1.0, devices)
    received = {name: as_received(name, value, devices) for name, value in model.items()}
    update = {name: quantize_as_sent(value, devices.spec) for name, value in received.items()}
    low = reader.read(update, client)
    assert low.squares == {"net.0.weight": 0.0}
    assert torch.equal(low.params["net.0.weight"], model["net.0.weight"])
    other = quantize_as_sent(model["net.0.weight"], devices.spec)
    assert not torch.equal(other.codes, update["net.0.weight"].codes)


def test_less_to_receive_takes_less_time(tmp_path: Path) -> None:
    rows = []
    for downlink in ("float32", "client"):
        network = SimulatedNetwork(seed=1)
        trainer = fit(tmp_path, FedAvg(), {8: 2}, max_rounds=1, network=network, downlink=downlink)
        rows.append(trainer.run.history[-1]["time/simulated_s"])
    assert rows[1] < rows[0]


@pytest.mark.parametrize(
    ("clients", "downlink", "told"),
    [({32: 2}, 4, True), ({32: 2}, 8, False), ({2: 2}, 2, False), ({8: 2}, "client", False)],
)
def test_a_coarse_downlink_is_told_of(
    tmp_path: Path, recwarn: pytest.WarningsRecorder, clients: Any, downlink: Any, told: bool
) -> None:
    fit(tmp_path, clients=clients, downlink=downlink, max_rounds=1)
    text = "trainer.downlink 4 rounds the model of float32 clients to 4 bits before each round"
    assert any(str(one.message).startswith(text) for one in recwarn) == told


@pytest.mark.parametrize("value", [1, 17, "int8", True, 8.0, None])
def test_bits_that_there_are_not(value: Any) -> None:
    with pytest.raises(ValueError, match=r"downlink must be float32, client, 2\.\.16 or 32, got"):
        FederatedTrainer({8: 2}, downlink=value)
