"""Evaluation mode for a while, and BatchNorm statistics for weights that are quantised to another
width.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any, TypeVar

import torch
from torch import nn

Model = TypeVar("Model", bound=nn.Module)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode, and then each of its modules in the mode that it was in."""
    # train() would give all modules one mode, also those that were kept in evaluation
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@torch.no_grad()
def reestimate_batchnorm_(
    model: Model, batches: Iterable[Any], step: Callable[[Any], object] | None = None
) -> Model:
    """Measure the running statistics of all BatchNorm layers anew, on some batches.

    Rounding the weights moves the mean and the variance of what a BatchNorm layer sees; a model
    that is evaluated at a width it was not trained at needs the statistics of that width. They
    become the mean over the batches, whatever the momentum; weights, modes, hooks and momenta are
    as before.

    Args:
        model: Called with each batch, with its BatchNorm layers in training mode and everything
            else as in evaluation.
        batches: Inputs of the model; of a tuple or list the first item, as
            ``torch.optim.swa_utils.update_bn`` does.
        step: A function that is called with each batch in place of the model, and calls the model
            itself.

    Returns:
        The model, unchanged if it has no BatchNorm layers with running statistics.

    Raises:
        ValueError: There are no batches.
    """
    momenta = {
        module: module.momentum
        for module in model.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats
    }
    if not momenta:
        return model
    waiting = iter(batches)
    try:
        # without a batch the statistics stay, so one has to be there before they are reset
        first = next(waiting)
    except StopIteration:
        raise ValueError("reestimate_batchnorm_ needs at least one batch, got none") from None
    with evaluating(model):
        try:
            for norm in momenta:
                norm.reset_running_stats()
                # torch then takes the mean of all batches, and not a moving average
                norm.momentum = None
                norm.training = True
            for batch in chain([first], waiting):
                if step is not None:
                    step(batch)
                else:
                    model(batch[0] if isinstance(batch, tuple | list) else batch)
        finally:
            for norm, momentum in momenta.items():
                norm.momentum = momentum
    return model
