"""The metric by which the best model is chosen: whether it can be the one that was meant."""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import product
from typing import Any

from bhfl.checks import suggestion
from bhfl.engine.algorithm import Algorithm
from bhfl.engine.best import Best
from bhfl.engine.loggers import scalars
from bhfl.engine.types import FederatedData, Row
from bhfl.settings import Settings

_ERRORS = frozenset(
    re.findall(
        r"\w+",
        "loss losses error errors err mse mae rmse mape smape msle rmsle nmse nrmse nmae mase wer "
        "cer ser eer nll bce ce xent crossentropy ece mce perplexity ppl brier kl kld divergence "
        "fid lpips hinge hamming deviance residual residuals regret bpc bpb bpd l1 l2 fpr fnr "
        "misclassification distance",
    )
)
"""Words in the name of a metric that is better the lower it is."""
_SCORES = frozenset(
    re.findall(
        r"\w+",
        "acc accuracy f1 fbeta auc auroc auprc map ap precision recall sensitivity specificity iou "
        "miou jaccard dice bleu rouge meteor psnr ssim r2 mcc kappa ndcg mrr correlation corrcoef "
        "pearson spearman likelihood tpr tnr",
    )
)
"""Words in the name of a metric that is better the higher it is."""
_TURNED = frozenset(
    re.findall(r"\w+", "neg negative minus inverse inverted reduction improvement gain")
)
"""Words that turn a metric around, so that its name does not say which way is better."""
_PHRASES = {
    "negative_log_likelihood": "nll",
    "neg_log_likelihood": "nll",
    "cross_entropy": "crossentropy",
}
_OF_STAGE = "(val|test)([/_]|$)|train$"
"""Metrics of validation, as modules may log them; those of the test, which no round has; and words
that are no metric. ``train/...`` may come from others than modules.
"""
_OF_TRAINING = r"train/|(?!round$|\w+_bytes$)[^/]*$"
"""What our own methods leave to modules: metrics of training, and names that are no tags."""


def doubt(monitor: str, mode: str) -> str:
    """Why `mode` is the wrong one for `monitor`, by its name; empty where it may be right.

    >>> doubt("val/mse_avg", "max")
    'trainer.monitor is val/mse_avg and trainer.mode max: the highest mse is the best; set trainer.mode to min'
    >>> doubt("val/mse_avg", "min")
    ''
    """  # noqa: E501, W505
    words = _words(monitor)
    errors = [word for word in words if word in _ERRORS]
    scores = [word for word in words if word in _SCORES]
    if _TURNED & {*words} or (errors and scores):
        return ""
    wrong = errors if mode == "max" else scores
    if not wrong:
        return ""
    end, other = ("highest", "min") if mode == "max" else ("lowest", "max")
    return (
        f"trainer.monitor is {monitor} and trainer.mode {mode}: the {end} {wrong[0]} is the best; "
        f"set trainer.mode to {other}"
    )


def validation_tags(model: Any, groups: Iterable[str]) -> list[str]:
    """What validation and test may log, where that is known before they run; else nothing.

    A class says so by ``validation_metrics``, names without ``val/``; of its subclasses, which may
    log others, nothing is known.

    Args:
        model: The class of the module; None where it is not known.
        groups: Labels of the bit groups.
    """
    ends = ["", "_avg", "_min"]
    for group in groups:
        ends += [f"_{group}", f"_local_{group}", f"_local_before_{group}"]
    known = vars(model or object).get("validation_metrics", ())
    return ["".join(words) for words in product(("val/", "test/"), known, ends)]


def monitored(
    bests: Mapping[str, Best], module: object, settings: Settings, needed: Iterable[str]
) -> dict[str, str]:
    """The tags of metrics that rounds must log, to the options that name them.

    Args:
        bests: What is looked for.
        module: The module.
        settings: The trainer's.
        needed: What the schedules of the module follow where they go on over rounds.
    """
    found = {best.monitor: "trainer.monitor" for best in bests.values()}
    for tag in needed if settings.training.lr_schedule == "continue" else ():
        # what is chosen by comes first
        found.setdefault(
            tag, f"the monitor of ReduceLROnPlateau in {type(module).__name__}.configure_optimizers"
        )
    return found


