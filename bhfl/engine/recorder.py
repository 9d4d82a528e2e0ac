"""What a LightningModule logs while no Trainer is attached: values are kept, and averaged over their batches."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.data import extract_batch_size
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torchmetrics import Metric

_COMBINE: dict[str, Callable[[Any, Any], Any]] = {"mean": operator.add, "sum": operator.add, "min": min, "max": max}


class Recorder:
    """Means of logged values, weighted by batch size, in float64 and in the order they came; torchmetrics apart.

    ``reduce_fx`` may also be sum, min or max, by name or as torch's or Python's function.
    """

    def __init__(self) -> None:
        self.batch_size = 1
        self._sums: dict[str, Any] = {}
        self._weights: dict[str, float] = {}
        self._metrics: dict[str, Metric] = {}

    def log(
        self, name: str, value: Any, *_: Any, batch_size: int | None = None, reduce_fx: Any = "mean", **__: Any
    ) -> None:
        """`LightningModule.log`: a number, a one-element tensor, or a Metric (computed at the end).

        Raises:
            ValueError: The tensor has several elements, or `reduce_fx` is another function.
        """
        if isinstance(value, Metric):
            self._metrics[name] = value
            return
        if isinstance(value, torch.Tensor) and value.numel() != 1:
            raise ValueError(f"self.log({name!r}, ...) needs one value, got a tensor of shape {tuple(value.shape)}")
        how = getattr(reduce_fx, "__name__", reduce_fx)
        if how not in _COMBINE:
            raise ValueError(f"self.log({name!r}, ...): reduce_fx must be mean, sum, min or max, got {reduce_fx!r}")
        number = value.detach().double() if isinstance(value, torch.Tensor) else float(value)  # no wait for the device
        weight = float(batch_size or self.batch_size) if how == "mean" else 1.0
        first = name not in self._sums
        self._sums[name] = weight * number if first else _COMBINE[how](self._sums[name], weight * number)
        self._weights[name] = weight if first or how != "mean" else self._weights[name] + weight

    def log_dict(self, dictionary: Mapping[str, Any], *_: Any, **options: Any) -> None:
        """`LightningModule.log_dict`."""
        for name, value in dictionary.items():
            self.log(name, value, **options)

    def observe(self, batch: Any) -> None:
        """Take the batch size of `batch` for the values logged until the next one; 1 where it has no tensor."""
        first = batch[0] if isinstance(batch, (list, tuple)) and batch else batch
        if isinstance(first, torch.Tensor) and first.ndim:
            self.batch_size = len(first)
            return
        try:
            self.batch_size = extract_batch_size(batch)
        except MisconfigurationException:
            self.batch_size = 1

    def means(self) -> dict[str, float]:
        """Name to mean, metric objects computed."""
        means = {name: float(total) / self._weights[name] for name, total in self._sums.items()}
        return means | {name: _one_value(name, metric.compute()) for name, metric in self._metrics.items()}


def _one_value(name: str, value: Any) -> float:
    if isinstance(value, (int, float)) or (isinstance(value, torch.Tensor) and value.numel() == 1):
        return float(value)
    shape = tuple(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__
    raise ValueError(f"self.log({name!r}, ...) needs a metric of one value, got {shape}")


def tag_of(name: str) -> str:
    """The run's tag for what a module logs as `name`: ``val_loss`` is ``val/loss``, ``acc`` is ``train/acc``."""
    stage, _, rest = name.replace("_", "/", 1).partition("/")
    return f"{stage}/{rest}" if stage in ("train", "val", "test") and rest else f"train/{name}"


@contextmanager
def recording(module: L.LightningModule) -> Iterator[Recorder]:
    """Send what `module` logs to the yielded Recorder instead of a Trainer."""
    recorder = Recorder()
    local = [metric for metric in module.modules() if isinstance(metric, Metric)]
    for metric in local:
        metric.sync_on_compute = False  # what one process evaluates is its own
        metric.reset()  # nothing is left of the client or the model before
    module.log, module.log_dict = recorder.log, recorder.log_dict  # type: ignore[method-assign, assignment]
    try:
        yield recorder
    finally:
        del module.log, module.log_dict
