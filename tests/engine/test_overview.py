"""What TensorBoard shows first, and what it is told of a run's options and results."""

import re
from pathlib import Path

import pytest
from lightning.fabric.loggers.logger import Logger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams import plugin_data_pb2

from bhfl.engine.loggers import Loggers
from bhfl.engine.overview import OVERVIEW, layout, overview

ROW = {
    "round": 1,
    "clients/ok": 2.0,
    "adaquantfl/bits": 4.0,
    "train/loss": 2.0,
    "val/loss_avg": 1.5,
    "val/acc": 0.5,
    "val/acc_avg": 0.45,
    "val/acc_min": 0.4,
    "val/acc_int8": 0.4,
    "val/acc_local_int8": 0.3,
    "clients_val/acc_worst10": 0.1,
    "clients_val/acc_worst10_int8": 0.1,
    "comm/uplink_MB": 1.0,
    "comm/downlink_MB": 2.0,
}
SHOWN = [
    "accuracy_avg", "accuracy_clients_worst10", "accuracy_int8", "loss_train", "loss_val",
    "sent_down_MB", "sent_up_MB",
]  # fmt: skip


def test_accuracy_by_group_loss_and_bytes_come_first_in_the_order_of_names() -> None:
    tags = sorted([*overview(ROW), *ROW])
    assert tags[: len(SHOWN)] == [f"{OVERVIEW}/{name}" for name in SHOWN]


def test_a_chart_holds_the_groups_together() -> None:
    charts = layout(ROW)["bhfl"]
    assert list(charts) == ["accuracy", "loss", "MB sent"]
    (kind, patterns) = charts["accuracy"]
    assert kind == "Multiline"
    held = [tag for tag in overview(ROW) if any(re.match(one, tag) for one in patterns)]
    assert held == [
        f"{OVERVIEW}/{name}"
        for name in ("accuracy_avg", "accuracy_int8", "accuracy_clients_worst10")
    ]


def test_tensorboard_holds_overview_charts_options_and_results(tmp_path: Path) -> None:
    loggers = Loggers(True, tmp_path)
    loggers.begin([], {"trainer.max_rounds": 1, "algorithm": "bhfl.algorithms.FedAvg"})
    loggers.log(ROW)
    loggers.end({"test/acc_avg": 0.75}, 1)
    loggers.close()
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert [event.value for event in events.Scalars(f"{OVERVIEW}/accuracy_int8")] == [
        pytest.approx(0.4)
    ]
    assert [event.value for event in events.Scalars("test/acc_avg")] == [0.75]
    content = events.Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0]
    shown = layout_pb2.Layout.FromString(content)
    assert [chart.title for chart in shown.category[0].chart] == ["accuracy", "loss", "MB sent"]
    told = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    options = plugin_data_pb2.HParamsPluginData.FromString(told).session_start_info.hparams
    assert options["trainer.max_rounds"].number_value == 1
    assert options["algorithm"].string_value == "bhfl.algorithms.FedAvg"


class Notes(Logger):
    """A logger of a service, which keeps what it is told."""

    name, version = "notes", "0"

    def __init__(self) -> None:
        self.told: list = []

    def log_metrics(self, metrics, step=None) -> None:
        self.told.append((step, dict(metrics)))

    def log_hyperparams(self, params, *args, **kwargs) -> None:
        self.told.append(dict(params))


def test_any_logger_gets_the_options_first_and_the_results_last() -> None:
    notes = Notes()
    loggers = Loggers(notes, Path("unused"))
    loggers.begin([], {"trainer.max_rounds": 1})
    loggers.log({"round": 1, "train/loss": 2.0})
    loggers.end({"test/acc_avg": 0.75}, 1)
    assert notes.told == [
        {"trainer.max_rounds": 1},
        (1, {"train/loss": 2.0}),
        (1, {"test/acc_avg": 0.75}),
    ]


class Wordless(Notes):
    """One that has no place for options, as Fabric's CSV."""

    def log_hyperparams(self, params, *args, **kwargs) -> None:
        raise NotImplementedError


def test_a_logger_without_a_place_for_options_goes_on() -> None:
    wordless = Wordless()
    loggers = Loggers(wordless, Path("unused"))
    loggers.begin([], {"trainer.max_rounds": 1})
    assert loggers.active == [wordless]
