"""What the bits may cost: a convergence bound for federated averaging with quantised uploads.

**Theorem.** Let every client's loss `F_i` be L-smooth, stochastic gradients unbiased with variance
<= sigma^2, and `sum_i p_i ||grad F_i - grad F||^2 <= zeta^2`; let every layer be quantised without
bias and independently across clients. With all clients in every round, K local steps and `eta <= 1
/ (8 L K)`,

    (1/T) sum_t E ||grad F(w_t)||^2
        <=  4 (F_0 - F*) / (eta K T)                           optimisation
         +  4 L eta sigma^2 sum_i p_i^2                        noise
         +  10 eta^2 L^2 K (sigma^2 + 6 K zeta^2)              drift
         +  2 L / (eta K T) sum_t sum_i p_i^2 sum_l V_{t,i,l}  quantisation

where `V_{t,i,l}` is the expected squared error of layer l of client i in round t
(`significance.variance_table`).

Proof idea: smoothness gives a descent inequality per round; an unbiased error enters it only
through its second moment, and errors of different clients and layers are orthogonal. The drift of
the local steps is bounded as by Reddi et al. 2021, lemma 3.

The last term is a sum over clients and layers: to minimise it under a byte budget is the knapsack
of `allocation`. It also says what to send. Differences `w_t - w_i` shrink like `eta K`, so their
term falls with eta at constant bits. Weights do not shrink: their term grows like `1/eta`, and
every halving of eta takes half a bit more to hold it.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class ConvergenceBound:
    """The terms of the bound, each in the unit of a squared gradient norm.

    Attributes:
        optimisation: the way from the start to the optimum; falls with the number of rounds.
        noise: stochastic gradients, averaged over the clients.
        drift: clients walking towards their own optima in the local steps.
        quantisation_per_layer: the uploads' quantisation error, split over the layers.
    """

    optimisation: float
    noise: float
    drift: float
    quantisation_per_layer: tuple[float, ...]

    @property
    def quantisation(self) -> float:
        """The term of all layers."""
        return math.fsum(self.quantisation_per_layer)

    @property
    def total(self) -> float:
        """The bound itself: the sum of the terms."""
        return math.fsum((self.optimisation, self.noise, self.drift, self.quantisation))


def convergence_bound(  # noqa: PLR0913
    *,
    initial_gap: float,
    smoothness: float,
    gradient_variance: float,
    heterogeneity: float,
    learning_rate: float,
    local_steps: int,
    num_rounds: int,
    variances: npt.ArrayLike,
) -> ConvergenceBound:
    """Bounds the mean squared gradient norm over `num_rounds` rounds; see the theorem above.

    Nothing is checked: it says nothing for arguments outside of what is told here.

    Args:
        initial_gap: `F_0 - F*`, how far the loss can still fall.
        smoothness: `L`, Lipschitz constant of the gradients.
        gradient_variance: `sigma^2` of one stochastic gradient.
        heterogeneity: `zeta^2`, mean squared distance of the clients' gradients from their mean.
        learning_rate: `eta` of the local steps, above 0 and at most `1 / (8 L K)`.
        local_steps: `K`.
        num_rounds: `T`.
        variances: `V`, expected squared quantisation errors, `[clients, layers]`: means over the
            rounds. Zeros for float32. The clients count alike.
    """
    errors = np.asarray(variances, dtype=np.float64)
    squares = np.full(len(errors), 1 / len(errors)) ** 2
    steps = learning_rate * local_steps
    local_noise = gradient_variance + 6 * local_steps * heterogeneity
    return ConvergenceBound(
        optimisation=4 * initial_gap / (steps * num_rounds),
        noise=4 * smoothness * learning_rate * gradient_variance * float(squares.sum()),
        drift=10 * learning_rate**2 * smoothness**2 * local_steps * local_noise,
        quantisation_per_layer=tuple((2 * smoothness / steps * (squares @ errors)).tolist()),
    )


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
