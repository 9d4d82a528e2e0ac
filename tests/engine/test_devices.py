"""What a group says of its devices: its name, its layers, how it trains, what it computes with."""

from __future__ import annotations

import json
import warnings
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

from bhfl.algorithms import FedAvg, FedCOMGATE, FedLQ, GroupedAvg, ProWD
from bhfl.algorithms.prowd import Mask
from bhfl.comm.network import SimulatedNetwork
from bhfl.engine.checkpoint import CheckpointError, digest
from bhfl.engine.devices import Devices, Group
from bhfl.engine.failures import TooFewClientsError
from bhfl.engine.fleet import Fleet
from bhfl.engine.optimizers import Replaced
from bhfl.engine.trainer import FederatedTrainer
from bhfl.engine.types import Client as OneClient
from bhfl.quant import BitSpec, backend_choices, quantize_, quantized_state
from bhfl.quant.backends import auto
from tests.federation import Client, Net, fake, fit

CHANNEL = {"weights": 8, "activations": 8, "granularity": "channel"}


def settings_of(trainer: FederatedTrainer) -> dict[str, Any]:
    assert trainer.run is not None
    return json.loads((trainer.run.folder / "settings.json").read_text())


def rows_of(trainer: FederatedTrainer) -> list[dict[str, Any]]:
    assert trainer.run is not None
    return [{k: v for k, v in row.items() if k != "time/round_s"} for row in trainer.run.history]


# ---- names ---------------------------------------------------------------------------------------

NAMED = [
    {"bits": 8, "count": 1, "name": "a"},
    {"bits": 8, "count": 2, "name": "b"},
    {"bits": {"weights": 8, "activations": 8, "name": "c"}, "count": 1},
    {"bits": 32, "count": 2, "name": "d"},
]


@pytest.mark.parametrize(
    "algorithm",
    [FedAvg, GroupedAvg, partial(ProWD, Mask(per="group"), None), partial(ProWD, None, None)],
)
def test_a_name_never_changes_a_shared_model(tmp_path: Path, algorithm: Any) -> None:
    def run(folder: str, clients: Any) -> FederatedTrainer:
        torch.manual_seed(1)
        module = partial(Client, Net(batch_norm=True))
        return fit(tmp_path / folder, algorithm(), clients, module, fake(96), norm="group")

    plain = run("plain", {8: 4, 32: 2})
    named = run("named", NAMED)
    assert digest(vars(named.server)) == digest(vars(plain.server))
    tags = set(named.run.history[-1])
    assert {f"val/acc_{name}" for name in "abcd"} <= tags
    assert "val/acc_int8" not in tags
    assert list(named.run.ledger.by_group) == ["a", "b", "c", "d"]
    for key in ("val/acc_a", "val/acc_b", "val/acc_c"):
        assert named.run.history[-1][key] == plain.run.history[-1]["val/acc_int8"]


def test_a_name_beats_that_of_the_bits() -> None:
    (group,) = Fleet([{"bits": {"weights": 4, "name": "x"}, "count": 1, "name": "y"}]).groups
    devices = Devices(group)
    client = OneClient(0, devices.spec, 1, devices=devices)
    assert (client.group, client.bits) == ("y", "w4a32")
    assert OneClient(0, BitSpec(weights=4, name="x"), 1).group == "x"


# ---- layers --------------------------------------------------------------------------------------


class Sent(FedAvg):
    """Keeps the bits at which each client sent each layer."""

    def __init__(self) -> None:
        self.bits: dict[str, dict[str, int]] = {}

    def reconstruct(self, update: Any, client: Any, server: Any) -> Any:
        self.bits[client.group] = {
            name: getattr(value, "bits", 32) for name, value in update.items()
        }
        return super().reconstruct(update, client, server)


def test_layers_have_bits_of_their_own_and_the_first_match_counts(tmp_path: Path) -> None:
    layers = {"net.0": 32, "net.3": "ternary", "net.*": 6}
    fleet = [
        {"bits": 4, "count": 1, "layers": layers},
        {"bits": 4, "count": 1, "name": "plain"},
        {"bits": 32, "count": 1},
    ]
    algorithm = Sent()
    trainer = fit(tmp_path, algorithm, fleet)
    biases = {"net.0.bias": 32, "net.3.bias": 32, "net.5.bias": 32}
    assert algorithm.bits["int4"] == {
        "net.0.weight": 32,
        "net.3.weight": 2,
        "net.5.weight": 6,
        **biases,
    }
    assert algorithm.bits["plain"] == {
        **dict.fromkeys(["net.0.weight", "net.3.weight", "net.5.weight"], 4),
        **biases,
    }
    assert len({client.bits for client in trainer.clients}) == 3
    listed = settings_of(trainer)["task"]["clients"][0]
    assert listed["layers"] == {"net.0": "float32", "net.3": "ternary", "net.*": "int6"}


