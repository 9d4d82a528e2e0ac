"""BatchNorm statistics for weights at another width."""

from collections.abc import Callable, Iterable
from itertools import chain
from typing import Any, TypeVar

import torch
from torch import nn

Model = TypeVar("Model", bound=nn.Module)


@torch.no_grad()
def reestimate_batchnorm_(
    model: Model, batches: Iterable[Any], step: Callable[[Any], object] | None = None
) -> Model:
    """Replace the running statistics of all BatchNorm layers by those of the activations of some
    batches.

    Rounding the weights moves the mean and the variance of what a BatchNorm layer sees; a model
    that is evaluated at a width it was not trained at needs the statistics of that width. The
    result is the mean over the batches, whatever the momentum, and weights, modes, hooks and
    momenta are as before.

    Args:
        model: Called with each batch, with its BatchNorm layers in training mode and everything
            else as in evaluation.
        batches: Inputs of the model; of a tuple or list the first item, as
            ``torch.optim.swa_utils.update_bn`` does.
        step: Called with each batch in place of the model, which it calls itself.

    Returns:
        The model; as it was where it has no BatchNorm layers with running statistics.

    Raises:
        ValueError: There are no batches.
    """
    norms = [
        m
        for m in model.modules()
        if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats
    ]
    if not norms:
        return model
    modes = {module: module.training for module in model.modules()}
    momenta = {norm: norm.momentum for norm in norms}
    waiting = iter(batches)
    try:
        first = next(waiting)
    except StopIteration:
        raise ValueError("reestimate_batchnorm_ needs at least one batch, got none") from None
    try:
        _start_(model, norms)
        for batch in chain([first], waiting):
            if step is not None:
                step(batch)
            else:
                model(batch[0] if isinstance(batch, tuple | list) else batch)
    finally:
        for module, training in modes.items():
            module.training = training
        for norm, momentum in momenta.items():
            norm.momentum = momentum
    return model


def _start_(model: nn.Module, norms: list[nn.modules.batchnorm._BatchNorm]) -> None:
    model.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean of all batches
        norm.training = True
