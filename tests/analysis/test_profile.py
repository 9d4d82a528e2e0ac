"""What a fleet costs before it trains: against what a run then sends, and what is known by hand."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from bhfl.algorithms import SCAFFOLD, Ditto, FedAvg
from bhfl.analysis import profile
from bhfl.analysis.energy import EnergyMeter
from bhfl.comm import encoded_bytes
from bhfl.engine.availability import Availability
from bhfl.engine.flops import count_flops
from bhfl.engine.trainer import FederatedTrainer
from bhfl.report.profile import draw, table, write_csv
from tests.engine.hand_made import HandMade, Module, points
from tests.federation import fit

FLEET = [{"bits": 4, "count": 1, "layers": {"net.2": 8}}, {"bits": 32, "count": 2}]


def data() -> HandMade:
    parts = [points(8), points(0, seed=1), points(8, seed=2)]
    return HandMade(parts, held_out=points(4, seed=9))


class SGD(Module):
    """Optimised as SCAFFOLD wants it."""

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def trainer(folder: Path, algorithm: Any = None, **options: Any) -> FederatedTrainer:
    options = {"logger": False, "devices": 1, "default_root_dir": str(folder), **options}
    algorithm = algorithm or SCAFFOLD()
    return FederatedTrainer(FLEET, algorithm, monitor="train/loss", mode="min", **options)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The rows by group and layer, and the model before and after."""
    folder = tmp_path_factory.mktemp("profile")
    module = SGD()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    found = profile(
        trainer(folder), module, data(), steps=1, repeats=1, powercap=folder / "nowhere"
    )
    assert not list(folder.iterdir())
    rows = {(row["group"], row["layer"]): row for row in found.rows}
    return found, rows, before, module.state_dict()


def test_the_bytes_are_those_of_a_run(made: Any, tmp_path: Path) -> None:
    run = fit(
        tmp_path, SCAFFOLD(), FLEET, SGD, data(), max_rounds=1, monitor="train/loss", mode="min"
    ).run
    _, rows, _, _ = made
    for group in ("int4", "float32"):
        # the second client has no samples, and is sent nothing
        for way in ("uplink_bytes", "downlink_bytes"):
            assert rows[group, "(all)"][way] == run.ledger.by_group[group][way]
            parts = [row[way] for (its, layer), row in rows.items() if its == group]
            header = rows[group, "(all)"][way] - (sum(parts) - rows[group, "(all)"][way])
            assert 0 < header < 200


def test_what_is_frozen_is_told_apart_as_it_is_sent_once(made: Any, tmp_path: Path) -> None:
    module = SGD()
    body = {name: tensor for name, tensor in module.state_dict().items() if "net.0" in name}
    module.net[0].requires_grad_(False)
    found = profile(trainer(tmp_path, FedAvg()), module, data(), steps=1, repeats=1)
    rows = {(row["group"], row["layer"]): row for row in found.rows}
    whole, frozen, head = (rows["int4", layer] for layer in ("(all)", "net.0", "net.2"))
    assert whole["once_bytes"] == encoded_bytes(body)
    assert frozen["once_bytes"] == encoded_bytes(body) - encoded_bytes({})
    assert (frozen["bits"], frozen["low_share"], frozen["downlink_bytes"]) == ("float32", 0, 0)
    assert (head["bits"], head["once_bytes"]) == ("int8", 0)
    assert whole["downlink_bytes"] == head["downlink_bytes"] + encoded_bytes({})
    assert "once kB" in table(found.rows)
    assert "once kB" not in table(made[0].rows)


def test_bits_that_change_are_told_each_with_its_rounds(tmp_path: Path) -> None:
    fleet = [
        {"bits": 3, "count": 1, "name": "grow", "layers": {"net.2": 8}, "schedule": {3: 4, 5: 8}},
        {"bits": 32, "count": 2},
    ]
    options: dict[str, Any] = {"monitor": "train/loss", "mode": "min", "max_rounds": 9}
    options |= {"logger": False, "devices": 1, "default_root_dir": str(tmp_path)}
    asked = FederatedTrainer(fleet, FedAvg(), **options)
    found = profile(asked, SGD(), data(), steps=1, repeats=1, powercap=tmp_path)
    whole = {(row["rounds"], row["bits"]): row for row in found.rows if row["layer"] == "(all)"}
    assert list(whole) == [("1-3", "int3"), ("4-5", "int4"), ("6-9", "int8"), ("1-9", "float32")]
    first = {(row["rounds"], row["layer"]): row for row in found.rows if row["bits"] != "float32"}
    # the codes of 42 weights take 16, 21 and 42 bytes
    sent = [first[rounds, "net.0"]["uplink_bytes"] for rounds in ("1-3", "4-5", "6-9")]
    assert [sent[1] - sent[0], sent[2] - sent[1]] == [5, 21]
    assert {first[rounds, "net.2"]["bits"] for rounds in ("1-3", "4-5", "6-9")} == {"int8"}
    text = table(found.rows)
    assert text.splitlines()[0].split()[:3] == ["group", "rounds", "bits"]
    assert "grow, rounds 4-5, layer by layer" in text
    write_csv(found.rows, tmp_path / "profile.csv")
    assert "grow,net.0,Linear,int4,4-5,49," in (tmp_path / "profile.csv").read_text()
    draw(found.rows, tmp_path / "profile.png", found.title)


