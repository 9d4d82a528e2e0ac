"""Example inputs of a model's ``forward``, from which an ONNX file takes its shapes."""

import inspect
from collections.abc import Iterator
from itertools import chain
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_map

from bhfl.engine.client.worker import Worker
from bhfl.engine.types import FederatedData, server_data
from bhfl.export.qdq import holds_samples
from bhfl.export.qdq import num_samples as rows_of

_SAMPLES = 2
"""The exporter takes a dimension of 1 for a constant, and so needs two."""
Call = tuple[nn.Module, tuple[Any, ...], dict[str, Any]]
"""A module that was called, and its positional and keyword arguments."""


def example_of(worker: Worker, data: FederatedData) -> tuple[Any, ...]:
    """The positional arguments of ``forward`` for two samples.

    They are the model's own ``example_input_array``, where it has one. Otherwise a batch goes
    through its test step (or its validation step), and what ``forward`` is called with there is
    taken, because a batch may be of any form, with the label first. Where the step calls only parts
    of the model, they are what the first such part is called with.

    Args:
        worker: The model, with the means to run its steps.
        data: The data module that gives the batch.

    Raises:
        ValueError: There is no batch, or no step calls any part of the model.
    """
    module = worker.module
    own = getattr(module, "example_input_array", None)
    if isinstance(own, dict):
        # in Lightning, the arguments by name
        own = inspect.signature(module.forward).bind(**own).args
    if own is not None:
        return _cut(own if isinstance(own, tuple) else (own,))
    batch = next(chain(data.test_batches(), data.val_batches()), None)
    if batch is None:
        raise ValueError(
            "there is neither a test batch nor a validation batch, from which its inputs are taken"
        )
    return _cut(_inputs(worker, batch))


def samples_of(worker: Worker, data: FederatedData, num_samples: int) -> Iterator[tuple[Any, ...]]:
    """The positional arguments of ``forward`` for samples of the validation split, batch by batch.

    Args:
        worker: The model, with the means to run its steps.
        data: The data module that gives the batches.
        num_samples: How many samples at most.

    Raises:
        ValueError: There are none, or no step calls any part of the model.
    """
    left = num_samples
    for batch in server_data(data).val_batches(num_samples):
        arguments = _cut(_inputs(worker, batch), left)
        yield arguments
        left -= rows_of(arguments) or 1
        if left <= 0:
            return
    if left == num_samples:
        raise ValueError("there is no validation batch, on which ranges would be found")


def _inputs(worker: Worker, batch: Any) -> tuple[Any, ...]:
    """What ``forward`` is called with on a batch, or else the first part of the model that is."""
    module = worker.module
    calls = _calls(worker, batch)
    if not calls:
        raise ValueError(
            f"neither test_step nor validation_step of {type(module).__name__} calls any layer"
        )
    called, args, kwargs = next((call for call in calls if call[0] is module), calls[0])
    bound = inspect.signature(called.forward).bind(*args, **kwargs)
    # those of a part are only a guess at the module's own
    if called is module and (named := bound.kwargs):
        # what comes after an argument that was left out counts as named
        bound.apply_defaults()
        if lost := [name for name in named if name in bound.kwargs]:
            raise ValueError(
                f"forward of {type(module).__name__} must take by position what its file is to "
                f"compute with, and takes {', '.join(lost)} by keyword alone"
            )
    return bound.args


def _calls(worker: Worker, batch: Any) -> list[Call]:
    """The parts of the model that a step calls on a batch, with the arguments of each call."""
    calls = []
    handles = []
    for part in worker.module.modules():
        # append returns None, by which such a hook leaves the arguments as they are
        note = part.register_forward_pre_hook(lambda *call: calls.append(call), with_kwargs=True)
        handles.append(note)
    try:
        worker.evaluate([batch], "test")
        if not calls:
            worker.evaluate([batch], "val")
    except Exception as error:
        # an error after a call, of a metric, say, does no harm
        if not calls:
            raise ValueError(
                f"the step that shows its inputs failed: {type(error).__name__}: {error}"
            ) from error
    finally:
        for handle in handles:
            handle.remove()
    return calls


def _cut(arguments: tuple[Any, ...], most: int = _SAMPLES) -> tuple[Any, ...]:
    """The first samples of all tensors that are as long as the first one."""
    rows = rows_of(arguments)

    def cut(leaf: Any) -> Any:
        return leaf[:most] if holds_samples(leaf, rows) else leaf

    with torch.no_grad():
        return tuple(tree_map(cut, arguments))