@pytest.mark.parametrize("algorithm", [GroupedAvg, partial(ProWD, Mask(tau=0.5), None)])
def test_methods_know_the_bits_of_layers(tmp_path: Path, algorithm: Any) -> None:
    fleet = [
        {"bits": 4, "count": 2, "layers": {"net.0": 8}, "name": "first8"},
        {"bits": 4, "count": 2},
        {"bits": 32, "count": 2},
    ]
    trainer = fit(tmp_path, algorithm(), fleet)
    assert [row["clients/ok"] for row in trainer.run.history] == [6.0] * 3
    assert {"val/acc_first8", "val/acc_int4"} <= set(trainer.run.history[-1])


def test_codes_at_other_bits_than_the_layer_has_are_refused(tmp_path: Path) -> None:
    class Liar(FedAvg):
        def uplink(self, run: Any) -> Any:
            quantize_(run.module, 4)
            return quantized_state(run.module)

    fleet = [{"bits": 4, "count": 1, "layers": {"net.0": 8}}, {"bits": 32, "count": 1}]
    with pytest.raises(
        TooFewClientsError, match=r"net\.0\.weight must come as codes of 8 bits, got 4"
    ):
        fit(tmp_path, Liar(), fleet, max_rounds=1)


def test_a_pattern_that_matches_nothing(tmp_path: Path) -> None:
    fleet = [{"bits": 4, "count": 1, "layers": {"net.9": 8}}, {"bits": 32, "count": 1}]
    with pytest.raises(ValueError, match=r"layers of group 'int4' must match .* got 'net\.9'; did"):
        fit(tmp_path, FedAvg(), fleet)
    assert not list(tmp_path.rglob("settings.json"))


def test_fedlq_chooses_the_bits_of_layers_itself(tmp_path: Path) -> None:
    fleet = [{"bits": 4, "count": 1, "layers": {"net.0": 8}}, {"bits": 32, "count": 1}]
    with pytest.raises(ValueError, match="FedLQ chooses the bits of each layer itself"):
        fit(tmp_path, FedLQ(), fleet)


# ---- training ------------------------------------------------------------------------------------


class Steps(FedAvg):
    """Logs the steps and the rate of each group."""

    def uplink(self, run: Any) -> Any:
        run.metrics[f"steps/{run.client.group}"] = float(run.num_steps)
        run.metrics[f"rate/{run.client.group}"] = run.lr_sum / run.num_steps
        return super().uplink(run)


def test_a_group_trains_as_long_as_it_says(tmp_path: Path) -> None:
    fleet = [
        {"bits": 8, "count": 1},
        {"bits": 8, "count": 1, "name": "epochs", "local_epochs": 2},
        {"bits": 8, "count": 1, "name": "steps", "local_steps": 5},
    ]
    row = fit(tmp_path / "a", Steps(), fleet, data=fake(96, batch_size=10)).run.history[0]
    assert (row["steps/int8"], row["steps/epochs"], row["steps/steps"]) == (3.0, 6.0, 5.0)
    row = fit(
        tmp_path / "b", Steps(), fleet, data=fake(96, batch_size=10), local_steps=1
    ).run.history[0]
    assert (row["steps/int8"], row["steps/epochs"], row["steps/steps"]) == (1.0, 6.0, 5.0)


class Scheduled(Client):
    """Halves its rate each round."""

    def configure_optimizers(self) -> Any:
        optimizer = super().configure_optimizers()
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
        return {"optimizer": optimizer, "lr_scheduler": schedule}


def test_an_optimizer_in_place_of_the_module_s_follows_its_schedule(tmp_path: Path) -> None:
    wanted = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.0078125}}
    fleet = [{"bits": 8, "count": 2, "optimizer": wanted}, {"bits": 32, "count": 2}]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trainer = fit(tmp_path, Steps(), fleet, Scheduled)
    rates = [row["rate/int8"] for row in trainer.run.history]
    assert rates == [0.0078125, 0.0078125 / 2, 0.0078125 / 4]
    assert trainer.run.history[0]["rate/float32"] == pytest.approx(0.05)
    own = fit(tmp_path / "own", Steps(), {8: 2, 32: 2}, Scheduled)
    assert rows_of(own)[0]["val/acc_int8"] is not None
    assert digest(own.server.params) != digest(trainer.server.params)


