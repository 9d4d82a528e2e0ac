"""The memory format of images and convolution weights: tried on a copy of the model, decided once
by one process.
"""

import copy
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

import lightning as L
import torch
from lightning.fabric import Fabric
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from bhfl.engine.calls import call_step
from bhfl.engine.client.layout import Layout
from bhfl.engine.client.module_hooks import overrides
from bhfl.engine.client.optim import configured
from bhfl.engine.client.plain import STEPS
from bhfl.engine.client.recorder import recording
from bhfl.engine.client.worker import Worker
from bhfl.engine.random import RandomKeys, seed_globals
from bhfl.engine.roster import Roster
from bhfl.engine.types import FederatedData, ServerState
from bhfl.quant.memory_format import has_usual_strides, needs_contiguous
from bhfl.settings import Settings

Wanted = bool | Literal["auto"]

_TOLERANCE = 0.1
"""Gradients that differ by more than this share are other gradients; orders of summation differ by
far less.
"""
_IGNORED = ("lr_schedulers", "toggle_optimizer", "untoggle_optimizer", "clip_gradients")
"""What a module that optimises manually may call, to no effect in the one step of a trial."""
_NOISE = 0.01
"""Gradients smaller than this share of the largest are compared with that share: they may be
rounding alone.
"""


@dataclass
class _Trial:
    """What became of one batch."""

    errors: dict[str, Exception] = field(default_factory=dict)
    """What was raised, by the step that raised it."""
    loss: float | None = None
    gradients: list[Tensor] = field(default_factory=list)


def with_format(
    server: ServerState, settings: Settings, worker: Worker, clients: Roster, data: FederatedData
) -> ServerState:
    """A first server state with the memory format that its run takes; see `agree_on_format`.

    Args:
        server: Before the first round.
        settings: The trainer's settings.
        worker: This process's module.
        clients: The fleet; the first of those with the most examples gives a batch.
        data: Already split.
    """

    def first() -> Any:
        client = clients[int(clients.sizes.argmax())]
        batches = data.client_batches(client.id, RandomKeys(settings.cohort.seed, 0, client.id), 0)
        return next(iter(worker.on_device(batches)))

    chosen = agree_on_format(settings.machine.channels_last, worker.module, worker.fabric, first)
    return replace(server, channels_last=chosen)


def agree_on_format(
    wanted: Wanted, module: L.LightningModule, fabric: Fabric, first: Callable[[], Any]
) -> bool:
    """Whether a run keeps images in channels_last: the first process tries it, and all take its
    word.

    Neither the module nor any random stream is touched.

    Args:
        wanted: ``trainer.channels_last``.
        module: The model, contiguous.
        fabric: Gives device and precision, and carries the word.
        first: Gives a training batch on the device.

    Raises:
        ValueError: It is wanted, and the module cannot take it.
    """
    verdict = (False, "")
    if fabric.is_global_zero:
        verdict = _verdict(wanted, module, fabric, first)
    chosen, why = fabric.broadcast(verdict)
    if why and wanted is True:
        raise ValueError(
            f"trainer.channels_last: true does not fit {type(module).__name__}: {why}; set "
            "trainer.channels_last to auto or false"
        )
    if why and fabric.is_global_zero:
        warnings.warn(
            f"trainer.channels_last: auto takes contiguous images, which can be slower: {why}",
            stacklevel=2,
        )
    return chosen


def _verdict(
    wanted: Wanted, module: L.LightningModule, fabric: Fabric, first: Callable[[], Any]
) -> tuple[bool, str]:
    """Whether it is taken, and why not where that is to be said: an error in both formats is not
    the format's.
    """
    if wanted is False or not any(parameter.ndim == 4 for parameter in module.parameters()):
        # only weights of four dimensions, as of 2D convolutions, gain from it
        return wanted is True, ""
    with isolate_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return _compared(wanted, partial(_tried, module, fabric, first()))
        # the data's, or no copy can be made: the run itself shows what it comes to
        except Exception as error:
            if wanted is True:
                return True, ""
            return False, f"{type(module).__name__} cannot be tried ({_line(error)})"


def _compared(wanted: Wanted, tried: Callable[..., _Trial]) -> tuple[bool, str]:
    """The verdict from trials in both formats."""
    plain = tried(False)
    last = tried(True)
    for step, fault in last.errors.items():
        if step not in plain.errors:
            why = (
                f"{step} fails on images in channels_last ({_line(fault)}), and does not on others"
            )
            return False, why
    if wanted is True or last.errors:
        return wanted is True, ""
    # dropout draws other masks in another format: then without it
    if _same(plain, last) or _same(tried(False, True), tried(True, True)):
        return True, ""
    return False, "training_step computes other gradients from images in channels_last"


