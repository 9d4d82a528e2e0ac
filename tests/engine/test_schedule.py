"""Groups whose bits change from round to round."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from bhfl import load_model
from bhfl.algorithms import FedAvg, GroupedAvg, ProWD
from bhfl.algorithms.prowd import Dequantizer
from bhfl.comm.network import Profile, SimulatedNetwork
from bhfl.engine.buffers import Buffers
from bhfl.engine.checkpoint import digest
from bhfl.engine.fleet import Fleet
from bhfl.engine.roster import Roster, at, behind, changes, one_of_each
from bhfl.engine.trainer import FederatedTrainer
from bhfl.recorded import plain
from tests.federation import Client, Net, fake, fit, same

FLEET = [
    {"bits": "ternary", "count": 2, "name": "grow", "schedule": {1: 4, 2: 8}},
    {"bits": 32, "count": 1},
]


class Told(Client):
    """Logs the bits that it computes with, wherever it is."""

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        self.log("train/bits", float(self.net[0].spec.weights % 32))
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        super().validation_step(batch, batch_idx)
        self.log("val/bits", float(self.net[0].spec.weights))

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("test/bits", float(self.net[0].spec.weights))


def roster(fleet: list[dict[str, Any]]) -> Roster:
    groups = Fleet(fleet)
    counts = groups.counts()
    return Roster(groups.groups, counts, [1] * sum(counts), "uniform")


# ---- as it is written ----------------------------------------------------------------------------


def test_it_reads_back_from_python_yaml_and_json() -> None:
    fleet = Fleet(FLEET)
    assert fleet.to_config()[0]["schedule"] == {1: "int4", 2: "int8"}
    for written in (yaml.safe_dump(fleet.to_config()), json.dumps(plain(fleet.to_list()))):
        assert Fleet(yaml.safe_load(written)) == fleet
    own = {"weights": 6, "activations": 8, "granularity": "channel"}
    (group,) = Fleet([{**FLEET[0], "schedule": {3: own, 5: "float32"}}]).groups
    assert [(round, stage.bits.label) for round, stage in group.stages().items()] == [
        (0, "ternary"),
        (3, "w6a8-channel"),
        (5, "float32"),
    ]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            {"name": None},
            r"schedule needs a name beside it, .*, got bits ternary and a schedule of rounds 1, 2$",
        ),
        ({"schedule": {40: 8, 20: 4}}, r"schedule: rounds must rise, got 20 after 40$"),
        ({"schedule": {0: 4}}, r"schedule: rounds must be from 1 on, got 0$"),
        ({"schedule": {"soon": 4}}, r"schedule: rounds must be from 1 on, got 'soon'$"),
        ({"schedule": {True: 4}}, r"schedule: rounds must be from 1 on, got True$"),
        (
            {"schedule": {20: 8, 40: 4}},
            r"schedule must not fall back: bits must rise, got int4 after int8$",
        ),
        ({"schedule": {20: "ternary"}}, r"bits must rise, got ternary after ternary$"),
        ({"schedule": {20: "ternry"}}, r"schedule\[20\]: unknown preset 'ternry'.*'ternary'"),
        ({"schedule": [4, 8]}, r"schedule must be a mapping .* got \[4, 8\]"),
        ({"schedul": {20: 4}, "schedule": None}, r"'schedul'; did you mean 'schedule'"),
        ({"schedule": {20: 32}, "layers": {"net.0": 4}}, "layers needs bits below 32"),
        ({"schedule": {20: 12}, "backend": "int8"}, "backend 'int8' cannot serve these bits"),
    ],
)
def test_what_is_wrong_with_one(more: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Fleet([{**FLEET[0], **more}])


def test_a_change_after_the_last_round_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"schedule of group 'grow' must name rounds from 1 to 1, .* got 2$"
    ):
        FederatedTrainer(FLEET, max_rounds=2)


# ---- the fleet of a round ------------------------------------------------------------------------


def test_the_fleet_of_each_round() -> None:
    clients = roster(FLEET)
    assert changes(clients) == [0, 1, 2]
    found = [[one.spec.label for one in at(clients, round)] for round in (0, 1, 2, 9)]
    assert [labels[:2] for labels in found] == [[b] * 2 for b in ("ternary", "int4", *["int8"] * 2)]
    assert {labels[2] for labels in found} == {"float32"}
    # a state comes from the round before it
    assert [behind(clients, rounds)[0].spec.label for rounds in (0, 1, 2, 3)] == [
        "ternary",
        "ternary",
        "int4",
        "int8",
    ]
    whole = [client.bits for client in one_of_each(clients)]
    assert whole == ["ternary", "int4", "int8", "float32"]
    assert [client.bits for client in one_of_each(clients.at(1))] == ["int4", "float32"]
    # the same objects at each look, for what is kept by devices
    assert clients.at(1)[0].devices is clients.at(1)[1].devices is clients.devices[1]
    assert list(clients.at(2).at(0)) == list(clients.at(2))


def test_where_new_bits_come_from() -> None:
    fleet = [
        {"bits": "ternary", "count": 1, "name": "a", "schedule": {2: 4, 5: 8}},
        {"bits": 3, "count": 1, "name": "b", "schedule": {2: 4, 6: 8}},
        {"bits": 6, "count": 1, "name": "c", "schedule": {5: 32}},
    ]
    clients = roster(fleet)
    found = {round: clients.origins(round) for round in range(7)}
    assert {round: origins for round, origins in found.items() if origins} == {
        # the first group counts, and bits that others had already have a model
        2: {"int4": "ternary"},
        5: {"int8": "int4", "float32": "int6"},
    }


# ---- runs ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> FederatedTrainer:
    steady = {"latency_seconds": 0.0, "jitter": 0.0, "compute_jitter": 0.0}
    device = Profile(uplink_bps=1e12, downlink_bps=1e12, compute_flops=1e6, **steady)
    network = SimulatedNetwork("one", {"one": device}, low_bit_speedup=True)
    options: dict[str, Any] = {"monitor": "val/bits_grow", "mode": "min", "network": network}
    return fit(tmp_path_factory.mktemp("told"), clients=FLEET[:1], module=Told, **options)


def test_training_and_evaluation_have_the_bits_of_their_round(told: FederatedTrainer) -> None:
    rows = told.run.history
    assert [row["train/bits"] for row in rows] == [2, 4, 8]
    assert [row["val/bits_grow"] for row in rows] == [2, 4, 8]
    sent = [row["uplink_bytes"] for row in rows]
    assert [later - sooner for sooner, later in pairwise(sent)] != sent[:2]
    assert set(told.run.ledger.by_group) == {"grow"}


def test_devices_are_as_fast_as_their_bits(told: FederatedTrainer) -> None:
    seconds = [row["time/simulated_round_s"] for row in told.run.history]
    assert [time / seconds[0] for time in seconds] == pytest.approx([1, 2, 4], rel=1e-3)


def test_deployed_models_have_the_bits_of_their_checkpoint(told: FederatedTrainer) -> None:
    folder = told.run.folder
    values = {}
    for which in ("best", "last"):
        module = load_model(folder, which, "grow", model=Told())
        values[which] = len(module.net[0].weight.unique())
    assert values["best"] <= 3 < values["last"]
    tested = FederatedTrainer(
        FLEET[:1], network=told.settings.fleet.network, logger=False, devices=1
    )
    assert tested.test(Told(), fake(), folder / "checkpoints/best.ckpt")["test/bits_grow"] == 2
    assert tested.test(Told(), fake(), folder)["test/bits_grow"] == 8


LEARNING = Dequantizer(warmup_rounds=1, period=1, first_steps=2, steps=1, distill_weight=0.0)


@pytest.mark.parametrize(
    "method",
    [
        GroupedAvg,
        # its clients in another process are among the quick tests, in `test_exchange`
        pytest.param(lambda: ProWD(dequantizer=LEARNING), id="ProWD", marks=pytest.mark.slow),
    ],
)
def test_a_run_that_goes_on_at_a_change_is_the_whole_one(tmp_path: Path, method: Any) -> None:
    options: dict[str, Any] = {"clients": FLEET, "norm": "group"}
    options["module"] = lambda: Client(Net(batch_norm=True))
    whole = fit(tmp_path, method(), **options)
    middle = whole.run.checkpoints / "round=00002.ckpt"
    again = fit(tmp_path, method(), ckpt_path=str(middle), **options)
    assert digest(vars(again.server)) == digest(vars(whole.server))


class Starts(GroupedAvg):
    """Notes what low-bit clients start from; the others fail in a round."""

    def __init__(self, failing: int = -1) -> None:
        super().__init__()
        self.failing = failing
        self.models: dict[int, Any] = {}

    def num_steps(self, run: Any, planned: int) -> int:
        if run.round == self.failing and run.client.group != "grow":
            raise RuntimeError("bad luck")
        if run.client.group == "grow":
            self.models[run.round] = run.received
        return planned

    def server_update(self, server: Any, aggregate: Any, rng: Any) -> Any:
        following = super().server_update(server, aggregate, rng)
        self.models[server.round + 10] = following.extra["models"]
        return following


@pytest.mark.filterwarnings("ignore:round 2")
@pytest.mark.parametrize("failing", [-1, 1])
def test_a_model_of_new_bits_goes_on_from_that_of_the_old(tmp_path: Path, failing: int) -> None:
    algorithm = Starts(failing)
    run = fit(tmp_path, algorithm, FLEET, min_clients=3)
    found = algorithm.models
    assert list(found[10]) == ["ternary", "float32"]
    assert list(run.server.extra["models"]) == ["int8", "float32"] == run.server.extra["groups"]
    if failing < 0:
        assert same(found[1], found[10]["ternary"])
        assert same(found[2], found[11]["int4"])
    else:
        # the change was made in the round that failed
        assert same(found[2], found[10]["ternary"])


def test_statistics_of_new_bits_are_those_of_the_old() -> None:
    bits = ["ternary", "int4", "float32"]
    statistics = {name: {"net.1.running_mean": torch.full((5,), i)} for i, name in enumerate(bits)}
    kept = {"statistics": statistics, "counters": {}}
    module = Net(batch_norm=True)
    for policy, expected in (("group", 0), ("average", 1)):
        buffers = Buffers(module, module.state_dict(), policy, bits)
        found = buffers.regrouped(kept, {"int4": "ternary"})["statistics"]
        assert float(found["int4"]["net.1.running_mean"][0]) == expected
    assert float(kept["statistics"]["int4"]["net.1.running_mean"][0]) == 1


def test_prowd_needs_its_high_bits_from_first_to_last(tmp_path: Path) -> None:
    fleet = [{**FLEET[0], "schedule": {1: 16}}, {"bits": 8, "count": 1}]
    message = r"every round: the schedule of the fleet comes to int16, .* in round 1$"
    with pytest.raises(ValueError, match=message):
        fit(tmp_path, ProWD(dequantizer=None), fleet)


def test_backends_are_taken_down_for_each_change(tmp_path: Path) -> None:
    fleet = [{"bits": 4, "count": 1, "name": "grow", "backend": "int8", "schedule": {1: 8, 2: 32}}]
    options: dict[str, Any] = {"clients": fleet, "max_rounds": 3}
    whole = fit(tmp_path, FedAvg(), **options)
    noted = json.loads((whole.run.folder / "settings.json").read_text())["numerics"]["backends"]
    assert {key: set(layers.values()) for key, layers in noted.items()} == {
        "grow": {"int8"},
        "grow@1": {"int8"},
        "grow@2": set(),
    }
    middle = whole.run.checkpoints / "round=00002.ckpt"
    again = fit(tmp_path, FedAvg(), ckpt_path=str(middle), **options)
    assert same(again.server.params, whole.server.params)