def test_the_same_optimizer_in_place_of_the_module_s_is_the_same_run(tmp_path: Path) -> None:
    wanted = {"class_path": "SGD", "init_args": {"lr": 0.05, "momentum": 0.9}}
    fleet = [{"bits": 8, "count": 2, "optimizer": wanted}, {"bits": 32, "count": 2}]
    replaced = fit(tmp_path / "replaced", FedAvg(), fleet, Scheduled)
    own = fit(tmp_path / "own", FedAvg(), {8: 2, 32: 2}, Scheduled)
    assert digest(replaced.server.params) == digest(own.server.params)


def test_groups_of_parameters_keep_their_ratios() -> None:
    weights = [nn.Parameter(torch.ones(1)) for _ in range(2)]
    own = torch.optim.SGD([{"params": weights[:1], "lr": 0.2}, {"params": weights[1:], "lr": 0.4}])
    replaced = Replaced(own, {"class_path": "torch.optim.Adam", "init_args": {"lr": 0.01}})
    own.param_groups[1]["lr"] = 0.1
    replaced.optimizer.step()
    assert [group["lr"] for group in replaced.optimizer.param_groups] == [0.01, 0.0025]
    own.param_groups[0]["lr"] = 0.0
    with pytest.raises(ValueError, match="first learning rate must not be 0"):
        Replaced(own, {"class_path": "torch.optim.Adam", "init_args": {}})


class Rateless(torch.optim.Optimizer):
    """An optimiser of a user's own, whose groups of parameters have no `lr`."""

    def __init__(self, params: Any, scale: float = 0.1) -> None:
        super().__init__(params, {"scale": scale})

    def step(self, closure: Any = None) -> None:
        if closure is not None:
            closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.data.sub_(parameter.grad, alpha=group["scale"])


class WithoutRate(Client):
    def configure_optimizers(self) -> Any:
        return Rateless(self.parameters(), self.lr)


def test_an_optimizer_without_a_rate_trains_and_stands_in_for_none(tmp_path: Path) -> None:
    options = {"max_rounds": 1, "max_failed_rounds": 0}
    found = fit(tmp_path / "own", FedAvg(), {32: 2}, WithoutRate, **options)
    plain = partial(Client, momentum=0.0)
    same = fit(tmp_path / "sgd", FedAvg(), {32: 2}, plain, **options)
    assert digest(found.server.params) == digest(same.server.params)
    with pytest.raises(ValueError, match="cannot be used: its groups of parameters have no lr"):
        Fleet([{"bits": 8, "count": 1, "optimizer": {"class_path": f"{__name__}.Rateless"}}])
    wanted = {"class_path": "SGD", "init_args": {"lr": 0.1}}
    fleet = [{"bits": 8, "count": 1, "optimizer": wanted}]
    with pytest.raises(ValueError, match="first learning rate must not be 0"):
        fit(tmp_path / "group", FedAvg(), fleet, WithoutRate)


def test_an_optimizer_may_be_a_function(tmp_path: Path) -> None:
    # AdamW notes an option that its constructor does not take
    make = partial(torch.optim.AdamW, lr=0.01)
    fleet = Fleet([{"bits": 8, "count": 1, "optimizer": make}, {"bits": 32, "count": 1}])
    described = fleet.to_config()[0]["optimizer"]
    assert described["class_path"] == "torch.optim.AdamW"
    assert described["init_args"]["lr"] == 0.01
    assert Fleet(fleet.to_config()) == fleet
    assert fit(tmp_path, FedAvg(), fleet, max_rounds=1).run.history[0]["clients/ok"] == 2.0


def test_a_schedule_that_cannot_be_followed_is_refused_before_any_work(tmp_path: Path) -> None:
    wanted = {"class_path": "SGD", "init_args": {"lr": 0.1}}
    fleet = [{"bits": 8, "count": 1, "optimizer": wanted}, {"bits": 32, "count": 1}]
    with pytest.raises(ValueError, match="first learning rate must not be 0"):
        fit(tmp_path, FedAvg(), fleet, partial(Client, lr=0.0))
    assert not list(tmp_path.rglob("settings.json"))


class TwoOptimizers(Client):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD(self.parameters(), 0.1), torch.optim.SGD(self.parameters(), 0.1)]