def _tried(
    module: L.LightningModule,
    fabric: Fabric,
    batch: Any,
    channels_last: bool,
    as_evaluated: bool = False,
) -> _Trial:
    """One step of training, and one of each evaluation, of a copy of the module.

    Args:
        module: Copied.
        fabric: Gives device and precision.
        batch: Copied.
        channels_last: The format to try.
        as_evaluated: Train in evaluation mode, without dropout: its draws depend on the format.
    """
    trial = _Trial()
    # the fabric is shared: it stands for processes and devices, which no copy has
    tried = copy.deepcopy(module, {id(fabric): fabric})
    # the forward of a compiled module is bound to the original
    vars(tried).pop("forward", None)
    # Lightning leaves the trainer out of copies
    tried.trainer = module._trainer
    layout = Layout(tried)
    layout.take_(channels_last)
    for name in ("training_step", *STEPS.values()):
        training = name == "training_step"
        if not overrides(tried, name, L.LightningModule) or (as_evaluated and not training):
            continue
        step = getattr(tried, name)
        if not training or as_evaluated:
            tried.eval()
        # both formats draw alike, as far as their draws do not depend on the format
        seed_globals(0, fabric.device)
        try:
            with recording(tried), fabric.autocast(), torch.set_grad_enabled(training), _NoCrash():  # type: ignore[no-untyped-call]
                # a step may change its batch in place
                images = layout.batch(copy.deepcopy(batch))
                _train(tried, step, images, trial) if training else call_step(step, images, 0)
        except Exception as error:
            trial.errors[name] = error
    return trial


def _train(module: L.LightningModule, step: Callable[..., Any], batch: Any, trial: _Trial) -> None:
    """A training step, backward and the optimisers' steps; a module that optimises by itself does
    so.
    """
    optimizers, _ = configured(module)
    if not module.automatic_optimization:
        with _optimised_by_itself(module, optimizers):
            call_step(step, batch, 0)
        return
    output = call_step(step, batch, 0)
    loss = output.get("loss") if isinstance(output, dict) else output
    if loss is None:
        return
    # torch advises against a backward pass under autocast
    with torch.autocast(loss.device.type, enabled=False):
        loss.backward()
    trial.loss = float(loss.detach())
    trial.gradients = [p.grad.detach().clone() for p in module.parameters() if p.grad is not None]
    for optimizer in optimizers:
        # its step may fail by the format too: LBFGS, which insists on a closure, views gradients
        optimizer.step(lambda: loss.detach())


@contextmanager
def _optimised_by_itself(
    module: L.LightningModule, optimizers: list[torch.optim.Optimizer]
) -> Iterator[None]:
    """What a module that optimises manually calls, on plain optimisers."""
    lent = {
        "optimizers": lambda *_, **__: optimizers if optimizers[1:] else optimizers[0],
        "manual_backward": lambda loss, *arguments, **options: loss.backward(*arguments, **options),
        **dict.fromkeys(_IGNORED, lambda *_, **__: None),
    }
    vars(module).update(lent)
    try:
        yield
    finally:
        for name in lent:
            vars(module).pop(name)


class _NoCrash(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Raises before a convolution that would crash, where no layer of torch's has seen to its
    operands.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # oneDNN writes past its workspace there, which kills the process before any `except`
        strided = func is torch.ops.aten.convolution.default and needs_contiguous(
            args[1].shape, args[3]
        )
        if strided and any(x.stride(-3) == 1 and not has_usual_strides(x) for x in args[:2]):
            raise RuntimeError(
                "a strided 1x1 convolution of fewer than 8 channels crashes in this format"
            )
        return func(*args, **(kwargs or {}))


def _same(plain: _Trial, last: _Trial) -> bool:
    """Whether both formats came to the same loss and gradients, but for rounding."""
    if plain.loss is None or last.loss is None:
        return plain.loss is last.loss
    sizes = [float(g.norm()) for g in plain.gradients]
    least = _NOISE * max(sizes, default=0.0)
    close = len(plain.gradients) == len(last.gradients) and all(
        _near(float((a - b).norm()), max(size, least))
        for a, b, size in zip(plain.gradients, last.gradients, sizes, strict=True)
    )
    return close and _near(abs(plain.loss - last.loss), abs(plain.loss))


def _near(distance: float, size: float) -> bool:
    """Whether a distance is that of rounding, beside a size; anything is near what is not finite,
    of which nothing can be told.
    """
    return distance <= _TOLERANCE * size or not math.isfinite(size)


def _line(error: Exception) -> str:
    """The first line of an error, with its kind."""
    first, *_ = str(error).splitlines() or [""]
    return f"{type(error).__name__}: {first[:200]}"