def check_monitor(
    monitor: str, model: Any, groups: Iterable[str], owner: str, method: Algorithm
) -> None:
    """Refuse a metric that neither validation nor training will log, where that is known; see
    `validation_tags`. A class that says what validation logs logs nothing but the loss in training.

    Args:
        monitor: The tag of the metric.
        model: The module.
        groups: Labels of the bit groups.
        owner: The option that names the metric.
        method: The algorithm; one that is not ours may log what it likes.

    Raises:
        ValueError: It is none of what the model logs.
    """
    if not (tags := validation_tags(type(model), groups)):
        return
    trained = ["train/loss", "train/loss_own"][: 1 + method.own_model]
    halves = (method, method.client_half)
    ours = all(type(half).__module__.startswith("bhfl.") for half in halves)
    meant = re.match(f"{_OF_STAGE}|{_OF_TRAINING}" if ours else _OF_STAGE, monitor)
    if (meant or f"val/{monitor}" in tags) and monitor not in tags + trained:
        known = [*trained, *(f"val/{name}" for name in model.validation_metrics)]
        near = suggestion(monitor, tags + trained, others=False)
        raise ValueError(
            f"{owner} must be a logged metric, got {monitor!r}{near or suggestion('', known)}"
        )


def check_first(
    monitors: Mapping[str, str], settings: Settings, measured: Mapping[str, float]
) -> None:
    """Refuse a metric of validation that the one before the first round has not logged.

    Args:
        monitors: The tags of metrics, to the options that name them.
        settings: The trainer's.
        measured: What was logged; clients measure their own models only later.

    Raises:
        ValueError: Validation logged other metrics alone.
    """
    own = settings.output.evaluate_clients != "none"

    def waits(monitor: str) -> bool:
        return not re.match(_OF_STAGE, monitor) or (own and "_local" in monitor)

    if measured:
        check_logged(monitors, [dict(measured)], waits)


def check_logged(
    monitors: Mapping[str, str], rows: Sequence[Row], waits: Callable[[str], bool]
) -> None:
    """Refuse a metric that no row has.

    Args:
        monitors: The tags of metrics, to the options that name them.
        rows: What has been logged.
        waits: Whether a metric may be missing until another row comes.

    Raises:
        ValueError: It was never logged; the error lists what is in the last row.
    """
    for monitor, owner in monitors.items():
        if not waits(monitor) and not any(monitor in row for row in rows):
            logged = sorted(scalars(rows[-1]))
            raise ValueError(
                f"{owner} must be a logged metric, got {monitor!r}; logged: "
                f"{', '.join(logged)}{suggestion(monitor, logged, others=False)}"
            )


def _words(monitor: str) -> list[str]:
    """The words of a metric's name in lower case, ``mIoU`` whole and ``MeanSquaredError`` taken
    apart, no numbers.
    """
    apart = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", monitor)
    text = re.sub(r"[^a-z0-9]+", "_", f"{monitor} {apart}".lower())
    for phrase, word in _PHRASES.items():
        text = text.replace(phrase, word)
    # `f1` and `l1` are words of their own, `acc5` is an `acc`
    words = [
        word if word in _ERRORS | _SCORES else word.rstrip("0123456789") for word in text.split("_")
    ]
    return ["loss" if word.endswith("loss") else word for word in words]


def check_samples(data: FederatedData, settings: Settings, num_clients: int) -> None:
    """ValueError where an option needs validation samples, and the data have none.

    Args:
        data: Split among the clients.
        settings: The trainer's.
        num_clients: Clients of the fleet.
    """
    if next(iter(data.val_batches()), None) is not None:
        return
    missing = "needs validation samples, and the data have none"
    patience = settings.stopping.patience
    if patience is not None and settings.choice.monitor.startswith("val/"):
        raise ValueError(f"trainer.patience {missing}; got {patience}")
    measures = settings.output.evaluate_clients
    if measures != "none" and not any(map(data.client_val_batches, range(num_clients))):
        raise ValueError(f"trainer.evaluate_clients {missing}; got {measures!r}")


def unseen(monitor: str, row: Mapping[str, Any], measured: Mapping[str, float]) -> str:
    """What to say where a first validation gave `monitor` no value that could be the best; else an
    empty string.

    Args:
        monitor: The trainer's option.
        row: All metrics of the round.
        measured: Those of the validation.
    """
    value = row.get(monitor)
    if value is not None and not math.isfinite(value):
        return (
            f"trainer.monitor: {monitor} is {value}, and no best model is kept until it is a number"
        )
    if value is None and not measured and monitor.startswith("val/"):
        return (
            f"trainer.monitor: {monitor} has no value, because validation measured nothing, so no "
            "best model is kept; give data.val_fraction and a validation_step that logs, or set "
            "trainer.monitor to train/loss and trainer.mode to min"
        )
    return ""