def test_an_optimizer_in_place_of_two_is_refused(tmp_path: Path) -> None:
    wanted = {"class_path": "SGD", "init_args": {"lr": 0.1}}
    fleet = [{"bits": 8, "count": 1, "optimizer": wanted}, {"bits": 32, "count": 1}]
    with pytest.raises(ValueError, match=r"optimizer of group 'int8' .* returns several"):
        fit(tmp_path, FedAvg(), fleet, TwoOptimizers)


@pytest.mark.parametrize(
    ("group", "message"),
    [
        (
            {"optimizer": {"class_path": "Adam"}},
            "FedCOMGATE needs one torch.optim.SGD .* has Adam .*; set all",
        ),
        ({"local_steps": 1}, "needs equal numbers of local steps, got 1 to 3 a client"),
    ],
)
def test_fedcomgate_sees_what_groups_train_with(
    tmp_path: Path, group: dict[str, Any], message: str
) -> None:
    fleet = [{"bits": 8, "count": 2, **group}, {"bits": 32, "count": 2}]
    with pytest.raises(ValueError, match=message):
        fit(tmp_path, FedCOMGATE(), fleet, partial(Client, momentum=0.0), fake(106))


def test_a_profile_in_place_of_a_drawn_one(tmp_path: Path) -> None:
    network = partial(SimulatedNetwork, {"wifi": 0.5, "phone-4g": 0.5}, seed=3)
    given = [{"bits": 8, "count": 2, "profile": "iot"}, {"bits": 32, "count": 2}]
    links = {}
    for name, fleet in (("drawn", {8: 2, 32: 2}), ("given", given)):
        trainer = fit(tmp_path / name, FedAvg(), fleet, network=network(), max_rounds=1)
        timing = trainer.session.timing
        links[name] = [timing.link(0, client, 4).link for client in trainer.clients]
    assert links["drawn"][2:] == links["given"][2:]
    assert all(one.latency_seconds == 1.0 for one in links["given"][:2])
    assert all(one.latency_seconds < 0.1 for one in links["drawn"])


# ---- backends ------------------------------------------------------------------------------------

EVERY = [
    {"bits": 8, "count": 1, "name": name, "backend": name}
    for name in ("fake", "int8", "int8-bfloat16", "integer", "auto", "auto-bfloat16")
]
EVERY.append({"bits": CHANNEL, "count": 1, "name": "bnb", "backend": "bitsandbytes"})
EVERY.append({"bits": 32, "count": 2})