def test_what_is_frozen_takes_less_to_train(tmp_path: Path) -> None:
    taken = []
    for frozen in ((), ("net.0",), ("net.2",)):
        module = SGD()
        for name in frozen:
            module.get_submodule(name).requires_grad_(False)
        found = profile(trainer(tmp_path, FedAvg()), module, data(), steps=1, repeats=1)
        rows = {row["layer"]: row for row in found.rows if row["group"] == "int4"}
        for name in ("net.0", "net.2", "(all)"):
            assert rows[name]["flops"] == {"net.0": 84, "net.2": 42, "(all)": 126}[name]
        taken.append([rows[name]["training_flops"] for name in ("net.0", "net.2", "(all)")])
    # below the first layer that trains there is no gradient at all, above it that of the input
    assert taken == [[252, 126, 378], [84, 126, 210], [252, 84, 336]]


class Prompted(nn.Module):
    """A frozen layer behind a trained prompt."""

    def __init__(self) -> None:
        super().__init__()
        self.prompt = nn.Parameter(torch.zeros(6))
        self.body = nn.Linear(6, 7).requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x + self.prompt)  # type: ignore[no-any-return]


@pytest.mark.parametrize("module", [Prompted(), nn.Sequential(Prompted())], ids=["root", "inside"])
def test_gradients_pass_frozen_layers_on_their_way_to_a_prompt(module: nn.Module) -> None:
    evaluate = lambda batches, _: module(batches[0][0])  # noqa: E731
    worker: Any = SimpleNamespace(module=module, evaluate=evaluate)
    found = count_flops(worker, (torch.zeros(1, 6), torch.zeros(1)))
    (name,) = [name for name in found.forward if name.endswith("body")]
    assert (found.forward[name], found.training[name]) == (84, 168)


def test_layers_have_their_own_bits_and_parameters(made: Any) -> None:
    _, rows, _, _ = made
    assert [rows["int4", name]["bits"] for name in ("net.0", "net.2")] == ["int4", "int8"]
    assert rows["float32", "net.0"]["bits"] == "float32"
    for group in ("int4", "float32"):
        sizes = [
            rows[group, name]["parameters"] for name in ("net.0", "net.2", "(others)", "(all)")
        ]
        assert sizes == [6 * 7 + 7, 7 * 3 + 3, 0, 73]
    assert rows["int4", "net.0"]["low_share"] == 42 / 49
    assert rows["int4", "(all)"]["low_share"] == 63 / 73
    assert rows["float32", "(all)"]["low_share"] == 0


def test_flops_and_memory_are_those_that_are_known(made: Any) -> None:
    _, rows, _, _ = made
    for group in ("int4", "float32"):
        assert rows[group, "net.0"]["flops"] == 2 * 6 * 7
        assert rows[group, "(all)"]["flops"] == 2 * (6 * 7 + 7 * 3)
    # a batch of four samples: a linear layer keeps its input
    assert rows["float32", "net.0"]["kept_bytes"] == 4 * 6 * 4
    # and where it is quantised more, such as the weights that it computes with
    assert rows["int4", "net.0"]["kept_bytes"] > 4 * 6 * 4
    for group in ("int4", "float32"):
        for name in ("net.0", "net.2"):
            assert 0 < rows[group, name]["step_seconds"] < 1


def test_nothing_is_left_behind(made: Any) -> None:
    found, _, before, after = made
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert found.title == "SGD by SCAFFOLD, 1 thread on cpu"
    assert "step_joules" not in found.rows[0]


def test_it_is_told_written_and_drawn(made: Any, tmp_path: Path) -> None:
    found = made[0]
    text = table(found.rows)
    assert text.splitlines()[0].split()[:2] == ["group", "bits"]
    assert "int4, layer by layer" in text
    assert "step J" not in text
    write_csv(found.rows, tmp_path / "profile.csv")
    head, *lines = (tmp_path / "profile.csv").read_text().splitlines()
    assert head.startswith("group,layer,kind,bits,parameters,low_share,flops,training_flops,")
    assert len(lines) == len(found.rows) == 8
    assert "nan" not in "".join(lines)
    draw(found.rows, tmp_path / "profile.png", found.title)
    assert (tmp_path / "profile.png").read_bytes().startswith(b"\x89PNG")


# ---- energy --------------------------------------------------------------------------------------


