"""Logged values become the metrics that Lightning would show."""

from __future__ import annotations

import lightning as L
import pytest
import torch
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy

from bhfl.engine.client.recorder import Recorder, recording, tag_of


def test_means_are_weighted_by_batch_size():
    recorder = Recorder()
    for batch, value in ((torch.zeros(3, 2), 1.0), (torch.zeros(1, 2), torch.tensor(5.0))):
        recorder.observe((batch, None))
        recorder.log("a", value)
        recorder.log("b", value, batch_size=2)
    assert recorder.means() == {"a": 2.0, "b": 3.0}


def test_means_do_not_lose_digits():
    recorder = Recorder()
    for _ in range(3_000):
        recorder.log("a", torch.tensor(0.1))
    assert recorder.means()["a"] == pytest.approx(float(torch.tensor(0.1)), rel=1e-14)


@pytest.mark.parametrize(
    ("reduce_fx", "expected"),
    [
        ("mean", 3.0),
        (torch.mean, 3.0),
        ("sum", 9.0),
        (sum, 9.0),
        ("max", 5.0),
        (max, 5.0),
        (torch.min, 1.0),
    ],
)
def test_reductions(reduce_fx, expected):
    recorder = Recorder()
    for value in (3.0, torch.tensor([5.0]), 1.0):
        recorder.log("a", value, prog_bar=True, on_epoch=True, reduce_fx=reduce_fx)
    assert recorder.means() == {"a": expected}


def test_what_cannot_be_averaged():
    with pytest.raises(
        ValueError, match=r"self\.log\('a', \.\.\.\) needs one value, got a tensor of shape \(2,\)"
    ):
        Recorder().log("a", torch.zeros(2))
    with pytest.raises(ValueError, match="reduce_fx must be mean, sum, min or max, got 'median'"):
        Recorder().log("a", 1.0, reduce_fx="median")


@pytest.mark.parametrize(
    ("batch", "size"),
    [
        (torch.zeros(3, 2), 3),
        ([torch.zeros(4), torch.zeros(4)], 4),
        ({"ids": torch.zeros(5, 2), "mask": torch.zeros(5)}, 5),
        (({"ids": torch.zeros(6)}, torch.zeros(6)), 6),
        (torch.tensor(1.0), 1),
        (object(), 1),
        ([], 1),
    ],
)
def test_batch_sizes(batch, size):
    recorder = Recorder()
    recorder.observe(batch)
    assert recorder.batch_size == size


def test_metric_objects_are_computed_as_often_as_asked_and_begin_anew():
    module = L.LightningModule()
    module.metric = MeanMetric()
    module.metric.update(100.0)
    with recording(module) as recorder:
        for value in (1.0, 3.0):
            module.metric.update(value)
            module.log("metric", module.metric)
            module.log_dict({"x": value, "y": 1}, batch_size=2)
            recorder.means()
    assert recorder.means() == {"x": 2.0, "y": 1.0, "metric": 2.0}
    assert type(module.log.__self__) is L.LightningModule


@pytest.mark.parametrize(
    ("name", "tag"),
    [
        ("loss", "train/loss"), ("train_loss", "train/loss"), ("train/loss", "train/loss"),
        ("val_acc", "val/acc"), ("val/acc", "val/acc"), ("acc_top_5", "train/acc_top_5"),
        ("train", "train/train"), ("gan/d", "train/gan/d"), ("val/acc_avg", "val/acc_avg"),
    ],
)  # fmt: skip
def test_tags(name, tag):
    assert tag_of(name) == tag


def test_metric_objects_of_several_values_are_named():
    recorder, metric = Recorder(), MulticlassAccuracy(3, average=None)
    metric.update(torch.tensor([0, 1]), torch.tensor([0, 2]))
    recorder.log("val/acc", metric)
    with pytest.raises(
        ValueError, match=r"self\.log\('val/acc', \.\.\.\) needs a metric of one value, got \(3,\)"
    ):
        recorder.means()
