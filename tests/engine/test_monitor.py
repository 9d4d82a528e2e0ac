"""Whether the monitored metric can be the one that was meant, and what is said where it is not."""

from __future__ import annotations

import math
import warnings

import lightning as L
import pytest

from bhfl.algorithms import Ditto, FedAvg, Median
from bhfl.engine.algorithm import Algorithm
from bhfl.engine.monitor import check_first, check_monitor, doubt, unseen
from bhfl.engine.trainer import FederatedTrainer
from bhfl.models import Classifier
from tests.engine.hand_made import HandMade, Module, points
from tests.federation import fit

LOWER = [
    "val/loss", "val/loss_avg", "val/loss_int8", "val/mse_avg", "val/MAE_avg", "val/rmse_min",
    "val_mape", "val/msle", "val/perplexity_avg", "val/ppl", "val/error_avg", "val/top1_error",
    "val/err", "val/wer_avg", "val/cer", "val/nll", "val/word_error_rate_avg",
    "val/MeanSquaredError_avg", "val/meanAbsoluteError", "val/valLoss", "val/valloss",
    "val/cross_entropy_avg", "val/negative_log_likelihood", "val/brier_score_avg",
    "val/kl_divergence", "val/ece", "train/loss", "train/ce", "test/hinge-loss",
    "val/bits.per.byte/bpb", "val/l1_avg", "val/loss2_avg", "val/fid", "val/smape", "val/bce_avg",
    "val/hamming_distance",
]  # fmt: skip
HIGHER = [
    "val/acc_avg", "val/accuracy_float32", "val/acc_min", "val/f1_avg", "val/F1Score", "val/auroc",
    "val/auc_avg", "val/mAP_avg", "val/iou", "val/mIoU_avg", "val/dice_score", "val/bleu",
    "val/r2_avg", "val/psnr", "val/ssim_avg", "val/top5_acc", "val/precision_avg",
    "val/recall_int8", "val/log_likelihood", "val/acc2", "val/BinaryAccuracy_avg",
    "val/matthews_mcc", "val/spearman",
]  # fmt: skip
UNKNOWN = [
    "val/neg_mse_avg", "val/negative_loss", "val/error_reduction", "val/acc_loss", "val/score",
    "val/q_avg", "val/steps", "val/minus_mae", "comm/total_MB", "time/round_s", "val/blossom",
    "val/lossless_ratio", "val/accent", "val/berry",
]  # fmt: skip


def test_the_direction_of_every_known_name():
    for name in LOWER:
        assert f"trainer.monitor is {name} and trainer.mode max: the highest" in doubt(
            name, "max"
        ), name
        assert doubt(name, "max").endswith("set trainer.mode to min")
    for name in HIGHER:
        assert f"trainer.monitor is {name} and trainer.mode min: the lowest" in doubt(
            name, "min"
        ), name
        assert doubt(name, "min").endswith("set trainer.mode to max")
    right = [(name, "min") for name in [*LOWER, *UNKNOWN]] + [
        (name, "max") for name in [*HIGHER, *UNKNOWN]
    ]
    assert {name: told for name, mode in right if (told := doubt(name, mode))} == {}


class Logging(Module):
    """Logs one metric in validation, whatever it is called."""

    def __init__(self, name: str = "mse", value: float = 1.0) -> None:
        super().__init__()
        self.name, self.value = name, value

    def validation_step(self, batch, batch_idx):
        if self.name:
            self.log(f"val/{self.name}", self.value)


def train(folder, name="mse", value=1.0, held_out=True, **options):
    data = HandMade([points(4, i) for i in range(2)], held_out=points(4, 9) if held_out else None)
    return fit(folder, clients={32: 2}, module=lambda: Logging(name, value), data=data, **options)


def test_a_wrong_direction_is_told_and_the_remedy_ends_it(tmp_path):
    with pytest.warns(
        UserWarning, match="trainer.mode max: the highest mse is the best; set trainer.mode to min"
    ):
        train(tmp_path, monitor="val/mse_avg", max_rounds=1)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*trainer.monitor")
        assert train(tmp_path, monitor="val/mse_avg", mode="min", max_rounds=1).run.best == 1.0


