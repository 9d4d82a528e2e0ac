"""What a model's ``forward`` is given, from which an ONNX file takes its shapes."""

import inspect
from itertools import chain, islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from bhfl.engine.client.worker import Worker
from bhfl.engine.types import FederatedData

_SAMPLES = 2


def example_of(worker: Worker, data: FederatedData) -> tuple[Any, ...]:
    """The positional arguments of ``forward`` for two samples.

    They are the model's own ``example_input_array``, where it has one. Otherwise a batch goes
    through its test step (or its validation step), and what ``forward`` is called with there is
    taken: a batch may be of any form, with the label first. Where the step calls a part of the
    model alone, it is what the first such part is called with.

    Raises:
        ValueError: There is no batch, or no step calls any part of the model.
    """
    module = worker.module
    own = getattr(module, "example_input_array", None)
    if own is not None:
        return _cut(own if isinstance(own, tuple) else (own,))
    batches = list(islice(chain(data.test_batches(), data.val_batches()), 1))
    if not batches:
        raise ValueError(
            "there is neither a test batch nor a validation batch, from which its inputs are taken"
        )
    calls = _calls(worker, batches)
    if not calls:
        raise ValueError(
            f"neither test_step nor validation_step of {type(module).__name__} calls any layer"
        )
    called, args, kwargs = next((call for call in calls if call[0] is module), calls[0])
    return _cut(inspect.signature(called.forward).bind(*args, **kwargs).args)


def _calls(
    worker: Worker, batches: list[Any]
) -> list[tuple[nn.Module, tuple[Any, ...], dict[str, Any]]]:
    """The parts of the model that a step calls on some batches, and what with."""
    calls: list[tuple[nn.Module, tuple[Any, ...], dict[str, Any]]] = []

    def note(called: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls.append((called, args, kwargs))

    parts = worker.module.modules()
    handles = [part.register_forward_pre_hook(note, with_kwargs=True) for part in parts]
    try:
        worker.evaluate(batches, "test")
        if not calls:
            worker.evaluate(batches, "val")
    except Exception as error:  # of a metric, say: it comes after the call
        if not calls:
            raise ValueError(
                f"the step that shows its inputs failed: {type(error).__name__}: {error}"
            ) from error
    finally:
        for handle in handles:
            handle.remove()
    return calls


def _cut(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """The first samples of all tensors that are as long as the first one."""
    tensors = [leaf for leaf in tree_leaves(arguments) if isinstance(leaf, Tensor) and leaf.dim()]
    rows = len(tensors[0]) if tensors else 0

    def cut(leaf: Any) -> Any:
        return (
            leaf[:_SAMPLES]
            if isinstance(leaf, Tensor) and leaf.dim() and len(leaf) == rows
            else leaf
        )

    with torch.no_grad():
        return tuple(tree_map(cut, arguments))
