"""The empirical analysis behind layer-wise bits: what each layer saves, and what quantising it
alone costs.

One row a layer, of plain values, so that it is a line of CSV as it stands (`bhfl analyze`):

    layer, kind, parameters
    saved_bytes_<b>      bytes on the wire against float32, codes and scale counted
    variance_<b>         expected squared error of stochastic rounding
    loss_increase_<b>    held-out loss with only this layer quantised, less that of the whole model
    accuracy_drop_<b>    0..1, likewise; left out where the model has no accuracy
    significance         harm share by memory share; above 1 the layer is worth protecting
    curvature            `h_l`, such that `h_l V_l(b) / 2` is the expected increase of the loss
    bound_share_<b>      share of the convergence bound's quantisation term, all layers at b bits

The first two of a width stand for each of `CANDIDATES`, the next two for each probed width, and the
last for one width; its shares sum to 1.

Shapes: L layers, P probed widths.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from bhfl.algorithms.fedlq.allocation import layer_bits
from bhfl.algorithms.fedlq.significance import Probe, curvature, probe, significance, variance_table
from bhfl.analysis.reuse import reusing
from bhfl.quant import layer_weights

CANDIDATES = (2, 3, 4, 6, 8, 16)

Row = dict[str, str | int | float]
"""One layer; see the columns above."""


@dataclass(frozen=True)
class LayerHarm:
    """What quantising one layer at a time did to a model.

    Attributes:
        probe: What `significance` and `curvature` take.
        loss: The loss of the model as it is.
        accuracy: Its accuracy, 0..1; nan where it has none.
        loss_increase: `[L, P]`, below 0 where quantising helped.
        accuracy_drop: `[L, P]`, nan where there is no accuracy.
    """

    probe: Probe
    loss: float
    accuracy: float
    loss_increase: Tensor
    accuracy_drop: Tensor


def layer_harm(
    model: nn.Module,
    bits: Sequence[int],
    evaluate: Callable[[Any], tuple[float, float]],
    chunks: Sequence[tuple[int, Any]],
    *,
    seed: int = 0,
    progress: Callable[[int], object] = lambda num_samples: None,
) -> LayerHarm:
    """Quantises one layer at a time and evaluates; the model is left as it was, to the bit.

    Chunk by chunk, so that what comes before the quantised layer need be computed only once (see
    `reuse`) and only one chunk's activations are kept. The draws of the stochastic rounding are the
    same in all chunks.

    Args:
        model: The global model, of which `bhfl.quant.layer_weights` are the L layers.
        bits: Widths to probe, 2..16, P of them.
        evaluate: Gives mean loss and accuracy of the model on a chunk; nan for no accuracy.
        chunks: Numbers of samples, and what `evaluate` takes; at least one.
        seed: The seed of the stochastic rounding.
        progress: Called after each evaluation, with the samples it took.

    Raises:
        ValueError: As `significance.probe`.
    """
    total = torch.zeros((), dtype=torch.float64)
    part: Any = None
    for size, chunk in chunks:
        evaluated = partial(evaluate, chunk)
        part, measured = _probe_chunk(model, bits, evaluated, seed, partial(progress, size))
        total = total + size * measured
    reference, *quantized = total / sum(size for size, _ in chunks)
    change = torch.stack(quantized).sub_(reference).view(-1, len(bits), 2)
    increase = change[..., 0]
    # cut off at 0 only here, because a mean of cut-off parts would be too high; the distortion is
    # that of any chunk, as all of them draw alike
    found = Probe(part.layers, part.sizes, part.bits, increase.clamp(min=0), part.distortion)
    return LayerHarm(found, float(reference[0]), float(reference[1]), increase, -change[..., 1])


def _probe_chunk(
    model: nn.Module,
    bits: Sequence[int],
    evaluate: Callable[[], tuple[float, float]],
    seed: int,
    progress: Callable[[], object],
) -> tuple[Probe, Tensor]:
    """A probe, and losses and accuracies `[1 + L P, 2]` in its order."""
    measured = []
    layers = layer_weights(model)
    device = model.get_parameter(layers[0]).device
    with reusing(model) as reuse:

        def evaluated(_: nn.Module) -> tuple[float, float]:
            measured.append(evaluate())
            # the first evaluation is that of the model as it is, from which later ones are answered
            reuse.records = False
            progress()
            return measured[-1]

        # made anew for each chunk, so that all chunks meet the same quantised weights
        generator = torch.Generator(device).manual_seed(seed)
        part = probe(model, layers, bits, evaluated, generator=generator)
    return part, torch.tensor(measured, dtype=torch.float64)


def layer_rows(model: nn.Module, harm: LayerHarm, *, uniform_bits: int = 4) -> list[Row]:
    """One row a layer, in the order of `harm`; see the top of this file for the columns.

    Args:
        model: The model that `harm` is of.
        harm: See `layer_harm`.
        uniform_bits: Width of all layers at which the bound's quantisation term is shared out.
    """
    found = harm.probe
    weights = [model.get_parameter(name) for name in found.layers]
    variances = variance_table(weights, CANDIDATES)
    joint = significance(found)
    bent = curvature(found)
    # the bound's quantisation term is a sum over the layers of what is the same for all of them
    # times the variance (`bhfl.algorithms.fedlq.bound`), so the shares are those of the variances
    terms = variance_table(weights, [uniform_bits])[:, 0].tolist()
    total = math.fsum(terms) or 1.0
    rows = []
    for i, (name, size) in enumerate(zip(found.layers, found.sizes, strict=True)):
        layer = model.get_submodule(name.rpartition(".")[0])
        kind = type(layer).__name__.removeprefix("Quant")
        row: Row = {"layer": name, "kind": kind, "parameters": size}
        for b in CANDIDATES:
            row[f"saved_bytes_{b}"] = (layer_bits(size, 32) - layer_bits(size, b)) // 8
        row |= _columns("variance", CANDIDATES, variances[i])
        row |= _columns("loss_increase", found.bits, harm.loss_increase[i])
        if not math.isnan(harm.accuracy):
            row |= _columns("accuracy_drop", found.bits, harm.accuracy_drop[i])
        row["significance"] = float(joint[i])
        row["curvature"] = float(bent[i])
        row[f"bound_share_{uniform_bits}"] = terms[i] / total
        rows.append(row)
    return rows


def _columns(name: str, bits: Sequence[int], values: Tensor) -> dict[str, float]:
    """The columns of a row that hold one value for each width."""
    return {f"{name}_{b}": float(value) for b, value in zip(bits, values, strict=True)}
