"""Rules that a few wild clients cannot move, against NumPy on whole matrices."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from torch import nn

from bhfl.algorithms import (
    ClippedMean,
    DPFedAvg,
    FedAvg,
    GeometricMedian,
    Krum,
    Median,
    TrimmedMean,
)
from bhfl.algorithms.robust import Updates
from bhfl.quant import quantize
from tests.algorithms.quadratics import Data, Module
from tests.federation import fit, same

LIKE = {"a": torch.zeros(40, 1000), "b": torch.zeros(7), "c": torch.zeros(())}


def updates(count: int = 9) -> Updates:
    """Codes of several widths and scales, plain values, and one client far off."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for i in range(count):
        a = torch.randn(40, 1000, generator=generator) + (100.0 if i == 2 else 0.0)
        widths = (a, quantize(a, 8), quantize(a, 4, granularity="channel"))
        b = torch.randn(7, generator=generator)
        found.append({"a": widths[i % 3], "b": b, "c": torch.randn((), generator=generator)})
    return Updates(found, LIKE)


def matrix(given: Updates) -> np.ndarray:
    rows = []
    for update in given.tensors:
        values = [update[name] for name in LIKE]
        parts = [v if isinstance(v, torch.Tensor) else v.dequantize() for v in values]
        rows.append(torch.cat([part.reshape(-1) for part in parts]).double().numpy())
    return np.stack(rows)


def flat(model):
    return torch.cat([model[name].reshape(-1) for name in LIKE]).double().numpy()


def test_median():
    for count in (8, 9):
        given = updates(count)
        assert np.allclose(flat(Median().combine(given)), np.median(matrix(given), 0), atol=1e-6)


def test_trimmed_mean():
    given = updates(10)
    x = np.sort(matrix(given), 0)[2:-2].mean(0)
    assert np.allclose(flat(TrimmedMean(0.2).combine(given)), x, atol=1e-6)


@pytest.mark.parametrize("chosen", [1, 3])
def test_krum(chosen):
    given = updates(9)
    x = matrix(given)
    scores = []
    for i in range(9):
        distances = sorted(((x[i] - x[j]) ** 2).sum() for j in range(9) if j != i)
        scores.append(sum(distances[: 9 - 2 - 2]))
    mean = x[np.argsort(scores)[:chosen]].mean(0)
    assert 2 not in np.argsort(scores)[:chosen]
    assert np.allclose(flat(Krum(2, chosen).combine(given)), mean, atol=1e-6)


def test_geometric_median():
    given = updates(9)
    x = matrix(given)
    v = x.mean(0)
    for _ in range(50):
        weights = 1 / np.linalg.norm(x - v, axis=1)
        v = weights @ x / weights.sum()
    found = flat(GeometricMedian(steps=50).combine(given))
    assert np.abs(found - v).max() < 1e-4
    # no other point near it has a smaller sum of distances
    rng = np.random.default_rng(0)
    least = np.linalg.norm(x - found, axis=1).sum()
    for _ in range(20):
        other = found + 1e-2 * rng.standard_normal(len(found))
        assert np.linalg.norm(x - other, axis=1).sum() >= least


def test_a_wild_client_moves_the_mean_and_not_the_others(tmp_path):
    data = Data(7)
    honest = data.t[:6].mean(0)
    data.t[6] = 1e4
    options = {"max_rounds": 2, "min_clients": 7, "checkpoint_every_n_rounds": 9}
    for algorithm in (FedAvg(), Median(), TrimmedMean(0.2), Krum(), GeometricMedian()):
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            run = fit(tmp_path, algorithm, {32: 7}, Module, data, **options)
        off = (run.server.params["weight"] - honest).abs().max()
        assert (off > 100) == isinstance(algorithm, FedAvg), type(algorithm).__name__
        assert any("client 6 sent values" in str(one.message) for one in told) == (off > 100)


def test_clipping_bounds_the_move_of_a_round(tmp_path):
    data = Data(4, spread=10.0)
    options = {"max_rounds": 1}
    run = fit(tmp_path, ClippedMean(bound=0.1), {32: 4}, Module, data, **options)
    assert 0 < float(run.server.params["weight"].norm()) <= 0.1 + 1e-6
    wide = fit(tmp_path, ClippedMean(bound=1e6), {32: 4}, Module, data, **options)
    plain = fit(tmp_path, FedAvg(), {32: 4}, Module, data, **options)
    assert same(wide.server.params, plain.server.params)


def test_the_bound_follows_the_moves(tmp_path):
    algorithm = ClippedMean(bound=100.0, quantile=0.5, rate=0.5)
    run = fit(tmp_path, algorithm, {"ternary": 2, 32: 2}, max_rounds=3)
    bounds = [row["clipping/bound"] for row in run.run.history]
    assert bounds[0] == pytest.approx(100 * np.exp(-0.25))
    assert bounds == sorted(bounds, reverse=True)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TrimmedMean(0.5), r"TrimmedMean.trim must be in \[0, 0.5\), got 0.5"),
        (lambda: Krum(wild=0), "Krum.wild must be"),
        (lambda: GeometricMedian(steps=0), "GeometricMedian.steps must be"),
        (lambda: ClippedMean(bound=0), "ClippedMean.bound must be"),
        (lambda: ClippedMean(quantile=2), "ClippedMean.quantile must be"),
        (lambda: ClippedMean(rate=1000), r"ClippedMean.rate must be in \(0, 10\], got 1000"),
        (lambda: DPFedAvg(rate=1000), r"DPFedAvg.rate must be in \(0, 10\], got 1000"),
    ],
)
def test_an_argument_out_of_its_range_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_krum_with_too_few_clients_is_refused(tmp_path):
    message = "needs 5 updates in a round: trainer.min_clients must be at least that, got 1"
    with pytest.raises(ValueError, match=message):
        fit(tmp_path, Krum(), {32: 7}, Module, Data(7))


def test_a_share_of_clients_that_is_whole_is_left_out_whole() -> None:
    """29 of 100 clients at each end, where 0.29 * 100 is a little less in floats."""
    values = [torch.tensor([float(i < 29)]) for i in range(100)]
    given = Updates([{"w": value} for value in values], {"w": torch.zeros(1)})
    assert TrimmedMean(0.29).combine(given)["w"].item() == 0


class Stated(Module):
    """A client that lies of its running statistics alone; its weights are honest."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.layer = nn.BatchNorm1d(2), nn.Linear(1, 1)

    def training_step(self, batch, batch_idx):
        lies = float(batch[0].min() < 0.5)
        told = 1.0 + 0.01 * self.weight.detach().mean()
        self.norm.running_mean.fill_(told + 1e6 * lies)
        self.norm.running_var.fill_(2 * told + 1e6 * lies)
        return super().training_step(batch, batch_idx) + self.layer.weight.sum()


@pytest.mark.parametrize(
    "rule", [Median(), TrimmedMean(0.2), Krum(), GeometricMedian(), ClippedMean()]
)
def test_nor_does_one_that_lies_of_running_statistics_alone(tmp_path, rule):
    data = Data(10, steps=1)
    data.h[6] = 0.4
    options = {"max_rounds": 1, "min_clients": 7, "norm": "group"}
    run = fit(tmp_path, rule, {32: 7, 8: 3}, Stated, data, **options)
    for statistics in run.server.buffers["statistics"].values():
        assert statistics["norm.running_mean"].tolist() == pytest.approx([1.0] * 2, abs=0.1)
        assert statistics["norm.running_var"].tolist() == pytest.approx([2.0] * 2, abs=0.1)
