"""The bound: its terms by hand, its validity and its readings on quadratic clients that are really
quantised.
"""

from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from bhfl.algorithms.fedlq.bound import convergence_bound
from bhfl.algorithms.fedlq.significance import variance_table
from bhfl.quant import quantize

GOOD: dict[str, Any] = {
    "initial_gap": 3.0,
    "smoothness": 2.0,
    "gradient_variance": 0.5,
    "heterogeneity": 0.25,
    "learning_rate": 0.01,
    "local_steps": 5,
    "num_rounds": 100,
    "variances": [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]],
}


def test_terms_by_hand() -> None:
    bound = convergence_bound(**GOOD)
    assert bound.optimisation == pytest.approx(4 * 3 / (0.05 * 100))
    assert bound.noise == pytest.approx(4 * 2 * 0.01 * 0.5 / 3)
    assert bound.drift == pytest.approx(10 * 1e-4 * 4 * 5 * (0.5 + 6 * 5 * 0.25))
    assert bound.quantisation_per_layer == pytest.approx(
        (2 * 2 / 0.05 / 9 * 9, 2 * 2 / 0.05 / 9 * 12)
    )
    assert bound.quantisation == pytest.approx(sum(bound.quantisation_per_layer))
    assert bound.total == pytest.approx(
        bound.optimisation + bound.noise + bound.drift + bound.quantisation
    )


def test_float32_uploads_cost_nothing_and_the_limit_step_is_allowed() -> None:
    bound = convergence_bound(
        **(GOOD | {"variances": np.zeros((3, 2)), "learning_rate": 1 / (8 * 2 * 5)})
    )
    assert bound.quantisation == 0


def test_halving_the_step_doubles_what_quantised_weights_cost_and_half_a_bit_holds_it() -> None:
    before = convergence_bound(**GOOD).quantisation
    halved = GOOD | {"learning_rate": 0.005}
    assert convergence_bound(**halved).quantisation == pytest.approx(2 * before)
    finer = np.array(GOOD["variances"]) * 4.0**-0.5
    assert convergence_bound(**(halved | {"variances": finer})).quantisation == pytest.approx(
        before
    )


# --- a quadratic that is really quantised ---------------------------------------------------------

LOCAL_STEPS = 5
BITS = 4
NUM_CLIENTS = 4
SIZE = 500


def federated_quadratic(
    learning_rate: float, payload: Literal["weights", "delta"], num_rounds: int, start: float
) -> tuple[Tensor, Tensor, Tensor, float, float]:
    """Clients `F_i(w) = ||w - c_i||^2 / 2` with full-batch steps and two stochastically quantised
    layers.

    Returns:
        Squared gradient norms `[rounds]`, variances `[rounds, clients, 2]`, the centres, `F_0 -
        F*`, `zeta^2`.
    """
    random = torch.Generator().manual_seed(0)
    centres = torch.randn(NUM_CLIENTS, 2, SIZE, generator=random)
    optimum = centres.mean(0)
    weights = optimum + start * torch.randn(2, SIZE, generator=random)
    gap = float((weights - optimum).square().sum() / 2)
    kept = (1 - learning_rate) ** LOCAL_STEPS
    gradients, variances = torch.zeros(num_rounds), torch.zeros(num_rounds, NUM_CLIENTS, 2)
    for step in range(num_rounds):
        gradients[step] = (weights - optimum).square().sum()
        trained = centres + kept * (weights - centres)
        sent = trained if payload == "weights" else weights - trained
        # a row of this matrix is a layer of a client, and each row has a scale of its own
        rows = quantize(sent.flatten(0, 1), BITS, granularity="channel", generator=random)
        received = rows.dequantize().view_as(sent)
        if step % 10 == 0:
            table = [variance_table([*x], [BITS])[:, 0] for x in sent]
            variances[step : step + 10] = torch.stack(table)
        weights = received.mean(0) if payload == "weights" else weights - received.mean(0)
    return (
        gradients,
        variances,
        centres,
        gap,
        float((centres - optimum).square().sum() / NUM_CLIENTS),
    )


def slope(x: list[float], y: list[float]) -> float:
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def test_the_floor_rises_with_quantised_weights_and_falls_with_quantised_differences() -> None:
    rates = [0.005, 0.01, 0.02]
    floors = {
        payload: [
            float(federated_quadratic(rate, payload, 400, start=0.0)[0][200:].mean())
            for rate in rates
        ]
        for payload in ("weights", "delta")
    }
    assert slope(rates, floors["weights"]) == pytest.approx(-1, abs=0.3)
    assert slope(rates, floors["delta"]) == pytest.approx(1, abs=0.3)


@pytest.mark.parametrize("payload", ["weights", "delta"])
def test_the_bound_holds(payload: Literal["weights", "delta"]) -> None:
    gradients, variances, _, gap, heterogeneity = federated_quadratic(0.02, payload, 200, start=1.0)
    bound = convergence_bound(
        initial_gap=gap,
        smoothness=1.0,
        gradient_variance=0.0,
        heterogeneity=heterogeneity,
        learning_rate=0.02,
        local_steps=LOCAL_STEPS,
        num_rounds=200,
        variances=variances.mean(0),
    )
    assert float(gradients.mean()) <= bound.total
    assert bound.quantisation > 0
