"""What a layer's bits cost: quantisation variance, harm measured by probing, curvature, and layer
significance.

The chain from a model to the table that `allocation.allocate` reads:

    probe(model, ...)  ->  harm a_l(b), distortion D_l(b)         on the server, every few rounds
    curvature(probe)   ->  h_l, from a_l(b) ~ h_l D_l(b) / 2      sent to the clients, L floats
    variance_table(x)  ->  V_l(b), closed form                    on the client, of what it sends
    layer_costs(h, V)  ->  C_l(b) = h_l V_l(b) / 2                expected loss

Shapes: L layers, P probe widths, B candidate widths. All tables are float64 on the CPU.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from bhfl.quant import quantize
from bhfl.quant.norms import evaluating
from bhfl.quant.rounding import matching_blocks

Evaluate = Callable[[nn.Module], tuple[float, float]]
"""Loss and accuracy (0..1) of a model on held-out data."""


@dataclass(frozen=True)
class Probe:
    """What quantising one layer at a time did to a model.

    Attributes:
        layers: names of the probed parameters, L of them.
        sizes: number of weights of each.
        bits: probed widths, P of them.
        harm: `[L, P]`, `a_l(b)`: loss (or accuracy) lost, never below 0.
        distortion: `[L, P]`, `D_l(b)`: squared error of the quantised weights.
    """

    layers: tuple[str, ...]
    sizes: tuple[int, ...]
    bits: tuple[int, ...]
    harm: Tensor
    distortion: Tensor

    def blend(self, previous: "Probe", decay: float) -> "Probe":
        """Exponential moving average over refreshes: `decay` of `previous`, which probed the same
        layers at the same widths, and the rest of this one.
        """
        return replace(
            self,
            harm=torch.lerp(self.harm, previous.harm, decay),
            distortion=torch.lerp(self.distortion, previous.distortion, decay),
        )


def variance_table(tensors: Sequence[Tensor], candidates: Sequence[int]) -> Tensor:
    """Expected squared errors of stochastic rounding, in closed form: ``V(b) = (M/s)^2 sum_j f_j (1
    - f_j)``.

    ``s = 2**(b-1) - 1`` levels, ``M`` the largest magnitude, ``f_j`` the fractional part of ``|x_j|
    s / M``: each code is a Bernoulli variable between two neighbours, independent of the others.
    This is the quantiser of the wire, `quantize(x, bits, generator=...)`.

    Args:
        tensors: Any shapes, floating; L of them.
        candidates: 2..16, or 32 (no error); B of them.

    Returns:
        [L, B].
    """
    rows = torch.zeros(len(tensors), len(candidates), dtype=torch.float64)
    for row, x in zip(rows, tensors, strict=True):
        # as a row: an empty tensor has no row, and so no largest
        magnitudes = x.detach().abs().float().reshape(-1, max(1, x.numel()))
        largest = magnitudes.amax(1)
        spreads = torch.empty_like(magnitudes, dtype=torch.float64)
        for place, bits in enumerate(candidates):
            if bits == 32:
                continue
            step = largest / (2 ** (bits - 1) - 1)
            # zeros have a step of 0; with any other their fractions are 0
            divisor = step.where(step > 0, 1.0)
            # in blocks that a cache holds
            for part, spread in matching_blocks(magnitudes, spreads):
                fraction = part.div(divisor).frac_()
                spread.copy_((1 - fraction).mul_(fraction))
            row[place] = (step.double().square() * spreads.sum(1)).sum()
    return rows


def layer_costs(curvature: Tensor, variances: Tensor) -> Tensor:
    """`[L, B]`: expected increase of the loss, `h_l V_l(b) / 2`, to second order. `curvature` is
    `[L]`.
    """
    return curvature.double().unsqueeze(1) * variances.double() / 2


def probe(
    model: nn.Module,
    layers: Sequence[str],
    bits: Sequence[int],
    evaluate: Evaluate,
    *,
    metric: Literal["loss", "accuracy"] = "loss",
    generator: torch.Generator | None = None,
) -> Probe:
    """Quantises one layer at a time, evaluates, and puts it back: `1 + L P` evaluations.

    The model runs in eval mode and without gradients, and is left as it was to the bit, whatever
    `evaluate` raises.

    Args:
        model: the global model.
        layers: names of parameters, as of `bhfl.quant.layer_weights`.
        bits: widths to probe, 2..16; few and low, such as (2, 4), say most.
        evaluate: loss and accuracy of the model on held-out data, the same data at every call.
        metric: what harm is measured in. Accuracy on a thousand samples has a standard error of
            over 1 %.
        generator: draws the stochastic rounding, which is what clients send with; None rounds to
            nearest.

    Raises:
        ValueError: `evaluate` returns no finite number.
    """
    weights = [model.get_parameter(name) for name in layers]
    harm = torch.zeros(len(layers), len(bits), dtype=torch.float64)
    distortion = torch.zeros_like(harm)
    with evaluating(model), torch.no_grad():
        reference = _measure(model, evaluate, metric, "untouched")
        for row, (name, weight) in enumerate(zip(layers, weights, strict=True)):
            for column, width in enumerate(bits):
                with _quantized(weight, width, generator) as error:
                    measured = _measure(model, evaluate, metric, f"with {name} at {width} bits")
                # a model that does better quantised does so by chance, and a gain would pay for
                # coarse bits
                harm[row, column] = max(0.0, measured - reference)
                distortion[row, column] = error
    sizes = tuple(weight.numel() for weight in weights)
    return Probe(tuple(layers), sizes, tuple(bits), harm, distortion)


def curvature(probe: Probe, shrinkage: float = 0.5) -> Tensor:
    """`[L]`: curvature of the loss along each layer, calibrated by probing instead of Hessian
    products.

    To second order harm is `a_l(b) = h_l D_l(b) / 2`, so each probe gives an estimate; their median
    over the widths is shrunk towards the mean over the layers: `h_l = shrinkage * estimate_l + (1 -
    shrinkage) * mean`. A layer on which no probe had any error gets the mean. If no probe did any
    harm all are 1, and variance alone decides.

    Args:
        probe: harm and distortion.
        shrinkage: 1 believes the probes alone, 0 gives all layers the same curvature.
    """
    ratios = torch.where(probe.distortion > 0, 2 * probe.harm / probe.distortion, torch.nan)
    # unlike nanmedian, it halves the way between the middle two of an even number
    estimates = ratios.nanquantile(0.5, dim=1)
    mean = estimates.nanmean()
    # NaN too, where no probe had an error
    if not mean > 0:
        return torch.ones_like(estimates)
    return shrinkage * estimates.where(~estimates.isnan(), mean) + (1 - shrinkage) * mean


def significance(probe: Probe, joint: Literal["ratio", "convex"] = "ratio") -> Tensor:
    """`[L]`: layer significance, harm done and memory saved in one number.

    Harm share `a_l = mean_b [a_l(b) / sum_j a_j(b)]`, memory share `m_l = d_l (32 - b) / sum_j d_j
    (32 - b) = d_l / d`. "ratio" is `a_l / m_l`: above 1 a layer is worth protecting, below 1 it is
    worth squeezing. "convex" is the mean of `a_l` and `1 - m_l`. Widths at which nothing did harm
    say nothing: there `a_l = m_l`.
    """
    sizes = torch.tensor(probe.sizes, dtype=torch.float64)
    memory = sizes / sizes.sum()
    total = probe.harm.sum(0)
    shares = probe.harm / total.where(total > 0, 1.0)
    harm = torch.where(total > 0, shares, memory.unsqueeze(1)).mean(1)
    return harm / memory if joint == "ratio" else (harm + (1 - memory)) / 2


def _measure(model: nn.Module, evaluate: Evaluate, metric: str, state: str) -> float:
    """What to keep small: the loss, or minus the accuracy."""
    loss, accuracy = evaluate(model)
    value = float(loss) if metric == "loss" else -float(accuracy)
    if not math.isfinite(value):
        raise ValueError(
            f"evaluate must return a finite {metric}, got {value} for the model {state}"
        )
    return value


@contextmanager
def _quantized(weight: Tensor, bits: int, generator: torch.Generator | None) -> Iterator[float]:
    """Holds the weight quantised, and says by what squared error."""
    original = weight.clone()
    try:
        weight.copy_(quantize(original, bits, generator=generator).dequantize())
        yield float((weight - original).double().square().sum())
    finally:
        weight.copy_(original)