@pytest.fixture
def fast_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine on which integer products of linear layers gain from four channels on."""
    table = {(name, "linear"): 4 for name in ("int8", "int8-bfloat16", "integer")}
    monkeypatch.setattr(auto, "TABLES", {"cpu": table})


@pytest.mark.usefixtures("fast_machine")
@pytest.mark.filterwarnings("error::bhfl.quant.BackendWarning")
def test_which_layer_ran_as_what_is_in_the_run_folder(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="bnb clients") as told:
        trainer = fit(tmp_path, FedAvg(), EVERY, data=fake(96), max_rounds=2)
    layers = ["net.0", "net.3", "net.5"]
    linear = layers[1:]
    expected = {
        "fake": {},
        "int8": dict.fromkeys(layers, "int8"),
        "int8-bfloat16": dict.fromkeys(layers, "int8-bfloat16"),
        "integer": dict.fromkeys(layers, "integer"),
        "auto": dict.fromkeys(linear, "int8"),
        "auto-bfloat16": dict.fromkeys(linear, "int8-bfloat16"),
        "bnb": dict.fromkeys(linear, "bitsandbytes"),
        "float32": {},
    }
    assert settings_of(trainer)["numerics"]["backends"] == expected
    texts = [str(one.message) for one in told]
    partly = [text for text in texts if "cannot serve" in text]
    assert partly == [
        "bnb clients compute 96% of their low-bit weights by 'bitsandbytes', which cannot serve "
        "net.0: these run as 'fake'"
    ]
    assert [text for text in texts if "leaves in float32" in text]


def test_equal_float_weights_have_equal_codes_with_every_backend() -> None:
    states = []
    for backend in ("fake", "int8", "int8-bfloat16", "integer", "bitsandbytes"):
        torch.manual_seed(0)
        states.append(quantized_state(quantize_(Net(), CHANNEL, backend=backend)))
    for state in states[1:]:
        for name, value in states[0].items():
            if not isinstance(value, torch.Tensor):
                assert torch.equal(value.codes, state[name].codes)
                assert torch.equal(value.scale, state[name].scale)


class Seen(Client):
    """Notes what computes its layers, whenever it trains or is measured."""

    seen: ClassVar[set[tuple[str, ...]]] = set()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        type(self).seen.add(tuple(backend_choices(self).values()))
        super().validation_step(batch, batch_idx)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        type(self).seen.add(tuple(backend_choices(self).values()))
        super().test_step(batch, batch_idx)


INTEGERS = [{"bits": 8, "count": 2, "backend": "auto-integer"}, {"bits": 32, "count": 2}]


@pytest.mark.usefixtures("fast_machine")
def test_a_run_goes_on_as_it_was_written_on_any_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = fit(tmp_path / "whole", FedAvg(), INTEGERS, Seen, max_rounds=4)
    started = fit(tmp_path / "parts", FedAvg(), INTEGERS, Seen, max_rounds=2)
    # another machine, on which nothing is faster than fake
    monkeypatch.setattr(auto, "TABLES", {"cpu": {}})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        resumed = fit(tmp_path / "parts", FedAvg(), INTEGERS, Seen, ckpt_path="last", max_rounds=4)
    assert digest(vars(resumed.server)) == digest(vars(whole.server))
    assert settings_of(resumed)["numerics"] == settings_of(whole)["numerics"]
    assert settings_of(started)["numerics"] == settings_of(whole)["numerics"]
    Seen.seen = set()
    measured = FederatedTrainer(INTEGERS, default_root_dir=str(tmp_path), logger=False, devices=1)
    checkpoint = whole.run.folder
    assert measured.test(Seen(), fake(), ckpt_path=checkpoint) == whole.test(
        Seen(), fake(), ckpt_path=checkpoint
    )
    assert Seen.seen == {("fake", "integer", "integer"), ("fake", "fake", "fake")}


def test_resumed_is_never_stopped_with_every_backend(tmp_path: Path) -> None:
    wage = {"bits": "wage2888", "count": 1, "name": "wage", "backend": "integer"}
    fleet = [*EVERY, wage]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        whole = fit(tmp_path / "whole", FedAvg(), fleet, data=fake(96))
        fit(tmp_path / "parts", FedAvg(), fleet, data=fake(96), max_rounds=1)
        resumed = fit(tmp_path / "parts", FedAvg(), fleet, data=fake(96), ckpt_path="last")
    assert digest(vars(resumed.server)) == digest(vars(whole.server))
    assert rows_of(resumed) == rows_of(whole)


@pytest.mark.usefixtures("fast_machine")
@pytest.mark.parametrize(
    "backends", [{"int8": {"net.9": "int8"}}, {"int8": {"net.3": "int9"}}, {"int8": 7}, 7]
)
def test_backends_of_a_checkpoint_that_are_not_known(tmp_path: Path, backends: Any) -> None:
    trainer = fit(tmp_path, FedAvg(), INTEGERS, max_rounds=1)
    with pytest.raises(CheckpointError, match="the checkpoint cannot be used"):
        trainer.session.use_backends({"numerics": {"backends": backends}})


@pytest.mark.parametrize("backend", ["int8", "integer", "bitsandbytes"])
def test_a_client_is_measured_as_it_computes(tmp_path: Path, backend: str) -> None:
    Seen.seen = set()
    fleet = [{"bits": CHANNEL, "count": 1, "backend": backend}, {"bits": 32, "count": 1}]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit(tmp_path, FedAvg(), fleet, Seen, max_rounds=1)
    first = "fake" if backend == "bitsandbytes" else backend
    assert Seen.seen == {(first, backend, backend), ("fake", "fake", "fake")}


def test_one_module_takes_the_backend_of_each_client_in_turn() -> None:
    module = quantize_(Net(), 8)
    whole = Devices(Group(bits=BitSpec.parse(8), backend="int8"))
    whole.set_(module)
    whole.choose_(module)
    plain = Devices.of(BitSpec.parse(8))
    whole.set_(module)
    assert set(backend_choices(module).values()) == {"int8"}
    plain.set_(module)
    assert set(backend_choices(module).values()) == {"fake"}


class OnlyEmbedding(Client):
    def __init__(self) -> None:
        super().__init__(nn.Sequential(nn.Flatten(), nn.Embedding(5, 4)))


def test_a_backend_that_serves_no_layer_is_refused(tmp_path: Path) -> None:
    fleet = [{"bits": 8, "count": 1, "backend": "int8", "name": "x"}, {"bits": 32, "count": 1}]
    message = "backend 'int8' of group 'x' serves no layer of OnlyEmbedding: it has no integer"
    with pytest.raises(ValueError, match=message):
        fit(tmp_path, FedAvg(), fleet, OnlyEmbedding)
    assert not list(tmp_path.rglob("settings.json"))


def test_a_backend_without_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bhfl.quant.backends import bnb

    def missing(name: str) -> None:
        raise ImportError(f"No module named {name!r}")

    bnb._package.cache_clear()
    monkeypatch.setattr(bnb.importlib, "import_module", missing)
    fleet = [{"bits": CHANNEL, "count": 1, "backend": "bitsandbytes"}, {"bits": 32, "count": 1}]
    with pytest.raises(ImportError, match="pip install bitsandbytes"):
        fit(tmp_path, FedAvg(), fleet)


@pytest.mark.parametrize(
    ("group", "message"),
    [
        ({"backend": "integr"}, "backend must be one of .*; did you mean 'integer'"),
        ({"backend": "bitsandbytes"}, "granularity: channel}, got int4"),
        ({"bits": 32, "backend": "int8"}, "backend 'int8' cannot serve these bits: .* got 32, 32"),
        ({"bits": 16, "backend": "auto"}, "backend 'auto' cannot serve these bits"),
        ({"backnd": "int8"}, "unknown key 'backnd'; did you mean 'backend'"),
        ({"local_epochs": 1, "local_steps": 1}, "takes local_epochs or local_steps, not both"),
        ({"local_steps": 0}, "local_steps must be an integer from 1"),
        ({"name": "a b"}, "name must be letters"),
        ({"name": ""}, "name must be letters"),
        ({"name": "avg"}, "name must be none of all, avg, global, min"),
        ({"name": "x" * 101}, "name must have at most 100 bytes"),
        ({"layers": 8}, "layers must be a mapping of patterns to bits, got 8"),
        ({"layers": {"net.0": 1}}, r"layers\[net\.0\]: bits must be 2\.\.16 or 32, got 1"),
        ({"bits": 32, "layers": {"net.0": 8}}, "layers needs bits below 32 beside it"),
        ({"optimizer": "SGD"}, "optimizer must be a mapping of class_path and init_args"),
        ({"optimizer": {"class_path": "SDG"}}, "class_path must be an optimizer, .*'SGD'"),
        ({"optimizer": {"class_path": "os.path"}}, "class_path must be an optimizer"),
        ({"optimizer": {"class_path": "..SGD"}}, "class_path must be an optimizer"),
        (
            {"optimizer": {"class_path": "SGD", "init_args": {"lr": -1}}},
            "optimizer cannot be used: ValueError: Invalid learning rate: -1",
        ),
        (
            {"optimizer": {"class_path": "SGD", "init_args": {"momentm": 1}}},
            # later Pythons name the nearest name too
            r"optimizer cannot be used: TypeError: [^;]*momentm'(\. Did you mean 'momentum'\?)?$",
        ),
        ({"optimizer": {"class_path": "LBFGS"}}, "optimizer cannot be used: .*closure"),
        ({"profile": 3}, "profile must not be empty, got 3"),
    ],
)
def test_bad_groups(group: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=rf"clients\[0\]: .*{message}"):
        Fleet([{"bits": 4, "count": 1, **group}])


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (None, "profile of group 'int8' needs trainer.network, got 'wify'"),
        (SimulatedNetwork(), "profile of group 'int8' must be one of .* did you mean 'wifi'"),
    ],
)
def test_bad_profiles(network: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FederatedTrainer([{"bits": 8, "count": 1, "profile": "wify"}], network=network)


def test_two_groups_of_one_name() -> None:
    fleet = [{"bits": 8, "count": 1, "name": "x"}, {"bits": 4, "count": 1, "name": "x"}]
    with pytest.raises(ValueError, match=r"x is given more than once; .* or give each a name"):
        Fleet(fleet)


def test_a_fleet_reads_back() -> None:
    fleet = Fleet(
        [
            {
                "bits": 4,
                "count": 3,
                "name": "phones",
                "backend": "auto",
                "layers": {"a.*": 8, "b": 32},
                "local_steps": 3,
                "optimizer": {"class_path": "Adam", "init_args": {"lr": 0.1}},
                "profile": "wifi",
            },
            {"bits": 32, "count": 1},
        ]
    )
    again = Fleet(json.loads(json.dumps(fleet.to_config())))
    assert again == fleet
    assert again.to_config() == fleet.to_config()
    assert fleet.to_config()[1] == {"bits": "float32", "count": 1}