@pytest.mark.parametrize("case", [{"held_out": False}, {"name": ""}])
def test_a_metric_that_validation_never_gives_is_told_once_and_the_remedy_ends_it(tmp_path, case):
    with pytest.warns(
        UserWarning, match=r"val/acc_avg has no value, because validation measured nothing"
    ) as told:
        assert train(tmp_path, **case).run.best is None
    assert sum("val/acc_avg" in str(warning.message) for warning in told) == 1
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*trainer.monitor")
        run = train(tmp_path, **case, monitor="train/loss", mode="min").run
    assert run.best is not None
    assert (run.checkpoints / "best.ckpt").exists()


@pytest.mark.parametrize("every", [1, 2, 99])
def test_a_metric_that_is_no_number_is_told_at_the_first_validation(tmp_path, every):
    options = {"monitor": "val/acc_avg", "max_rounds": 3, "check_val_every_n_rounds": every}
    with pytest.warns(
        UserWarning, match=r"val/acc_avg is nan, and no best model is kept until it is a number"
    ) as told:
        train(tmp_path, "acc", math.nan, **options)
    assert sum("is nan" in str(warning.message) for warning in told) == 1


@pytest.mark.parametrize(
    "tag", ["val/msee_avg", "val_mse_avg", "test/mse", "val/mse_local_int8", "val", "train"]
)
def test_a_metric_that_is_never_logged_is_refused_before_anybody_trains(tmp_path, monkeypatch, tag):
    monkeypatch.setattr("bhfl.engine.fit.run_round", lambda *_: pytest.fail("a client trained"))
    with pytest.raises(
        ValueError, match=f"monitor must be a logged metric, got '{tag}'; logged: val/mse, "
    ):
        train(tmp_path, monitor=tag, mode="min", validate_first=True)


def test_what_only_clients_measure_is_waited_for():
    def check(tag, measured, **options):
        settings = FederatedTrainer({32: 1}, devices=1, **options).settings
        check_first({tag: "trainer.monitor"}, settings, measured)

    check("val/acc_local_int8", {"val/acc": 0.5}, evaluate_clients="after")
    check("train/loss", {"val/acc": 0.5})
    check("val/acc", {})


def test_values_that_are_seen_need_no_word():
    assert unseen("val/acc_avg", {"val/acc_avg": 0.0}, {"acc_avg": 0.0}) == ""
    assert unseen("train/loss", {}, {}) == ""


@pytest.mark.parametrize(
    "tag",
    [
        "val/nonsense",
        "val/acc_int4",
        "val/accuracy",
        "val/",
        "val/f1_avg",
        "val",
        "val_acc",
        "train",
        "train/acc",
        "train/loss_own",
        "f1",
    ],
)
def test_a_metric_that_a_classifier_never_logs_is_refused_before_any_round(tag: str) -> None:
    with pytest.raises(ValueError, match=f"trainer.monitor must be a logged metric, got '{tag}'; "):
        check(tag, Classifier("mlp"))


@pytest.mark.parametrize(
    "tag",
    ["val/acc", "val/acc_avg", "val/loss_min", "val/acc_int8", "val/acc_local_int8", "train/loss"],
)
def test_what_it_logs_is_taken(tag: str) -> None:
    check(tag, Classifier("mlp"))


def test_nothing_is_known_of_other_classes_and_other_metrics() -> None:
    class Mine(Classifier):
        """May log what it likes."""

    class Logs(Algorithm):
        """Likewise."""

    for tag in ("val/f1", "train/acc", "f1"):
        check(tag, Mine("mlp"))
        check(tag, Module())
    for tag in ("train/acc", "mine"):
        check(tag, Classifier("mlp"), Logs())
        check(tag, Classifier("mlp"), Median(Logs()))
    check("train/loss_own", Classifier("mlp"), Ditto())
    for tag in ("fedlq/bits", "comm/total_MB", "uplink_bytes", "round"):
        check(tag, Classifier("mlp"))


def test_what_can_be_monitored_is_listed() -> None:
    told = "got 'train/throughput'; known: train/loss, val/acc, val/loss"
    with pytest.raises(ValueError, match=told):
        check("train/throughput", Classifier("mlp"))


def check(tag: str, module: L.LightningModule, method: Algorithm | None = None) -> None:
    check_monitor(tag, module, ["int8", "float32"], "trainer.monitor", method or FedAvg())
