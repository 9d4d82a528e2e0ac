"""What a LightningModule logs while no Trainer is attached: values are kept, and averaged over
their batches.
"""

import operator
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from numbers import Number
from typing import Any

import lightning as L
from lightning.pytorch.utilities.data import extract_batch_size
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor
from torchmetrics import Metric

_COMBINE: dict[str, Callable[[Any, Any], Any]] = {
    # divided by the sum of its weights when it is asked for
    "mean": operator.add,
    "sum": operator.add,
    "min": min,
    "max": max,
}


class Recorder:
    """Means of logged values, weighted by batch size, in float64 and in the order they came;
    torchmetrics apart.

    ``reduce_fx`` may also be sum, min or max, by name or as torch's or Python's function. A metric
    object is computed at the end of each epoch and begins anew with the next; several epochs are
    averaged by their examples.
    """

    def __init__(self) -> None:
        self.batch_size = 1
        self.num_examples = 0
        self._epochs: dict[str, list[tuple[float, int]]] = {}
        self._computed: list[Metric] = []
        self._sums: dict[str, Any] = {}
        self._weights: dict[str, float] = {}
        self._metrics: dict[str, Metric] = {}

    def log(  # noqa: PLR0913
        self,
        name: str,
        value: Any,
        prog_bar: bool = False,
        logger: bool | None = None,
        on_step: bool | None = None,
        on_epoch: bool | None = None,
        reduce_fx: Any = "mean",
        enable_graph: bool = False,
        sync_dist: bool = False,
        sync_dist_group: Any = None,
        add_dataloader_idx: bool = True,
        batch_size: int | None = None,
        metric_attribute: str | None = None,
        rank_zero_only: bool = False,
    ) -> None:
        """`LightningModule.log`: a number, a one-element tensor, or a Metric; the other options
        change nothing here.

        Raises:
            ValueError: It is something else, or `reduce_fx` is another function.
        """
        if isinstance(value, Metric):
            # computed at the end of the epoch: a mean of its values by batch would be another
            # number
            self._metrics[name] = value
            return
        number = _number(name, value)
        how = getattr(reduce_fx, "__name__", reduce_fx)
        if how not in _COMBINE:
            raise ValueError(
                f"self.log({name!r}, ...): reduce_fx must be mean, sum, min or max, got "
                f"{reduce_fx!r}"
            )
        weight = float(batch_size or self.batch_size) if how == "mean" else 1.0
        if name not in self._sums:
            self._sums[name] = weight * number
            self._weights[name] = weight
            return
        self._sums[name] = _COMBINE[how](self._sums[name], weight * number)
        if how == "mean":
            self._weights[name] += weight

    def log_dict(self, dictionary: Mapping[str, Any], *flags: Any, **options: Any) -> None:
        """`LightningModule.log_dict`."""
        for name, value in dictionary.items():
            self.log(name, value, *flags, **options)

    def observe(self, batch: Any) -> None:
        """Take the batch size of `batch` for the values logged until the next one; 1 where it has
        no tensor.
        """
        self.batch_size = size_of(batch)
        self.num_examples += self.batch_size

    @contextmanager
    def epoch_end(self) -> Iterator[None]:
        """Around the hook at the end of an epoch: what was logged before it is computed first, for
        it may reset it.
        """
        values = self._compute()
        self._metrics.clear()
        yield
        # the hook itself may log further ones
        values |= self._compute()
        self._metrics.clear()
        for name, value in values.items():
            self._epochs.setdefault(name, []).append((value, max(1, self.num_examples)))

    def begin_epoch(self) -> None:
        """Let the metric objects of the epoch before begin anew."""
        for metric in self._computed:
            metric.reset()
        self._computed.clear()
        self.num_examples = 0

    def _compute(self) -> dict[str, float]:
        self._computed += self._metrics.values()
        return {name: _one_value(name, metric.compute()) for name, metric in self._metrics.items()}

    def means(self) -> dict[str, float]:
        """Name to mean, metric objects computed."""
        means = {name: float(total) / self._weights[name] for name, total in self._sums.items()}
        for name, epochs in self._epochs.items():
            # one epoch's value as it is: times and over its weight it may be rounded
            total = sum(value * weight for value, weight in epochs)
            several = len(epochs) > 1
            means[name] = total / sum(weight for _, weight in epochs) if several else epochs[0][0]
        return means | self._compute()


def size_of(batch: Any) -> int:
    """The size of a batch of whatever form; 1 where it has no tensors to tell it by."""
    # the inputs come first; Lightning's search warns where tensors of a batch differ in length
    first = batch[0] if isinstance(batch, (list, tuple)) and batch else batch
    if isinstance(first, Tensor) and first.ndim:
        return len(first)
    with suppress(MisconfigurationException):
        return extract_batch_size(batch)
    return 1


def _number(name: str, value: Any) -> Any:
    """A logged value in float64. A tensor stays one, so that nobody waits for the device."""
    if not isinstance(value, (Tensor, Number)):
        raise ValueError(
            f"self.log({name!r}, ...) needs a number, a tensor or a metric, got "
            f"{type(value).__name__}"
        )
    if not isinstance(value, Tensor):
        return float(value)  # type: ignore[arg-type]
    if value.numel() != 1:
        raise ValueError(
            f"self.log({name!r}, ...) needs one value, got a tensor of shape {tuple(value.shape)}"
        )
    return value.detach().double()


def _one_value(name: str, value: Any) -> float:
    if is_one_number(value):
        return float(value)
    shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
    raise ValueError(f"self.log({name!r}, ...) needs a metric of one value, got {shape}")


def is_one_number(value: Any) -> bool:
    """Whether something is a number, or a tensor of one."""
    return isinstance(value, (int, float)) or (isinstance(value, Tensor) and value.numel() == 1)


def tag_of(name: str) -> str:
    """The run's tag for what a module logs as `name`: ``val_loss`` is ``val/loss``, ``acc`` is
    ``train/acc``.
    """
    found = re.fullmatch(r"(train|val|test)[/_](.+)", name, re.DOTALL)
    return f"{found[1]}/{found[2]}" if found else f"train/{name}"


@contextmanager
def recording(module: L.LightningModule) -> Iterator[Recorder]:
    """Send what `module` logs to the yielded Recorder instead of a Trainer."""
    recorder = Recorder()
    local = [metric for metric in module.modules() if isinstance(metric, Metric)]
    for metric in local:
        # what one process evaluates is its own: others do not come to this compute with it
        metric.sync_on_compute = False
        # nothing is left of the client or the model before
        metric.reset()
    # attributes of the object hide the methods of its class until they are deleted
    module.log, module.log_dict = recorder.log, recorder.log_dict  # type: ignore[method-assign, assignment]
    try:
        yield recorder
    finally:
        del module.log, module.log_dict
