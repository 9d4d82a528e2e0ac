"""What a fit returns: figures, a table, pictures, and weights at the bits of each group."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from bhfl.algorithms import FedAvg, GroupedAvg, Local
from bhfl.engine import FederatedTrainer, FitResult
from bhfl.quant import fake_quantize
from tests.federation import Client, Net, fake, same

FLEET = [{"bits": {"weights": 4}, "count": 2, "name": "small"}, {"bits": 32, "count": 1}]


def trained(folder: Path, fleet: Any = FLEET, module: Any = Client, **options: Any) -> Any:
    """A result, and the trainer and the module that it came from."""
    settings = {"max_rounds": 2, "logger": False, "default_root_dir": folder, "devices": 1}
    trainer = FederatedTrainer(fleet, **{**settings, **options})
    torch.manual_seed(0)
    model = module()
    return trainer.fit(model, fake()), trainer, model


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return trained(tmp_path_factory.mktemp("runs"), algorithm=GroupedAvg())


def test_a_result_has_the_figures_of_its_run(run: Any) -> None:
    result, trainer, _ = run
    assert isinstance(result, FitResult)
    assert (result.folder, result.rounds) == (trainer.run.folder, 2)
    assert result.groups == {"small": 2, "float32": 1}
    assert result.by_group["small"] == {"acc": result.metrics["test/acc_small"]}
    assert result.uplink_bytes == sum(row["uplink_bytes"] for row in result.history)
    assert result.downlink_bytes == sum(row["downlink_bytes"] for row in result.history)
    assert result.seconds == trainer.run.seconds
    values = result.series("val/acc_avg")
    assert result.best.monitor == "val/acc_avg"
    assert result.best.value == max(values.values()) == values[result.best.round]
    assert result.server.round == 2


def test_a_tag_that_no_round_has_is_named(run: Any) -> None:
    with pytest.raises(ValueError, match="tag must be one of the run's, got 'val/acc_smal'; did"):
        run[0].series("val/acc_smal")


def test_it_shows_itself_as_a_small_table(run: Any) -> None:
    result = run[0]
    head, first, *rows, folder = repr(result).splitlines()
    assert head.startswith("FitResult: GroupedAvg, 2 rounds in ")
    assert "best val/acc_avg " in head
    assert first.split() == ["group", "clients", "test", "acc", "up", "MB", "down", "MB"]
    assert [row.split()[0] for row in rows] == ["small", "float32", "all"]
    assert folder == str(result.folder)
    page = result._repr_html_()
    assert page.count("<tr>") == 4
    assert len(page) < 1500
    assert "tensor" not in page + repr(result)


def test_what_a_page_shows_is_no_markup(run: Any) -> None:
    result = run[0]
    odd = FitResult(**{**vars(result), "folder": Path("<b>&")})
    assert "<code>&lt;b&gt;&amp;</code>" in odd._repr_html_()


def test_weights_of_a_group_measure_what_the_group_measured(run: Any) -> None:
    result, trainer, _ = run
    floats = FederatedTrainer({32: 1}, devices=1)
    for group in result.groups:
        model = Client()
        model.load_state_dict(result.state_dict(group))
        found = floats.test(model, fake())
        assert found["test/acc_float32"] == result.metrics[f"test/acc_{group}"]
    assert not same(result.state_dict("small"), result.state_dict("float32"))
    assert trainer.run.history == result.history


def test_by_default_the_weights_are_the_server_s(run: Any) -> None:
    result, _, model = run
    assert same(result.state_dict(), dict(model.state_dict()))


def test_weights_of_a_group_lie_on_its_grid(tmp_path: Path) -> None:
    result, _, _ = trained(tmp_path, {"int8": 1, 32: 1}, max_rounds=1)
    found = result.state_dict("int8")
    for name, tensor in result.server.params.items():
        wanted = fake_quantize(tensor, 8) if name.endswith("weight") else tensor
        assert torch.equal(found[name], wanted), name


def test_a_group_that_there_is_not_is_named(run: Any) -> None:
    with pytest.raises(ValueError, match="group must be one of the run's, got 'smal'; did you"):
        run[0].state_dict("smal")
    with pytest.raises(ValueError, match="group must be one of the run's, got 8; known: float32, "):
        run[0].state_dict(8)


def test_a_model_that_stays_with_clients_in_part_is_not_given(tmp_path: Path) -> None:
    result, _, _ = trained(
        tmp_path, {8: 2}, lambda: Client(Net(batch_norm=True)), norm="local", max_rounds=1
    )
    with pytest.raises(ValueError, match=r"'int8' is not whole on the server: net.1.running_mean"):
        result.state_dict("int8")
    assert "net.1.running_mean" in result.state_dict()


def test_who_keeps_no_global_model_gives_none(tmp_path: Path) -> None:
    result, _, _ = trained(tmp_path, {8: 2}, algorithm=Local(), max_rounds=1)
    with pytest.raises(ValueError, match="Local keeps no global model: each client has a model of"):
        result.state_dict()


def test_what_draws_and_tabulates_is_optional(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    result = run[0]
    for name in ("pandas", "matplotlib"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match="to_pandas needs pandas: pip install pandas"):
        result.to_pandas()
    with pytest.raises(ImportError, match=r"plot needs matplotlib: pip install 'bhfl\[plots\]'"):
        result.plot()


def test_the_history_goes_to_pandas_row_by_row(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class Frame:
        def __init__(self, rows: list[Any]) -> None:
            self.rows = rows

        def set_index(self, key: str) -> tuple[list[Any], str]:
            return self.rows, key

    monkeypatch.setitem(sys.modules, "pandas", SimpleNamespace(DataFrame=Frame))
    assert run[0].to_pandas() == (run[0].history, "round")


def test_a_picture_has_a_line_for_each_group(run: Any) -> None:
    pytest.importorskip("matplotlib").use("Agg")
    result = run[0]
    ax = result.plot()
    assert [line.get_label() for line in ax.get_lines()] == ["small", "float32"]
    values = [result.first["val/acc_small"], *result.series("val/acc_small").values()]
    assert list(ax.get_lines()[0].get_ydata()) == values
    assert result.plot("loss", ax) is ax
    assert len(ax.get_lines()) == 4
    with pytest.raises(ValueError, match="metric must be one that validation measured by group, "):
        result.plot("val/acc")


class Some(Client):
    """Its steps log a share that the models of low bits alone have."""

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        super().validation_step(batch, batch_idx)
        self.share("val")

    def test_step(self, batch: Any, batch_idx: int) -> None:
        super().test_step(batch, batch_idx)
        self.share("test")

    def share(self, stage: str) -> None:
        if self.net[0].spec.weights < 32:
            self.log(f"{stage}/share", torch.tensor(0.25))


@pytest.mark.parametrize("fleet", [FLEET, FLEET[::-1]], ids=["first", "last"])
def test_a_metric_that_one_group_alone_has_is_told_of_it(tmp_path: Path, fleet: Any) -> None:
    result, trainer, _ = trained(tmp_path, fleet, Some, max_rounds=1)
    assert result.by_group["small"]["share"] == 0.25
    assert list(result.by_group["float32"]) == ["acc"]
    assert result.metrics["test/share_avg"] == result.metrics["test/share_min"] == 0.25
    assert result.series("val/share_avg") == {1: 0.25}
    # the default by its name, in rows and settings
    assert result.method == "FedAvg"
    assert type(trainer.algorithm) is FedAvg
    settings = json.loads((result.folder / "settings.json").read_text())
    assert settings["result"]["algorithm"] == "bhfl.algorithms.FedAvg"
