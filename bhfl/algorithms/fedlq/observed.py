"""The convergence bound of a round, from what clients and server logged of it."""

import math
from collections.abc import Mapping, Sequence

from bhfl.algorithms.fedlq.bound import convergence_bound


def observed_bound(
    layers: Sequence[str], metrics: Mapping[str, float], num_rounds: int
) -> dict[str, float]:
    """``fedlq/bound``, its quantisation term and that term by layer, as if all rounds were like
    this one.

    Clients count alike. The loss stands for the gap ``F - F*``; the dispersion of the clients'
    moves, which a server can see, for both the gradients' variance and the clients' heterogeneity,
    so that each is charged in full; and the smoothness is the largest for which the theorem holds
    at this step size, ``1 / (8 eta K)``.

    Args:
        layers: Names of the quantised layers.
        metrics: The row of the round.
        num_rounds: Rounds of the run.

    Returns:
        Numbers by tag; none where the round came to nothing, its model to no numbers, or a client
        reported what cannot be.
    """
    variances = [metrics.get(f"fedlq/variance_{name}", math.nan) for name in layers]
    loss = metrics.get("train/loss", math.nan)
    lr_sum = metrics.get("fedlq/lr_sum", math.nan)
    steps = metrics.get("fedlq/steps", math.nan)
    spread = metrics.get("fedlq/move_squared", math.nan)
    spread -= metrics.get("fedlq/step_squared", math.nan)
    known = all(map(math.isfinite, (loss, lr_sum, steps, spread, *variances)))
    if not known or lr_sum <= 0 or min(variances) < 0:
        return {}
    num_steps = max(1, round(steps))
    dispersion = max(0.0, spread) / lr_sum**2
    bound = convergence_bound(
        initial_gap=max(0.0, loss),
        smoothness=1 / (8 * lr_sum),
        gradient_variance=num_steps * dispersion,
        heterogeneity=dispersion,
        learning_rate=lr_sum / num_steps,
        local_steps=num_steps,
        num_rounds=num_rounds,
        variances=[variances] * int(metrics["clients/ok"]),
    )
    found = {"fedlq/bound": bound.total, "fedlq/bound_quantisation": bound.quantisation}
    for name, term in zip(layers, bound.quantisation_per_layer, strict=True):
        found[f"fedlq/bound_{name}"] = term
    return found