def counter(root: Path, name: str, label: str, value: int) -> Path:
    folder = root / name
    folder.mkdir(parents=True)
    (folder / "name").write_text(f"{label}\n")
    (folder / "energy_uj").write_text(f"{value}\n")
    (folder / "max_energy_range_uj").write_text("1000000\n")
    return folder


def test_energy_is_that_of_all_packages(tmp_path: Path) -> None:
    first = counter(tmp_path, "intel-rapl:0", "package-0", 100)
    second = counter(tmp_path, "intel-rapl:1", "package-1", 999_000)
    counter(tmp_path, "intel-rapl:0:0", "core", 5)
    counter(tmp_path, "intel-rapl:2", "psys", 5)
    meter = EnergyMeter(tmp_path)
    before = meter.read()
    assert before == [100, 999_000]
    (first / "energy_uj").write_text("500100\n")
    # it has begun anew
    (second / "energy_uj").write_text("1000\n")
    assert meter.joules(before, meter.read()) == pytest.approx(0.502)


def test_no_energy_is_told_where_none_is_counted(tmp_path: Path) -> None:
    counter(tmp_path / "hidden", "intel-rapl:0", "package-0", 1)
    (tmp_path / "hidden" / "intel-rapl:0" / "energy_uj").unlink()
    assert not EnergyMeter(tmp_path / "hidden")
    assert not EnergyMeter(tmp_path / "nowhere")


def test_a_step_has_its_energy_where_it_is_counted(tmp_path: Path) -> None:
    counter(tmp_path / "powercap", "intel-rapl:0", "package-0", 7)
    found = profile(
        trainer(tmp_path), SGD(), data(), steps=1, repeats=1, powercap=tmp_path / "powercap"
    )
    for row in found.rows:
        assert row["step_joules"] == 0 or math.isnan(row["step_joules"])
    assert "step J" in table(found.rows)


def test_two_models_of_a_client_keep_no_more_at_a_time_than_one(tmp_path: Path) -> None:
    kept = []
    for algorithm in (FedAvg(), Ditto()):
        found = profile(trainer(tmp_path, algorithm), SGD(), data(), steps=1, repeats=1)
        kept.append([row["kept_bytes"] for row in found.rows])
    assert sum(kept[0])
    assert kept[0] == kept[1]


# ---- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(("key", "value"), [("steps", 0), ("repeats", -1), ("steps", 1.5)])
def test_a_wrong_number_is_refused(tmp_path: Path, key: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{key} must be an integer from 1"):
        profile(trainer(tmp_path), SGD(), data(), **{key: value})


def test_several_processes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="profile runs in one process: devices must be 1, got 2"):
        profile(trainer(tmp_path, devices=2, accelerator="cpu"), SGD(), data())


def test_clients_that_would_drop_out_are_measured_in_a_whole_round(tmp_path: Path) -> None:
    away = Availability(dropout=0.9999, stragglers=1, part=0.01)
    asked = trainer(tmp_path, availability=away)
    found = profile(asked, SGD(), data(), steps=2, repeats=1, powercap=tmp_path / "nowhere")
    whole = [row for row in found.rows if row["layer"] == "(all)"]
    assert len(whole) == 2
    assert all(row["uplink_bytes"] for row in whole)
    assert asked.settings.fleet.availability is away


def test_a_client_that_cannot_train_is_told(tmp_path: Path) -> None:
    class Broken(SGD):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            raise RuntimeError("out of order")

    with pytest.raises(RuntimeError, match=r"client 0 of group int4 failed: .*out of order"):
        profile(trainer(tmp_path), Broken(), data(), steps=1, repeats=1)


class Tied(nn.Module):
    """Two layers of one weight, and one whose weight is computed from others."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6, bias=False)
        self.second.weight = self.first.weight
        self.head = nn.utils.parametrizations.weight_norm(nn.Linear(6, 3))

    def forward(self, x: torch.Tensor) -> Any:
        return self.head(self.second(self.first(x)))


def test_a_parameter_counts_once_and_at_low_bits_only_where_it_is_the_weight(
    tmp_path: Path,
) -> None:
    module = Module(Tied())
    fleet = FederatedTrainer({8: 1, 32: 2}, logger=False, devices=1, default_root_dir=str(tmp_path))
    rows = profile(fleet, module, data(), steps=1, repeats=1).rows
    low = {row["layer"].removeprefix("net."): row for row in rows if row["group"] == "int8"}
    counts = {layer: row["parameters"] for layer, row in low.items()}
    total = sum(p.numel() for p in module.parameters())
    assert counts.pop("(all)") == sum(counts.values()) == total
    assert (counts["first"], counts["second"], counts["(others)"]) == (42, 0, 0)
    assert low["second"]["low_share"] == low["head"]["low_share"] == 0
    assert low["(all)"]["low_share"] == 36 / total
